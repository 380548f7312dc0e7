# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention with changed scores without a score matrix, forward or backward: chunks of queries, as operators.

Source: Barrios & Jin, "Multi-layer Learnable Attention Mask for Multimodal Tasks", arXiv 2406.02761. Every chunk of
queries computes its scores, uses them and drops them; the backward pass computes them again (Rabe & Staats, arXiv
2112.05682), with rowsum(dO ⊙ O) for rowsum(dA ⊙ A) (Dao et al., arXiv 2205.14135).

Every thread takes a part of the work and computes its chunks alone (`threads_hf_lam.py`), in buffers that stay in its
cache. A part writes where no other part writes. Where several parts have a share in one gradient, each sums up its own
share, and the shares are added in order at the end, so that the result is the same every time.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .lam_formula_hf_lam import attend_by_formula
from .lam_parts_hf_lam import Chunk, Gradients, Part, cut, parts_of
from .numerics_hf_lam import (
    differentiate_gradients,
    empty_output,
    operator_namespace,
    product_dtype,
    softmax_dtype,
)
from .padding_hf_lam import additive
from .threads_hf_lam import Scratch, parts_at_once, run_parts


def attend_chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """`softmax((QKᵀ·scaling) ⊙ factor + addend + P) V` for checked arguments, of which none is empty."""
    # The seed comes from the default generator, so that manual_seed and checkpointing reproduce the dropout.
    seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
    return _OPERATORS.lam_forward(query, key, value, factor, addend, attention_mask, scaling, dropout_p, seed)


# --- chunks ----------------------------------------------------------------------------------------------------------


def _with_addends(
    chunks: list[tuple[int, Chunk]], addend: Tensor | None, attention_mask: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[int, Chunk, Tensor | None, Tensor | None]]:
    """Every chunk with all that is added to its scores and its blocked rows, both None where nothing is."""
    added = blocked = None
    by_head = any(x is not None and x.shape[1] > 1 for x in (addend, attention_mask))
    last = None
    for number, chunk in chunks:
        # Groups of heads follow each other, and mostly share what is added.
        if by_head or (chunk[0], chunk[2]) != last:
            of_mechanism, padding = (None if x is None else cut(x, chunk) for x in (addend, attention_mask))
            added, blocked = _add_parts(of_mechanism, padding, dtype)
            last = (chunk[0], chunk[2])
        yield number, chunk, added, blocked


def _add_parts(
    addend: Tensor | None, attention_mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """The addend to the scores, and the rows that it blocks; what an addend of −inf blocks is blocked, too."""
    if attention_mask is None:
        return (None, None) if addend is None else additive(addend, dtype)
    added, blocked = additive(attention_mask, dtype)
    if addend is None:
        return added, blocked
    added, all_blocked = additive(added + addend, dtype)
    return added, all_blocked | blocked


class _Dropout:
    """Dropout's factors, 0 or 1 / (1 - p), drawn anew in each direction, for every chunk from a seed of its own."""

    def __init__(self, p: float, seed: Tensor | None, device: torch.device) -> None:
        self.keep = 1 - p
        self.seed = None if seed is None else int(seed)
        self.device = device

    def factors(self, weights: Tensor, number: int) -> Tensor | None:
        if self.seed is None:
            return None
        generator = torch.Generator(self.device).manual_seed(self.seed + number)
        return torch.empty_like(weights).bernoulli_(self.keep, generator=generator).div_(self.keep)


def _product(
    scratch: Scratch, name: str, left: Tensor, right: Tensor, dtype: torch.dtype, factor: float = 1
) -> Tensor:
    """`factor · left @ right` in `dtype`, in the buffer of that name."""
    out = scratch.take(name, (*left.shape[:-1], right.shape[-1]), dtype, left.device)
    if left.dtype != dtype:
        return out.copy_(_scaled_product(left, right, factor))
    _scaled_product(left, right, factor, out.flatten(0, 1))
    return out


def _scaled_product(left: Tensor, right: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """`factor · left @ right` in one operator, `(b, h, m, n)`; in `out`, `(b · h, m, n)`, where that is given."""
    product = torch.baddbmm(
        left.new_empty(1, 1, 1), left.flatten(0, 1), right.flatten(0, 1), beta=0, alpha=factor, out=out
    )
    return product.unflatten(0, left.shape[:2])


def _weights(scores: Tensor, factor: Tensor | None, addend: Tensor | None, out: Tensor) -> Tensor:
    """`softmax(scores ⊙ factor + addend)` in `out`, which may be `scores`."""
    changed = scores
    if factor is not None and addend is not None:
        changed = torch.addcmul(addend, scores, factor, out=out)
    elif factor is not None:
        changed = torch.mul(scores, factor, out=out)
    elif addend is not None:
        changed = torch.add(scores, addend, out=out)
    return torch.softmax(changed, -1, out=out)


def _chunk_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    scaling: float,
    dropout: _Dropout,
    number: int,
    scratch: Scratch,
) -> Tensor:
    """The output of some query rows: `(b, h, q, D)` by `(b, h, Lk, D)` and `(b, h, Lk, Dv)`."""
    dtype = softmax_dtype(value.dtype)
    scores = _product(scratch, "scores", query, key.transpose(-2, -1), dtype, scaling)
    weights = _weights(scores, None if factor is None else factor.to(dtype), addend, out=scores)
    factors = dropout.factors(weights, number)
    if factors is not None:
        weights.mul_(factors)
    return _product(scratch, "out", weights.to(value.dtype), value, value.dtype)


def _chunk_backward(
    grad_out: Tensor,
    mean: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    scaling: float,
    dropout: _Dropout,
    number: int,
    scratch: Scratch,
    wanted: list[bool],
) -> list[Tensor | None]:
    """The part of some query rows in the gradients of query, key, value, factor and addend (None: not wanted).

    Those of factor and addend are as large as the scores, not summed up yet over what these are broadcast to.

    `mean` is the mean of the weights' gradients under the weights, row by row: `rowsum(dO ⊙ O)`.
    """
    want_query, want_key, want_value, want_factor, want_addend = wanted
    grad_query = grad_key = grad_value = grad_factor = grad_addend = None
    dtype = softmax_dtype(value.dtype)
    factor = None if factor is None else factor.to(dtype)
    scores = _product(scratch, "scores", query, key.transpose(-2, -1), dtype, scaling)
    # The raw scores are needed once more for the gradient of what multiplies them, and for nothing else.
    out = scratch.take("weights", tuple(scores.shape), dtype, scores.device) if want_factor else scores
    weights = _weights(scores, factor, addend, out=out)
    factors = dropout.factors(weights, number)
    if want_value:
        dropped = weights if factors is None else weights * factors
        grad_value = torch.matmul(dropped.to(value.dtype).transpose(-2, -1), grad_out)
    if want_query or want_key or want_factor or want_addend:
        grad_logits = _product(scratch, "grad_logits", grad_out, value.transpose(-2, -1), dtype)
        if factors is not None:
            grad_logits.mul_(factors)
        grad_logits.sub_(mean).mul_(weights)
        if want_factor:
            grad_factor = scores.mul_(grad_logits)
        grad_addend = grad_logits if want_addend else None
        if want_query or want_key:
            if factor is not None:  # in another buffer if this one has the addend's gradient
                grad_logits = torch.mul(grad_logits, factor, out=weights if want_addend else grad_logits)
            grad_scores = grad_logits.to(value.dtype)
            if want_query:
                grad_query = _scaled_product(grad_scores, key, scaling)
            if want_key:
                grad_key = _scaled_product(grad_scores.transpose(-2, -1), query, scaling)
    return [grad_query, grad_key, grad_value, grad_factor, grad_addend]


def _lam_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    out = empty_output(query, value)
    dtype, dtype_of_products = softmax_dtype(value.dtype), product_dtype(value)
    query, key, value = query.to(dtype_of_products), key.to(dtype_of_products), value.to(dtype_of_products)
    dropout = _Dropout(dropout_p, seed, query.device)

    def run(part: Part) -> None:
        scratch = Scratch()
        for number, chunk, added, blocked in _with_addends(part.chunks, addend, attention_mask, dtype):
            keys = chunk[:2]
            factor_part = None if factor is None else cut(factor, chunk)
            out_part = _chunk_forward(
                query[chunk], key[keys], value[keys], factor_part, added, scaling, dropout, number, scratch
            )
            out[chunk] = out_part if blocked is None else out_part.masked_fill_(blocked, 0)

    with torch.autocast(query.device.type, enabled=False):
        run_parts(run, parts_of(query, key), parts_at_once(query.device))
    return out


def _lam_backward(
    grad_out: Tensor,
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    attention_mask: Tensor | None,
    seed: Tensor | None,
    scaling: float,
    dropout_p: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, factor, addend and attention mask; an empty tensor for each that is not wanted.

    A tuple, for which torch itself can do several gradients one after the other (`is_grads_batched`); of a list it
    cannot.
    """
    inputs = (query, key, value, factor, addend, attention_mask)
    dtype, dtype_of_products = softmax_dtype(value.dtype), product_dtype(value)
    grads = [
        torch.empty_like(x, dtype=dtype) if want and x is not None else query.new_empty(0)
        for x, want in zip(inputs, wanted, strict=True)
    ]
    grad_out, query, key, value = (x.to(dtype_of_products) for x in (grad_out, query, key, value))
    dropout = _Dropout(dropout_p, seed, query.device)
    # A gradient as large as scores is too large for shares of it: all that is summed up in it is one part.
    large = [grad for grad in grads[3:] if grad.dim() == 4 and grad.shape[2] > 1]
    split_batch, split_heads = (all(grad.shape[dim] > 1 for grad in large) for dim in (0, 1))
    parts = parts_of(query, key, split_batch, split_heads)
    gradients = Gradients(grads, parts)

    def run(part: Part) -> None:
        scratch, shares = Scratch(), gradients.shares_of(part)
        for number, chunk, added, blocked in _with_addends(part.chunks, addend, attention_mask, dtype):
            keys = chunk[:2]
            grad_part = grad_out[chunk]
            if blocked is not None:  # a row that gets no gradient sends none
                grad_part = grad_part.masked_fill(blocked, 0)
            found = _chunk_backward(
                grad_part,
                (grad_part.to(dtype) * out[chunk]).sum(-1, keepdim=True),
                query[chunk],
                key[keys],
                value[keys],
                None if factor is None else cut(factor, chunk),
                added,
                scaling,
                dropout,
                number,
                scratch,
                [*wanted[:4], wanted[4] or wanted[5]],
            )
            shares.add([*found, found[-1]], chunk)

    with torch.autocast(query.device.type, enabled=False):
        run_parts(run, parts, parts_at_once(query.device))
        gradients.sum_up()
    grad_query, grad_key, grad_value, grad_factor, grad_addend, grad_mask = (
        grad if x is None else grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True)
    )
    return grad_query, grad_key, grad_value, grad_factor, grad_addend, grad_mask


def _draw_whole(query: Tensor, key: Tensor, dropout: _Dropout, dtype: torch.dtype) -> Tensor:
    """Dropout's factors of all weights, as the chunks draw them."""
    whole = query.new_ones((*query.shape[:3], key.shape[2]), dtype=dtype)
    for part in parts_of(query, key):
        for number, chunk in part.chunks:
            factors = dropout.factors(whole[chunk].contiguous(), number)
            if factors is not None:
                whole[chunk] = factors
    return whole


# --- the operators ---------------------------------------------------------------------------------------------------
#
# Operators, so that torch.compile sees one opaque node, not an unrolled loop.


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scaling, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(output, *tensors, seed)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, _, *tensors, seed, ctx.scaling, ctx.dropout_p, ctx.wanted = inputs
    ctx.save_for_backward(grad_out, *tensors, seed)


def _differentiate_backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, with the whole score matrix. That of `out` is part of those of what it is computed from."""
    grad_out, *inputs, seed = ctx.saved_tensors
    query, key, value = inputs[:3]
    dropout = _Dropout(ctx.dropout_p, seed, query.device)

    def drop_out(weights: Tensor) -> Tensor:
        if seed is None:
            return weights
        return (weights * _draw_whole(query, key, dropout, softmax_dtype(value.dtype))).to(weights.dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor, f: Tensor | None, a: Tensor | None, p: Tensor | None) -> Tensor:
        return attend_by_formula(q, k, v, f, a, p, ctx.scaling, drop_out)[0]

    asked = [v if want else None for v, want in zip(tangents, ctx.wanted, strict=True)]
    of_grad_out, *of_inputs = differentiate_gradients(attend, inputs, grad_out, asked)
    return of_grad_out, None, *of_inputs, None, None, None, None


def _register_operators() -> Any:
    """The namespace of this file's operators; a copy may have registered them before."""
    namespace = operator_namespace(
        __file__, "numerics_hf_lam", "padding_hf_lam", "threads_hf_lam", "lam_formula_hf_lam", "lam_parts_hf_lam"
    )
    operators = getattr(torch.ops, namespace)
    if hasattr(operators, "lam_forward"):
        return operators
    lam_backward = torch.library.custom_op(f"{namespace}::lam_backward", _lam_backward, mutates_args=())
    lam_backward.register_autograd(_differentiate_backward, setup_context=_setup_backward)
    lam_forward = torch.library.custom_op(f"{namespace}::lam_forward", _lam_forward, mutates_args=())

    @lam_backward.register_fake
    def fake_backward(grad_out: Tensor, out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        wanted = zip(rest[:6], rest[-1], strict=True)
        return tuple(torch.empty_like(x) if want else rest[0].new_empty(0) for x, want in wanted)

    @lam_forward.register_fake
    def fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        return empty_output(query, value)

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:6])
        grads = lam_backward(grad_out, *ctx.saved_tensors, ctx.scaling, ctx.dropout_p, wanted)
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None

    lam_forward.register_autograd(backward, setup_context=_setup_context)
    return operators


_OPERATORS = _register_operators()
