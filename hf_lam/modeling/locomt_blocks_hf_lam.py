# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention views (LoCoMT) block by block: the scores inside the views and no others.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024,
arXiv 2402.15096. Heads that share a view are computed together, segment by segment, on slices, so the time follows
`Σ_{(i,j)∈V} L_i L_j`. There are two ways: in differentiable operators of torch, anywhere; and on CPU, where it
fits, in one operator.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from .lam_attention_hf_lam import changed_attention, check_arguments
from .locomt_layout_hf_lam import Layout
from .locomt_views_hf_lam import View
from .numerics_hf_lam import (
    differentiate_gradients,
    empty_output,
    needs_plain_operators,
    operator_namespace,
    softmax_dtype,
    without_autocast,
)
from .padding_hf_lam import restrict_padding
from .threads_hf_lam import enough_parts, even_slices, parts_at_once, run_parts


class Block(NamedTuple):
    """One call of attention: some heads, adjacent query segments, and the key segments that all of them see."""

    heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]


def blocks_of(views: Sequence[View], segments: int) -> list[Block]:
    """Cut the work of one layer into blocks; together they are all heads × all queries."""
    blocks = []
    for view in dict.fromkeys(views):
        heads = tuple(head for head, other in enumerate(views) if other == view)
        keys = [tuple(sorted(j for query, j in view if query == i)) for i in range(segments)]
        first = 0
        for i in range(1, segments + 1):  # no itertools.groupby, which Dynamo cannot trace
            if i == segments or keys[i] != keys[first]:
                blocks.append(Block(heads, tuple(range(first, i)), keys[first]))
                first = i
    return blocks


def attend_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    views: Sequence[View],
    *,
    factor: Tensor | None = None,
    addend: Tensor | None = None,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """The scores inside the views and no others, for tokens in any order.

    Keys before the tokens, of which there are more than queries then, are seen in every view.
    """
    query, key, value, factor, addend, attention_mask, scaling, _ = check_arguments(
        query, key, value, factor, addend, attention_mask, scaling, dropout_p
    )
    past = key.shape[2] - query.shape[2]
    if layout.order is not None:
        length = query.shape[2]
        query = _gather(query, layout.order, 2, length)
        key, value = (_gather_keys(x, layout.order, 2, length, past) for x in (key, value))
        factor, addend, attention_mask = (
            None if x is None else _gather(_gather_keys(x, layout.order, 3, length, past), layout.order, 2, length)
            for x in (factor, addend, attention_mask)
        )
    if layout.is_token is not None:
        attention_mask = restrict_padding(attention_mask, pad(layout.is_token, (past, 0), value=True)[:, None, None])
    with without_autocast(query.device.type):
        is_changed = factor is not None or addend is not None
        if past == 0 and not is_changed and _fits_operator(query, value, attention_mask, dropout_p):
            pairs = [number for head, view in enumerate(views) for i, j in sorted(view) for number in (head, i, j)]
            out, _ = _OPERATORS.locomt_forward(query, key, value, attention_mask, list(layout.lengths), pairs, scaling)
        else:
            changes = (factor, addend, attention_mask)
            out = _attend_composed(query, key, value, layout.lengths, past, views, changes, scaling, dropout_p)
    return out if layout.places is None else _gather(out, layout.places, 2, out.shape[2])


def _gather(tensor: Tensor, index: Tensor, dim: int, length: int) -> Tensor:
    """Take `index`, `(1 or B, P)`, along a dimension of `(B, H, …)`; one that is broadcast to `length` stays."""
    if tensor.shape[dim] != length:
        return tensor
    if index.shape[0] == 1:
        return tensor.index_select(dim, index[0])
    shape = [index.shape[0], 1, 1, 1]
    shape[dim] = index.shape[1]
    full = list(tensor.shape)
    full[0], full[dim] = index.shape[0], index.shape[1]
    return tensor.expand(index.shape[0], *tensor.shape[1:]).gather(dim, index.view(shape).expand(full))


def _gather_keys(tensor: Tensor, index: Tensor, dim: int, length: int, past: int) -> Tensor:
    """The same for keys, of which the first `past` stay where they are."""
    if past == 0 or tensor.shape[dim] != past + length:
        return _gather(tensor, index, dim, length)
    first, tokens = tensor.split([past, length], dim)
    tokens = _gather(tokens, index, dim, length)
    return torch.cat([first.expand(tokens.shape[0], *first.shape[1:]), tokens], dim)


def _attend_composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    past: int,
    views: Sequence[View],
    changes: tuple[Tensor | None, Tensor | None, Tensor | None],
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Attend block by block, in differentiable operators of torch.

    `split` and `cat` copy gradients once; slices would add up one full-size tensor for each block.
    """
    of_keys, first = (list(lengths), 0) if past == 0 else ([past, *lengths], 1)
    parts: dict[tuple[int, ...], list[Tensor]] = {}
    for block in blocks_of(views, len(lengths)):
        parts.setdefault(block.heads, [])
        keys = (*range(first), *(first + j for j in block.keys))  # what comes before the tokens is a segment, too
        q, k, v = (_take_heads(x, block.heads) for x in (query, key, value))
        q, k, v = (
            _take_segments(x, sizes, chosen, 2)
            for x, sizes, chosen in ((q, lengths, block.queries), (k, of_keys, keys), (v, of_keys, keys))
        )
        if 0 in q.shape or 0 in k.shape:
            part = value.new_zeros(*q.shape[:3], value.shape[-1])
        else:
            factor, addend, padding = (
                None if x is None else _cut_mask(_take_heads(x, block.heads), lengths, block.queries, of_keys, keys)
                for x in changes
            )
            part = _attend_block(q, k, v, factor, addend, padding, scaling, dropout_p)
        parts[block.heads].append(part.transpose(1, 2))
    # Joined as (B, L, H, Dv): what follows an attention joins the heads, which then is a view.
    groups = [torch.cat(rows, 1) for rows in parts.values()]
    heads = [head for group in parts for head in group]
    out = torch.cat(groups, 2)
    if heads != sorted(heads):
        single = out.split(1, 2)
        out = torch.cat([single[heads.index(head)] for head in range(len(heads))], 2)
    return out.transpose(1, 2)


def _attend_block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    # A padding that is added, such as a host's relative bias, may need a gradient, for which torch chooses another
    # kernel than without: one that draws another dropout, when reentrant checkpointing runs a layer both ways.
    is_drawn_alike = dropout_p == 0 or attention_mask is None or attention_mask.dtype == torch.bool
    if factor is not None or addend is not None or not is_drawn_alike:
        return changed_attention(
            query,
            key,
            value,
            factor=factor,
            addend=addend,
            attention_mask=attention_mask,
            scaling=scaling,
            dropout_p=dropout_p,
        )
    if attention_mask is None:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, scale=scaling)
    # Not every kernel of torch gives zeros to a row that may attend to nothing, so that no such row reaches it.
    if attention_mask.dtype == torch.bool:
        is_blocked = ~attention_mask.any(-1, keepdim=True)
        attention_mask = attention_mask | is_blocked
    else:
        is_blocked = attention_mask.detach().amax(-1, keepdim=True) <= torch.finfo(attention_mask.dtype).min
        attention_mask = attention_mask.masked_fill(is_blocked, 0).to(query.dtype)
    attention_mask = attention_mask.expand(*attention_mask.shape[:2], query.shape[2], key.shape[2])
    out = scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout_p, scale=scaling)
    return out.masked_fill(is_blocked, 0)


def _take_heads(tensor: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Some heads of `(B, H, …)`; a tensor that all heads share stays as it is."""
    if tensor.shape[1] == 1 or len(heads) == tensor.shape[1]:
        return tensor
    firsts = [head for head in heads if head - 1 not in heads]
    lasts = [head for head in heads if head + 1 not in heads]
    return _join([tensor[:, first : last + 1] for first, last in zip(firsts, lasts, strict=True)], 1)


def _take_segments(tensor: Tensor, lengths: Sequence[int], chosen: tuple[int, ...], dim: int) -> Tensor:
    """Some segments along a dimension; one that is broadcast stays as it is."""
    if len(chosen) == len(lengths) or (tensor.shape[dim] == 1 and sum(lengths) != 1):
        return tensor
    if not chosen:
        return tensor.narrow(dim, 0, 0)
    parts = tensor.split(list(lengths), dim)
    return _join([parts[i] for i in chosen], dim)


def _cut_mask(
    tensor: Tensor, lengths: Sequence[int], queries: tuple[int, ...], of_keys: Sequence[int], keys: tuple[int, ...]
) -> Tensor:
    """The part of a block's heads, `(B or 1, h or 1, L or 1, past + L)`, for its queries and keys."""
    return _take_segments(_take_segments(tensor, lengths, queries, 2), of_keys, keys, 3)


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


# --- the operator: blocks on CPU -------------------------------------------------------------------------------------
#
# torch's CPU flash attention block by block, written straight into the output and, backwards, into the gradients.
# Composed of differentiable operators the same takes up to half as long again on short segments.


def _fits_operator(query: Tensor, value: Tensor, attention_mask: Tensor | None, dropout_p: float) -> bool:
    return (
        query.device.type == "cpu"
        and dropout_p == 0
        and query.shape[-1] == value.shape[-1]
        and 0 not in query.shape
        and not (attention_mask is not None and attention_mask.requires_grad and torch.is_grad_enabled())
        and not needs_plain_operators()
        and not torch.compiler.is_exporting()  # an exported program runs where this file is not
        # What torch.nn.attention.sdpa_kernel sets, for CPU too; Dynamo cannot read it.
        and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())
    )


class _Plan(NamedTuple):
    """A block as positions: samples, heads, query rows, and key rows, by segment and with neighbours joined."""

    samples: slice
    heads: slice | list[int]
    rows: slice
    key_segments: list[slice]
    keys: list[slice]


def _views(pairs: Sequence[int], num_heads: int) -> list[View]:
    """The views of all heads, of which `pairs` has a head, a query segment and a key segment one after the other."""
    views: list[set[tuple[int, int]]] = [set() for _ in range(num_heads)]
    for head, i, j in zip(pairs[::3], pairs[1::3], pairs[2::3], strict=True):
        views[head].add((i, j))
    return [frozenset(view) for view in views]


@functools.lru_cache(maxsize=256)
def _parts(
    lengths: tuple[int, ...], pairs: tuple[int, ...], num_heads: int, batch: int, at_once: int
) -> list[list[_Plan]]:
    """The blocks that have queries, without keys where there is nothing to see; each list has heads of its own.

    at_once: parts that run at the same time.
    """
    at = _positions(lengths)
    blocks: dict[tuple[int, ...], list[tuple[slice, list[slice]]]] = {}
    for heads, queries, keys in blocks_of(_views(pairs, num_heads), len(lengths)):
        rows = slice(at[queries[0]].start, at[queries[-1]].stop)
        if rows.start < rows.stop:
            blocks.setdefault(heads, []).append((rows, [at[j] for j in keys if lengths[j]]))
    wanted = -(-enough_parts(at_once) // max(1, len(blocks)))
    samples = even_slices(batch, wanted)
    parts = []
    for heads, own in blocks.items():
        for some_samples, some_heads in product(samples, even_slices(len(heads), -(-wanted // len(samples)))):
            place = some_samples, _as_slice(heads[some_heads])
            parts.append([_Plan(*place, rows, segments, _join_adjacent(segments)) for rows, segments in own])
    return parts


def _as_slice(heads: tuple[int, ...]) -> slice | list[int]:
    """Evenly spaced heads, which presets make, need no copy."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    evenly = slice(heads[0], heads[-1] + 1, step)
    return evenly if heads == tuple(range(heads[0], heads[-1] + 1, step)) else list(heads)


def _positions(lengths: Sequence[int]) -> list[slice]:
    stops = list(accumulate(lengths))
    return [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def _join_adjacent(parts: list[slice]) -> list[slice]:
    joined: list[slice] = []
    for part in parts:
        if joined and joined[-1].stop == part.start:
            joined[-1] = slice(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined


def _take_rows(tensor: Tensor, plan: _Plan, rows: list[slice]) -> Tensor:
    joined = _join([tensor[plan.samples, plan.heads, part] for part in rows], 2)
    # The kernel takes features for neighbours in memory, and does not check.
    return joined if joined.stride(-1) == 1 else joined.contiguous()


def _block_addend(attention_mask: Tensor | None, plan: _Plan, dtype: torch.dtype) -> Tensor | None:
    """The padding of a block as addends, 0 or −inf."""
    if attention_mask is None:
        return None
    part = attention_mask if attention_mask.shape[0] == 1 else attention_mask[plan.samples]
    part = part if part.shape[1] == 1 else part[:, plan.heads]
    part = part if part.shape[2] == 1 else part[:, :, plan.rows]
    part = _join([part[..., keys] for keys in plan.keys], 3)
    if part.dtype == torch.bool:
        return torch.zeros((), dtype=dtype).where(part, -float("inf"))
    return part.to(dtype).masked_fill(part <= torch.finfo(part.dtype).min, -float("inf"))


def _locomt_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int],
    pairs: list[int],
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Output `(B, H, L, D)` and the logarithms of the softmax's sums `(B, H, L)`."""
    out = empty_output(query, value)
    log_sums = query.new_empty(query.shape[:3], dtype=softmax_dtype(value.dtype))
    at_once = parts_at_once(query.device)

    def run(plans: list[_Plan]) -> None:
        for plan in plans:
            place = plan[:3]
            if plan.keys:
                out[place], log_sums[place] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    _take_rows(query, plan, [plan.rows]),
                    _take_rows(key, plan, plan.keys),
                    _take_rows(value, plan, plan.keys),
                    attn_mask=_block_addend(attention_mask, plan, query.dtype),
                    scale=scaling,
                )
            else:
                out[place] = log_sums[place] = 0

    run_parts(run, _parts(tuple(lengths), tuple(pairs), query.shape[1], query.shape[0], at_once), at_once)
    return out, log_sums


def _locomt_backward(
    grad_out: Tensor,
    out: Tensor,
    log_sums: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int],
    pairs: list[int],
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value; a tuple, as torch can take several of at once (`is_grads_batched`)."""
    grad_query, grad_key, grad_value = (empty_output(query, value) for _ in range(3))
    at_once = parts_at_once(query.device)
    segments = [rows for rows in _positions(lengths) if rows.start < rows.stop]

    def run(plans: list[_Plan]) -> None:
        samples, heads = plans[0][:2]
        # What nothing has been written to yet, so that the first gradient need not be added to zeros.
        pending = {rows.start: rows for rows in segments}
        for plan in plans:
            if not plan.keys:
                grad_query[plan[:3]] = 0
                continue
            grad_query[plan[:3]], *grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _take_rows(grad_out, plan, [plan.rows]),
                _take_rows(query, plan, [plan.rows]),
                _take_rows(key, plan, plan.keys),
                _take_rows(value, plan, plan.keys),
                _take_rows(out, plan, [plan.rows]),
                log_sums[plan[:3]],
                0.0,
                False,
                attn_mask=_block_addend(attention_mask, plan, query.dtype),
                scale=scaling,
            )
            sizes = [rows.stop - rows.start for rows in plan.key_segments]
            for rows, *found in zip(plan.key_segments, *(grad.split(sizes, 2) for grad in grads), strict=True):
                is_first = pending.pop(rows.start, None) is not None
                for target, part in zip((grad_key, grad_value), found, strict=True):
                    place = samples, heads, rows
                    target[place] = part if is_first else target[place] + part
        for rows in pending.values():
            for target in (grad_key, grad_value):
                target[samples, heads, rows] = 0

    run_parts(run, _parts(tuple(lengths), tuple(pairs), query.shape[1], query.shape[0], at_once), at_once)
    return grad_query, grad_key, grad_value


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, _, _, *tensors, ctx.lengths, ctx.pairs, ctx.scaling = inputs
    ctx.save_for_backward(grad_out, *tensors)


def _differentiate_backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives: those of the blocks in differentiable operators."""
    grad_out, *inputs = ctx.saved_tensors
    views = _views(ctx.pairs, inputs[0].shape[1])

    def attend(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            changes = (None, None, padding)
            return _attend_composed(query, key, value, ctx.lengths, 0, views, changes, ctx.scaling, 0.0)

    of_grad_out, *of_inputs = differentiate_gradients(attend, inputs, grad_out, (*tangents, None))
    # Tensors that were computed from the inputs have a share in their gradients.
    return of_grad_out, None, None, *of_inputs, None, None, None


def _register_operators() -> Any:
    """The namespace of this file's operators; a copy may have registered them before."""
    namespace = operator_namespace(__file__, "numerics_hf_lam", "threads_hf_lam")
    operators = getattr(torch.ops, namespace)
    if hasattr(operators, "locomt_forward"):
        return operators
    locomt_backward = torch.library.custom_op(f"{namespace}::locomt_backward", _locomt_backward, mutates_args=())
    locomt_backward.register_autograd(_differentiate_backward, setup_context=_setup_backward)
    locomt_forward = torch.library.custom_op(f"{namespace}::locomt_forward", _locomt_forward, mutates_args=())

    @locomt_backward.register_fake
    def fake_backward(
        grad_out: Tensor, out: Tensor, log_sums: Tensor, query: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        return tuple(empty_output(query, query) for _ in range(3))

    @locomt_forward.register_fake
    def fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        log_sums = query.new_empty(query.shape[:3], dtype=softmax_dtype(value.dtype))
        return empty_output(query, value), log_sums

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.lengths, ctx.pairs, ctx.scaling = inputs
        ctx.save_for_backward(*output, *tensors)

    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = locomt_backward(grad_out, *ctx.saved_tensors, ctx.lengths, ctx.pairs, ctx.scaling)
        return *grads, None, None, None, None

    locomt_forward.register_autograd(backward, setup_context=setup_context)
    return operators


_OPERATORS = _register_operators()
