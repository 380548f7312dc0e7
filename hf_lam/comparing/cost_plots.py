"""The metric over what it costs: FLOPs, and measured milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..visualization.labels import Line, place_labels
from ..visualization.scatter import (
    QUIET_COLOUR,
    captioned_figure,
    choose_scale,
    crowded_range,
    draw_front,
    freeze_layout,
    name_axes,
    tidy,
)
from .plot_parts import (
    capitalized,
    draw_reference_lines,
    group_styles,
    keep_within_percent,
    left_out_said,
    seeds_said,
)
from .summaries import RowSummary, Summary, unit_of_flops, where_timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of every cost that is drawn its name in the file's, and in a sentence.
PLOTTED_COSTS = {
    "flops": ("flops", "a forward pass of a sample"),
    "inference_ms": ("inference_time", "inference"),
    "step_ms": ("step_time", "a training step"),
}
# Inches: letters of 7 points can be read where a picture of two panels is 900 pixels wide.
_WIDTH, _TWO_WIDTH = 7.0, 4.6
_MARGIN = 0.12


class _Mark(NamedTuple):
    """A row in a panel: its cost and the bar's reach to both sides, its metric and that bar's, its label."""

    row: RowSummary
    cost: float
    below: float
    above: float
    value: float
    deviation: float
    label: str


class _Panel(NamedTuple):
    """A panel to be drawn.

    marks: marks inside of the panel.
    others: marks of the same rows and costs outside of the part that it enlarges; the front may come from them.
    enlarged: part of the metric's axis that the panel beside it enlarges; the marks there have their labels there.
    """

    title: str
    marks: list[_Mark]
    others: Sequence[_Mark] = ()
    enlarged: tuple[float, float] | None = None


def draw_metric_over_cost(summary: Summary, cost: str) -> Figure | None:
    """The mean metric of every row over one of `PLOTTED_COSTS`; None where no row has both.

    Every value of what the plan varies has a panel. If it changes what a row costs, though, all are in one panel, and
    the points of a row are joined. Where most rows lie close together, a second panel enlarges that part.
    """
    unit, divisor = unit_of_flops(summary.rows) if cost == "flops" else ("milliseconds", 1.0)
    is_joined = len(summary.points) > 1 and _changes_cost(summary)
    panels = _plan_panels(summary, cost, divisor, is_joined)
    if not panels:
        return None
    has_pairs = any(panel.enlarged for panel in panels)
    columns = 2 if has_pairs else min(len(panels), 2)
    cells = [cell for panel in panels for cell in _pair(panel)] if has_pairs else [*panels]
    lines = -(-len(cells) // columns)
    height = min(3.9 + 0.06 * max(len(panel.marks) for panel in panels), 6.0)
    figure = captioned_figure(
        _WIDTH if columns == 1 else 2 * _TWO_WIDTH,
        height * lines,
        _caption(summary, cost, unit, is_joined, has_pairs),
        summary.title,
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    drawn = []
    for axis, cell in zip(axes, [*cells, *[None] * (len(axes) - len(cells))], strict=True):
        if cell is None:
            axis.remove()
            continue
        drawn.append((axis, cell, _draw_panel(axis, summary, cell, is_joined)))
    name_axes([axis for axis, _, _ in drawn], columns, f"{unit} of {PLOTTED_COSTS[cost][1]}", summary.metric.axis_name)
    freeze_layout(figure)
    for axis, cell, front in drawn:
        _label(axis, summary, cell, front)
    return figure


def _pair(panel: _Panel) -> list[_Panel | None]:
    """A panel, and the one that enlarges a part of it."""
    if panel.enlarged is None:
        return [panel, None]
    low, high = panel.enlarged
    inside = [mark for mark in panel.marks if low <= mark.value <= high]
    return [panel, _Panel("enlarged", inside, [mark for mark in panel.marks if mark not in inside])]


def _plan_panels(summary: Summary, cost: str, divisor: float, is_joined: bool) -> list[_Panel]:
    panels = []
    for section in [list(summary.points)] if is_joined else [[point] for point in summary.points]:
        marks = []
        for point in section:
            for row in point.rows:
                its = row.cost(cost)
                if its is None or row.mean is None:
                    continue
                measured = row.times.get(cost) or {"low": its, "high": its}
                label = f"{row.group} ({', '.join(map(str, point.point.values()))})" if is_joined else row.group
                below, above = (its - measured["low"]) / divisor, (measured["high"] - its) / divisor
                marks.append(_Mark(row, its / divisor, below, above, row.mean, row.deviation or 0.0, label))
        if marks:
            enlarged = crowded_range([mark.value for mark in marks])
            if enlarged is not None and not _is_worth_enlarging(marks, enlarged):
                enlarged = None
            panels.append(_Panel("" if is_joined else section[0].title, marks, enlarged=enlarged))
    return panels


def _is_worth_enlarging(marks: Sequence[_Mark], part: tuple[float, float]) -> bool:
    """Whether a panel of that part alone would show less than half of the axis: bars may be longer than the part."""

    def reach(of: Sequence[_Mark]) -> float:
        return max(mark.value + mark.deviation for mark in of) - min(mark.value - mark.deviation for mark in of)

    return reach([mark for mark in marks if part[0] <= mark.value <= part[1]]) < reach(marks) / 2


def _changes_cost(summary: Summary) -> bool:
    """Whether what the plan varies changes the FLOPs, or else the parameters, of any row by more than a hundredth."""
    for group in summary.groups:
        rows = [row for row in summary.rows if row.group == group]
        costs = [found for row in rows if (found := row.cost("flops") or row.cost("parameters")) is not None]
        if costs and max(costs) > 1.01 * min(costs):
            return True
    return False


def _draw_panel(axis: Axes, summary: Summary, panel: _Panel, is_joined: bool) -> list[Line]:
    """Everything but the labels; the lines of the Pareto front."""
    styles = group_styles(summary)
    costs, values = [mark.cost for mark in panel.marks], [mark.value for mark in panel.marks]
    for mark in panel.marks:
        style = styles[mark.row.group]
        is_star = style.marker == "*"
        axis.errorbar(
            mark.cost,
            mark.value,
            yerr=mark.deviation or None,
            xerr=[[mark.below], [mark.above]] if mark.below or mark.above else None,
            color=style.colour,
            ecolor=(style.colour, 0.6),
            marker=style.marker,
            markersize=10 if is_star else 6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=0.8,
            capsize=2,
            zorder=4 if is_star else 3,
        )
    for group in summary.groups if is_joined else ():
        its = [mark for mark in panel.marks if mark.row.group == group]
        x, y = [mark.cost for mark in its], [mark.value for mark in its]
        axis.plot(x, y, color=styles[group].colour, linewidth=1, alpha=0.6, zorder=2)
    tidy(axis)
    axis.margins(_MARGIN)
    choose_scale(axis, "x", costs)
    axis.set_title(panel.title, fontsize=9)
    if panel.others:
        axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    every = [*panel.marks, *panel.others]
    front = draw_front(
        axis, [mark.cost for mark in every], [mark.value for mark in every], summary.metric.greater_is_better
    )
    baseline = next((mark.row for mark in every if mark.row.is_baseline), None)
    draw_reference_lines(axis, summary, None if is_joined else baseline)
    keep_within_percent(axis, summary.metric)
    if panel.enlarged is not None:
        low, high = panel.enlarged
        room = 0.02 * (max(values) - min(values))
        axis.axhspan(low - room, high + room, color=QUIET_COLOUR, alpha=0.13, linewidth=0, zorder=0)
    return front


def _label(axis: Axes, summary: Summary, panel: _Panel, front: Sequence[Line]) -> None:
    styles = group_styles(summary)
    left, right = axis.get_xlim()
    # What labels should not lie on: the front, the line of the baseline, and bars.
    bars = list(front)
    bars += [((left, mark.value), (right, mark.value)) for mark in panel.marks if mark.row.is_baseline]
    for mark in panel.marks:
        bars.append(((mark.cost, mark.value - mark.deviation), (mark.cost, mark.value + mark.deviation)))
        bars.append(((mark.cost - mark.below, mark.value), (mark.cost + mark.above, mark.value)))
    named = panel.marks
    if panel.enlarged is not None:
        named = [mark for mark in named if not panel.enlarged[0] <= mark.value <= panel.enlarged[1]]
    place_labels(
        axis,
        [(mark.cost, mark.value) for mark in named],
        [mark.label for mark in named],
        [styles[mark.row.group].colour for mark in named],
        bars,
    )


def _caption(summary: Summary, cost: str, unit: str, is_joined: bool, has_pairs: bool) -> str:
    rows = [row for row in summary.rows if row.cost(cost) is not None]
    name, of = capitalized(summary.metric.name.removesuffix(", %")), PLOTTED_COSTS[cost][1]
    what = f"{name} over the {unit} of {of}: mean of {seeds_said(rows)}"
    bars = "; bars are the standard deviation over seeds" if any(row.deviation for row in rows) else ""
    if unit == "milliseconds":
        bars += f"{' and' if bars else '; bars are'} the lowest and highest of rounds{where_timed(summary)}"
    front = "no other row is better for the same cost or less"
    lines = f" Dashed: {summary.baseline}, the baseline."
    if is_joined:
        lines = f" Lines join the points of a row, at {' × '.join(summary.points[0].point)} in brackets."
    enlarged = " At the right, the shaded part is enlarged." if has_pairs else ""
    return f"{what}{bars}. Grey steps are the Pareto front: {front}.{lines}{enlarged}{left_out_said(summary.rows)}"
