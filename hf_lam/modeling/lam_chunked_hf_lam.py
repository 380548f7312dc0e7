# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention with changed scores without a score matrix, forward or backward: chunks of queries, as operators.

Source: Barrios & Jin, "Multi-layer Learnable Attention Mask for Multimodal Tasks", arXiv 2406.02761. Every chunk of
queries computes its scores, uses them and drops them; the backward pass computes them again (Rabe & Staats, arXiv
2112.05682), with rowsum(dO ⊙ O) for rowsum(dA ⊙ A) (Dao et al., arXiv 2205.14135).

Time goes into the passes over scores and, on a busy machine, into the threads' waiting for each other after every
operator. Hence few operators, on large chunks, in buffers that stay in the cache.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .lam_formula_hf_lam import attend_by_formula
from .numerics_hf_lam import (
    differentiate_gradients,
    empty_output,
    operator_namespace,
    product_dtype,
    softmax_dtype,
)
from .padding_hf_lam import additive

# Score elements in one chunk, of which one buffer (backward: three) exists at a time. CPU: 4 MiB in fp32, which stays
# near the cores. Other devices: enough to fill one, and small beside its memory (128 MiB in fp32).
_CPU_CHUNK = 2**20
_DEVICE_CHUNK = 2**25
# Long keys exceed that, rather than make a chunk of fewer query rows, or of fewer heads than threads: matrix products
# become slow (a single head of 128 × 1568 scores takes twice the time per score).
_MIN_ROWS = 384
_MAX_MIN_HEADS = 4


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

_Chunk = tuple[slice, ...]  # of batch, heads, query rows


def _chunks(query: Tensor, key: Tensor) -> Iterator[_Chunk]:
    """Cut `(B, H, Lq)` into nearly equal parts; the order is what makes dropout reproducible."""
    batch, heads, length_q, _ = query.shape
    length_k = key.shape[2]
    limit = _CPU_CHUNK if query.device.type == "cpu" else _DEVICE_CHUNK
    rows = _part(length_q, max(_MIN_ROWS, limit // (heads * length_k)))
    group = _part(heads, max(min(torch.get_num_threads(), _MAX_MIN_HEADS), limit // (rows * length_k)))
    # Several samples only where they are small, since joining them copies what is not contiguous.
    samples = _part(batch, limit // 2 // (heads * length_q * length_k))
    for b in range(0, batch, samples):
        for r in range(0, length_q, rows):
            for h in range(0, heads, group):
                yield slice(b, b + samples), slice(h, h + group), slice(r, r + rows)


def _part(total: int, limit: int) -> int:
    """Size of the fewest nearly equal parts of `total` that keep to `limit` (or are 1)."""
    parts = -(-total // max(1, min(total, limit)))
    return -(-total // parts)


def _cut(tensor: Tensor, chunk: _Chunk) -> Tensor:
    """The chunk's part, a view, of a tensor whose dimensions of size 1 are broadcast."""
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, chunk, strict=False))]


def _chunks_with_addends(
    query: Tensor, key: Tensor, addend: Tensor | None, attention_mask: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[_Chunk, Tensor | None, Tensor | None]]:
    """Every chunk with all that is added to its scores and its blocked rows, both None where nothing is."""
    added = blocked = None
    by_head = any(x is not None and x.shape[1] > 1 for x in (addend, attention_mask))
    for chunk in _chunks(query, key):
        # Groups of heads follow each other, and mostly share what is added.
        if chunk[1].start == 0 or by_head:
            of_mechanism, padding = (None if x is None else _cut(x, chunk) for x in (addend, attention_mask))
            added, blocked = _add_parts(of_mechanism, padding, dtype)
        yield chunk, added, blocked


def _add_parts(
    addend: Tensor | None, attention_mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the scores, and which rows that blocks; what an addend of −inf blocks is blocked, too."""
    if attention_mask is None:
        return (None, None) if addend is None else additive(addend, dtype)
    added, blocked = additive(attention_mask, dtype)
    if addend is None:
        return added, blocked
    added, all_blocked = additive(added + addend, dtype)
    return added, all_blocked | blocked


class _Dropout:
    """Dropout's factors, 0 or 1 / (1 - p), drawn anew from the seed in each direction, chunk after chunk."""

    def __init__(self, p: float, seed: Tensor | None, device: torch.device) -> None:
        self.keep = 1 - p
        self.generator = None if seed is None else torch.Generator(device).manual_seed(int(seed))

    def factors(self, weights: Tensor) -> Tensor | None:
        if self.generator is None:
            return None
        return torch.empty_like(weights).bernoulli_(self.keep, generator=self.generator).div_(self.keep)


class _Scratch:
    """Score-sized buffers that every chunk of a call uses again; clearing fresh pages would cost up to a third."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in the buffer of that name."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=dtype, device=like.device)
        return self.buffers[name][:size].view(shape)

    def product(self, name: str, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        """`left @ right` in `dtype`."""
        out = self.take(name, (*left.shape[:-1], right.shape[-1]), left, dtype)
        if left.dtype == dtype:
            return torch.matmul(left, right, out=out)
        return out.copy_(torch.matmul(left, right))


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
    scratch: _Scratch,
) -> Tensor:
    """The output of some query rows: `(b, h, q, D)` by `(b, h, Lk, D)` and `(b, h, Lk, Dv)`."""
    dtype = softmax_dtype(value.dtype)
    scores = scratch.product("scores", query * scaling, key.transpose(-2, -1), dtype)
    weights = _weights(scores, None if factor is None else factor.to(dtype), addend, out=scores)
    factors = dropout.factors(weights)
    if factors is not None:
        weights.mul_(factors)
    return scratch.product("out", weights.to(value.dtype), value, value.dtype)


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
    scratch: _Scratch,
    wanted: list[bool],
) -> list[Tensor | None]:
    """The part of some query rows in the gradients of query, key, value, factor and addend (None: not wanted).

    Those of factor and addend are as large as the scores, not summed up yet over what these are broadcast to.

    `mean` is the mean of the weights' gradients under the weights, row by row: `rowsum(dO ⊙ O)`.
    """
    want_query, want_key, want_value, want_factor, want_addend = wanted
    grad_query = grad_key = grad_value = grad_factor = grad_addend = None
    dtype = softmax_dtype(value.dtype)
    factor, query = None if factor is None else factor.to(dtype), query * scaling
    scores = scratch.product("scores", query, key.transpose(-2, -1), dtype)
    # The raw scores are needed once more for the gradient of what multiplies them, and for nothing else.
    out = scratch.take("weights", scores.shape, scores, dtype) if want_factor else scores
    weights = _weights(scores, factor, addend, out=out)
    factors = dropout.factors(weights)
    if want_value:
        dropped = weights if factors is None else weights * factors
        grad_value = torch.matmul(dropped.to(value.dtype).transpose(-2, -1), grad_out)
    if want_query or want_key or want_factor or want_addend:
        grad_logits = scratch.product("grad_logits", grad_out, value.transpose(-2, -1), dtype)
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
                grad_query = torch.matmul(grad_scores, key).mul_(scaling)
            if want_key:
                grad_key = torch.matmul(grad_scores.transpose(-2, -1), query)
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
    dropout, scratch = _Dropout(dropout_p, seed, query.device), _Scratch()
    with torch.autocast(query.device.type, enabled=False):
        for chunk, added, blocked in _chunks_with_addends(query, key, addend, attention_mask, dtype):
            keys = chunk[:2]
            factor_part = None if factor is None else _cut(factor, chunk)
            out_part = _chunk_forward(
                query[chunk], key[keys], value[keys], factor_part, added, scaling, dropout, scratch
            )
            out[chunk] = out_part if blocked is None else out_part.masked_fill_(blocked, 0)
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
        torch.zeros_like(x, dtype=dtype) if want and x is not None else query.new_empty(0)
        for x, want in zip(inputs, wanted, strict=True)
    ]
    grad_out, query, key, value = (x.to(dtype_of_products) for x in (grad_out, query, key, value))
    dropout, scratch = _Dropout(dropout_p, seed, query.device), _Scratch()
    with torch.autocast(query.device.type, enabled=False):
        mean = (grad_out.to(dtype) * out).sum(-1, keepdim=True)
        for chunk, added, blocked in _chunks_with_addends(query, key, addend, attention_mask, dtype):
            keys = chunk[:2]
            grad_part = grad_out[chunk]
            if blocked is not None:  # a row that gets no gradient sends none
                grad_part = grad_part.masked_fill(blocked, 0)
            parts = _chunk_backward(
                grad_part,
                mean[chunk],
                query[chunk],
                key[keys],
                value[keys],
                None if factor is None else _cut(factor, chunk),
                added,
                scaling,
                dropout,
                scratch,
                [*wanted[:4], wanted[4] or wanted[5]],
            )
            places = (chunk, keys, keys, chunk, chunk, chunk)
            for grad, part, where, want in zip(grads, (*parts, parts[-1]), places, wanted, strict=True):
                if part is not None and want:
                    target = _cut(grad, where)
                    target.add_(part.sum_to_size(target.shape))
    grad_query, grad_key, grad_value, grad_factor, grad_addend, grad_mask = (
        grad if x is None else grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True)
    )
    return grad_query, grad_key, grad_value, grad_factor, grad_addend, grad_mask


def _draw_whole(query: Tensor, key: Tensor, dropout: _Dropout, dtype: torch.dtype) -> Tensor:
    """Dropout's factors of all weights, as the chunks draw them."""
    whole = query.new_ones((*query.shape[:3], key.shape[2]), dtype=dtype)
    for chunk in _chunks(query, key):
        factors = dropout.factors(whole[chunk].contiguous())
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
    namespace = operator_namespace(__file__, "numerics_hf_lam", "padding_hf_lam", "lam_formula_hf_lam")
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
