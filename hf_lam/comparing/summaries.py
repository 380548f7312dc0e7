"""Summaries of the results for tables and plots: for every row its metric by seed, its costs, and its difference."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .statistics import Difference, find_winner, paired_difference

# Of metrics between 0 and 1, those that are read in percent; `eval_f1_macro`, `t2v_R@5` and `top5_accuracy` are, too.
_IN_PERCENT = re.compile(
    r"(^|[_\W])(top\d+|accuracy|acc|precision|recall|f1|map|mrr|auc|auroc|r@?\d+|em|exact_match)([_\W]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Metric:
    """The metric that rows are compared by.

    key: key in the metrics of a run, such as `eval_accuracy`.
    name: name that is shown, such as `test accuracy, %`.
    scale: 100 for what is shown in percent; values are multiplied by it.
    """

    key: str
    name: str
    scale: float
    greater_is_better: bool

    @property
    def is_percent(self) -> bool:
        return self.scale == 100

    @property
    def axis_name(self) -> str:
        """The name of its axis, which says so if less is better."""
        return self.name if self.greater_is_better else f"{self.name} (less is better)"


@dataclass(frozen=True)
class RowSummary:
    """A row, with its metric as it is shown (in percent, if the metric is).

    values: metric by seed, for the runs that have one.
    failed: reason by seed, for the runs that have none.
    difference: difference from the baseline at the same point; None for the baseline itself, and where there is no
        baseline.
    times: measured times of the row, as in `times.json`.
    """

    name: str
    group: str
    values: Mapping[int, float]
    failed: Mapping[int, str]
    difference: Difference | None
    is_baseline: bool
    found: Mapping[str, Any]
    costs: Mapping[str, float]
    times: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def cost(self, name: str) -> float | None:
        """One of `COSTS`; None where it is not known."""
        if name.endswith("_ms"):
            return (self.times.get(name) or {}).get("median")
        if name == "train_seconds":
            seconds = [value for value in (self.times.get(name) or {}).values() if value is not None]
            return statistics.fmean(seconds) if seconds else None
        return self.costs.get(name)


@dataclass(frozen=True)
class Point:
    """All rows at one value of what the whole plan varies.

    point: the options that vary, with their values here; empty where nothing varies.
    winner: the name of the row that is told apart from all others as the better, if there is one.
    """

    point: Mapping[str, Any]
    rows: tuple[RowSummary, ...]
    winner: str | None

    @property
    def title(self) -> str:
        return ", ".join(f"{option} = {_said(value)}" for option, value in self.point.items())

    @property
    def baseline(self) -> RowSummary | None:
        return next((row for row in self.rows if row.is_baseline), None)

    @property
    def differences(self) -> list[Difference]:
        return [row.difference for row in self.rows if row.difference is not None]


@dataclass(frozen=True)
class Summary:
    """Everything that is shown of the results of a plan.

    chance: value of the metric for guesses, on the scale that is shown.
    points: points in the order of the plan; a single one, without a title, where nothing varies.
    times: contents of `times.json`.
    """

    title: str | None
    metric: Metric
    baseline: str
    chance: float | None
    points: tuple[Point, ...]
    times: Mapping[str, Any]

    @property
    def rows(self) -> list[RowSummary]:
        return [row for point in self.points for row in point.rows]

    @property
    def groups(self) -> list[str]:
        """The names of rows without what the whole plan varies."""
        return list(dict.fromkeys(row.group for row in self.rows))


COSTS = (
    "parameters",
    "trainable_parameters",
    "mechanism_parameters",
    "flops",
    "attention_flops",
    "inference_ms",
    "step_ms",
    "train_seconds",
)


def _metric_of(results: Mapping[str, Any]) -> Metric:
    """The metric of a plan: of the test data once they were touched, before that of the validation data."""
    plan = results["plan"]
    name = str(plan["metric"])
    prefix, split = ("predict", "test") if plan["tested"] else ("eval", "validation")
    key = f"{prefix}_{name}"
    values = [run["metrics"].get(key) for row in results["rows"] for run in row["runs"] if run.get("metrics")]
    is_fraction = all(0 <= value <= 1 for value in values if _is_number(value))
    scale = 100.0 if is_fraction and _IN_PERCENT.search(name) else 1.0
    return Metric(key, f"{split} {name}" + (", %" if scale == 100 else ""), scale, bool(plan["greater_is_better"]))


def summarize(results: Mapping[str, Any], times: Mapping[str, Any]) -> Summary:
    """Every row at every value of what varies, in the order of the plan.

    Args:
        results: contents of `results.json`.
        times: contents of `times.json`; an empty mapping where nothing was measured.
    """
    plan = results["plan"]
    metric, baseline = _metric_of(results), plan["baseline"]
    measured = times.get("rows") or {}
    points: dict[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for row in results["rows"]:
        point = row.get("point") or {}
        points.setdefault(repr(sorted(point.items())), (point, []))[1].append(row)
    found = []
    for point, rows in points.values():
        read = {row["name"]: _read_runs(row, metric) for row in rows}
        theirs = next((read[row["name"]][0] for row in rows if row["group"] == baseline), None)
        summaries = tuple(
            _summarize_row(row, *read[row["name"]], theirs, baseline, metric, measured.get(row["name"]) or {})
            for row in rows
        )
        values = {name: values for name, (values, _) in read.items()}
        found.append(Point(point, summaries, find_winner(values, greater_is_better=metric.greater_is_better)))
    chance = None if plan.get("chance") is None else plan["chance"] * metric.scale
    return Summary(plan.get("title") or None, metric, baseline, chance, tuple(found), times)


def _summarize_row(
    row: Mapping[str, Any],
    values: Mapping[int, float],
    failed: Mapping[int, str],
    theirs: Mapping[int, float] | None,
    baseline: str,
    metric: Metric,
    times: Mapping[str, Any],
) -> RowSummary:
    is_baseline = row["group"] == baseline
    difference = None
    if theirs is not None and not is_baseline:
        difference = paired_difference(values, theirs, greater_is_better=metric.greater_is_better)
    costs = {name: row[name] for name in COSTS if _is_number(row.get(name))}
    return RowSummary(
        row["name"],
        row["group"],
        values,
        failed,
        difference,
        is_baseline,
        row.get("found") or {},
        costs,
        times,
        row["runs"],
    )


def _read_runs(row: Mapping[str, Any], metric: Metric) -> tuple[dict[int, float], dict[int, str]]:
    """A row's metric by seed as it is shown, and why the other seeds have none."""
    values, failed = {}, {}
    for run in row["runs"]:
        seed, value = run["seed"], (run.get("metrics") or {}).get(metric.key)
        if run.get("error") is not None:
            failed[seed] = _reason(str(run["error"]))
        elif value is None:
            failed[seed] = f"it gave no {metric.key}"
        elif not _is_number(value):
            failed[seed] = f"its {metric.key} is {value}"
        else:
            values[seed] = value * metric.scale
    return values, failed


def unit_of_flops(rows: Sequence[RowSummary]) -> tuple[str, float]:
    """The unit that FLOPs of a sample are shown in, and how many there are to one."""
    largest = max((row.costs.get("flops", 0) for row in rows), default=0)
    return ("GFLOPs", 1e9) if largest >= 1e8 else ("MFLOPs", 1e6)


def where_timed(summary: Summary) -> str:
    """The batch, the processor and the threads that milliseconds were measured with, to be appended to a sentence."""
    times = summary.times
    batches = sorted({row.times["batch"] for row in summary.rows if row.times.get("batch")})
    said = f", batch of {' or '.join(map(str, batches))}" if batches else ""
    if times.get("processor"):
        said += f", {times['processor']}"
    if times.get("threads"):
        said += f", {times['threads']} thread{'s' * (times['threads'] != 1)}"
    return said


def failures(rows: Sequence[RowSummary]) -> Iterator[tuple[str, list[int], str]]:
    """The seeds of every row that failed for the same reason, and the reason."""
    for row in rows:
        reasons: dict[str, list[int]] = {}
        for seed, reason in row.failed.items():
            reasons.setdefault(reason, []).append(seed)
        for reason, seeds in reasons.items():
            yield row.name, sorted(seeds), reason


def _reason(error: str) -> str:
    """The first line of a message; of a traceback the last, which has the message."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it failed"]
    return lines[-1 if lines[0].startswith("Traceback") else 0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
