"""Parts that the pictures of results have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..visualization.scatter import REFERENCE_COLOUR, Style, styles_for
from .summaries import Metric, RowSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Chance is drawn as a line if what is measured keeps this share of the axis; otherwise it is named at its edge.
_LEAST_SHARE = 0.33
# Dark enough for small letters.
_CHANCE_COLOUR = "#555555"
# So that a mark at the end is whole.
_BEYOND_PERCENT = 2.0


def group_styles(summary: Summary) -> Mapping[str, Style]:
    """A colour and a marker for every row, the same in all pictures; the baseline is a black star."""
    others = [group for group in summary.groups if group != summary.baseline]
    styles = dict(zip(others, styles_for(len(others)), strict=True))
    return {**styles, summary.baseline: Style(REFERENCE_COLOUR, "*")}


def draw_reference_lines(panel: Axes, summary: Summary, baseline: RowSummary | None) -> None:
    """A dashed line for the baseline and a dotted one for chance, in a panel whose data are drawn."""
    if baseline is not None and baseline.mean is not None:
        panel.axhline(baseline.mean, color=REFERENCE_COLOUR, linewidth=0.8, linestyle="--", zorder=0.5)
    chance = summary.chance
    if chance is None:
        return
    low, high = panel.get_ylim()
    span = max(high, chance) - min(low, chance)
    if high - low < _LEAST_SHARE * span:
        is_below = chance < low
        panel.annotate(
            f"{'↓' if is_below else '↑'} chance {chance:.4g}",
            (1, 0 if is_below else 1),
            (-3, 3 if is_below else -3),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="bottom" if is_below else "top",
            fontsize=7,
            color=_CHANCE_COLOUR,
        )
        return
    panel.axhline(chance, color=_CHANCE_COLOUR, linewidth=1.2, linestyle=":", zorder=0.5)
    panel.annotate(
        "chance",
        (1, chance),
        (-3, 1),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
        color=_CHANCE_COLOUR,
    )


def keep_within_percent(panel: Axes, metric: Metric) -> None:
    """End the axis of a metric in percent a little beyond 0 and 100, whatever a standard deviation reaches."""
    if metric.is_percent:
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, -_BEYOND_PERCENT), min(high, 100 + _BEYOND_PERCENT))


def seeds_said(rows: Sequence[RowSummary]) -> str:
    """`5 seeds`, or `3 to 5 seeds` where runs failed."""
    counts = sorted({len(row.values) for row in rows if row.values})
    if not counts:
        return "0 seeds"
    said = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{said} seed{'s' * (counts[-1] != 1)}"


def left_out_said(rows: Sequence[RowSummary]) -> str:
    """The end of a caption, which names the rows without a value."""
    missing = list(dict.fromkeys(row.name for row in rows if not row.values))
    if not missing:
        return ""
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f" Without {shown}: no run gave the metric."


def capitalized(text: str) -> str:
    """A text with a capital at the beginning and the other letters as they are."""
    return text[:1].upper() + text[1:]
