"""Attention views (LoCoMT) as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..modeling.configuration_hf_lam import LocomtConfig, segment_kind
from ..modeling.injection_hf_lam import views_of
from ..modeling.segments_hf_lam import has_modalities, has_token_types, span_length
from ..modeling.views_hf_lam import View, parse_view
from ._drawing import matplotlib_figure, name_segments
from ._samples import encoder_with

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# What the pixels of a block pattern are, by their number, and the colours.
PATTERN = ("not seen", "seen", "query that sees nothing")
PATTERN_COLOURS = ("#eeeeee", "#3b6ea8", "#e8a33d")


def plot_views(model_or_config: nn.Module | LocomtConfig) -> Figure:
    """The view of every head, layers × heads: one colour for each view, which the legend names.

    Args:
        model_or_config: a model with attention views, or its `LocomtConfig`, as `config.json` stores it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no views, or the configuration has a preset in place of a table.
    """
    figure_class = matplotlib_figure()
    from matplotlib.patches import Patch

    config, _ = views_in(model_or_config)
    names = distinct_views(config)
    colours = _view_colours(len(names))
    numbers = {view: number for number, view in enumerate(names)}
    table = [[numbers[view] for view in row] for row in _parsed(config)]
    layers, heads = len(table), len(table[0])

    width = 0.32 * heads + 1.6 + 0.08 * max(map(len, names.values()))
    height = max(0.32 * layers + 0.9, 0.2 * len(names) + 0.7, 1.6)
    figure = figure_class(figsize=(width, height), layout="constrained", dpi=150)
    panel = figure.subplots()
    panel.imshow(torch.tensor(table).numpy(), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, interpolation="nearest")
    panel.set_xticks([h - 0.5 for h in range(1, heads)], minor=True)
    panel.set_yticks([n - 0.5 for n in range(1, layers)], minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="minor", length=0)
    panel.tick_params(labelsize=7)
    panel.set_xticks(range(0, heads, 1 + heads // 16))
    panel.set_yticks(range(0, layers, 1 + layers // 16))
    panel.set_xlabel("head", fontsize=9)
    panel.set_ylabel("layer", fontsize=9)
    patches = [Patch(color=colours(number), label=name) for number, name in enumerate(names.values())]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8, title="view", title_fontsize=8)
    return figure


def plot_view_blocks(
    model_or_config: nn.Module | LocomtConfig, lengths: Sequence[int] | None = None, *, most: int | None = None
) -> Figure:
    """Which tokens see which under every view that a model has: one panel for each, rows are queries, columns keys.

    Tokens are in the order of their segments, which for rectangles is not that of the sequence.

    Args:
        model_or_config: a model with attention views, or its `LocomtConfig`, as `config.json` stores it.
        lengths: tokens of each segment, where that is not known: with token types and modalities, which differ from
            sample to sample or batch to batch, and for a configuration with frames.
        most: no more panels than that, for the views that most heads have; all of them unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no views, the configuration has a preset in place of a table, or `lengths` are
            missing or do not fit.
    """
    figure_class = matplotlib_figure()
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    config, known = views_in(model_or_config)
    sizes = _checked_lengths(config, known, lengths)
    views = distinct_views(config)
    counts = {view: sum(row.count(view) for row in _parsed(config)) for view in views}
    # Sorting is stable: views of equally many heads stay in order.
    drawn = sorted(views, key=lambda view: -counts[view])[:most]
    views = {view: name for view, name in views.items() if view in drawn}
    patterns = [_pattern(view, sizes) for view in views]

    columns = min(len(views), 4)
    lines = -(-len(views) // columns)
    figure = figure_class(figsize=(2.9 * columns + 1.8, 2.9 * lines + 0.4), layout="constrained", dpi=150)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, (view, name), pattern in zip(panels, views.items(), patterns, strict=False):
        panel.imshow(
            pattern.numpy(), cmap=ListedColormap(PATTERN_COLOURS), vmin=-0.5, vmax=2.5, interpolation="nearest"
        )
        panel.set_title(f"{name}\n{counts[view]} head{'s' if counts[view] > 1 else ''}", fontsize=8)
        name_segments(panel, config.names, sizes)
    for panel in panels[len(views) :]:
        panel.remove()
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
    present = sorted({int(number) for pattern in patterns for number in pattern.unique()})
    patches = [Patch(facecolor=PATTERN_COLOURS[n], edgecolor="grey", label=PATTERN[n]) for n in present]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8)
    return figure


def views_in(model_or_config: nn.Module | LocomtConfig) -> tuple[LocomtConfig, tuple[int, ...] | None]:
    """The views, and the tokens of each segment where they are known."""
    if isinstance(model_or_config, LocomtConfig):
        config = model_or_config
        if not isinstance(config.segments, list) or isinstance(config.views, str):
            raise ValueError(
                f"LocomtConfig(segments={config.segments!r}, views={config.views!r}) has no list of segments "
                "or no table of views yet; pass a model that was made with it."
            )
        return config, _lengths_in(config)
    views = views_of(encoder_with(model_or_config, "locomt"))
    differs = has_token_types(views.config) or has_modalities(views.config)
    return views.config, None if differs else views.lengths


def _lengths_in(config: LocomtConfig) -> tuple[int, ...] | None:
    """Tokens of each segment, bottleneck included, or None if the configuration alone does not say."""
    lengths = []
    for (_, extent), everywhere in zip(config.segments, config.is_global, strict=True):
        kind = segment_kind(extent)
        if kind == "length":
            length = span_length(extent)
        elif kind == "rectangle":
            length = extent[kind][2] * extent[kind][3]
        else:
            return None
        lengths.append(length if everywhere else length + config.bottleneck_tokens)
    return tuple(lengths)


def _checked_lengths(
    config: LocomtConfig, known: tuple[int, ...] | None, given: Sequence[int] | None
) -> tuple[int, ...]:
    if given is None:
        if known is None:
            raise ValueError(
                f"how many tokens the segments {config.names} have is not known here; give lengths, one for each."
            )
        return known
    if known is not None:
        raise ValueError(
            f"lengths={list(given)} was given, but the segments {config.names} have {list(known)} tokens."
        )
    if len(given) != len(config.names) or any(length < 0 for length in given) or sum(given) < 1:
        raise ValueError(
            f"lengths must be one number of tokens for each of the segments {config.names}, got {list(given)}."
        )
    return tuple(given)


def _parsed(config: LocomtConfig) -> list[list[View]]:
    """The table of views; two names of the same view are one."""
    return [[parse_view(view, config.names, config.is_global) for view in row] for row in config.views]


def distinct_views(config: LocomtConfig) -> dict[View, str]:
    """Every view once, with its name, in the order in which they come."""
    found: dict[View, str] = {}
    for row, names in zip(_parsed(config), config.views, strict=True):
        for view, name in zip(row, names, strict=True):
            found.setdefault(view, name)
    return found


def _view_colours(number: int) -> Colormap:
    """As many colours as there are views; from 21 on neighbouring ones are hard to tell apart."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if number > 20:
        return colormaps["turbo"].resampled(number)
    listed = colormaps["tab10" if number <= 10 else "tab20"]
    return ListedColormap([listed(index) for index in range(number)])


def _pattern(view: View, lengths: Sequence[int]) -> torch.Tensor:
    """`(L, L)` of indices in `PATTERN`."""
    segments = len(lengths)
    table = torch.zeros(segments, segments, dtype=torch.uint8)
    for i, j in view:
        table[i, j] = 1
    sizes = torch.tensor(lengths)
    # A segment without tokens is no key either.
    table[(table * sizes).sum(1) == 0] = 2
    return table.repeat_interleave(sizes, 0).repeat_interleave(sizes, 1)
