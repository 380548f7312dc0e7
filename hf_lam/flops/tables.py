"""The cost of a model as a table, a row for each layer."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ..result_tables import Column, ResultTable, count_each

if TYPE_CHECKING:
    from .report import CostReport


def cost_table(report: CostReport) -> ResultTable:
    """GFLOPs of the attention products of every layer and of all, and what else was counted below."""
    kinds = list(report.attention)
    has_views = any(layer.views for layer in report.layers)
    synthesis = ["synthesis"] if report.synthesizer else []
    numbers = [*kinds, *(["own/full"] if "own" in kinds else []), "counted", *synthesis]
    rows = []
    for index, layer in enumerate(report.layers):
        sums = {kind: sum(heads) for kind, heads in layer.formula.items()}
        views = [count_each(layer.views or ())] if has_views else []
        synthesis = [_giga(layer.synthesis)] if report.synthesizer else []
        rows.append([str(index), *views, *_cells(sums, layer.forward), *synthesis])
    views = [""] if has_views else []
    synthesis = [_giga(report.synthesis)] if report.synthesizer else []
    return ResultTable(
        f"{report.model}: GFLOPs of the attention products",
        [
            Column("layer", is_number=False),
            *([Column("views", is_number=False)] if has_views else []),
            *map(Column, numbers),
        ],
        rows,
        [["all", *views, *_cells(report.attention, report.forward_attention), *synthesis]],
        _notes(report),
    )


def _cells(sums: dict[str, int], counted: int) -> list[str]:
    ratio = [f"{sums['own'] / sums['full']:.3f}"] if "own" in sums else []
    return [*(_giga(flops) for flops in sums.values()), *ratio, _giga(counted)]


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.4g}"


def _notes(report: CostReport) -> list[str]:
    size = f"batch of {report.batch_size}, {report.tokens} tokens, heads of {report.head_size} features"
    segments = ", ".join(f"{name} {length}" for name, length in (report.segments or {}).items())
    added = f", {report.mechanism_parameters:,} of them of hf_lam" if report.mechanism_parameters else ""
    counted = f"counted: the forward pass, which computes {report.forward_kind} attention; formula and count "
    counted += "are equal" if report.agrees else "DIFFER"
    return [
        f"{size}{f'; segments {segments}' if segments else ''}",
        *([f"bottleneck: {report.bottleneck_tokens} tokens for each segment"] if segments else []),
        counted if report.layers else "late fusion: no fusion layers, so no attention between the modalities",
        *([_synthesis_line(report)] if report.synthesizer else []),
        *(_added_line(name, flops, report.added_formula[name]) for name, flops in report.added.items()),
        f"whole model: {_giga(report.flops)} GFLOPs, {report.parameters:,} parameters{added}",
    ]


def _synthesis_line(report: CostReport) -> str:
    where = ""
    if report.grid is not None:
        prefix = report.tokens - prod(report.grid)
        where = f", on a grid of {'×'.join(map(str, report.grid))}"
        where += f" after {prefix} prefix token{'s' if prefix > 1 else ''}" if prefix else ""
    share = (report.forward_attention + report.synthesis) / report.attention["full"]
    return (
        f"synthesised attention: {report.synthesizer}{where}; counted and synthesis are "
        f"{share:.3f} of full, without what projections cost"
    )


def _added_line(name: str, counted: int, formula: int) -> str:
    by_formula = "as by formula" if counted == formula else f"{_giga(formula)} by formula"
    return f"{name}: {_giga(counted)} GFLOPs of its own, {by_formula}"
