"""Parts of pictures of measured points: colours, Pareto fronts, scales, captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ._drawing import matplotlib_figure
from .labels import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people tell apart whatever colours they see; without yellow, which is too light.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Of what others are compared with.
REFERENCE_COLOUR = "#000000"
QUIET_COLOUR = "#8a8a8a"

_DOTS_PER_INCH = 150
_CAPTION_SIZE = 7.5
# Of a letter of the caption to its size, on average; inches of a line.
_LETTER, _LINE = 0.54, 1.3 * _CAPTION_SIZE / 72


class Style(NamedTuple):
    colour: str
    marker: str


def styles_for(number: int) -> list[Style]:
    """Choose as many pairs of a colour and a marker; 42 of them differ, and neighbours differ in both."""
    return [Style(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]) for index in range(number)]


def captioned_figure(
    width: float, height: float, caption: str, title: str | None = None, *, right: float = 0.0
) -> Figure:
    """A figure of `width` × `height` inches, with a title above and a caption below, for which it grows.

    Args:
        width: width of the whole figure in inches.
        height: height in inches, without the caption.
        caption: text below, broken into lines as the width asks.
        title: title above; none unless given.
        right: inches that panels leave free at the right, for `label_ends`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    lines = textwrap.wrap(caption, int((width - 0.2) * 72 / (_LETTER * _CAPTION_SIZE)))
    below = len(lines) * _LINE + 0.12
    figure = matplotlib_figure()(figsize=(width, height + below), layout="constrained", dpi=_DOTS_PER_INCH)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, below / (height + below), 1 - right / width, height / (height + below)))
    figure.text(
        0.1 / width, 0.06 / (height + below), "\n".join(lines), fontsize=_CAPTION_SIZE, va="bottom", color="#333333"
    )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def pareto_front(costs: Sequence[float], values: Sequence[float], greater_is_better: bool = True) -> list[int]:
    """The points that no other is better than at the same cost or less, cheapest first.

    Args:
        costs: cost of each point; less is better.
        values: value of each point.
        greater_is_better: whether more of `values` is better.
    """
    sign = -1 if greater_is_better else 1
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], sign * values[index])):
        if not front or sign * values[index] < sign * values[front[-1]]:
            front.append(index)
    return front


def draw_front(
    panel: Axes, costs: Sequence[float], values: Sequence[float], greater_is_better: bool = True
) -> list[Line]:
    """Draw the Pareto front as a step line, the best value that can be had for a cost; the pieces of the line."""
    front = [(costs[index], values[index]) for index in pareto_front(costs, values, greater_is_better)]
    corners = [front[0]]
    for (_, before), (x, y) in pairwise(front):
        corners += [(x, before), (x, y)]
    panel.plot(*zip(*corners, strict=True), color=QUIET_COLOUR, linewidth=1, zorder=1)
    return list(pairwise(corners))


def choose_scale(panel: Axes, axis: str, values: Sequence[float], ratio: float = 8) -> None:
    """A log axis where the largest of positive values is more than `ratio` times the smallest, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not values or min(values) <= 0 or max(values) / min(values) <= ratio:
        return
    panel.set(**{f"{axis}scale": "log"})
    its: Any = getattr(panel, f"{axis}axis")
    # Of a few decades, more ticks than one each have names.
    few = max(values) / min(values) < 300
    its.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    its.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    its.set_minor_formatter(NullFormatter())


def crowded_range(values: Sequence[float]) -> tuple[float, float] | None:
    """The part of an axis, at most a sixth of it, where most of the values lie; None if they are spread.

    What lies there is worth enlarging: at least three values, and no fewer than three fifths of all.
    """
    ordered = sorted(values)
    if len(ordered) < 4 or ordered[0] == ordered[-1]:
        return None
    needed = max(3, -(-3 * len(ordered) // 5))
    widths = [(last - first, first, last) for first, last in zip(ordered, ordered[needed - 1 :], strict=False)]
    _, low, high = min(widths)
    # As wide again, so that what lies beside it is in.
    room = max((high - low) / 2, 0.02 * (ordered[-1] - ordered[0]))
    inside = [value for value in ordered if low - room <= value <= high + room]
    is_small = inside[-1] - inside[0] <= (ordered[-1] - ordered[0]) / 6
    return (inside[0], inside[-1]) if is_small else None


def tidy(panel: Axes) -> None:
    """A quiet grid, and no frame at the top and the right."""
    panel.grid(color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def name_axes(panels: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Names of the axes of a grid of panels, at its left and below the last panel of every column."""
    for index, panel in enumerate(panels):
        if index % columns == 0:
            panel.set_ylabel(y, fontsize=9)
        if index + columns >= len(panels):
            panel.set_xlabel(x, fontsize=9)


def freeze_layout(figure: Figure) -> None:
    """Lay the figure out and keep that: labels are placed by where things are in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
