# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""How attention in chunks is divided: chunks that stay in a cache, parts for threads, and gradients that parts share.

Source: Rabe & Staats, "Self-attention Does Not Need O(n²) Memory", arXiv 2112.05682, for the chunks of queries; the
parts are this package's own.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, product
from typing import NamedTuple

import torch
from torch import Tensor

# Score elements in one chunk, of which one buffer (backward: three) exists at a time, or on every thread. CPU: 2 MiB
# in fp32, which stay near the cores. Other devices: enough to fill one, and small beside its memory (128 MiB in fp32).
_CPU_CHUNK = 2**19
_DEVICE_CHUNK = 2**25
# Long keys exceed that, rather than make a chunk of fewer query rows: matrix products become slow.
_MIN_ROWS = 256
# A part with fewer query rows is not worth the share of the keys' gradients that it sums up.
_MIN_ROWS_OF_PART = 96
# Fewer scores are computed sooner than another thread has begun.
_MIN_SHARED = 2**16

Chunk = tuple[slice, slice, slice]  # of batch, heads, query rows


class Part(NamedTuple):
    """What one thread computes.

    chunks: each with its number, by which dropout is drawn, the same in both directions.
    place: all of them as one chunk.
    number: its own among the parts.
    """

    chunks: list[tuple[int, Chunk]]
    place: Chunk
    number: int


def parts_of(query: Tensor, key: Tensor, split_batch: bool = True, split_heads: bool = True) -> list[Part]:
    """Cut `(B, H, Lq)` into nearly equal parts, of all samples or of all heads where these may not be split."""
    batch, heads, length_q, _ = query.shape
    length_k = key.shape[2]
    scores = heads * length_q * length_k
    on_cpu = query.device.type == "cpu"
    limit = _CPU_CHUNK if on_cpu else _DEVICE_CHUNK
    wanted = torch.get_num_threads() if on_cpu and batch * scores >= _MIN_SHARED else 1
    # Several samples only where they are small, since joining them copies what is not contiguous.
    samples = _part(batch, min(limit // 2 // scores, batch // wanted))
    pieces = min(-(-wanted // -(-batch // samples)), max(1, length_q // _MIN_ROWS_OF_PART))
    rows_of_part = -(-length_q // pieces)
    rows = _part(rows_of_part, max(_MIN_ROWS, limit // (heads * length_k)))
    group = _part(heads, limit // (samples * rows * length_k))
    missing = wanted // (-(-batch // samples) * -(-length_q // rows_of_part))
    group = min(group, _part(heads, heads // max(1, missing)))
    split_heads = split_heads and missing > 1
    found: dict[tuple[int, int, int], list[tuple[int, Chunk]]] = {}
    numbers = count()
    for b, p in product(range(0, batch, samples), range(0, length_q, rows_of_part)):
        end = min(p + rows_of_part, length_q)
        for r, h in product(range(p, end, rows), range(0, heads, group)):
            chunk = slice(b, min(b + samples, batch)), slice(h, min(h + group, heads)), slice(r, min(r + rows, end))
            chunks = found.setdefault((b if split_batch else 0, p, h if split_heads else 0), [])
            chunks.append((next(numbers), chunk))
    return [Part(chunks, _hull([chunk for _, chunk in chunks]), n) for n, chunks in enumerate(found.values())]


def _hull(chunks: list[Chunk]) -> Chunk:
    samples, heads, rows = (slice(parts[0].start, max(x.stop for x in parts)) for parts in zip(*chunks, strict=True))
    return samples, heads, rows


def _part(total: int, limit: int) -> int:
    """Size of the fewest nearly equal parts of `total` that keep to `limit` (or are 1)."""
    parts = -(-total // max(1, min(total, limit)))
    return -(-total // parts)


def cut(tensor: Tensor, place: tuple[slice, ...]) -> Tensor:
    """The part at that place, a view, of a tensor whose dimensions of size 1 are broadcast."""
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, place, strict=False))]


def _within(chunk: Chunk, place: Chunk) -> Chunk:
    """Where the chunk is in what was cut at `place`."""
    samples, heads, rows = (slice(x.start - y.start, x.stop - y.start) for x, y in zip(chunk, place, strict=True))
    return samples, heads, rows


class Gradients:
    """The gradients of query, key, value and of what changes the scores, to which the parts give their shares.

    What one part alone has a share in is written in place. Of the rest, every part sums up its own share, and `sum_up`
    adds them in the order of the parts.
    """

    def __init__(self, grads: Sequence[Tensor], parts: Sequence[Part]) -> None:
        """grads: gradients in the order above, uninitialised, and without elements where one is not wanted."""
        self.grads = {index: grad for index, grad in enumerate(grads) if grad.numel()}
        self.parts = parts
        self.kept: list[dict[int, Tensor]] = [{} for _ in parts]
        regions = {i: {int(self._region(i, part).storage_offset()) for part in parts} for i in self.grads}
        self.shared = {i for i, offsets in regions.items() if len(offsets) < len(parts)}

    def shares_of(self, part: Part) -> Shares:
        regions = {index: self._region(index, part) for index in self.grads}
        kept = {index: torch.empty_like(regions[index]) for index in self.shared}
        self.kept[part.number] = kept
        return Shares({**regions, **kept}, part.place)

    def sum_up(self) -> None:
        for index in self.shared:
            seen: set[int] = set()
            for part, kept in zip(self.parts, self.kept, strict=True):
                _write(self._region(index, part), kept[index], seen)

    def _region(self, index: int, part: Part) -> Tensor:
        return cut(self.grads[index], _place_of(index, part.place))


class Shares:
    """The shares of one part in the gradients."""

    def __init__(self, regions: dict[int, Tensor], place: Chunk) -> None:
        self.regions, self.place = regions, place
        self.seen: dict[int, set[int]] = {index: set() for index in regions}

    def add(self, found: Sequence[Tensor | None], chunk: Chunk) -> None:
        """Add the gradients of a chunk; those of what changes the scores are as large as the scores."""
        within = _within(chunk, self.place)
        for index, region in self.regions.items():
            gradient = found[index]
            if gradient is not None:
                target = cut(region, _place_of(index, within))
                _write(target, gradient.sum_to_size(target.shape), self.seen[index])


def _place_of(index: int, chunk: Chunk) -> tuple[slice, ...]:
    """Where a chunk is in a gradient: in those of key and value, every row has a share."""
    return chunk[:2] if index in (1, 2) else chunk


def _write(target: Tensor, values: Tensor, seen: set[int]) -> None:
    """Write into a region, or add to what was written there before."""
    start = int(target.storage_offset())
    if start in seen:
        target.add_(values)
    else:
        target.copy_(values)
        seen.add(start)
