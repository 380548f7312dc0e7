"""The results of a comparison, as they stand in `results.json` and `times.json`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..result_tables import Readable, ResultTable
from .plan import Plan
from .runs import TEST_METRIC, Record, Run, versions

# Of a row: what its runs say of the model, which is the same for all seeds unless the seed decides it.
_OF_THE_MODEL = ("parameters", "trainable_parameters", "mechanism_parameters", "flops", "attention_flops")


class Comparison(Readable, dict[str, Any]):
    """The result of `compare`: the contents of results.json, which print as tables, in a notebook too.

    Attributes:
        times: contents of times.json.
    """

    def __init__(self, results: Mapping[str, Any], times: Mapping[str, Any]) -> None:
        super().__init__(results)
        self.times = dict(times)

    def tables(self) -> list[ResultTable]:
        """The tables that it prints: one for every value of what the plan varies."""
        from .tables import result_tables

        return result_tables(self, self.times)


def assemble(
    plan: Plan,
    runs: Sequence[Run],
    records: Mapping[Path, Record],
    errors: Mapping[Path, str],
    searched: Sequence[Mapping[str, Any]],
    *,
    test: bool,
) -> dict[str, Any]:
    """The results of all runs, the same whenever and in however many pieces they were made.

    Args:
        plan: plan of the comparison.
        runs: all of its runs.
        records: records of the finished runs, by folder.
        errors: reasons of the failed runs, by folder.
        searched: result of every value of a search.
        test: whether the test data were asked for.
    """
    # Metrics of some of the runs are none of the comparison.
    are_tested = [records[run.folder].is_tested for run in runs if run.folder in records]
    tested = test or (bool(are_tested) and all(are_tested))
    rows = []
    for row in plan.rows:
        of_row = [run for run in runs if run.row.name == row.name]
        finished = [records[run.folder] for run in of_row if run.folder in records]
        rows.append(
            {
                "name": row.name,
                "group": row.group,
                "point": dict(row.point),
                "options": dict(row.options),
                "found": dict(of_row[0].found) if of_row else {},
                **{name: _common([x.result["row"].get(name) for x in finished]) for name in _OF_THE_MODEL},
                "runs": [_run(run, records.get(run.folder), errors.get(run.folder), tested) for run in of_row],
            }
        )
    return {
        "format": 1,
        "plan": {
            "script": plan.script.name,
            "title": plan.title,
            "metric": plan.metric,
            "greater_is_better": plan.greater_is_better,
            "chance": plan.chance,
            "baseline": plan.baseline,
            "seeds": list(plan.seeds),
            "tested": tested,
            "tested_runs": sum(are_tested),
        },
        "versions": versions(),
        "rows": rows,
        "search": [dict(entry) for entry in searched],
    }


def _run(run: Run, record: Record | None, error: str | None, tested: bool) -> dict[str, Any]:
    result = (
        record.result
        if record is not None
        else {"metrics": {}, "steps": None, "orders": {}, "starts": {}, "curve": []}
    )
    metrics = {name: value for name, value in result["metrics"].items() if tested or not name.startswith(TEST_METRIC)}
    return {
        "seed": run.seed,
        "error": error,
        "metrics": metrics,
        **{name: result[name] for name in ("steps", "orders", "starts", "curve")},
    }


def _common(values: Sequence[float | None]) -> float | None:
    """The value of all runs, or their mean; None where none has one."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if len(set(known)) == 1 else statistics.fmean(known)


def unequal_runs(results: Mapping[str, Any]) -> Iterator[str]:
    """The rows and seeds whose runs saw other samples than the baseline's, in another order, or took other steps."""
    baseline = results["plan"]["baseline"]
    of_baseline = {
        (str(row["point"]), run["seed"]): run
        for row in results["rows"]
        if row["group"] == baseline
        for run in row["runs"]
    }
    for row in results["rows"]:
        unequal = []
        for run in row["runs"]:
            other = of_baseline.get((str(row["point"]), run["seed"]))
            if other is not None and not (run["error"] or other["error"]) and not _saw_the_same(run, other):
                unequal.append(str(run["seed"]))
        if unequal:
            yield f"{row['name']} (seed {', '.join(unequal)})"


def _saw_the_same(run: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs saw the same data: the same labels, if both have any, as inputs may be cut differently."""
    shared = set(run["orders"]) & set(other["orders"])
    names = {"labels"} & shared or shared
    return run["steps"] == other["steps"] and all(run["orders"][name] == other["orders"][name] for name in names)


def assemble_times(runs: Sequence[Run], records: Mapping[Path, Record]) -> dict[str, Any]:
    """The measured times of every row: with a model of one of its seeds, and while it was trained.

    Args:
        runs: all runs of the comparison.
        records: records of the finished runs, by folder.
    """
    places: list[dict[str, Any]] = []
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        row, record = rows.setdefault(run.row.name, {"train_seconds": {}}), records.get(run.folder)
        if record is not None and record.seconds is not None:
            row["train_seconds"][str(run.seed)] = record.seconds
        if record is not None and record.times is not None and len(row) == 1:
            row.update(record.times["row"])
            places.append({name: record.times[name] for name in ("processor", "threads")})
    return {**(places[0] if places else {"processor": None, "threads": None}), "rows": rows}
