"""The mass that calibrated attention views keep, over their cost, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..locomt.fronts import CalibrationFront
from .labels import place_labels
from .scatter import COLOURS, QUIET_COLOUR, REFERENCE_COLOUR, captioned_figure, freeze_layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The lines, in the order in which they are drawn.
_LINES = ("calibrated", "the same views in any order", "full views")


def plot_front(front: CalibrationFront) -> Figure:
    """Attention mass kept over attention FLOPs: the calibrated tables, and what they are to be compared with.

    The dashed line has the views of the same tables, dealt to the heads in random order; the crosses are presets,
    which look at no head either. The dotted line is what full views keep. Every line is named beside it.

    Raises:
        ImportError: if matplotlib is not installed.

    Examples:
        >>> from hf_lam import LocomtConfig, calibrate_front, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_front
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig())
        >>> figure = plot_front(calibrate_front(model, [example_inputs(model)]))
    """
    points = front.points
    heads = sum(map(len, points[0].report.views))
    figure = captioned_figure(
        5.6,
        4.2,
        f"Attention mass that tables of views keep within budgets of attention FLOPs: {heads} heads, measured on "
        f"{front.samples} samples. Dashed: the same views, given to the heads in random order. Crosses: presets. "
        "Dotted: full views.",
        "Calibrated attention views",
    )
    panel = figure.subplots()
    costs = [100 * point.flops_fraction for point in points]
    kept = [100 * point.kept for point in points]
    unordered = [100 * point.kept_in_any_order for point in points]
    panel.plot(costs, kept, color=COLOURS[0], marker="o", markersize=4)
    panel.plot(costs, unordered, color=COLOURS[1], marker="s", markersize=4, linestyle="--")
    panel.axhline(100 * front.total, color=QUIET_COLOUR, linestyle=":", linewidth=1)
    # Presets that share a place, as those of two segments do, share a label.
    names: dict[tuple[float, float], list[str]] = {}
    for name, (cost, mass) in front.presets.items():
        names.setdefault((round(100 * cost, 1), round(100 * mass, 1)), []).append(name)
    for place in names:
        panel.plot(*place, color=REFERENCE_COLOUR, marker="x", linestyle="")
    panel.set_xlabel("attention FLOPs, % of full views", fontsize=9)
    panel.set_ylabel("attention mass kept, %", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    freeze_layout(figure)
    lines = [
        (start, end)
        for masses in (kept, unordered)
        for start, end in zip(
            zip(costs[:-1], masses[:-1], strict=True), zip(costs[1:], masses[1:], strict=True), strict=True
        )
    ]
    labels = [", ".join(together) for together in names.values()]
    # The lines meet where views are full, and have their names where they are farthest apart.
    widest = max(range(len(points)), key=lambda index: kept[index] - unordered[index])
    places = [*names, (costs[widest], kept[widest]), (costs[widest], unordered[widest]), (costs[0], 100 * front.total)]
    colours = [*[REFERENCE_COLOUR] * len(names), COLOURS[0], COLOURS[1], REFERENCE_COLOUR]
    place_labels(panel, places, [*labels, *_LINES], colours, lines)
    return figure
