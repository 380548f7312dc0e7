"""Curves: the metric over the steps of a run, and over what the whole plan varies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..visualization.labels import label_ends, label_width
from ..visualization.scatter import (
    REFERENCE_COLOUR,
    Style,
    captioned_figure,
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
from .summaries import Point, RowSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More curves than that have a panel each.
_MOST_CURVES = 7
_PANELS_IN_A_LINE = 4
_WIDTH, _HEIGHT = 6.2, 3.8
_PANEL_WIDTH, _PANEL_HEIGHT = 2.1, 1.6
# How far rows are moved apart at most so that their bars do not overlap: of the gap between two numbers of a varied
# option, and of the axis.
_DODGE, _WIDEST_DODGE = 0.16, 0.05
_MOVED = " Rows are drawn side by side."


@dataclass(frozen=True)
class _Curve:
    """A row's mean over seeds along x, and the standard deviation (0 where there is one seed)."""

    row: RowSummary
    x: Sequence[float]
    mean: Sequence[float]
    deviation: Sequence[float]


def draw_learning_curves(summary: Summary, point: Point) -> Figure | None:
    """The metric on validation data over steps, mean and spread over seeds, or else the loss of training.

    Few rows share a panel; of more, each has one, with the baseline in it. None where no row has two steps.
    """
    metric = summary.metric
    name = metric.key.partition("_")[2]
    label = f"validation {name}" + ", %" * metric.is_percent
    curves = _read_curves(point, f"eval_{name}", metric.scale)
    is_metric = bool(curves)
    if not curves:
        label, curves = "training loss", _read_curves(point, "loss", 1.0)
    if not curves:
        return None
    spread = ", the band the standard deviation" if any(any(curve.deviation) for curve in curves) else ""
    mean = f"the line is the mean of {seeds_said([curve.row for curve in curves])}"
    caption = f"{capitalized(label.removesuffix(', %'))} over steps of training: {mean}{spread}."
    title = ": ".join(part for part in (summary.title, point.title) if part)
    if len(curves) <= _MOST_CURVES:
        return _draw_together(summary, curves, label, caption, title, is_metric)
    return _draw_apart(summary, curves, label, caption, title, is_metric)


def _read_curves(point: Point, key: str, scale: float) -> list[_Curve]:
    return [curve for row in point.rows if (curve := _read_curve(row, key, scale)) is not None]


def _read_curve(row: RowSummary, key: str, scale: float) -> _Curve | None:
    by_step: dict[float, list[float]] = {}
    for run in row.runs:
        for entry in run.get("curve") or []:
            value = entry.get(key)
            if isinstance(value, (int, float)) and value == value and abs(value) != float("inf"):
                by_step.setdefault(entry["step"], []).append(value * scale)
    if len(by_step) < 2:
        return None
    steps = sorted(by_step)
    means, deviations = zip(*(_mean_and_deviation(by_step[step]) for step in steps), strict=True)
    return _Curve(row, steps, means, deviations)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _draw_together(
    summary: Summary, curves: Sequence[_Curve], label: str, caption: str, title: str, is_metric: bool
) -> Figure:
    styles = group_styles(summary)
    groups = [curve.row.group for curve in curves]
    right = label_width(groups) + 0.25
    figure = captioned_figure(_WIDTH + right, _HEIGHT, caption, title, right=right)
    panel = figure.subplots()
    for curve in curves:
        _draw_curve(panel, curve, styles[curve.row.group])
    tidy(panel)
    if is_metric:
        draw_reference_lines(panel, summary, None)
        keep_within_percent(panel, summary.metric)
    panel.locator_params(axis="x", integer=True)
    panel.set_xlabel("step", fontsize=9)
    panel.set_ylabel(label, fontsize=9)
    freeze_layout(figure)
    ends = [(curve.x[-1], curve.mean[-1]) for curve in curves]
    label_ends(panel, ends, groups, [styles[group].colour for group in groups])
    return figure


def _draw_apart(
    summary: Summary, curves: Sequence[_Curve], label: str, caption: str, title: str, is_metric: bool
) -> Figure:
    lines = -(-len(curves) // _PANELS_IN_A_LINE)
    caption = f"{caption} Black: {summary.baseline}, the baseline. Every panel has a scale of its own."
    figure = captioned_figure(_PANEL_WIDTH * _PANELS_IN_A_LINE + 0.4, _PANEL_HEIGHT * lines + 0.4, caption, title)
    axes = list(figure.subplots(lines, _PANELS_IN_A_LINE, sharex=True, squeeze=False).flat)
    styles = group_styles(summary)
    baseline = next((curve for curve in curves if curve.row.is_baseline), None)
    for panel, own in zip(axes, curves, strict=False):
        if baseline is not None and baseline is not own:
            panel.plot(baseline.x, baseline.mean, color=REFERENCE_COLOUR, linewidth=0.9)
        _draw_curve(panel, own, styles[own.row.group])
        tidy(panel)
        if is_metric:
            draw_reference_lines(panel, summary, None)
            keep_within_percent(panel, summary.metric)
        panel.tick_params(labelsize=7, labelbottom=True)
        panel.locator_params(axis="x", integer=True, nbins=5)
        panel.set_title(own.row.group, fontsize=8)
    for panel in axes[len(curves) :]:
        panel.remove()
    name_axes(axes[: len(curves)], _PANELS_IN_A_LINE, "step", "")
    figure.supylabel(label, fontsize=9)
    return figure


def _draw_curve(panel: Axes, curve: _Curve, style: Style) -> None:
    low = [mean - deviation for mean, deviation in zip(curve.mean, curve.deviation, strict=True)]
    high = [mean + deviation for mean, deviation in zip(curve.mean, curve.deviation, strict=True)]
    panel.fill_between(curve.x, low, high, color=style.colour, alpha=0.18, linewidth=0, zorder=2)
    panel.plot(curve.x, curve.mean, color=style.colour, linewidth=1.6, zorder=3)


def draw_metric_over_option(summary: Summary, option: str) -> Figure | None:
    """The mean metric of every row over an option that the whole plan varies; None where it has a single value.

    Numbers are in proportion, on a log axis if they span more than a factor of 8; all else is in the plan's order.
    What else the plan varies has a panel for each value.
    """

    def read(row: RowSummary) -> _Bar | None:
        return None if row.mean is None else (row.mean, row.deviation or 0.0, row.deviation or 0.0)

    def draw_lines(panel: Axes, summary: Summary, baseline: RowSummary | None) -> None:
        draw_reference_lines(panel, summary, baseline)
        keep_within_percent(panel, summary.metric)

    name = capitalized(summary.metric.name.removesuffix(", %"))
    bars = "; bars are the standard deviation over seeds" if any(row.deviation for row in summary.rows) else ""
    caption = f"{name} over {option}: mean of {seeds_said(summary.rows)}{bars}.{_MOVED}{left_out_said(summary.rows)}"
    return _draw_over_option(summary, option, read, summary.metric.axis_name, caption, draw_lines)


def draw_difference_over_option(summary: Summary, option: str) -> Figure | None:
    """The same for the differences from the baseline, with their intervals."""

    def read(row: RowSummary) -> _Bar | None:
        found = row.difference
        if found is None or found.mean is None:
            return None
        if found.low is None or found.high is None:
            return found.mean, 0.0, 0.0
        return found.mean, found.mean - found.low, found.high - found.mean

    def draw_zero(panel: Axes, summary: Summary, baseline: RowSummary | None) -> None:
        panel.axhline(0, color=REFERENCE_COLOUR, linewidth=0.8, linestyle="--", zorder=0.5)

    name = capitalized(summary.metric.name.removesuffix(", %"))
    caption = (
        f"{name} of each row less that of {summary.baseline} (dashed) with the same seed, over {option}: mean of "
        f"{seeds_said(summary.rows)}; bars are intervals of 95 %.{_MOVED}"
    )
    unit = ", percentage points" if summary.metric.is_percent else ""
    better = "" if summary.metric.greater_is_better else " (less is better)"
    label = f"difference from {summary.baseline}{unit}{better}"
    return _draw_over_option(summary, option, read, label, caption, draw_zero)


# A value, and how far its bar reaches below and above it.
_Bar = tuple[float, float, float]


def _draw_over_option(
    summary: Summary,
    option: str,
    read: Callable[[RowSummary], _Bar | None],
    label: str,
    caption: str,
    draw_lines: Callable[[Axes, Summary, RowSummary | None], None],
) -> Figure | None:
    points = [point for point in summary.points if option in point.point]
    values = list(dict.fromkeys(_as_key(point.point[option]) for point in points))
    if len(values) < 2:
        return None
    is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    place = {value: float(value) if is_numeric else float(index) for index, value in enumerate(values)}
    places = sorted(place.values())
    is_log = is_numeric and places[0] > 0 and places[-1] > 8 * places[0]
    panels: dict[str, dict[str, list[tuple[float, _Bar]]]] = {}
    for point in points:
        rest = ", ".join(f"{other} = {value}" for other, value in point.point.items() if other != option)
        for row in point.rows:
            bar = read(row)
            if bar is not None:
                at = place[_as_key(point.point[option])]
                panels.setdefault(rest, {}).setdefault(row.group, []).append((at, bar))
    if not panels:
        return None
    styles = group_styles(summary)
    right = label_width(summary.groups) + 0.25
    height = max(_HEIGHT, 0.2 * len(summary.groups))
    # Below each other, because labels are right of each.
    figure = captioned_figure(_WIDTH + right, height * len(panels), caption, summary.title, right=right)
    axes = list(figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True).flat)
    ends: list[list[tuple[float, float]]] = []
    for panel, (rest, curves) in zip(axes, panels.items(), strict=True):
        ends.append([])
        for number, (group, found) in enumerate(curves.items()):
            x = [_dodged(at, number, len(curves), places, is_log) for at, _ in sorted(found)]
            y, below, above = zip(*(bar for _, bar in sorted(found)), strict=True)
            style = styles[group]
            panel.errorbar(
                x,
                y,
                yerr=[below, above] if any(below) or any(above) else None,
                color=style.colour,
                ecolor=(style.colour, 0.6),
                marker=style.marker,
                markersize=9 if style.marker == "*" else 5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                linewidth=1.3,
                elinewidth=0.9,
                capsize=1.5,
            )
            ends[-1].append((x[-1], y[-1]))
        tidy(panel)
        panel.set_title(rest, fontsize=9)
        panel.tick_params(labelbottom=True)
    if is_log:
        axes[0].set_xscale("log")
    axes[0].set_xticks(list(place.values()), labels=[_said(value) for value in place])
    axes[0].minorticks_off()
    for panel in axes:
        draw_lines(panel, summary, None)
    name_axes(axes, 1, option, label)
    freeze_layout(figure)
    for panel, curves, last in zip(axes, panels.values(), ends, strict=True):
        label_ends(panel, last, list(curves), [styles[group].colour for group in curves])
    return figure


def _dodged(at: float, number: int, curves: int, places: Sequence[float], is_log: bool) -> float:
    """The place to draw the bar of a curve: a little beside its own."""
    scaled = [math.log(place) if is_log else place for place in places]
    gap = min(high - low for low, high in pairwise(scaled))
    width = min(_DODGE * gap, _WIDEST_DODGE * (scaled[-1] - scaled[0]))
    shift = width * ((number + 0.5) / curves - 0.5)
    return at * math.exp(shift) if is_log else at + shift


def _as_key(value: Any) -> Any:
    """The value, or its text if it is a list or a map."""
    return value if isinstance(value, (int, float, str)) else str(value)


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
