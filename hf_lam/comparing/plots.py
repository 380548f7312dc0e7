"""Results as pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .summaries import Summary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plots(results: Mapping[str, Any], times: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw what the results have, and write the pictures into a folder.

    | file | what |
    | --- | --- |
    | `metric_over_flops.png` | the metric of every row over its FLOPs, with the Pareto front |
    | `metric_over_inference_time.png`, `metric_over_step_time.png` | the same over measured milliseconds |
    | `differences.png` | differences from the baseline, seed by seed, with their intervals |
    | `learning_curves.png` | the metric on validation data, or else the loss, over steps |
    | `metric_over_OPTION.png` | the metric over an option that the whole plan varies |
    | `difference_over_OPTION.png` | differences from the baseline over it |

    Where the plan varies something, there are learning curves for each value of it. What the results do not have is
    not drawn. All pictures are drawn before the first is written; the same results give the same bytes.

    Args:
        results: contents of `results.json`.
        times: contents of `times.json`; an empty mapping where nothing was measured.
        folder: folder to write to; it is made if there is none.

    Returns:
        The files.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figures = dict(_figures(summarize(results, times)))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = target / f"{name}.png"
        partial = path.with_name(f".{path.name}.partial")
        figure.savefig(partial, format="png")
        os.replace(partial, path)
        paths.append(path)
    return paths


def _figures(summary: Summary) -> Iterator[tuple[str, Figure]]:
    """The pictures, by the names of their files."""
    # Here, because they need torch, and who writes results may not have it in memory otherwise.
    from .cost_plots import PLOTTED_COSTS, draw_metric_over_cost
    from .curve_plots import draw_difference_over_option, draw_learning_curves, draw_metric_over_option
    from .difference_plots import draw_differences

    drawn: Figure | None
    for cost, (name, _) in PLOTTED_COSTS.items():
        if (drawn := draw_metric_over_cost(summary, cost)) is not None:
            yield f"metric_over_{name}", drawn
    if (drawn := draw_differences(summary)) is not None:
        yield "differences", drawn
    for point in summary.points:
        if (drawn := draw_learning_curves(summary, point)) is not None:
            yield "_".join(["learning_curves", *map(_slug, [point.title] if point.title else [])]), drawn
    for option in dict.fromkeys(option for point in summary.points for option in point.point):
        if (drawn := draw_metric_over_option(summary, option)) is not None:
            yield f"metric_over_{_slug(option)}", drawn
        if (drawn := draw_difference_over_option(summary, option)) is not None:
            yield f"difference_over_{_slug(option)}", drawn


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.replace(",", "")).strip("-.")
