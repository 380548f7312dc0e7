"""Differences from the baseline, seed by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..visualization.labels import label_width
from ..visualization.scatter import (
    COLOURS,
    QUIET_COLOUR,
    REFERENCE_COLOUR,
    captioned_figure,
    crowded_range,
    name_axes,
    tidy,
)
from .plot_parts import capitalized, left_out_said
from .statistics import BETTER, FEWEST_SEEDS, TOO_FEW_SEEDS, WORSE, Difference, note_on_chance
from .summaries import Point, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {BETTER: COLOURS[0], WORSE: COLOURS[1]}
_MOST_PANELS_IN_A_LINE = 3
# Inches of a row.
_ROW = 0.27


def draw_differences(summary: Summary) -> Figure | None:
    """Every row's difference from the baseline: a dot for each seed, the mean and its interval; None without any.

    Every value of what the plan varies has a panel.
    """
    points = [point for point in summary.points if _differences(point)]
    if not points:
        return None
    names = [group for group in summary.groups if any(group in _differences(point) for point in points)]
    columns = min(len(points), _MOST_PANELS_IN_A_LINE)
    lines = -(-len(points) // columns)
    panel_width = {1: 5.0, 2: 3.2}.get(columns, 2.4)
    # Where most rows differ little, those that differ much would leave no room to see it: they are named at the edge.
    found = [list(_differences(point).values()) for point in points]
    shown = crowded_range([0.0, *(difference.mean or 0.0 for of_point in found for difference in of_point)])
    if shown is not None and not shown[0] <= 0 <= shown[1]:
        shown = None
    # A panel of nothing but numbers would be none.
    if any(all(_is_far(difference, shown) for difference in of_point) for of_point in found):
        shown = None
    figure = captioned_figure(
        label_width(names) + 0.5 + panel_width * columns,
        (_ROW * len(names) + 0.9) * lines,
        _caption(summary, shown),
        summary.title,
    )
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    for panel, point in zip(axes, points, strict=False):
        _draw_panel(panel, point, names, shown)
        panel.set_title(point.title, fontsize=9)
    for panel in axes[len(points) :]:
        panel.remove()
    axes[0].set_yticks(range(len(names)), labels=names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    unit = ", percentage points" if summary.metric.is_percent else ""
    name = summary.metric.name.removesuffix(", %")
    better = "more" if summary.metric.greater_is_better else "less"
    label = f"difference in {name}{unit} ({better} is better)" if columns == 1 else f"difference ({better} is better)"
    name_axes(axes[: len(points)], columns, label, "")
    return figure


def _differences(point: Point) -> dict[str, Difference]:
    return {row.group: row.difference for row in point.rows if row.difference and row.difference.mean is not None}


def _draw_panel(panel: Axes, point: Point, names: list[str], shown: tuple[float, float] | None) -> None:
    panel.axvline(0, color=REFERENCE_COLOUR, linewidth=0.8)
    for place, name in enumerate(names):
        difference = _differences(point).get(name)
        if difference is None or difference.mean is None:
            continue
        colour = _COLOURS.get(difference.says, QUIET_COLOUR)
        if _is_far(difference, shown):
            _name_far(panel, place, difference, colour)
            continue
        heights = [place + 0.22 * (seed % 5 - 2) / 2 for seed in range(len(difference.values))]
        panel.plot(difference.values, heights, ".", color=colour, markersize=4.5, alpha=0.45, markeredgewidth=0)
        if difference.low is not None and difference.high is not None:
            width = 1.0 if difference.says == TOO_FEW_SEEDS else 2.2
            panel.plot([difference.low, difference.high], [place, place], color=colour, linewidth=width)
        panel.plot(difference.mean, place, "D", color=colour, markersize=5.5, markeredgecolor="white")
    tidy(panel)
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.tick_params(labelbottom=True)
    panel.tick_params(axis="y", length=0)


def _is_far(difference: Difference, shown: tuple[float, float] | None) -> bool:
    return shown is not None and difference.mean is not None and not shown[0] <= difference.mean <= shown[1]


def _name_far(panel: Axes, place: int, difference: Difference, colour: str) -> None:
    """Write values outside of the panel, which holds 0, as numbers at its edge."""
    assert difference.mean is not None
    is_right = difference.mean > 0
    said = f"{difference.mean:+.4g}".replace("-", "−")
    if difference.low is not None and difference.high is not None:
        said += f" [{difference.low:+.4g}, {difference.high:+.4g}]".replace("-", "−")
    panel.annotate(
        f"{said} ▶" if is_right else f"◀ {said}",
        (1 if is_right else 0, place),
        xycoords=("axes fraction", "data"),
        ha="right" if is_right else "left",
        va="center",
        fontsize=7,
        color=colour,
    )


def _caption(summary: Summary, shown: tuple[float, float] | None) -> str:
    found = [difference for point in summary.points for difference in _differences(point).values()]
    counts = sorted({len(difference.seeds) for difference in found})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    name = capitalized(summary.metric.name.removesuffix(", %"))
    what = f"{name} of each row less that of {summary.baseline} with the same seed"
    said = f"{what}: dots are seeds ({seeds}), diamonds their mean"
    judged = [difference for difference in found if difference.says != TOO_FEW_SEEDS]
    if judged:
        said += ", lines 95 % intervals (paired bootstrap). Blue: better. Orange: worse. Grey: not told apart."
    elif any(difference.low is not None for difference in found):
        said += ", lines 95 % intervals (Student's)."
    else:
        said += "."
    if len(judged) < len(found):
        rest = "Thin lines, Student's intervals, are of" if judged else "There are"
        said += f" {rest} {TOO_FEW_SEEDS}: fewer than {FEWEST_SEEDS}."
    if any(_is_far(difference, shown) for difference in found):
        said += " In numbers: further away."
    said += left_out_said(summary.rows)
    chance = note_on_chance(found)
    return said if chance is None else f"{said} {capitalized(chance)}"
