# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The segments of attention views (LoCoMT): what they are, and where they lie in a host's token sequence.

Plain Python, no tensors. A configuration has segments as JSON, `[name, extent]`; they are parsed once, into `Segment`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from math import isfinite, prod
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
    """Patches of an image of one size, that of all rectangles together."""

    top: int
    left: int
    height: int
    width: int

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Its beginning and end along rows and columns."""
        return (self.top, self.top + self.height), (self.left, self.left + self.width)


# Numerator and denominator.
Ratio = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A part of the grid of the input, whatever its size: where it begins and ends along each axis, from 0 to 1.

    Two axes are rows and columns; one is the first axis of the grid, the steps of a video or of sound.
    """

    ratios: tuple[tuple[Ratio, Ratio], ...]

    @property
    def ranges(self) -> tuple[tuple[Fraction, Fraction], ...]:
        """The same as fractions."""
        return tuple((Fraction(*start), Fraction(*stop)) for start, stop in self.ratios)


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


Extent = Span | Rectangle | Part | Frames | TokenType | Modality
_BOXES = (Part, Rectangle)
_ON_GRID = (Part, Rectangle, Frames)


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
        if isinstance(extent, Part):
            starts = [float(start) for start, _ in extent.ranges]
            return [self.name, {"part": [*starts, *(float(stop - start) for start, stop in extent.ranges)]}]
        if isinstance(extent, Frames):
            return [self.name, {"frames": [extent.start, extent.stop]}]
        if isinstance(extent, TokenType):
            return [self.name, {"token_type": extent.value}]
        return [self.name, {"modality": extent.name}]


# --- from JSON -------------------------------------------------------------------------------------------------------

_EXTENTS = "a number of tokens, {'length': n, 'global': True}, {'part': [top, left, height, width]} or {'part': "
_EXTENTS += "[start, length]} as fractions, {'rectangle': [top, left, height, width]} in patches, {'frames': [start, "
_EXTENTS += f"stop]}}, {{'token_type': t}} or {{'modality': name}} (numbers are at most {MOST:,})"

# Fractions are read as the nearest with no larger denominator, so that 0.3333 and 0.6667 are a third and the rest.
_DENOMINATOR = 1000


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
            f"kind (parts, rectangles, frames, token types or modalities), got {[s.to_json() for s in segments]!r}."
        )
    _check_cover(segments[first:])
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
    if kind == "part" and len(value) in (2, 4):
        return _parse_part(value)
    if kind == "rectangle" and len(value) == 4 and all(map(is_count, value, (0, 0, 1, 1))):
        return Rectangle(*value)
    if kind == "frames" and len(value) == 2 and all(map(is_count, value, (0, 1))) and value[0] < value[1]:
        return Frames(*value)
    return None


def _parse_part(value: Sequence[Any]) -> Part | None:
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and isfinite(x) for x in value):
        return None
    axes = len(value) // 2
    numbers = [Fraction(x).limit_denominator(_DENOMINATOR) for x in value]
    ranges = [(start, start + size) for start, size in zip(numbers[:axes], numbers[axes:], strict=True)]
    if any(not 0 <= start < stop <= 1 for start, stop in ranges):
        return None
    return Part(tuple((start.as_integer_ratio(), stop.as_integer_ratio()) for start, stop in ranges))


def _check_cover(segments: Sequence[Segment]) -> None:
    """Raises a `ValueError` unless parts, rectangles or frames cover everything exactly once."""
    what = f"LocomtConfig: the segments {[segment.to_json() for segment in segments]}"
    frames = [segment.extent for segment in segments if isinstance(segment.extent, Frames)]
    if [each.start for each in frames] != [0, *(each.stop for each in frames)][:-1]:
        raise ValueError(f"{what} do not follow each other from frame 0 on.")
    boxes: list[tuple[str, Any]] = [(s.name, s.extent.ranges) for s in segments if isinstance(s.extent, _BOXES)]
    if not boxes:
        return
    if len({len(ranges) for _, ranges in boxes}) > 1:
        raise ValueError(f"{what} are parts of one axis and of two; give all of them two numbers, or all four.")
    edges = [sorted({edge for range_ in axis for edge in range_}) for axis in zip(*(r for _, r in boxes), strict=True)]
    owners: dict[Any, str] = {}
    for name, ranges in boxes:
        inside = (axis[axis.index(a) : axis.index(b)] for axis, (a, b) in zip(edges, ranges, strict=True))
        for cell in product(*inside):
            if owners.setdefault(cell, name) != name:
                raise ValueError(f"{what} overlap: {owners[cell]!r} and {name!r} have places in common.")
    covered = sum(prod(stop - start for start, stop in ranges) for _, ranges in boxes)
    if isinstance(segments[0].extent, Part):
        if covered != 1:
            raise ValueError(
                f"{what} cover {float(covered):.4g} of the grid and must cover all of it. (Fractions are read as the "
                f"nearest with a denominator of at most {_DENOMINATOR:,}.)"
            )
        return
    rows, columns = grid_of_rectangles(segments)
    if covered != rows * columns:
        raise ValueError(
            f"{what} reach to {rows} × {columns} = {rows * columns} patches, of which they cover {covered}."
        )


def grid_of_rectangles(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Rows and columns that rectangles reach to; empty without any."""
    ranges = [segment.extent.ranges for segment in segments if isinstance(segment.extent, Rectangle)]
    return tuple(max(stop for _, stop in axis) for axis in zip(*ranges, strict=True))


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
    on_grid = isinstance(found[-1].extent, _ON_GRID)
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
    low, high = ((0, 1), (1, 2)), ((1, 2), (1, 1))
    if len(tokens.grid) in (1, 3) and tokens.grid[0] >= 2:
        return Segment("early", Part((low,))), Segment("late", Part((high,)))
    if len(tokens.grid) == 2 and min(tokens.grid) >= 2:
        return (
            Segment("top_left", Part((low, low))),
            Segment("top_right", Part((low, high))),
            Segment("bottom_left", Part((high, low))),
            Segment("bottom_right", Part((high, high))),
        )
    if tokens.token_types >= 2:
        return _types_of(tokens)
    half = tokens.example_length // 2
    raise ValueError(
        f"{tokens.host} has no segments of its own ({tokens.token_types} token types, grid {tokens.grid or 'none'}). "
        f"{tokens.describe_sound()}Give LocomtConfig(segments=[['a', {half}], ['b', {tokens.example_length - half}]]) "
        f"for inputs of {tokens.example_length} tokens, for example."
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
        if tokens.grid and not tokens.grid_of(spanned):
            raise ValueError(f"{where}: they add up to {spanned} tokens, and it has {tokens.length}.")
        if not tokens.grid and tokens.length is not None and spanned > tokens.length:
            raise ValueError(f"{where}: they add up to {spanned} tokens, and it takes at most {tokens.length}.")
        return
    types = sorted(extent.value for extent in extents if isinstance(extent, TokenType))
    if types:
        if types != list(range(tokens.token_types)):
            raise ValueError(
                f"{where}: they name the token types {types}, and it has {tokens.token_types}; each needs a segment."
            )
        return
    _check_axes(extents[-1], where, tokens)
    if spanned != tokens.prefix:
        kind = {Part: "parts", Rectangle: "rectangles", Frames: "frames"}[type(extents[-1])]
        raise ValueError(f"{where}: {spanned} tokens come before the {kind}, and it has {tokens.prefix}.")
    patches = prod(grid_of_rectangles(segments))
    if patches > MOST:
        raise ValueError(f"{where}: they cover {patches:,} patches, and no model has more than {MOST:,} tokens.")
    stops = [extent.stop for extent in extents if isinstance(extent, Frames)]
    if any(stop % tokens.frames_per_step for stop in stops):
        raise ValueError(f"{where}: {tokens.frames_per_step} frames make one token, and these cut some in two.")


def _check_axes(extent: Any, where: str, tokens: HostTokens) -> None:
    if isinstance(extent, Frames):
        if len(tokens.grid) != 3:
            raise ValueError(f"{where}: it has no frames.")
        return
    axes = len(extent.ranges)
    if axes == 2 and len(tokens.grid) != 2:
        raise ValueError(f"{where}: it has no grid of patches with two axes, but {tokens.grid or 'none'}.")
    if axes == 1 and len(tokens.grid) not in (1, 3):
        raise ValueError(
            f"{where}: parts of one axis, [start, length], are for videos and sound of one length, and its grid is "
            f"{tokens.grid or 'none'}."
        )


def grid_of_segments(segments: Sequence[Segment], tokens: HostTokens) -> tuple[int | None, ...]:
    """The grid of the inputs that segments are cut for, None for an axis of any size; empty for any inputs."""
    extent = segments[-1].extent
    if isinstance(extent, Rectangle):
        return grid_of_rectangles(segments)
    if isinstance(extent, Frames):
        return (extent.stop // tokens.frames_per_step, None, None)
    return tokens.grid_of(sum(leading_lengths(segments))) if isinstance(extent, Span) else ()


# --- token by token --------------------------------------------------------------------------------------------------


def leading_lengths(segments: Sequence[Segment]) -> list[int]:
    """The lengths of the spans of tokens with which the segments begin."""
    return [segment.extent.length for segment in segments if isinstance(segment.extent, Span)]


def spans_of(lengths: Sequence[int]) -> list[int]:
    """The segment of every token in spans of these lengths."""
    return [segment for segment, length in enumerate(lengths) for _ in range(length)]


# From where to where a segment reaches along each axis of a grid.
Box = tuple[tuple[Any, Any], ...]


def boxes_of(segments: Sequence[Segment], grid: Sequence[Any], frames_per_step: int) -> list[Box]:
    """The boxes of those segments that lie on the grid of an input; a part of a small grid may be empty.

    grid: sizes of its axes, numbers or tensors.
    """
    extents = (segment.extent for segment in segments)
    return [_box_of(extent, grid, frames_per_step) for extent in extents if isinstance(extent, _ON_GRID)]


def _box_of(extent: Part | Rectangle | Frames, grid: Sequence[Any], frames_per_step: int) -> Box:
    if isinstance(extent, Rectangle):
        return extent.ranges
    if isinstance(extent, Frames):
        return ((extent.start // frames_per_step, extent.stop // frames_per_step), *((0, size) for size in grid[1:]))
    cut = [(place(start, size), place(stop, size)) for (start, stop), size in zip(extent.ratios, grid, strict=False)]
    return (*cut, *((0, size) for size in grid[len(cut) :]))


def place(ratio: Ratio, size: Any) -> Any:
    """Convert a fraction of an axis to the nearest boundary between tokens; of two as near, the lower one.

    It is the same for the end of one part and the beginning of the next, so that they meet at every size.

    size: size of the axis, a number or a tensor of them.
    """
    top, bottom = ratio
    return (2 * top * size + bottom - 1) // (2 * bottom)


def follow_each_other(boxes: Sequence[Box], grid: Sequence[int]) -> bool:
    """Whether every box, of those that cover a grid, is one piece of the sequence, one after the other."""
    end = 0
    for box in boxes:
        sizes = [stop - start for start, stop in box]
        if prod(sizes) == 0:
            continue
        first = 0
        for (start, _), size in zip(box, grid, strict=True):
            first = first * size + start
        long = next((axis for axis, size in enumerate(sizes) if size > 1), len(sizes))
        if first != end or sizes[long + 1 :] != list(grid[long + 1 :]):
            return False
        end += prod(sizes)
    return True


def is_in_order(segment_ids: Sequence[int]) -> bool:
    """Whether every segment lies in one piece, one after the other."""
    return all(left <= right for left, right in pairwise(segment_ids))
