"""Attention mass that views keep, over their cost: the tables of many budgets, from one look at the model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..modeling.locomt_hf_lam import LocomtConfig
from ..modeling.locomt_views_hf_lam import parse_view, resolve_views
from .calibration import CalibrationReport, MeasuredViews, check_budget, measure_views

# The presets that are one table each; that of `full` is the end of every front.
_PRESETS = ("self", "cross", "round_robin", "half")
# Budgets of a front, unless they are given.
_BUDGETS = 11


@dataclass(frozen=True)
class CalibrationPoint:
    """One table of views on a [`CalibrationFront`].

    Attributes:
        budget: fraction of the attention FLOPs that was allowed.
        config: the table, which `hf_lam.set_views(model, config)` applies.
        report: the report that [`calibrate_views`] would give for it.
        kept_in_any_order: the attention mass that is kept at the same cost if the heads get the same views in random
            order, in the mean over all orders. The table keeps more than this because it looks at each head.
    """

    budget: float
    config: LocomtConfig
    report: CalibrationReport
    kept_in_any_order: float

    @property
    def flops_fraction(self) -> float:
        """The attention FLOPs of the table, as a fraction of those of full views."""
        return self.report.flops_fraction

    @property
    def kept(self) -> float:
        """The attention mass inside the views, as a mean over all heads."""
        return self.report.kept


@dataclass(frozen=True)
class CalibrationFront:
    """The result of [`calibrate_front`].

    Attributes:
        points: one for each budget, from the smallest to the largest; none keeps less than the one before.
        presets: (fraction of the attention FLOPs, mass kept) of the tables that are the same for any model (`self`,
            `cross`, `round_robin`, `half`), by their names.
        total: the mass that full views keep. What is missing to 1 lies on global segments.
        samples: number of samples that were measured.
    """

    points: tuple[CalibrationPoint, ...]
    presets: dict[str, tuple[float, float]]
    total: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single heads as plain JSON values."""
        points = [
            {
                "budget": point.budget,
                "flops_fraction": point.flops_fraction,
                "kept": point.kept,
                "kept_in_any_order": point.kept_in_any_order,
                "gap": point.report.gap,
                "views": point.report.views,
            }
            for point in self.points
        ]
        presets = {name: {"flops_fraction": cost, "kept": kept} for name, (cost, kept) in self.presets.items()}
        return {"points": points, "presets": presets, "total": self.total, "samples": self.samples}

    def to_markdown(self) -> str:
        """A table with a line for each budget and each preset, in percent."""
        lines = [
            "| budget | attention FLOPs, % | mass kept, % | same views in any order, % | views (heads) |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        for point in self.points:
            counts = Counter(view for row in point.report.views for view in row).most_common()
            views = ", ".join(f"{view} ({count})" for view, count in counts)
            numbers = (point.flops_fraction, point.kept, point.kept_in_any_order)
            lines.append(f"| {100 * point.budget:.4g} % | {' | '.join(f'{100 * x:.1f}' for x in numbers)} | {views} |")
        for name, (cost, kept) in self.presets.items():
            lines.append(f"| `{name}` | {100 * cost:.1f} | {100 * kept:.1f} | | |")
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        return self.to_markdown()


def calibrate_front(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    budgets: Sequence[float] | None = None,
    *,
    candidates: Sequence[str] | None = None,
) -> CalibrationFront:
    """Pick the tables of views for many budgets, in one pass over the data.

    Each is the table that [`calibrate_views`] picks for its budget, or that of a smaller budget where it keeps more
    (both are near-exact). `hf_lam.visualization.plot_front` draws them.

    Args:
        model: a model as for `calibrate_views`.
        batches: batches as for `calibrate_views`; gone through once.
        budgets: fractions of the attention FLOPs of full views, in any order; unless given, eleven from the cheapest
            table to full views. Those that no table of the candidates can meet are left out, with one warning.
        candidates: views to choose from, as for `calibrate_views`.

    Returns:
        The tables, and what each costs and keeps.

    Raises:
        TypeError: if `budgets` or `candidates` is no list, or a batch is not a mapping.
        ValueError: as from `calibrate_views`; for invalid budgets, and if no table can meet any of them.

    Examples:
        >>> import torch
        >>> from hf_lam import LocomtConfig, calibrate_front, convert
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig())
        >>> front = calibrate_front(model, [{"pixel_values": torch.randn(2, 3, 224, 224)}], budgets=[0.5, 0.75])
        >>> [point.budget for point in front.points]
        [0.5, 0.75]
    """
    if budgets is not None:
        if isinstance(budgets, (str, int, float)):
            raise TypeError(f"budgets must be a list of fractions, got {budgets!r}; calibrate_views takes one budget.")
        budgets = sorted(set(budgets))
        if not budgets:
            raise ValueError("budgets is empty; give at least one fraction in (0, 1], or leave it out.")
        for budget in budgets:
            check_budget(budget)
    measured = measure_views(model, batches, candidates)
    least = measured.least
    if budgets is None:
        step = (1 - least) / (_BUDGETS - 1)
        budgets = sorted({*(least + step * index for index in range(_BUDGETS - 1)), 1.0})
    met = [budget for budget in budgets if measured.can_meet(budget)]
    if 0 < len(met) < len(budgets):
        warnings.warn(
            f"no table of {measured.candidates} meets the budgets {budgets[: len(budgets) - len(met)]}, which are "
            f"left out: the cheapest takes {least:.4f} of the attention FLOPs of full views.",
            stacklevel=2,
        )
    points: list[CalibrationPoint] = []
    for budget in met or budgets:
        config, report = measured.choose_within(budget)
        if points and points[-1].kept > report.kept:
            config = points[-1].config
            gap = 1 - points[-1].kept / report.upper_bound
            report = replace(
                points[-1].report, budget=float(budget), upper_bound=report.upper_bound, gap=max(0.0, gap)
            )
        points.append(CalibrationPoint(float(budget), config, report, _kept_in_any_order(measured, report.views)))
    presets = {name: _of_preset(measured, name) for name in _PRESETS}
    return CalibrationFront(tuple(points), presets, points[-1].report.total, measured.samples)


def _kept_in_any_order(measured: MeasuredViews, table: list[list[str]]) -> float:
    counts = Counter(view for row in table for view in row)
    means = {view: _mean_kept(measured, [view] * len(measured.heads)) for view in counts}
    return sum(count * means[view] for view, count in counts.items()) / len(measured.heads)


def _of_preset(measured: MeasuredViews, name: str) -> tuple[float, float]:
    """The fraction of the attention FLOPs, and the mass that is kept."""
    config = measured.config
    table = resolve_views(name, len(measured.pairs), len(measured.pairs[0]), config.names, config.is_global)
    views = [view for row in table for view in row]
    costs = [measured.cost_of(parse_view(view, config.names, config.is_global)) for view in views]
    return sum(costs) / (measured.full_cost * len(views)), _mean_kept(measured, views)


def _mean_kept(measured: MeasuredViews, views: Sequence[str]) -> float:
    """The mean mass that is kept with a view for every head, given in one list."""
    parsed = {view: parse_view(view, measured.config.names, measured.config.is_global) for view in views}
    kept = [measured.mass_in(parsed[view], head) for view, head in zip(views, measured.heads, strict=True)]
    return sum(kept) / len(kept)
