"""Masks that are nearly the same everywhere: a picture of their values, in place of panels of one colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ._drawing import add_note, titled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Values that differ by no more, or by no more than this share of how far they are from the neutral one, look alike.
_ALIKE, _ALIKE_SHARE = 0.01, 0.1
_WIDTH, _ROW = 7.0, 0.24
# Of the axis: noise is not to look like a difference.
_LEAST_RANGE = 0.1
_COLOUR, _NEUTRAL_COLOUR = "#0072B2", "#444444"


def is_nearly_constant(values: Tensor, neutral: float) -> bool:
    """Whether a panel of these values would have a single colour."""
    spread = float(values.max() - values.min())
    return spread <= max(_ALIKE, _ALIKE_SHARE * abs(float(values.mean()) - neutral))


def draw_nearly_constant(
    figure_class: type[Figure], title: str, values: Sequence[Tensor], names: Sequence[str], neutral: float
) -> Figure:
    """Draw the mean of each tensor, and the range from its smallest value to its largest.

    Args:
        values: tensors of any shape.
        names: one for each of them.
        neutral: value that leaves a score as it is.
    """
    figure = titled_figure(figure_class, _WIDTH, _ROW * len(values) + 1.0, f"{title}: nearly constant")
    panel = figure.subplots()
    means = [float(value.mean()) for value in values]
    rows = range(len(values))
    panel.axvline(neutral, color=_NEUTRAL_COLOUR, linewidth=0.9, linestyle="--")
    panel.hlines(rows, [float(v.min()) for v in values], [float(v.max()) for v in values], color=_COLOUR, linewidth=3)
    panel.plot(means, rows, "o", color=_COLOUR, markersize=4)
    for row, mean in zip(rows, means, strict=True):
        panel.annotate(
            f"{mean:.3f}",
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    panel.set_yticks(rows, labels=list(names), fontsize=7.5)
    panel.set_ylim(len(values) - 0.4, -0.6)
    ends = [neutral, *(float(end) for value in values for end in (value.min(), value.max()))]
    room = 0.1 * max(max(ends) - min(ends), _LEAST_RANGE)
    panel.set_xlim(min(ends) - room, max(ends) + room)
    panel.tick_params(labelsize=7.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.annotate(
        f"{neutral:g} leaves scores as they are",
        (neutral, 1),
        (0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=_NEUTRAL_COLOUR,
    )
    panel.set_xlabel("mask M: mean, and from the smallest to the largest value", fontsize=8.5)
    widest = max(float(value.max() - value.min()) for value in values)
    add_note(figure, f"Within a row, values differ by at most {widest:.2g}: the masks pick no tokens out.")
    return figure
