# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Where the segments of attention views (LoCoMT) lie: how tokens in any order are brought into order, and back.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024,
arXiv 2402.15096. Tokens belong to segments (modalities), which may lie apart, as the
rectangles of a grid do, or differ from sample to sample, as token types do.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .numerics_hf_lam import needs_plain_operators


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

    Every segment is padded to its longest in the batch; in a compiled, exported or transformed program, whose sizes
    must not depend on values, to the whole sequence.
    """
    length = segment_ids.shape[1]
    is_of = segment_ids.unsqueeze(-1) == torch.arange(segments, device=segment_ids.device)  # (B, L, m)
    counts = is_of.sum(1)
    is_token: Tensor | None
    if torch.compiler.is_compiling() or needs_plain_operators():
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
