"""Where the segments of attention views lie in a host's token sequence. Plain Python, no tensors.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

from .configuration_hf_lam import LocomtConfig, segment_kind
from .views_hf_lam import resolve_views


class HostTokens(NamedTuple):
    """The token sequence that an encoder makes of its input.

    host: the encoder's name, for messages.
    length: most tokens, on a host with a grid their number; None if it does not say.
    prefix: tokens before the grid, such as `[CLS]`.
    grid: axes of the row-major grid of the others, `(rows, columns)` or `(steps, rows, columns)`; empty for text.
    frames_per_step: frames of the input in one step of a video grid.
    token_types: how many different `token_type_ids` there are; 0 if the encoder takes none.
    modalities: of a fusion model, in their order; else empty.
    """

    host: str
    length: int | None
    prefix: int = 0
    grid: tuple[int, ...] = ()
    frames_per_step: int = 1
    token_types: int = 0
    modalities: tuple[str, ...] = ()


def is_fusion(config: Any) -> bool:
    """Whether this is the configuration of a fusion model, by whichever copy of this code."""
    return config.model_type == "hf_lam_fusion"


def host_tokens(base: Any, length: int | None) -> HostTokens:
    """Read the token sequence of an encoder from its configuration.

    Args:
        base: the encoder.
        length: the most tokens it can take, prefix included; None if that is not known.
    """
    config = base.config
    name = type(base).__name__
    if is_fusion(config):
        return HostTokens(name, length, modalities=tuple(config.modalities))
    if length is None:
        return HostTokens(name, length, token_types=getattr(config, "type_vocab_size", 0))
    if hasattr(config, "tubelet_size"):
        tubelet = config.tubelet_size  # in ViViT, its patch is a part of it
        steps, patch = (tubelet, config.patch_size) if isinstance(tubelet, int) else (tubelet[0], tuple(tubelet[1:]))
        grid: tuple[int, ...] = (config.num_frames // steps, *_divided(_pair(config.image_size), _pair(patch)))
        return HostTokens(name, length, length - prod(grid), grid, steps)
    if hasattr(config, "frequency_stride"):
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        columns = (config.max_length - config.patch_size) // config.time_stride + 1
        return HostTokens(name, length, length - rows * columns, (rows, columns))
    if hasattr(config, "image_size") and hasattr(config, "patch_size"):
        grid = _divided(_pair(config.image_size), _pair(config.patch_size))
        return HostTokens(name, length, length - prod(grid), grid)
    return HostTokens(name, length, token_types=getattr(config, "type_vocab_size", 0))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _divided(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    return size[0] // patch[0], size[1] // patch[1]


def resolve_locomt(config: LocomtConfig, tokens: HostTokens, num_layers: int, num_heads: int) -> LocomtConfig:
    """The configuration with every choice made for one host: segments listed, and the table of views.

    Raises:
        ValueError: if segments or views do not fit the host; the message shows the numbers.
    """
    segments = config.segments
    if segments is None:
        segments = _default_segments(tokens)
    elif segments == "token_type_ids":
        if not tokens.token_types:
            raise ValueError(f"segments='token_type_ids' do not fit {tokens.host}: it takes no token_type_ids.")
        segments = [[f"type_{t}", {"token_type": t}] for t in range(tokens.token_types)]
    kind = segment_kind(segments[-1][1]) if segments else "token_type"
    if kind in ("rectangle", "frames") and segment_kind(segments[0][1]) != "length" and tokens.prefix > 0:
        name = "cls" if tokens.prefix == 1 else "prefix"
        segments = [[name, {"length": tokens.prefix, "global": True}], *segments]
    _check_segments(segments, kind, tokens)
    resolved = replace(config, segments=segments)
    table = resolve_views(resolved.views, num_layers, num_heads, resolved.names, resolved.is_global)
    return replace(resolved, views=table)


def _default_segments(tokens: HostTokens) -> list[Any]:
    if tokens.modalities:
        return [[name, {"modality": name}] for name in tokens.modalities]
    if len(tokens.grid) == 3 and tokens.grid[0] >= 2:
        frames = tokens.grid[0] * tokens.frames_per_step
        half = tokens.grid[0] // 2 * tokens.frames_per_step
        return [["early", {"frames": [0, half]}], ["late", {"frames": [half, frames]}]]
    if len(tokens.grid) == 2 and min(tokens.grid) >= 2:
        (rows, columns), (top, left) = tokens.grid, (tokens.grid[0] // 2, tokens.grid[1] // 2)
        return [
            ["top_left", {"rectangle": [0, 0, top, left]}],
            ["top_right", {"rectangle": [0, left, top, columns - left]}],
            ["bottom_left", {"rectangle": [top, 0, rows - top, left]}],
            ["bottom_right", {"rectangle": [top, left, rows - top, columns - left]}],
        ]
    if tokens.token_types >= 2:
        return [[f"type_{t}", {"token_type": t}] for t in range(tokens.token_types)]
    raise ValueError(
        f"{tokens.host} has no segments of its own ({tokens.token_types} token types, grid {tokens.grid or 'none'}); "
        "give LocomtConfig(segments=[['a', 12], ['b', 20]]), for example."
    )


def _check_segments(segments: list[Any], kind: str, tokens: HostTokens) -> None:
    where = f"the segments {segments} do not fit {tokens.host}"
    spans = [extent for _, extent in segments if segment_kind(extent) == "length"]
    spanned = sum(map(span_length, spans))
    special = [extent[kind] for _, extent in segments[len(spans) :]]
    if tokens.modalities or kind == "modality":
        if spans or kind != "modality" or special != list(tokens.modalities):
            has = f"the modalities {list(tokens.modalities)}" if tokens.modalities else "no modalities"
            raise ValueError(
                f"{where}: it has {has}. Segments of a fusion model are its modalities in their order, each as "
                "[name, {'modality': name}]; leave segments=None to get them."
            )
        return
    if kind == "length":
        if tokens.length is not None and (spanned > tokens.length or (tokens.grid and spanned != tokens.length)):
            most = "has" if tokens.grid else "takes at most"
            raise ValueError(f"{where}: they add up to {spanned} tokens, and it {most} {tokens.length}.")
        return
    if kind == "token_type":
        if sorted(special) != list(range(tokens.token_types)):
            raise ValueError(
                f"{where}: they name the token types {sorted(special)}, and it has {tokens.token_types}; each "
                "needs a segment."
            )
        return
    if spanned != tokens.prefix:
        raise ValueError(f"{where}: {spanned} tokens come before the {kind.rstrip('s')}s, and it has {tokens.prefix}.")
    if kind == "frames":
        _check_frames(special, where, tokens)
    else:
        _check_rectangles(special, where, tokens)


def _check_frames(ranges: list[list[int]], where: str, tokens: HostTokens) -> None:
    if len(tokens.grid) != 3:
        raise ValueError(f"{where}: it has no frames.")
    frames = tokens.grid[0] * tokens.frames_per_step
    ends = [0, *(stop for _, stop in ranges)]
    if ends[-1] != frames or any(start != end for (start, _), end in zip(ranges, ends, strict=False)):
        raise ValueError(f"{where}: {ranges} do not follow each other from frame 0 to frame {frames}.")
    if any(end % tokens.frames_per_step for end in ends):
        raise ValueError(f"{where}: {tokens.frames_per_step} frames make one token, and {ranges} cut some in two.")


def _check_rectangles(rectangles: list[list[int]], where: str, tokens: HostTokens) -> None:
    if len(tokens.grid) != 2:
        raise ValueError(f"{where}: it has no grid of patches with two axes, but {tokens.grid or 'none'}.")
    rows, columns = tokens.grid
    covered = Counter(cell for rectangle in rectangles for cell in _cells(rectangle))
    outside = [(r, c) for r, c in covered if r >= rows or c >= columns]
    twice = [cell for cell, count in covered.items() if count > 1]
    if outside or twice or len(covered) != rows * columns:
        raise ValueError(
            f"{where}: its grid has {rows} × {columns} = {rows * columns} patches, of which the rectangles cover "
            f"{len(covered) - len(outside)}, {len(twice)} of them more than once, and {len(outside)} outside of it."
        )


def _cells(rectangle: list[int]) -> list[tuple[int, int]]:
    top, left, height, width = rectangle
    return [(r, c) for r in range(top, top + height) for c in range(left, left + width)]


def span_length(extent: Any) -> int:
    """The tokens of an extent of the kind `"length"`."""
    return extent if isinstance(extent, int) else extent["length"]


def has_token_types(config: LocomtConfig) -> bool:
    """Whether the segments differ from sample to sample."""
    return segment_kind(config.segments[-1][1]) == "token_type"


def has_modalities(config: LocomtConfig) -> bool:
    """Whether the segments are the modalities of a fusion model, whose lengths differ from batch to batch."""
    return segment_kind(config.segments[-1][1]) == "modality"


def leading_lengths(config: LocomtConfig) -> list[int]:
    """The lengths of the spans of tokens with which the segments begin."""
    return [span_length(extent) for _, extent in config.segments if segment_kind(extent) == "length"]


def spans_of(lengths: list[int]) -> list[int]:
    """The segment of every token in spans of these lengths."""
    return [segment for segment, length in enumerate(lengths) for _ in range(length)]


def segment_of_tokens(config: LocomtConfig, tokens: HostTokens) -> list[int]:
    """The segment of every token, for segments that are the same for all samples; the bottleneck's tokens follow."""
    ids = spans_of(leading_lengths(config))
    extents = [extent for _, extent in config.segments]
    kind = segment_kind(extents[-1])
    if kind == "frames":
        step_size = prod(tokens.grid[1:])
        for segment, extent in enumerate(extents):
            if segment_kind(extent) == kind:
                start, stop = extent[kind]
                ids += [segment] * ((stop - start) // tokens.frames_per_step * step_size)
    elif kind == "rectangle":
        of_cell = {
            cell: segment
            for segment, extent in enumerate(extents)
            if segment_kind(extent) == kind
            for cell in _cells(extent[kind])
        }
        ids += [of_cell[r, c] for r in range(tokens.grid[0]) for c in range(tokens.grid[1])]
    return ids + bottleneck_segments(config)


def bottleneck_segments(config: LocomtConfig) -> list[int]:
    """The segment of every bottleneck token, which are appended to the sequence."""
    return [
        i for i, everywhere in enumerate(config.is_global) if not everywhere for _ in range(config.bottleneck_tokens)
    ]


def is_in_order(segment_ids: list[int]) -> bool:
    """Whether every segment lies in one piece, one after the other."""
    return all(left <= right for left, right in pairwise(segment_ids))
