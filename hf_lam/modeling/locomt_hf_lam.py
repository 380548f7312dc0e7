# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention views (LoCoMT) as plain functions: tensors in, tensors out.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024,
arXiv 2402.15096. Tokens belong to `m` segments (modalities). A head with the view `V ⊆ {(i, j)}` lets queries of
segment `i` see keys of segment `j`:

    out_i = softmax( Q_i K_Uᵀ · scaling + P ) V_U,    U = all j with (i, j) ∈ V, one softmax over the union
    out_i = 0                                         where U is empty

The reference forms all scores and masks those outside the view. The block path never does: heads that share a view are
computed together, segment by segment, on slices, so the time follows `Σ_{(i,j)∈V} L_i L_j`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .functional_hf_lam import (
    _checked,
    _checked_padding,
    _empty_output,
    _softmax_dtype,
    lam_attention,
    lam_attention_with_weights,
    operator_namespace,
    without_autocast,
)
from .views_hf_lam import View

IMPLEMENTATIONS = ("auto", "eager", "blocks")


class Layout(NamedTuple):
    """How the tokens of a batch fall into segments, and how to bring those that are not in order into order.

    lengths: tokens of each segment once in order, padding included.
    segment_ids: `(1 or B, L)`, the segment of each token; None where the tokens are in order.
    order: `(1 or B, P)`, the token that goes to each of the `P = Σ lengths` places in order.
    places: `(1 or B, L)`, the place that each token goes to.
    is_token: `(B, P)` bool, False where a place has no token; None where all have.
    """

    lengths: tuple[int, ...]
    segment_ids: Tensor | None = None
    order: Tensor | None = None
    places: Tensor | None = None
    is_token: Tensor | None = None

    @property
    def length(self) -> int:
        """`L`, the tokens of the sequence."""
        return sum(self.lengths) if self.segment_ids is None else self.segment_ids.shape[1]

    def ids(self) -> Tensor:
        """The segment of each token, `(1 or B, L)`, also where the tokens are in order."""
        if self.segment_ids is not None:
            return self.segment_ids
        ids = [segment for segment, length in enumerate(self.lengths) for _ in range(length)]
        return torch.tensor([ids], dtype=torch.long)

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        tensors = (None if tensor is None else tensor.to(device) for tensor in self[1:])
        return Layout(self.lengths, *tensors)


def fixed_layout(segment_ids: Tensor, lengths: Sequence[int]) -> Layout:
    """The layout of segments that are the same for all samples: ids `(L,)`, and how often each occurs."""
    order = torch.argsort(segment_ids, stable=True)
    return Layout(tuple(lengths), segment_ids[None], order[None], torch.argsort(order)[None])


def sample_layout(segment_ids: Tensor, segments: int) -> Layout:
    """The layout of segments that differ from sample to sample: ids `(B, L)`.

    Every segment is padded to its longest in the batch; in a compiled or exported program, whose sizes must not depend
    on values, to the whole sequence.
    """
    length = segment_ids.shape[1]
    is_of = segment_ids.unsqueeze(-1) == torch.arange(segments, device=segment_ids.device)  # (B, L, m)
    counts = is_of.sum(1)
    is_token: Tensor | None
    if torch.compiler.is_compiling():
        lengths, is_ragged = [length] * segments, True
    else:
        rows = counts.tolist()
        lengths = [max(column) for column in zip(*rows, strict=True)] if rows else [0] * segments
        is_ragged = any(row != lengths for row in rows)
    places_of_segment = [torch.arange(size, device=segment_ids.device) for size in lengths]
    first = counts.cumsum(1) - counts
    by_segment = torch.argsort(segment_ids, dim=1, stable=True)
    sources = torch.cat([first[:, i, None] + places for i, places in enumerate(places_of_segment)], dim=1)
    order = by_segment.gather(1, sources.clamp(max=length - 1))
    is_token = None
    if is_ragged:
        is_token = torch.cat([places < counts[:, i, None] for i, places in enumerate(places_of_segment)], dim=1)
    starts = torch.tensor([sum(lengths[:i]) for i in range(segments)], device=segment_ids.device)
    rank = (is_of.cumsum(1) - 1).gather(2, segment_ids.unsqueeze(-1)).squeeze(-1)
    return Layout(tuple(lengths), segment_ids, order, starts[segment_ids] + rank, is_token)


def locomt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    views: Sequence[View | set[tuple[int, int]]],
    *,
    mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Attention with one view per head over contiguous segments (LoCoMT, arXiv 2402.15096).

    Args:
        query: `(B, H, L, D)`. Cast to the dtype of `value`, like `key`: under autocast they may differ.
        key: `(B, H, L, D)`.
        value: `(B, H, L, Dv)`; its dtype is the dtype of the result.
        segment_lengths: `[L_1, …, L_m]`, the tokens of each segment; their sum is `L`.
        views: one per head, each a set of (query segment, key segment) indices.
        mask: LAM's multiplicative mask, floating point, `(B or 1, H or 1, L, L)`, cut by the same blocks.
        attention_mask: the padding, broadcastable to `(B, H, L, L)`: bool (True = may attend), or additive floating
            point, where −inf and anything up to `finfo(dtype).min` block.
        scaling: factor on the raw scores; `D ** -0.5` unless given.
        dropout_p: probability, in [0, 1), with which an attention weight is zeroed (the others grow accordingly).
        implementation: "eager" forms all scores, as the formula reads; "blocks" computes those inside the views only,
            on slices; "auto" is "blocks".

    Returns:
        `(B, H, L, Dv)`; zeros for a query that sees no key.

    Raises:
        TypeError: a mask or tensor of a dtype that has no meaning here.
        ValueError: sizes or views that do not fit, an unknown `implementation`, a `dropout_p` outside [0, 1), or a
            floating point `attention_mask` of zeros and ones, which would mask nothing.
    """
    lengths, views = _checked_segments(query, key, segment_lengths, views)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}.")
    layout = Layout(lengths)
    attend = attend_eager if implementation == "eager" else attend_blocks
    return attend(query, key, value, layout, views, mask, attention_mask, scaling, dropout_p)


def locomt_attention_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    views: Sequence[View | set[tuple[int, int]]],
    *,
    mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The reference: [`locomt_attention`] by the eager formula, with its attention map; same arguments and errors.

    Returns:
        The output `(B, H, L, Dv)`, and the weights `(B, H, L, L)` that multiplied the values, zero outside of the
        views: after dropout, as in transformers' eager attention.
    """
    lengths, views = _checked_segments(query, key, segment_lengths, views)
    return attend_with_weights(query, key, value, Layout(lengths), views, mask, attention_mask, scaling, dropout_p)


def _checked_segments(
    query: Tensor, key: Tensor, segment_lengths: Sequence[int], views: Sequence[View | set[tuple[int, int]]]
) -> tuple[tuple[int, ...], tuple[View, ...]]:
    lengths = tuple(int(length) for length in segment_lengths)
    if min(lengths, default=0) < 0 or query.dim() != 4 or sum(lengths) != query.shape[2]:
        raise ValueError(
            f"segment_lengths {list(lengths)} add up to {sum(lengths)}; query is {tuple(query.shape)}, (batch, heads, "
            "length, size), and its length must be that sum."
        )
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"attention views are for self-attention: {query.shape[2]} queries and {key.shape[2]} keys do not agree."
        )
    if len(views) != query.shape[1]:
        raise ValueError(f"views holds {len(views)} views for {query.shape[1]} heads; give one for every head.")
    for view in views:
        for pair in view:
            if len(pair) != 2 or not all(0 <= index < len(lengths) for index in pair):
                raise ValueError(
                    f"view {set(view)} holds {pair}; a view holds (query segment, key segment) pairs of indices from "
                    f"0 to {len(lengths) - 1}."
                )
    return lengths, tuple(frozenset(view) for view in views)


# --- the formula -----------------------------------------------------------------------------------------------------


def seen_pairs(layout: Layout, views: Sequence[View], device: torch.device) -> Tensor:
    """Which query sees which key in which head: bool `(1 or B, H, L, L)`."""
    segments = len(layout.lengths)
    table = torch.zeros(len(views), segments, segments, dtype=torch.bool)
    for head, view in enumerate(views):
        for i, j in view:
            table[head, i, j] = True
    segment_ids = layout.ids().to(device)
    by_query = table.to(device)[:, segment_ids]  # (H, b, L, m)
    keys = segment_ids[None, :, None, :].expand(*by_query.shape[:3], -1)
    return by_query.gather(3, keys).transpose(0, 1)


def attend_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    views: Sequence[View],
    mask: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """The formula as it stands, for tokens in any order: full scores, and −inf outside of the views."""
    seen = seen_pairs(layout, views, query.device)
    full = (*query.shape[:3], key.shape[2])
    if attention_mask is not None:
        attention_mask = _checked_padding(attention_mask, full)
    if attention_mask is None:
        attention_mask = seen
    elif attention_mask.dtype == torch.bool:
        attention_mask = attention_mask & seen
    else:
        attention_mask = attention_mask.masked_fill(~seen, -float("inf"))
    return lam_attention_with_weights(
        query,
        key,
        value,
        _ones(query, key) if mask is None else mask,
        attention_mask=attention_mask,
        scaling=scaling,
        dropout_p=dropout_p,
    )


def attend_eager(*args: Any) -> Tensor:
    """[`attend_with_weights`] without the weights."""
    return attend_with_weights(*args)[0]


def _ones(query: Tensor, key: Tensor) -> Tensor:
    """The mask that changes nothing."""
    return query.new_ones(1, 1, 1, 1).expand(1, 1, query.shape[2], key.shape[2])


# --- annealing -------------------------------------------------------------------------------------------------------


def attend_annealed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    views: Sequence[View],
    mask: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout_p: float,
    penalty: Tensor,
    want_weights: bool,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Full attention on its way to views: scores outside of a view get `−μ`, the scalar `penalty`.

    A query whose view has no keys at all would not notice, since a constant shift cancels in the softmax; its output
    is multiplied by `e^−μ` instead. With `μ = 0` this is full attention, with `μ → ∞` attention with views.
    """
    seen = seen_pairs(layout, views, query.device)
    padding = None if attention_mask is None else _checked_padding(attention_mask, (*query.shape[:3], key.shape[2]))
    dtype = _softmax_dtype(value.dtype)
    penalty = penalty.to(dtype)
    visible = seen
    if padding is not None:
        is_key = padding if padding.dtype == torch.bool else padding > torch.finfo(padding.dtype).min
        visible = seen & is_key
    is_blind = ~visible.any(-1, keepdim=True)  # (B or 1, H, L, 1)
    bias = torch.where(seen | is_blind, torch.zeros_like(penalty), -penalty)
    if padding is not None:
        if padding.dtype != torch.bool:
            bias = bias + padding.to(dtype)
        bias = bias.masked_fill(~is_key, -float("inf"))
    fade = torch.where(is_blind, torch.exp(-penalty), torch.ones_like(penalty)).to(value.dtype)
    options: dict[str, Any] = {"attention_mask": bias, "scaling": scaling, "dropout_p": dropout_p}
    mask = _ones(query, key) if mask is None else mask
    if want_weights:
        out, weights = lam_attention_with_weights(query, key, value, mask, **options)
        return out * fade, weights * fade
    return lam_attention(query, key, value, mask, implementation=implementation, **options) * fade, None


# --- blocks ----------------------------------------------------------------------------------------------------------


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
    mask: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout_p: float,
) -> Tensor:
    """The scores inside the views and no others, for tokens in any order."""
    checked = _checked(
        query, key, value, _ones(query, key) if mask is None else mask, attention_mask, scaling, dropout_p
    )
    query, key, value, attention_mask = checked.query, checked.key, checked.value, checked.attention_mask
    if layout.order is not None:
        length = query.shape[2]
        query, key, value = (_gathered(x, layout.order, 2, length) for x in (query, key, value))
        mask, attention_mask = (
            None if x is None else _gathered(_gathered(x, layout.order, 3, length), layout.order, 2, length)
            for x in (mask, attention_mask)
        )
    if layout.is_token is not None:
        is_token = layout.is_token[:, None, None]
        if attention_mask is None:
            attention_mask = is_token
        elif attention_mask.dtype == torch.bool:
            attention_mask = attention_mask & is_token
        else:
            attention_mask = attention_mask.masked_fill(~is_token, -float("inf"))
    with without_autocast(query.device.type):
        if _fits_operator(query, value, mask, attention_mask, dropout_p):
            pairs = [number for head, view in enumerate(views) for i, j in sorted(view) for number in (head, i, j)]
            out, _ = _OPERATORS.locomt_forward(
                query, key, value, attention_mask, list(layout.lengths), pairs, checked.scaling
            )
        else:
            out = _composed(query, key, value, layout.lengths, views, mask, attention_mask, checked.scaling, dropout_p)
    return out if layout.places is None else _gathered(out, layout.places, 2, out.shape[2])


def _gathered(tensor: Tensor, index: Tensor, dim: int, length: int) -> Tensor:
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


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    views: Sequence[View],
    mask: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Block by block, in differentiable operators of torch; `split` and `cat` copy gradients once, slices would add
    up one full-size tensor for each block."""
    segments = len(lengths)
    parts: dict[tuple[int, ...], list[Tensor]] = {}
    for block in blocks_of(views, segments):
        parts.setdefault(block.heads, [])
        q, k, v = (_heads(x, block.heads) for x in (query, key, value))
        q, k, v = (
            _segments(x, lengths, part, 2) for x, part in ((q, block.queries), (k, block.keys), (v, block.keys))
        )
        if 0 in q.shape or 0 in k.shape:
            part = value.new_zeros(*q.shape[:3], value.shape[-1])
        else:
            m, padding = (None if x is None else _cut(x, lengths, block) for x in (mask, attention_mask))
            part = _attend(q, k, v, m, padding, scaling, dropout_p)
        parts[block.heads].append(part.transpose(1, 2))
    # Joined as (B, L, H, Dv): what follows an attention joins the heads, which then is a view.
    groups = [torch.cat(rows, 1) for rows in parts.values()]
    heads = [head for group in parts for head in group]
    out = torch.cat(groups, 2)
    if heads != sorted(heads):
        single = out.split(1, 2)
        out = torch.cat([single[heads.index(head)] for head in range(len(heads))], 2)
    return out.transpose(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    if mask is not None:
        return lam_attention(
            query, key, value, mask, attention_mask=attention_mask, scaling=scaling, dropout_p=dropout_p
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


def _heads(tensor: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Some heads of `(B, H, …)`; a tensor that all heads share stays as it is."""
    if tensor.shape[1] == 1 or len(heads) == tensor.shape[1]:
        return tensor
    firsts = [head for head in heads if head - 1 not in heads]
    lasts = [head for head in heads if head + 1 not in heads]
    return _joined([tensor[:, first : last + 1] for first, last in zip(firsts, lasts, strict=True)], 1)


def _segments(tensor: Tensor, lengths: Sequence[int], chosen: tuple[int, ...], dim: int) -> Tensor:
    """Some segments along a dimension; one that is broadcast stays as it is."""
    if len(chosen) == len(lengths) or (tensor.shape[dim] == 1 and sum(lengths) != 1):
        return tensor
    if not chosen:
        return tensor.narrow(dim, 0, 0)
    parts = tensor.split(list(lengths), dim)
    return _joined([parts[i] for i in chosen], dim)


def _cut(tensor: Tensor, lengths: Sequence[int], block: Block) -> Tensor:
    """The block's part of a mask `(B or 1, H or 1, L or 1, L)`."""
    tensor = _segments(_heads(tensor, block.heads), lengths, block.queries, 2)
    return _segments(tensor, lengths, block.keys, 3)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


# --- the operator: blocks on CPU -------------------------------------------------------------------------------------
#
# torch's CPU flash attention block by block, written straight into the output and, backwards, into the gradients.
# Composed of differentiable operators the same takes up to half as long again on short segments.


def _fits_operator(
    query: Tensor, value: Tensor, mask: Tensor | None, attention_mask: Tensor | None, dropout_p: float
) -> bool:
    return (
        query.device.type == "cpu"
        and mask is None
        and dropout_p == 0
        and query.shape[-1] == value.shape[-1]
        and 0 not in query.shape
        and not (attention_mask is not None and attention_mask.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_exporting()  # an exported program runs where this file is not
        # What torch.nn.attention.sdpa_kernel sets, for CPU too; Dynamo cannot read it.
        and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())
    )


class _Plan(NamedTuple):
    """A block as positions: heads, query rows, and key rows, segment by segment and with neighbours joined."""

    heads: slice | list[int]
    rows: slice
    key_segments: list[slice]
    keys: list[slice]


@functools.lru_cache(maxsize=256)
def _plans(lengths: tuple[int, ...], pairs: tuple[int, ...], num_heads: int) -> list[_Plan]:
    """The blocks that have queries; without keys where there is nothing to see."""
    views: list[set[tuple[int, int]]] = [set() for _ in range(num_heads)]
    for head, i, j in zip(pairs[::3], pairs[1::3], pairs[2::3], strict=True):
        views[head].add((i, j))
    at = _positions(lengths)
    plans = []
    for heads, queries, keys in blocks_of([frozenset(view) for view in views], len(lengths)):
        rows = slice(at[queries[0]].start, at[queries[-1]].stop)
        key_segments = [at[j] for j in keys if lengths[j]]
        if rows.start < rows.stop:
            plans.append(_Plan(_as_slice(heads), rows, key_segments, _adjacent_joined(key_segments)))
    return plans


def _as_slice(heads: tuple[int, ...]) -> slice | list[int]:
    """Evenly spaced heads, which presets make, need no copy."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    evenly = slice(heads[0], heads[-1] + 1, step)
    return evenly if heads == tuple(range(heads[0], heads[-1] + 1, step)) else list(heads)


def _positions(lengths: Sequence[int]) -> list[slice]:
    stops = list(accumulate(lengths))
    return [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def _adjacent_joined(parts: list[slice]) -> list[slice]:
    joined: list[slice] = []
    for part in parts:
        if joined and joined[-1].stop == part.start:
            joined[-1] = slice(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined


def _rows(tensor: Tensor, plan: _Plan, rows: list[slice]) -> Tensor:
    joined = _joined([tensor[:, plan.heads, part] for part in rows], 2)
    # The kernel takes features for neighbours in memory, and does not check.
    return joined if joined.stride(-1) == 1 else joined.contiguous()


def _block_addend(attention_mask: Tensor | None, plan: _Plan, dtype: torch.dtype) -> Tensor | None:
    """The padding of a block as addends, 0 or −inf."""
    if attention_mask is None:
        return None
    part = attention_mask if attention_mask.shape[1] == 1 else attention_mask[:, plan.heads]
    part = part if part.shape[2] == 1 else part[:, :, plan.rows]
    part = _joined([part[..., keys] for keys in plan.keys], 3)
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
    out = _empty_output(query, value)
    log_sums = query.new_empty(query.shape[:3], dtype=_softmax_dtype(value.dtype))
    for plan in _plans(tuple(lengths), tuple(pairs), query.shape[1]):
        if not plan.keys:
            out[:, plan.heads, plan.rows] = 0
            log_sums[:, plan.heads, plan.rows] = 0
            continue
        out[:, plan.heads, plan.rows], log_sums[:, plan.heads, plan.rows] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _rows(query, plan, [plan.rows]),
                _rows(key, plan, plan.keys),
                _rows(value, plan, plan.keys),
                attn_mask=_block_addend(attention_mask, plan, query.dtype),
                scale=scaling,
            )
        )
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
) -> list[Tensor]:
    """The gradients of query, key and value."""
    grad_query, grad_key, grad_value = (_empty_output(query, value) for _ in range(3))
    plans = _plans(tuple(lengths), tuple(pairs), query.shape[1])
    # What nothing has been written to yet, so that the first part need not be added to zeros.
    segments = [rows for rows in _positions(lengths) if rows.start < rows.stop]
    pending = {(str(plan.heads), rows.start): (plan.heads, rows) for plan in plans for rows in segments}
    for plan in plans:
        if not plan.keys:
            grad_query[:, plan.heads, plan.rows] = 0
            continue
        grad_query[:, plan.heads, plan.rows], *grads = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _rows(grad_out, plan, [plan.rows]),
                _rows(query, plan, [plan.rows]),
                _rows(key, plan, plan.keys),
                _rows(value, plan, plan.keys),
                _rows(out, plan, [plan.rows]),
                log_sums[:, plan.heads, plan.rows],
                0.0,
                False,
                attn_mask=_block_addend(attention_mask, plan, query.dtype),
                scale=scaling,
            )
        )
        sizes = [rows.stop - rows.start for rows in plan.key_segments]
        for rows, *parts in zip(plan.key_segments, *(grad.split(sizes, 2) for grad in grads), strict=True):
            is_first = pending.pop((str(plan.heads), rows.start), None) is not None
            for target, part in zip((grad_key, grad_value), parts, strict=True):
                target[:, plan.heads, rows] = part if is_first else target[:, plan.heads, rows] + part
    for heads, rows in pending.values():
        for target in (grad_key, grad_value):
            target[:, heads, rows] = 0
    return [grad_query, grad_key, grad_value]


def _register_operators() -> Any:
    """The namespace of this file's operators; a copy may have registered them before."""
    namespace = operator_namespace(__file__)
    operators = getattr(torch.ops, namespace)
    if hasattr(operators, "locomt_forward"):
        return operators
    locomt_backward = torch.library.custom_op(f"{namespace}::locomt_backward", _locomt_backward, mutates_args=())
    locomt_forward = torch.library.custom_op(f"{namespace}::locomt_forward", _locomt_forward, mutates_args=())

    @locomt_backward.register_fake
    def fake_backward(grad_out: Tensor, out: Tensor, log_sums: Tensor, query: Tensor, *rest: Any) -> list[Tensor]:
        return [_empty_output(query, query) for _ in range(3)]

    @locomt_forward.register_fake
    def fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        log_sums = query.new_empty(query.shape[:3], dtype=_softmax_dtype(value.dtype))
        return _empty_output(query, value), log_sums

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.lengths, ctx.pairs, ctx.scaling = inputs
        ctx.save_for_backward(*output, *tensors)

    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = locomt_backward(grad_out, *ctx.saved_tensors, ctx.lengths, ctx.pairs, ctx.scaling)
        return *grads, None, None, None, None

    locomt_forward.register_autograd(backward, setup_context=setup_context)
    return operators


_OPERATORS = _register_operators()
