# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention with changed scores as the formula reads: every operator is a plain, differentiable one.

Source: Barrios & Jin, "Multi-layer Learnable Attention Mask for Multimodal Tasks", arXiv 2406.02761. This is the
reference of the fast implementations, and what their second derivatives are computed with.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .numerics_hf_lam import softmax_dtype, without_autocast
from .padding_hf_lam import add_padding, additive


def attend_by_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float,
    drop_out: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """`softmax((QKᵀ·scaling) ⊙ factor + addend + P) V` and its weights, for checked arguments.

    drop_out: function that applies dropout to the weights.
    """
    padding = merge_addend(addend, attention_mask, key.shape[2])
    dtype = softmax_dtype(value.dtype)
    with without_autocast(query.device.type):
        scores = torch.matmul(query, key.transpose(-2, -1)).to(dtype) * scaling
        scores = scores if factor is None else scores * factor.to(dtype)
        if padding is None or key.shape[2] == 0:
            weights = torch.softmax(scores if addend is None else scores + addend, dim=-1)
        else:
            added, blocked = additive(padding, dtype)
            weights = torch.softmax(scores + added, dim=-1).masked_fill(blocked, 0)
        weights = drop_out(weights.to(value.dtype))
        return torch.matmul(weights, value), weights


def merge_addend(addend: Tensor | None, padding: Tensor | None, length_k: int) -> Tensor | None:
    """All that is added to the scores, in the form of a padding of all keys."""
    if addend is None:
        return padding
    if padding is not None and padding.is_floating_point():
        addend = addend.to(softmax_dtype(addend.dtype))
    merged = add_padding(addend, padding)
    return merged.expand(*merged.shape[:3], length_k)
