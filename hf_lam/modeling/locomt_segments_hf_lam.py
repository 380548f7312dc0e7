# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The segments of attention views (LoCoMT): what they are, and where they lie in a host's token sequence.

Plain Python, no tensors. A configuration has segments as JSON, `[name, extent]`; they are parsed once, into `Segment`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from .hosts_hf_lam import HostTokens
from .option_checks_hf_lam import MOST, is_count


@dataclass(frozen=True)
class Span:
    """`length` tokens, one after the other; global ones see, and are seen by, all."""

    length: int
    is_global: bool = False


@dataclass(frozen=True)
class Rectangle:
    """Patches of an image."""

    top: int
    left: int
    height: int
    width: int

    def cells(self) -> Iterator[tuple[int, int]]:
        """Row and column of every patch."""
        for row in range(self.top, self.top + self.height):
            for column in range(self.left, self.left + self.width):
                yield row, column


@dataclass(frozen=True)
class Frames:
    """Frames of a video, `stop` not included."""

    start: int
    stop: int


@dataclass(frozen=True)
class TokenType:
    """The tokens with one value of `token_type_ids`, which differ from sample to sample."""

    value: int


@dataclass(frozen=True)
class Modality:
    """The tokens of one modality of a fusion model, however many there are."""

    name: str


Extent = Span | Rectangle | Frames | TokenType | Modality


@dataclass(frozen=True)
class Segment:
    """A named part of the token sequence."""

    name: str
    extent: Extent

    @property
    def is_global(self) -> bool:
        return isinstance(self.extent, Span) and self.extent.is_global

    def to_json(self) -> list[Any]:
        """`[name, extent]`, as a configuration stores it."""
        extent = self.extent
        if isinstance(extent, Span):
            plain = extent.length if not extent.is_global else {"length": extent.length, "global": True}
            return [self.name, plain]
        if isinstance(extent, Rectangle):
            return [self.name, {"rectangle": [extent.top, extent.left, extent.height, extent.width]}]
        if isinstance(extent, Frames):
            return [self.name, {"frames": [extent.start, extent.stop]}]
        if isinstance(extent, TokenType):
            return [self.name, {"token_type": extent.value}]
        return [self.name, {"modality": extent.name}]


# --- from JSON -------------------------------------------------------------------------------------------------------

_EXTENTS = "a number of tokens, {'length': n, 'global': True}, {'rectangle': [top, left, height, width]}, "
_EXTENTS += "{'frames': [start, stop]}, {'token_type': t} or {'modality': name}"
_EXTENTS += f" (numbers are at most {MOST:,})"


def parse_segments(entries: Sequence[Any]) -> tuple[Segment, ...]:
    """The segments behind `[name, extent]` pairs.

    Raises:
        ValueError: for anything else, names that are not different, or extents that do not go together.
    """
    segments = tuple(_parse_segment(entry) for entry in entries)
    names = [segment.name for segment in segments]
    if not segments or len(set(names)) < len(names):
        raise ValueError(f"LocomtConfig: segments must be at least one, each with a name of its own, got {names}.")
    kinds = [type(segment.extent) for segment in segments]
    first = next((i for i, kind in enumerate(kinds) if kind is not Span), len(kinds))
    if len(set(kinds[first:])) > 1:
        raise ValueError(
            "LocomtConfig: segments are spans of tokens, or begin with such spans and go on with extents of one other "
            f"kind (rectangles, frames, token types or modalities), got {[s.to_json() for s in segments]!r}."
        )
    if all(segment.is_global for segment in segments):
        raise ValueError("LocomtConfig: all segments are global; at least one must not be.")
    return segments


def _parse_segment(entry: Any) -> Segment:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        raise ValueError(f"LocomtConfig: a segment is [name, extent], with extent {_EXTENTS}; got {entry!r}.")
    name, given = entry
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(f"LocomtConfig: a segment's name must be letters, digits and _, got {name!r}.")
    extent = Span(given) if is_count(given, 1) else _parse_extent(given)
    if extent is None:
        raise ValueError(f"LocomtConfig: the extent of segment {name!r} must be {_EXTENTS}; got {given!r}.")
    return Segment(name, extent)


def _parse_extent(given: Any) -> Extent | None:
    if not isinstance(given, Mapping):
        return None
    if set(given) == {"length", "global"}:
        is_span = is_count(given["length"], 1) and isinstance(given["global"], bool)
        return Span(given["length"], given["global"]) if is_span else None
    if len(given) != 1:
        return None
    ((kind, value),) = given.items()
    if kind == "token_type":
        return TokenType(value) if is_count(value, 0) else None
    if kind == "modality":
        return Modality(value) if isinstance(value, str) else None
    if not isinstance(value, (list, tuple)):
        return None
    if kind == "rectangle" and len(value) == 4 and all(map(is_count, value, (0, 0, 1, 1))):
        return Rectangle(*value)
    if kind == "frames" and len(value) == 2 and all(map(is_count, value, (0, 1))) and value[0] < value[1]:
        return Frames(*value)
    return None


# --- on a host -------------------------------------------------------------------------------------------------------


def resolve_segments(segments: tuple[Segment, ...] | str | None, tokens: HostTokens) -> tuple[Segment, ...]:
    """The segments on one host.

    Args:
        segments: parsed; `"token_type_ids"` for one of each token type; None for the host's own.
        tokens: the host's.

    Raises:
        ValueError: if they do not fit; the message shows the numbers.
    """
    if segments is None:
        found = _choose_segments(tokens)
    elif isinstance(segments, str):
        if not tokens.token_types:
            raise ValueError(f"segments='token_type_ids' do not fit {tokens.host}: it takes no token_type_ids.")
        found = _types_of(tokens)
    else:
        found = segments
    on_grid = isinstance(found[-1].extent, (Rectangle, Frames))
    if on_grid and not isinstance(found[0].extent, Span) and tokens.prefix > 0:
        name = "cls" if tokens.prefix == 1 else "prefix"
        found = (Segment(name, Span(tokens.prefix, is_global=True)), *found)
    _check_segments(found, tokens)
    return found


def _types_of(tokens: HostTokens) -> tuple[Segment, ...]:
    return tuple(Segment(f"type_{t}", TokenType(t)) for t in range(tokens.token_types))


def _choose_segments(tokens: HostTokens) -> tuple[Segment, ...]:
    if tokens.modalities:
        return tuple(Segment(name, Modality(name)) for name in tokens.modalities)
    if len(tokens.grid) == 3 and tokens.grid[0] >= 2:
        frames = tokens.grid[0] * tokens.frames_per_step
        half = tokens.grid[0] // 2 * tokens.frames_per_step
        return Segment("early", Frames(0, half)), Segment("late", Frames(half, frames))
    if len(tokens.grid) == 2 and min(tokens.grid) >= 2:
        (rows, columns), (top, left) = tokens.grid, (tokens.grid[0] // 2, tokens.grid[1] // 2)
        return (
            Segment("top_left", Rectangle(0, 0, top, left)),
            Segment("top_right", Rectangle(0, left, top, columns - left)),
            Segment("bottom_left", Rectangle(top, 0, rows - top, left)),
            Segment("bottom_right", Rectangle(top, left, rows - top, columns - left)),
        )
    if tokens.token_types >= 2:
        return _types_of(tokens)
    raise ValueError(
        f"{tokens.host} has no segments of its own ({tokens.token_types} token types, grid {tokens.grid or 'none'}); "
        "give LocomtConfig(segments=[['a', 12], ['b', 20]]), for example."
    )


def _check_segments(segments: tuple[Segment, ...], tokens: HostTokens) -> None:
    where = f"the segments {[segment.to_json() for segment in segments]} do not fit {tokens.host}"
    extents = [segment.extent for segment in segments]
    spanned = sum(leading_lengths(segments))
    modalities = [extent.name for extent in extents if isinstance(extent, Modality)]
    if tokens.modalities or modalities:
        if modalities != list(tokens.modalities) or len(modalities) < len(extents):
            has = f"the modalities {list(tokens.modalities)}" if tokens.modalities else "no modalities"
            raise ValueError(
                f"{where}: it has {has}. Segments of a fusion model are its modalities in their order, each as "
                "[name, {'modality': name}]; leave segments=None to get them."
            )
        return
    if isinstance(extents[-1], Span):
        if tokens.length is not None and (spanned > tokens.length or (tokens.grid and spanned != tokens.length)):
            most = "has" if tokens.grid else "takes at most"
            raise ValueError(f"{where}: they add up to {spanned} tokens, and it {most} {tokens.length}.")
        return
    types = sorted(extent.value for extent in extents if isinstance(extent, TokenType))
    if types:
        if types != list(range(tokens.token_types)):
            raise ValueError(
                f"{where}: they name the token types {types}, and it has {tokens.token_types}; each needs a segment."
            )
        return
    rectangles = [extent for extent in extents if isinstance(extent, Rectangle)]
    if spanned != tokens.prefix:
        kind = "rectangles" if rectangles else "frames"
        raise ValueError(f"{where}: {spanned} tokens come before the {kind}, and it has {tokens.prefix}.")
    if rectangles:
        _check_rectangles(rectangles, where, tokens)
    else:
        _check_frames([extent for extent in extents if isinstance(extent, Frames)], where, tokens)


def _check_frames(frames: list[Frames], where: str, tokens: HostTokens) -> None:
    if len(tokens.grid) != 3:
        raise ValueError(f"{where}: it has no frames.")
    last = tokens.grid[0] * tokens.frames_per_step
    ranges = [[each.start, each.stop] for each in frames]
    ends = [0, *(stop for _, stop in ranges)]
    if ends[-1] != last or any(start != end for (start, _), end in zip(ranges, ends, strict=False)):
        raise ValueError(f"{where}: {ranges} do not follow each other from frame 0 to frame {last}.")
    if any(end % tokens.frames_per_step for end in ends):
        raise ValueError(f"{where}: {tokens.frames_per_step} frames make one token, and {ranges} cut some in two.")


def _check_rectangles(rectangles: list[Rectangle], where: str, tokens: HostTokens) -> None:
    if len(tokens.grid) != 2:
        raise ValueError(f"{where}: it has no grid of patches with two axes, but {tokens.grid or 'none'}.")
    rows, columns = tokens.grid
    far = [each for each in rectangles if each.top + each.height > rows or each.left + each.width > columns]
    if far:
        given = [far[0].top, far[0].left, far[0].height, far[0].width]
        raise ValueError(f"{where}: its grid has {rows} × {columns} patches, and the rectangle {given} lies outside.")
    covered = Counter(cell for rectangle in rectangles for cell in rectangle.cells())
    twice = [cell for cell, count in covered.items() if count > 1]
    if twice or len(covered) != rows * columns:
        raise ValueError(
            f"{where}: its grid has {rows} × {columns} = {rows * columns} patches, of which the rectangles cover "
            f"{len(covered)}, {len(twice)} of them more than once."
        )


# --- token by token --------------------------------------------------------------------------------------------------


def leading_lengths(segments: Sequence[Segment]) -> list[int]:
    """The lengths of the spans of tokens with which the segments begin."""
    return [segment.extent.length for segment in segments if isinstance(segment.extent, Span)]


def spans_of(lengths: Sequence[int]) -> list[int]:
    """The segment of every token in spans of these lengths."""
    return [segment for segment, length in enumerate(lengths) for _ in range(length)]


def locate_tokens(segments: Sequence[Segment], tokens: HostTokens) -> list[int]:
    """The segment of every token, for segments that are the same for all samples."""
    ids = spans_of(leading_lengths(segments))
    of_cell: dict[tuple[int, int], int] = {}
    for index, segment in enumerate(segments):
        extent = segment.extent
        if isinstance(extent, Frames):
            steps = (extent.stop - extent.start) // tokens.frames_per_step
            ids += [index] * (steps * prod(tokens.grid[1:]))
        elif isinstance(extent, Rectangle):
            of_cell |= dict.fromkeys(extent.cells(), index)
    if of_cell:
        ids += [of_cell[row, column] for row in range(tokens.grid[0]) for column in range(tokens.grid[1])]
    return ids


def is_in_order(segment_ids: Sequence[int]) -> bool:
    """Whether every segment lies in one piece, one after the other."""
    return all(left <= right for left, right in pairwise(segment_ids))
