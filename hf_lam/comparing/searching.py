"""One option of every row by itself, chosen on validation data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plan import Plan, Row, Search
from .runner import Runner
from .runs import Run

_FOLDER = "search"


@dataclass
class Searched:
    """The result of a search.

    found: the best value, by the name of the row.
    errors: why a row has none.
    entries: result of every value, as in `results.json`.
    """

    found: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)


def search(runner: Runner, option: Search, begun: Mapping[str, Any]) -> Searched:
    """Choose a value for every row, by the mean of the plan's metric over the seeds of the search.

    Args:
        runner: runner of the plan.
        option: search of the plan: the option and its values.
        begun: values of rows that have finished runs with them; these rows keep their value.
    """
    rows, searched = {row.name: row for row in runner.plan.rows}, Searched()
    means: dict[str, list[float | None]] = {}

    def used_by(run: Run) -> list[Run]:
        numbers = {name: option.values.index(searched.found[name]) for name in run.row.uses}
        return [_run(runner.output, option, rows[name], number, run.seed) for name, number in numbers.items()]

    for generation in _generations(runner.plan):
        possible = []
        for row in generation:
            without = next((name for name in row.uses if name not in searched.found), None)
            if without is None:
                possible.append(row)
            else:
                searched.errors[row.name] = f"{without!r}, which it uses, has no {option.option}"
        runs = {
            row.name: [_runs(runner.output, option, row, x) for x in range(len(option.values))] for row in possible
        }
        wanted = [run for name, of in runs.items() if name not in begun for of_value in of for run in of_value]
        runner.do(f"search of {option.option}", wanted, used_by)
        for name, of in runs.items():
            means[name] = [_mean(runner, of_value) for of_value in of]
            known = [(mean, value) for mean, value in zip(means[name], option.values, strict=True) if mean is not None]
            if name in begun:
                searched.found[name] = begun[name]
            elif known:
                choose = max if runner.plan.greater_is_better else min
                searched.found[name] = choose(known, key=lambda entry: entry[0])[1]
            else:
                reason = next(runner.errors[run.folder] for run in of[0] if run.folder in runner.errors)
                searched.errors[name] = f"no {option.option} worked: {reason}"
    for row in runner.plan.rows:
        for value, mean in zip(option.values, means.get(row.name, []), strict=False):
            searched.entries.append({"row": row.name, "value": value, "seeds": list(option.seeds), "mean": mean})
    for run in runs_of_search(runner.plan, runner.output):
        runner.remove_model(run)
    return searched


def runs_of_search(plan: Plan, output: Path) -> list[Run]:
    """All runs that a search makes."""
    option = plan.search
    if option is None:
        return []
    numbers = range(len(option.values))
    return [run for row in plan.rows for number in numbers for run in _runs(output, option, row, number)]


def _runs(output: Path, option: Search, row: Row, number: int) -> list[Run]:
    return [_run(output, option, row, number, seed) for seed in option.seeds]


def _run(output: Path, option: Search, row: Row, number: int, seed: int) -> Run:
    value = option.values[number]
    folder = output / _FOLDER / row.slug / str(number) / f"seed-{seed}"
    return Run(row, seed, folder, f"{row.name}, {option.option}={value}, seed {seed}", {option.option: value})


def _mean(runner: Runner, runs: Sequence[Run]) -> float | None:
    """The mean of the metric; None if one of the runs has none."""
    values = []
    for run in runs:
        record = runner.record_of(run)
        if record is None:
            return None
        values.append(record.result["metrics"][f"eval_{runner.plan.metric}"])
    return statistics.fmean(values)


def _generations(plan: Plan) -> list[list[Row]]:
    """The rows in groups, each after those whose runs it uses."""
    left, generations = list(plan.rows), []
    while left:
        names = {row.name for row in left}
        generations.append([row for row in left if not names.intersection(row.uses)])
        left = [row for row in left if names.intersection(row.uses)]
    return generations
