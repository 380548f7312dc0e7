# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Synthesised attention on a token grid as plain functions: tensors in, tensors out.

Source: Zhu et al., "Synthesizer Based Efficient Self-Attention for Vision Tasks" (STT), arXiv 2201.01410; after
Tay et al., "Synthesizer", arXiv 2005.00743. The `N` tokens lie on a grid of `n_1 × … × n_k`, the last axis runs
fastest. One row-stochastic matrix `A_a` for every axis is applied as a mode product:

    Y = V ×_1 A_1 ×_2 A_2 … ×_k A_k              the map is A_1 ⊗ … ⊗ A_k

`p` prefix tokens, such as `[CLS]`, come before the grid. Every row of the map splits its attention: the share `s_0`
goes to the grid, as above, and the shares `s_1 … s_p` to the prefix tokens. A prefix token has no place on the grid;
what it spends there is `a_1 ⊗ … ⊗ a_k`, with one vector an axis. These vectors are the first `p` rows of each
`A_a`, which thus is `(p + n_a) × n_a`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor

from .numerics_hf_lam import (
    empty_output,
    format_shape,
    has_dispatch_mode,
    needs_plain_operators,
    product_dtype,
    softmax_dtype,
    without_autocast,
)
from .padding_hf_lam import check_padding
from .threads_hf_lam import Scratch, enough_parts, even_slices, load, parts_at_once, run_parts

IMPLEMENTATIONS = ("auto", "eager", "modes")

# What a map is made of: the weights of the axes, and the prefix tokens' shares.
_MapFactors = tuple[Sequence[Tensor], Tensor | None]

# Elements of the values that are worked on at once, a number of whole samples; 2 MiB in fp32 stay near the cores.
_CPU_CHUNK = 2**19
# Fewer elements are computed sooner than another thread has begun.
_MIN_SHARED = 2**14


def stt_attention(
    value: Tensor,
    axis_weights: Sequence[Tensor],
    *,
    prefix_shares: Tensor | None = None,
    attention_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Apply a synthesised attention map to the values (STT, arXiv 2201.01410).

    Args:
        value: `(B, H, p + n_1·…·n_k, D)`, prefix tokens first, then the grid in row-major order; its dtype is the
            dtype of the result.
        axis_weights: one for every axis, `(B or 1, H, p + n_a, n_a)`, whose rows sum to one: the prefix tokens' rows
            first, then one for every place on the axis.
        prefix_shares: `(B or 1, H, p + n_1·…·n_k, 1 + p)`, whose rows sum to one: how each token's attention is
            divided between the grid, which comes first, and the prefix tokens. `None` without prefix tokens.
        attention_mask: padding of the keys, broadcastable to `(B, H, 1, L)`: bool (True = may attend), or additive
            floating point. What would go to padding goes to the other tokens, in proportion.
        dropout_p: probability, in [0, 1), with which a weight is zeroed (the others grow accordingly). The whole map
            is never there, so these are the weights of the axes and the prefix tokens' shares; on one axis it is the
            usual dropout.
        implementation: "eager" forms the whole map, then multiplies; "modes" applies the axes one after the other;
            "auto" is "modes".

    Returns:
        `(B, H, p + n_1·…·n_k, D)`; zeros for a query that sees no key.

    Raises:
        TypeError: a tensor of a dtype that has no meaning here.
        ValueError: sizes that do not fit, an unknown `implementation`, a `dropout_p` outside [0, 1), or a floating
            point `attention_mask` of zeros and ones, which would mask nothing.

    Examples:
        >>> import torch
        >>> from hf_lam import stt_attention
        >>> rows, columns = torch.randn(2, 4, 3, 3).softmax(-1), torch.randn(2, 4, 5, 5).softmax(-1)
        >>> stt_attention(torch.randn(2, 4, 15, 8), [rows, columns]).shape  # a grid of 3 × 5
        torch.Size([2, 4, 15, 8])
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}.")
    options: dict[str, Any] = {
        "prefix_shares": prefix_shares,
        "attention_mask": attention_mask,
        "dropout_p": dropout_p,
    }
    if implementation == "eager":
        return stt_attention_with_weights(value, axis_weights, **options)[0]
    attention_mask = _check_arguments(value, axis_weights, prefix_shares, attention_mask, dropout_p)
    with without_autocast(value.device.type):
        dropped = _drop_out(axis_weights, prefix_shares, dropout_p, value.shape[0])
        if attention_mask is None:
            return _apply_map(value, *dropped)
        # (A (e^P ⊙ V)) / (A e^P), the latter without dropout: it would cancel.
        factors = _factors(attention_mask, softmax_dtype(value.dtype))[:, :, 0, :, None].expand(*value.shape[:3], 1)
        total = _products(factors, axis_weights, prefix_shares)
        return (_apply_map(value * factors, *dropped) / _positive(total)).to(value.dtype)


def stt_attention_with_weights(
    value: Tensor,
    axis_weights: Sequence[Tensor],
    *,
    prefix_shares: Tensor | None = None,
    attention_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The reference: [`stt_attention`] with its attention map; same arguments and errors.

    Returns:
        The output `(B, H, L, D)`, and the weights `(B, H, L, L)` that multiplied the values: after dropout, as in
        transformers' eager attention.
    """
    attention_mask = _check_arguments(value, axis_weights, prefix_shares, attention_mask, dropout_p)
    with without_autocast(value.device.type):
        dropped = _drop_out(axis_weights, prefix_shares, dropout_p, value.shape[0])
        weights = _normalize_map(dropped, (axis_weights, prefix_shares), attention_mask)
        weights = weights.to(value.dtype).expand(value.shape[0], -1, -1, -1)
        return weights @ value, weights


def _drop_out(
    axis_weights: Sequence[Tensor], prefix_shares: Tensor | None, dropout_p: float, batch: int
) -> _MapFactors:
    """The factors of the map after dropout, which every sample gets for itself."""
    if dropout_p == 0:
        return axis_weights, prefix_shares
    axis_weights = [torch.dropout(axis.expand(batch, -1, -1, -1), dropout_p, train=True) for axis in axis_weights]
    if prefix_shares is not None:
        of_prefix = torch.dropout(prefix_shares[..., 1:].expand(batch, -1, -1, -1), dropout_p, train=True)
        prefix_shares = torch.cat([prefix_shares[..., :1].expand(batch, -1, -1, -1), of_prefix], dim=-1)
    return axis_weights, prefix_shares


def _check_arguments(
    value: Tensor,
    axis_weights: Sequence[Tensor],
    prefix_shares: Tensor | None,
    attention_mask: Tensor | None,
    dropout_p: float,
) -> Tensor | None:
    """The padding with 4 dimensions and all keys, once everything is found to fit."""
    _check_shapes(value, axis_weights, prefix_shares)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}.")
    if attention_mask is None:
        return None
    return check_padding(attention_mask, (*value.shape[:2], 1, value.shape[2]))


def _check_shapes(value: Tensor, axis_weights: Sequence[Tensor], prefix_shares: Tensor | None) -> None:
    named = [("value", value), *((f"axis_weights[{axis}]", weights) for axis, weights in enumerate(axis_weights))]
    if prefix_shares is not None:
        named.append(("prefix_shares", prefix_shares))
    for name, tensor in named:
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}: pass {name}.float().")
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must have 4 dimensions, (batch, heads, length, size), got {format_shape(tensor)}."
            )
    if len(axis_weights) == 0:
        raise ValueError("axis_weights is empty: give one tensor (B, H, n_a, n_a) for every axis of the grid.")
    batch, heads, length, _ = value.shape
    prefix = 0 if prefix_shares is None else prefix_shares.shape[3] - 1
    grid = [weights.shape[3] for weights in axis_weights]
    places = math.prod(grid)
    tokens = prefix + places
    if length != tokens:
        raise ValueError(
            f"the grid {grid} has {places} places and there are {prefix} prefix tokens, which makes {tokens} tokens, "
            f"but value holds {length}: {format_shape(value)}."
        )
    wanted = [(prefix + size, size) for size in grid] + ([] if prefix_shares is None else [(length, 1 + prefix)])
    for (name, tensor), size in zip(named[1:], wanted, strict=True):
        if tensor.shape[0] not in (1, batch) or tensor.shape[1] != heads or tuple(tensor.shape[2:]) != size:
            raise ValueError(
                f"{name} must be ({batch} or 1, {heads}, {size[0]}, {size[1]}) for {prefix} prefix tokens and the "
                f"grid {grid}, got {format_shape(tensor)}."
            )


# --- the map ---------------------------------------------------------------------------------------------------------


def synthetic_map(
    axis_weights: Sequence[Tensor], prefix_shares: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """The reference: the whole map, `(B, H, L, L)`; arguments as in [`stt_attention`].

    Its rows sum to one, but for rows of zeros where all keys are padding.
    """
    factors = (axis_weights, prefix_shares)
    return _normalize_map(factors, factors, attention_mask)


def _normalize_map(used: _MapFactors, plain: _MapFactors, attention_mask: Tensor | None) -> Tensor:
    """The map of the factors `used`, divided by what padding leaves of that of the `plain` ones, before dropout."""
    if attention_mask is None:
        return _whole(*used, torch.mul)
    # Renormalising subtracts nearly equal numbers in the gradients: in at least fp32 from the start.
    dtype = softmax_dtype(plain[0][0].dtype)
    allowed = _factors(attention_mask, dtype)
    used, plain = (
        ([x.to(dtype) for x in axes], shares if shares is None else shares.to(dtype)) for axes, shares in (used, plain)
    )
    total = (_whole(*plain, torch.mul) * allowed).sum(-1, keepdim=True)
    return _whole(*used, torch.mul) * allowed / _positive(total)


def log_synthetic_map(axis_log_weights: Sequence[Tensor], prefix_log_shares: Tensor | None = None) -> Tensor:
    """The logarithm of [`synthetic_map`] from the logarithms of its arguments, without padding."""
    return _whole(axis_log_weights, prefix_log_shares, torch.add)


def _whole(
    axis_weights: Sequence[Tensor], prefix_shares: Tensor | None, combine: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The map from its factors: `combine` multiplies weights, or adds their logarithms."""
    prefix = 0 if prefix_shares is None else prefix_shares.shape[3] - 1
    of_grid, of_prefix = axis_weights[0][:, :, prefix:], axis_weights[0][:, :, :prefix]
    for weights in axis_weights[1:]:
        rows = weights[:, :, prefix:]
        of_grid = combine(of_grid[:, :, :, None, :, None], rows[:, :, None, :, None, :]).flatten(4, 5).flatten(2, 3)
        of_prefix = combine(of_prefix.unsqueeze(4), weights[:, :, :prefix].unsqueeze(3)).flatten(3, 4)
    if prefix_shares is None:
        return of_grid
    on_grid = combine(torch.cat([of_prefix, of_grid], dim=2), prefix_shares[..., :1])
    return torch.cat([prefix_shares[..., 1:].expand(*on_grid.shape[:3], -1), on_grid], dim=3)


def _factors(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor of weights that the padding stands for: `e^P`, 0 for what it blocks and 1 for what it does not."""
    if attention_mask.dtype == torch.bool:
        return attention_mask.to(dtype)
    return attention_mask.to(softmax_dtype(attention_mask.dtype)).exp().to(dtype)


def _positive(total: Tensor) -> Tensor:
    """`total`, with 1 in place of 0: a row that sees nothing stays a row of zeros, with zero gradients."""
    return torch.where(total > 0, total, 1)


# --- mode products ---------------------------------------------------------------------------------------------------


def _apply_map(value: Tensor, axis_weights: Sequence[Tensor], prefix_shares: Tensor | None) -> Tensor:
    """`V ×_1 A_1 … ×_k A_k` and the prefix; some heads on every thread where other processes keep the cores busy."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or needs_plain_operators():
        return _in_chunks(value, axis_weights, prefix_shares)
    at_once = parts_at_once(value.device)
    if at_once > 1 and value.numel() >= _MIN_SHARED:
        return _HeadByHead.apply(at_once, prefix_shares, value, *axis_weights)
    with load.watched():
        if _fits_buffers(value, axis_weights, prefix_shares):
            out = empty_output(value, value)
            _write_products(value, axis_weights, prefix_shares, out)
            return out
        return _in_chunks(value, axis_weights, prefix_shares)


class _HeadByHead(torch.autograd.Function):
    """Every thread computes some heads, forward and backward; backward, it computes them once more."""

    @staticmethod
    def forward(ctx: Any, at_once: int, prefix_shares: Tensor | None, value: Tensor, *axis_weights: Tensor) -> Tensor:
        ctx.save_for_backward(prefix_shares, value, *axis_weights)
        out = empty_output(value, value)

        def run(heads: slice) -> None:
            shares, some_values, *axes = _take_heads((prefix_shares, value, *axis_weights), heads)
            _write_products(some_values, axes, shares, out[:, heads])

        run_parts(run, even_slices(value.shape[1], enough_parts(at_once)), at_once)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # for second derivatives
            return None, *_differentiate(inputs, wanted, grad_out, create_graph=True)
        grads = [torch.empty_like(x) if want else None for x, want in zip(inputs, wanted, strict=True)]

        def run(heads: slice) -> None:
            own = _take_heads(inputs, heads)
            for x, want in zip(own, wanted, strict=True):
                if want:
                    x.requires_grad_()
            for grad, found in zip(grads, _differentiate(own, wanted, grad_out[:, heads]), strict=True):
                if grad is not None and found is not None:
                    grad[:, heads] = found

        at_once = parts_at_once(grad_out.device)
        run_parts(run, even_slices(grad_out.shape[1], enough_parts(at_once)), at_once)
        return None, *grads


def _take_heads(tensors: Sequence[Tensor | None], heads: slice) -> list[Any]:
    return [None if x is None else x[:, heads].detach() for x in tensors]


def _differentiate(
    inputs: Sequence[Any], wanted: Sequence[bool], grad_out: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """The gradients of the prefix shares, the values and the weights of the axes; None for those not wanted."""
    shares, value, *axes = inputs
    learnt = [x for x, want in zip(inputs, wanted, strict=True) if want]
    with torch.enable_grad():
        out = _in_chunks(value, axes, shares)
        found = iter(torch.autograd.grad(out, learnt, grad_out, create_graph=create_graph))
    return [next(found) if want else None for want in wanted]


def _in_chunks(value: Tensor, axis_weights: Sequence[Tensor], prefix_shares: Tensor | None) -> Tensor:
    """Some samples at a time where that is faster: on CPU a large batch would leave the cache after every product."""
    batch, heads, length, size = value.shape
    samples = batch
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        samples = max(1, _CPU_CHUNK // max(1, heads * length * size))
    if samples >= batch:
        return _products(value, axis_weights, prefix_shares)

    parts = []
    for start in range(0, batch, samples):
        place = slice(start, start + samples), slice(None)
        shares = None if prefix_shares is None else _cut(prefix_shares, place)
        parts.append(_products(value[place], [_cut(x, place) for x in axis_weights], shares).transpose(1, 2))
    return torch.cat(parts).transpose(1, 2)


def _products(value: Tensor, axis_weights: Sequence[Tensor], prefix_shares: Tensor | None) -> Tensor:
    """`V ×_1 A_1 … ×_k A_k` and the prefix, in value's dtype. In memory the result is `(B, L, H, D)`."""
    dtype = product_dtype(value)
    shares = None if prefix_shares is None else prefix_shares.to(dtype)
    prefix = 0 if shares is None else shares.shape[3] - 1
    of_grid = value[:, :, prefix:].to(dtype).contiguous()
    of_grid, of_prefix = _multiply_axes(of_grid, [axis.to(dtype) for axis in axis_weights], shares, torch.matmul)
    out = of_grid.transpose(1, 2)
    if shares is None:
        return out.to(value.dtype).contiguous().transpose(1, 2)
    of_prefix = of_prefix * shares[:, :, :prefix, :1]
    out = torch.cat([of_prefix.transpose(1, 2), out], dim=1).transpose(1, 2)
    for token in range(prefix):
        given = (shares[..., 1 + token, None], value[:, :, token, None].to(dtype))
        out = out.addcmul(*given) if needs_plain_operators() else out.addcmul_(*given)
    return out.to(value.dtype)


def _multiply_axes(
    of_grid: Tensor,
    axis_weights: Sequence[Tensor],
    shares: Tensor | None,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """What the tokens of the grid, and the prefix tokens, get from the grid.

    Time goes into passes over tensors of the size of the values, so there are few: the grid's shares are multiplied
    into the weights of the last axis.

    Args:
        of_grid: values of the grid, `(B, H, n_1·…·n_k, D)`, contiguous.
        axis_weights: those of [`stt_attention`].
        shares: `prefix_shares` of [`stt_attention`].
        multiply: the product of weights `(B or 1, H, 1 or m, n, n)` and values `(B, H, m, n, …)`.

    Returns:
        `(B, H, n_1·…·n_k, D)` and, without its shares, `(B, H, p, D)`.
    """
    batch, heads, places, size = of_grid.shape
    prefix = 0 if shares is None else shares.shape[3] - 1
    sizes = [weights.shape[3] for weights in axis_weights]
    of_prefix = of_grid
    # Every prefix token has a row of its own, once the first axis is summed up. No size is left to `reshape`, which
    # cannot infer one for an empty batch or grid.
    before, rows = 1, 1
    for axis, weights in enumerate(axis_weights):
        after = math.prod(sizes[axis + 1 :]) * size
        if prefix:
            of_prefix = weights[:, :, :prefix, None] @ of_prefix.reshape(batch, heads, rows, sizes[axis], after)
            rows = prefix
        weights = weights[:, :, None, prefix:]
        if shares is not None and axis == len(sizes) - 1:
            weights = weights * shares[:, :, prefix:, :1].unflatten(2, (before, sizes[axis]))
        of_grid = multiply(weights, of_grid.reshape(batch, heads, before, sizes[axis], after))
        before = before * sizes[axis]
    of_grid = of_grid.reshape(batch, heads, places, size)
    return of_grid, of_prefix.reshape(batch, heads, prefix, size) if prefix else of_grid[:, :, :0]


# --- the same in buffers, on CPU and without autograd ----------------------------------------------------------------


def _fits_buffers(value: Tensor, axis_weights: Sequence[Tensor], prefix_shares: Tensor | None) -> bool:
    tensors = (value, *axis_weights, *(() if prefix_shares is None else (prefix_shares,)))
    is_recorded = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    is_plain = value.device.type == "cpu" and not has_dispatch_mode() and all(type(x) is Tensor for x in tensors)
    return is_plain and not is_recorded and value.numel() > 0


def _write_products(value: Tensor, axis_weights: Sequence[Tensor], prefix_shares: Tensor | None, out: Tensor) -> None:
    """[`_products`] into `out`, some samples and heads at a time, in buffers that stay near the cores."""
    dtype = product_dtype(value)
    axes = [weights.to(dtype) for weights in axis_weights]
    shares = None if prefix_shares is None else prefix_shares.to(dtype)
    batch, heads, length, size = value.shape
    scratch, of_sample = Scratch(), heads * length * size
    samples = even_slices(batch, -(-batch // max(1, _CPU_CHUNK // of_sample)))
    for place in product(samples, even_slices(heads, min(heads, -(-of_sample // _CPU_CHUNK)))):
        axes_part, shares_part = [_cut(x, place) for x in axes], None if shares is None else _cut(shares, place)
        _write_chunk(value[place], axes_part, shares_part, out[place], scratch)


def _cut(tensor: Tensor, place: tuple[slice, slice]) -> Tensor:
    """Some samples and heads; the weights of a map may be the same for all samples."""
    samples, heads = place
    return tensor[:, heads] if tensor.shape[0] == 1 else tensor[samples, heads]


def _write_chunk(value: Tensor, axes: Sequence[Tensor], shares: Tensor | None, out: Tensor, scratch: Scratch) -> None:
    batch, heads, length, size = value.shape
    prefix = 0 if shares is None else shares.shape[3] - 1
    names = cycle(("scores", "weights"))  # what one product reads, the next one overwrites

    def take() -> Tensor:
        return scratch.take(next(names), (batch, heads, length - prefix, size), axes[0].dtype, value.device)

    def multiply(weights: Tensor, of_grid: Tensor) -> Tensor:
        weights, flat = weights.expand(*of_grid.shape[:3], -1, -1).flatten(0, 2), of_grid.flatten(0, 2)
        target = take()
        torch.bmm(weights, flat, out=target.view_as(flat))
        return target

    of_grid, of_prefix = _multiply_axes(take().copy_(value[:, :, prefix:]), axes, shares, multiply)
    if shares is not None:
        of_prefix = of_prefix * shares[:, :, :prefix, :1]
        for token in range(prefix):  # the order of `_products`, for the same last bits
            of_tokens, given = shares[..., 1 + token, None], value[:, :, token, None].to(of_grid.dtype)
            of_grid.addcmul_(of_tokens[:, :, prefix:], given)
            of_prefix.addcmul_(of_tokens[:, :, :prefix], given)
        out[:, :, :prefix] = of_prefix
    out[:, :, prefix:] = of_grid
