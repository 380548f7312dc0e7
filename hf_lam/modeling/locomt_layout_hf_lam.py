# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The places of LoCoMT's segments: how tokens in any order are brought into order, and back.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024,
arXiv 2402.15096. Tokens belong to segments (modalities), which may lie apart, as the
rectangles of a grid do, or differ from sample to sample, as token types do.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .locomt_segments_hf_lam import (
    Box,
    Modality,
    Rectangle,
    Segment,
    Span,
    TokenType,
    boxes_of,
    follow_each_other,
    grid_of_rectangles,
    leading_lengths,
    spans_of,
)
from .mechanism_hf_lam import PassStart
from .numerics_hf_lam import needs_plain_operators


class Layout(NamedTuple):
    """The segments of a batch's tokens, and how to bring tokens that are not in order into order.

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
        # Not one by one: an exported program has lengths of any size.
        return torch.cat([torch.full((1, length), segment) for segment, length in enumerate(self.lengths)], dim=1)

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        tensors = (None if tensor is None else tensor.to(device) for tensor in self[1:])
        return Layout(self.lengths, *tensors)


def fixed_layout(segment_ids: Tensor, lengths: Sequence[int]) -> Layout:
    """The layout of segments that are the same for all samples: ids `(L,)`, and how often each occurs."""
    order = _argsort(segment_ids)
    return Layout(tuple(lengths), segment_ids[None], order[None], torch.argsort(order)[None])


def _argsort(segment_ids: Tensor) -> Tensor:
    """Tokens by their segments, and those of one segment in their order, along the last dimension.

    No two keys are equal, so that any way to sort them will do: ONNX has none that keeps the order of equal ones.
    """
    length = segment_ids.shape[-1]
    return torch.argsort(segment_ids * length + torch.arange(length, device=segment_ids.device), dim=-1)


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
    by_segment = _argsort(segment_ids)
    sources = torch.cat([first[:, i, None] + places for i, places in enumerate(places_of_segment)], dim=1)
    order = by_segment.gather(1, sources.clamp(max=length - 1))
    is_token = None
    if is_ragged:
        is_token = torch.cat([places < counts[:, i, None] for i, places in enumerate(places_of_segment)], dim=1)
    starts = torch.tensor([sum(lengths[:i]) for i in range(segments)], device=segment_ids.device)
    rank = (is_of.cumsum(1) - 1).gather(2, segment_ids.unsqueeze(-1)).squeeze(-1)
    return Layout(tuple(lengths), segment_ids, order, starts[segment_ids] + rank, is_token)


# --- on a grid -------------------------------------------------------------------------------------------------------


def paint_grid(boxes: Sequence[Box], grid: Sequence[int], first: int, device: torch.device) -> Tensor:
    """The segment of every place of a grid, row-major `(N,)`: boxes that cover it, numbered from `first` on.

    Nothing is written in place: `torch.func.linearize` loses that.
    """
    axes = [torch.arange(size, device=device) for size in grid]
    ids = torch.full(tuple(grid), first, dtype=torch.long, device=device)
    for number, box in enumerate(boxes[1:], first + 1):
        inside = [(axis >= start) & (axis < stop) for axis, (start, stop) in zip(axes, box, strict=True)]
        ids = ids.masked_fill(reduce(lambda left, right: left.unsqueeze(-1) & right, inside), number)
    return ids.flatten()


def paint_grids(boxes: Sequence[Box], grids: Tensor, first: int, length: int) -> Tensor:
    """The same for samples whose grids differ, `(B, length)`.

    boxes: their ends are numbers, or differ, `(B,)`.
    grids: rows and columns of every sample, `(B, 2)`. What comes after its places is padding, which is spread over all
        segments, so that none is much longer for it.
    """
    places = torch.arange(length, device=grids.device)[None]
    columns = grids[:, 1:]
    row_and_column = torch.div(places, columns, rounding_mode="floor"), places % columns
    ids = first + places % len(boxes)
    ids = ids.expand(grids.shape[0], -1)
    is_place = places < grids.prod(1, keepdim=True)
    for number, box in enumerate(boxes, first):
        inside = is_place
        for place, (start, stop) in zip(row_and_column, box, strict=True):
            inside = inside & (place >= _column(start)) & (place < _column(stop))
        ids = ids.masked_fill(inside, number)
    return ids


def _column(end: int | Tensor) -> int | Tensor:
    return end[:, None] if isinstance(end, Tensor) else end


def sizes_of(boxes: Sequence[Box]) -> list[int]:
    """The number of places in every box."""
    return [prod([stop - start for start, stop in box]) for box in boxes]


# --- of one batch ----------------------------------------------------------------------------------------------------


def find_layout(
    segments: Sequence[Segment],
    appended: Sequence[int],
    frames_per_step: int,
    start: PassStart,
    device: torch.device,
) -> Layout:
    """Find where the segments lie in a batch.

    Args:
        segments: the segments, in order.
        appended: the segment of every token that is appended to the sequence.
        frames_per_step: frames of a video in one step of its grid.
        start: facts about the batch.
        device: device for tensors that are the same for every sample.

    Raises:
        ValueError: if they lie on a grid of a size that is not known.
    """
    extent, leading = segments[-1].extent, leading_lengths(segments)
    if isinstance(extent, TokenType):
        assert start.token_types is not None
        return _sample_layout(_segments_of_types(segments, start.token_types), appended, len(segments))
    if isinstance(extent, Modality):
        assert start.modalities is not None
        return _layout_of_spans(start.modalities.lengths, appended, device)
    if isinstance(extent, Span):
        return _layout_of_spans(leading, appended, device)
    grid = grid_of_rectangles(segments) if isinstance(extent, Rectangle) else start.grid
    if grid is None:
        names = [segment.name for segment in segments]
        raise ValueError(f"the segments {names} lie on the grid of the input, which is not known.")
    if isinstance(grid, Tensor):
        assert start.length is not None
        boxes = boxes_of(segments, grid.unbind(1), frames_per_step)
        places = paint_grids(boxes, grid, len(leading), start.length - sum(leading))
        before = grid.new_tensor(spans_of(leading)).expand(grid.shape[0], -1)
        return _sample_layout(torch.cat([before, places], dim=1), appended, len(segments))
    boxes = boxes_of(segments, grid, frames_per_step)
    lengths = [*leading, *sizes_of(boxes)]
    if not appended and follow_each_other(boxes, grid):
        return Layout(tuple(lengths))
    places = paint_grid(boxes, grid, len(leading), device)
    return _fixed_layout(torch.cat([places.new_tensor(spans_of(leading)), places]), lengths, appended)


def _layout_of_spans(lengths: Sequence[int], appended: Sequence[int], device: torch.device) -> Layout:
    """The segments one after the other."""
    if not appended:
        return Layout(tuple(lengths))
    spans = [torch.full((length,), segment, device=device) for segment, length in enumerate(lengths)]
    return _fixed_layout(torch.cat(spans), lengths, appended)


def _segments_of_types(segments: Sequence[Segment], token_types: Tensor) -> Tensor:
    """The segment of every token, `(B, L)`, which may be listed in any order of their token types."""
    leading = leading_lengths(segments)
    types = [segment.extent.value for segment in segments if isinstance(segment.extent, TokenType)]
    segment_of_type = token_types.new_tensor([len(leading) + types.index(t) for t in range(len(types))])
    before = token_types.new_tensor(spans_of(leading)).expand(token_types.shape[0], -1)
    before = before[:, : token_types.shape[1]]  # of the tensor: cutting the list would fix an exported length
    return torch.cat([before, segment_of_type[token_types][:, before.shape[1] :]], dim=1)


def _fixed_layout(ids: Tensor, lengths: Sequence[int], appended: Sequence[int]) -> Layout:
    longer = [length + appended.count(segment) for segment, length in enumerate(lengths)]
    return fixed_layout(torch.cat([ids, ids.new_tensor(appended)]), longer)


def _sample_layout(ids: Tensor, appended: Sequence[int], segments: int) -> Layout:
    return sample_layout(torch.cat([ids, ids.new_tensor(appended).expand(ids.shape[0], -1)], dim=1), segments)
