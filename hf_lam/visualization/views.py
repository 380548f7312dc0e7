"""Attention views (LoCoMT) as pictures."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..modeling.injection_hf_lam import injection_of, mechanism_of
from ..modeling.locomt_hf_lam import AttentionViews, LocomtConfig
from ..modeling.locomt_segments_hf_lam import Rectangle, Span
from ..modeling.locomt_views_hf_lam import View
from ..modeling.mechanism_hf_lam import Attention, PassStart
from ._drawing import matplotlib_figure, name_segments, room_for, segment_labels, titled_figure
from ._examples import Drawn, Example, register_pictures
from ._samples import describe_model, encoder_with, of_each_layer
from .scatter import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# The meaning of the numbers in a block pattern, and their colours.
PATTERN = ("not seen", "seen", "query that sees nothing")
PATTERN_COLOURS = ("#eeeeee", "#3b6ea8", "#e8a33d")
_HATCH = "////"
# Views with a panel in one picture.
_MOST_PANELS = 12
# What views are called in a table of heads, so that no colour has to be told from another.
_LETTERS = string.ascii_uppercase + string.ascii_lowercase


def plot_views(model_or_config: nn.Module | LocomtConfig) -> Figure:
    """The view of every head, layers × heads: a letter and a colour for each view, which the legend names.

    Args:
        model_or_config: a model with attention views, or its `LocomtConfig`, as `config.json` stores it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no views, or the configuration has a preset in place of a table.

    Examples:
        >>> from hf_lam import LocomtConfig
        >>> from hf_lam.visualization import plot_views
        >>> config = LocomtConfig(segments=[["a", 4], ["b", 6]], views=[["self", "a>b"], ["full", "self"]])
        >>> figure = plot_views(config)
    """
    figure_class = matplotlib_figure()
    from matplotlib.patches import Patch

    config, _ = views_in(model_or_config)
    names = _distinct_views(config)
    colours = _view_colours(len(names))
    numbers = {view: number for number, view in enumerate(names)}
    table = [[numbers[view] for view in row] for row in config.parsed_views]
    layers, heads = len(table), len(table[0])

    longest = max(map(len, names.values()))
    width = max(0.34 * heads + 1.3 + 0.08 * longest, 4.0)
    height = max(0.34 * layers + 0.7, 0.2 * len(names) + 0.5, 1.4)
    figure = titled_figure(figure_class, width, height, f"Attention views{_of_model(model_or_config)}")
    panel = figure.subplots()
    panel.imshow(torch.tensor(table).numpy(), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, interpolation="none")
    for layer, row in enumerate(table):
        for head, number in enumerate(row):
            panel.text(head, layer, _letter(number), ha="center", va="center", fontsize=7, color=_ink(colours(number)))
    panel.set_xticks([h - 0.5 for h in range(1, heads)], minor=True)
    panel.set_yticks([n - 0.5 for n in range(1, layers)], minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="minor", length=0)
    panel.tick_params(labelsize=7)
    panel.set_xticks(range(0, heads, 1 + heads // 16))
    panel.set_yticks(range(0, layers, 1 + layers // 16))
    panel.set_xlabel("head", fontsize=9)
    panel.set_ylabel("layer", fontsize=9)
    labels = [f"{_letter(number)}  {name}" for number, name in enumerate(names.values())]
    patches = [Patch(color=colours(number), label=label) for number, label in enumerate(labels)]
    # Beside the panel, and not beside the title above it.
    panel.legend(
        handles=patches,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        fontsize=8,
        title="view",
        title_fontsize=8,
    )
    return figure


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else str(number)


def _ink(colour: Sequence[float]) -> str:
    """A colour that can be read on another colour."""
    red, green, blue = colour[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def _of_model(model_or_config: nn.Module | LocomtConfig) -> str:
    return "" if isinstance(model_or_config, LocomtConfig) else f" of {describe_model(model_or_config)}"


def plot_view_blocks(
    model_or_config: nn.Module | LocomtConfig, lengths: Sequence[int] | None = None, *, most: int | None = None
) -> Figure:
    """Draw which tokens see which under every view of a model: one panel for each, rows are queries, columns keys.

    Tokens are in the order of their segments, which for rectangles is not that of the sequence.

    Args:
        model_or_config: a model with attention views, or its `LocomtConfig`, as `config.json` stores it.
        lengths: tokens of each segment, where that is not known: with token types and modalities, which differ from
            sample to sample or batch to batch, and for a configuration with parts or frames. The parts of a model are
            those of an input of the size that it is configured for unless given.
        most: no more panels than that, for the views that most heads have; all of them unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no views, the configuration has a preset in place of a table, or `lengths` are
            missing or do not fit.

    Examples:
        >>> from hf_lam import LocomtConfig, convert
        >>> from hf_lam.visualization import plot_view_blocks
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig(views="half"))
        >>> figure = plot_view_blocks(model)
    """
    figure_class = matplotlib_figure()
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    config, known = views_in(model_or_config)
    sizes = _check_lengths(config, known, lengths)
    views = _distinct_views(config)
    counts = {view: sum(row.count(view) for row in config.parsed_views) for view in views}
    letters = {view: _letter(number) for number, view in enumerate(views)}
    # Sorting is stable: views of equally many heads stay in order.
    drawn = sorted(views, key=lambda view: -counts[view])[:most]
    views = {view: name for view, name in views.items() if view in drawn}
    patterns = [_pattern(view, sizes) for view in views]

    columns = min(len(views), 4)
    lines = -(-len(views) // columns)
    side = 2.1 if columns == 4 else 2.6
    title = f"Which tokens see which under the views{_of_model(model_or_config)}"
    # Names of segments stand below every panel, and two lines above it.
    height = (side + 0.35 + room_for(segment_labels(config.names, sizes))) * lines + 0.6
    figure = titled_figure(figure_class, max(side * columns + 0.6, 4.0), height, title)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for index, (panel, (view, name), pattern) in enumerate(zip(panels, views.items(), patterns, strict=False)):
        panel.imshow(pattern.numpy(), cmap=ListedColormap(PATTERN_COLOURS), vmin=-0.5, vmax=2.5, interpolation="none")
        heads = f"{counts[view]} head{'s' if counts[view] > 1 else ''}"
        panel.set_title(f"{letters[view]}  {name}\n{heads}", fontsize=8)
        _hatch_rows(panel, pattern)
        name_segments(panel, config.names, sizes)
        if index % columns:
            panel.tick_params(labelleft=False)
    for panel in panels[len(views) :]:
        panel.remove()
    figure.supylabel("queries", fontsize=9)
    present = sorted({int(number) for pattern in patterns for number in pattern.unique()})
    patches = [
        Patch(facecolor=PATTERN_COLOURS[n], edgecolor="grey", label=PATTERN[n], hatch=_HATCH if n == 2 else None)
        for n in present
    ]
    figure.legend(handles=patches, loc="outside lower center", fontsize=8, ncols=3, title="keys", title_fontsize=9)
    return figure


def _hatch_rows(panel: Axes, pattern: torch.Tensor) -> None:
    """Lines over the rows of queries that see nothing."""
    from matplotlib.patches import Rectangle as Patch

    rows = (pattern[:, 0] == 2).nonzero().flatten().tolist()
    starts = [row for row in rows if row - 1 not in rows]
    stops = [row + 1 for row in rows if row + 1 not in rows]
    for start, stop in zip(starts, stops, strict=True):
        panel.add_patch(
            Patch((-0.5, start - 0.5), pattern.shape[1], stop - start, fill=False, hatch=_HATCH, linewidth=0)
        )


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
    base = encoder_with(model_or_config, LocomtConfig.name, "attention views")
    views: AttentionViews = mechanism_of(base, LocomtConfig.name)
    if views.config.has_token_types or views.config.has_modalities:
        return views.config, None
    grid = injection_of(base).host.tokens.grid
    return views.config, views.layout(PassStart(None, None, grid or None)).lengths


def _lengths_in(config: LocomtConfig) -> tuple[int, ...] | None:
    """Tokens of each segment, bottleneck included, or None if the configuration alone does not say."""
    lengths = []
    for segment in config.parsed_segments:
        extent = segment.extent
        if isinstance(extent, Span):
            length = extent.length
        elif isinstance(extent, Rectangle):
            length = extent.height * extent.width
        else:
            return None
        lengths.append(length if segment.is_global else length + config.bottleneck_tokens)
    return tuple(lengths)


def _check_lengths(
    config: LocomtConfig, known: tuple[int, ...] | None, given: Sequence[int] | None
) -> tuple[int, ...]:
    if given is None:
        if known is None:
            raise ValueError(
                f"how many tokens the segments {config.names} have is not known here; give lengths, one for each."
            )
        return known
    if known is not None and not config.needs_input_grid:
        raise ValueError(
            f"lengths={list(given)} was given, but the segments {config.names} have {list(known)} tokens."
        )
    if len(given) != len(config.names) or any(length < 0 for length in given) or sum(given) < 1:
        raise ValueError(
            f"lengths must be one number of tokens for each of the segments {config.names}, got {list(given)}."
        )
    return tuple(given)


def _distinct_views(config: LocomtConfig) -> dict[View, str]:
    """Every view once, with its name, in the order in which they come."""
    found: dict[View, str] = {}
    for row, names in zip(config.parsed_views, config.views, strict=True):
        for view, name in zip(row, names, strict=True):
            found.setdefault(view, name)
    return found


def _view_colours(number: int) -> Colormap:
    """Choose as many colours as there are views; from 21 on neighbouring ones are hard to tell apart."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if number <= len(COLOURS):
        return ListedColormap(COLOURS[:number])
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


def _draw(example: Example) -> dict[str, Drawn]:
    """The pictures of views that `save_pictures` draws."""
    config, known = views_in(example.base)
    layers = example.describe_layers(len(config.parsed_views))
    pictures = {
        "views": (
            plot_views(example.model),
            f"The attention view of every head in {layers}: which of the segments {', '.join(config.names)} attend to "
            "which, with a letter and a colour for each view.",
        )
    }
    lengths: Sequence[int] | None = known
    differs = known is None or config.needs_input_grid
    if differs and example.inputs is not None:
        lengths = _measure_lengths(config, example, example.inputs)
    if lengths is not None:
        views, most = len(_distinct_views(config)), _MOST_PANELS
        which = f"the {views} views" if views > 1 else "the only view"
        if views > most:
            which = f"{most} of the {views} views, those of the most heads"
        example_of = "an example of " if differs else ""
        pictures["view_blocks"] = (
            plot_view_blocks(example.model, lengths if differs else None, most=most),
            f"Which tokens see which under {which}, for {example_of}{sum(lengths)} tokens in {len(lengths)} segments: "
            "blue is seen, grey is not, orange with lines is a query that sees nothing.",
        )
    return pictures


def _measure_lengths(config: LocomtConfig, example: Example, inputs: Mapping[str, Any]) -> list[int]:
    """Tokens of each segment in the example, without padding; those of the bottleneck are no padding."""

    def take(attention: Attention) -> torch.Tensor:
        return attention.of_pass.begun[LocomtConfig.name].layout.ids()[0].cpu()

    segments = of_each_layer(example.model, example.base, inputs, take)[0]
    appended = torch.ones(config.appended_tokens, dtype=torch.bool)
    return segments[torch.cat([example.shown.kept, appended])].bincount(minlength=len(config.names)).tolist()


register_pictures(LocomtConfig.name, _draw)
