# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention views (LoCoMT) as plain functions: tensors in, tensors out.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024,
arXiv 2402.15096. Tokens belong to `m` segments (modalities). A head with the view `V ⊆ {(i, j)}` lets queries of
segment `i` see keys of segment `j`:

    out_i = softmax( Q_i K_Uᵀ · scaling + P ) V_U,    U = all j with (i, j) ∈ V, one softmax over the union
    out_i = 0                                         where U is empty

The reference forms all scores and masks those outside the view. The block path never does, and has a file of its own,
`locomt_blocks_hf_lam.py`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .lam_attention_hf_lam import changed_attention, changed_attention_with_weights, read_mask
from .locomt_blocks_hf_lam import attend_blocks
from .locomt_layout_hf_lam import Layout
from .locomt_views_hf_lam import View
from .numerics_hf_lam import needs_plain_operators, softmax_dtype
from .padding_hf_lam import allowed, check_padding, restrict_padding

IMPLEMENTATIONS = ("auto", "eager", "blocks")


def locomt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    views: Sequence[View | set[tuple[int, int]]],
    *,
    mask: Tensor | None = None,
    combine: str = "multiply",
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
        mask: LAM's mask, floating point, `(B or 1, H or 1, L, L)`, cut by the same blocks.
        combine: effect of the mask on the scores, "multiply" or "add".
        attention_mask: the padding, broadcastable to `(B, H, L, L)`: bool (True = may attend), or additive floating
            point, where −inf and anything up to `finfo(dtype).min` block.
        scaling: factor on the raw scores; `D ** -0.5` unless given.
        dropout_p: probability, in [0, 1), with which an attention weight is zeroed (the others grow accordingly).
        implementation: "eager" forms all scores, as the formula reads; "blocks" computes those inside the views only,
            on slices; "auto" is "eager" under the transforms of `torch.func` and in forward-mode differentiation,
            which torch's fused attention does not follow, and "blocks" elsewhere.

    Returns:
        `(B, H, L, Dv)`; zeros for a query that sees no key.

    Raises:
        TypeError: a mask or tensor of a dtype that has no meaning here.
        ValueError: sizes or views that do not fit, an unknown `combine` or `implementation`, a `dropout_p` outside
            [0, 1), or a floating point `attention_mask` of zeros and ones, which would mask nothing.

    Examples:
        >>> import torch
        >>> from hf_lam import locomt_attention
        >>> query, key, value = torch.randn(3, 2, 2, 10, 8)  # 2 samples, 2 heads, 10 tokens
        >>> views = [{(0, 0), (1, 1)}, {(0, 1), (1, 0)}]  # each segment sees itself; each the other
        >>> locomt_attention(query, key, value, [6, 4], views).shape
        torch.Size([2, 2, 10, 8])
    """
    lengths, views = _check_segments(query, key, segment_lengths, views)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}.")
    is_eager = implementation == "eager" or (implementation == "auto" and needs_plain_operators())
    attend = attend_eager if is_eager else attend_blocks
    changed: dict[str, Any] = {} if mask is None else read_mask(query, key, value, mask, combine)
    options: dict[str, Any] = {"attention_mask": attention_mask, "scaling": scaling, "dropout_p": dropout_p}
    return attend(query, key, value, Layout(lengths), views, **changed, **options)


def locomt_attention_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    views: Sequence[View | set[tuple[int, int]]],
    *,
    mask: Tensor | None = None,
    combine: str = "multiply",
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The reference: [`locomt_attention`] by the eager formula, with its attention map; same arguments and errors.

    Returns:
        The output `(B, H, L, Dv)`, and the weights `(B, H, L, L)` that multiplied the values, zero outside of the
        views: after dropout, as in transformers' eager attention.
    """
    lengths, views = _check_segments(query, key, segment_lengths, views)
    changed: dict[str, Any] = {} if mask is None else read_mask(query, key, value, mask, combine)
    options: dict[str, Any] = {"attention_mask": attention_mask, "scaling": scaling, "dropout_p": dropout_p}
    return attend_with_weights(query, key, value, Layout(lengths), views, **changed, **options)


def _check_segments(
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


def seen_pairs(layout: Layout, views: Sequence[View], device: torch.device, past: int = 0) -> Tensor:
    """The pairs of query and key that see each other by head, `(1 or B, H, L, past + L)` bool; all see past keys."""
    segments = range(len(layout.lengths))
    # Not written into a tensor: torch.func.linearize would leave that out.
    table = torch.tensor([[[(i, j) in view for j in segments] for i in segments] for view in views])
    segment_ids = layout.ids().to(device)
    by_query = table.to(device)[:, segment_ids]  # (H, b, L, m)
    keys = segment_ids[None, :, None, :].expand(*by_query.shape[:3], -1)
    return pad(by_query.gather(3, keys).transpose(0, 1), (past, 0), value=True)


def attend_with_weights(
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
) -> tuple[Tensor, Tensor]:
    """The formula as it stands, for tokens in any order: full scores, and −inf outside of the views.

    Keys before the tokens, of which there are more than queries then, are seen in every view.
    """
    seen = seen_pairs(layout, views, query.device, key.shape[2] - query.shape[2])
    if attention_mask is not None:
        attention_mask = check_padding(attention_mask, (*query.shape[:3], key.shape[2]))
    return changed_attention_with_weights(
        query,
        key,
        value,
        factor=factor,
        addend=addend,
        attention_mask=restrict_padding(attention_mask, seen),
        scaling=scaling,
        dropout_p=dropout_p,
    )


def attend_eager(
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
    """[`attend_with_weights`] without the weights."""
    options: dict[str, Any] = {"attention_mask": attention_mask, "scaling": scaling, "dropout_p": dropout_p}
    return attend_with_weights(query, key, value, layout, views, factor=factor, addend=addend, **options)[0]


# --- annealing -------------------------------------------------------------------------------------------------------


def attend_annealed(
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
    penalty: Tensor,
    want_weights: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Full attention on its way to views: scores outside of a view get `−μ`, the scalar `penalty`.

    A query whose view has no keys at all would not notice, since a constant shift cancels in the softmax; its output
    is multiplied by `e^−μ` instead. With `μ = 0` this is full attention, with `μ → ∞` attention with views.
    """
    seen = seen_pairs(layout, views, query.device, key.shape[2] - query.shape[2])
    padding = None if attention_mask is None else check_padding(attention_mask, (*query.shape[:3], key.shape[2]))
    dtype = softmax_dtype(value.dtype)
    penalty = penalty.to(dtype)
    visible = seen
    if padding is not None:
        is_key = allowed(padding)
        visible = seen & is_key
    is_blind = ~visible.any(-1, keepdim=True)  # (B or 1, H, L, 1)
    bias = torch.where(seen | is_blind, torch.zeros_like(penalty), -penalty)
    if padding is not None:
        if padding.dtype != torch.bool:
            bias = bias + padding.to(dtype)
        bias = bias.masked_fill(~is_key, -float("inf"))
    fade = torch.where(is_blind, torch.exp(-penalty), torch.ones_like(penalty)).to(value.dtype)
    options: dict[str, Any] = {
        "factor": factor,
        "addend": addend,
        "attention_mask": bias,
        "scaling": scaling,
        "dropout_p": dropout_p,
    }
    if want_weights:
        out, weights = changed_attention_with_weights(query, key, value, **options)
        return out * fade, weights * fade
    return changed_attention(query, key, value, implementation=implementation, **options) * fade, None
