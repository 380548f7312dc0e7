"""A plan, read and checked, and the command line of each of its runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .placeholders import Run, fill, rows_in
from .plan_options import command_line, merge, nested
from .plan_rows import ADDED, Row, check_option, check_values, read_rows
from .plan_source import Place, PlanSource, check_kind, did_you_mean, read_source

# Metrics of which less is better; losses, however they are called, too.
_ERRORS = ("mse", "mae", "rmse", "perplexity", "wer", "cer")
_LARGEST_SEED = 2**32 - 1  # NumPy's

_KEYS = (
    "script",
    "metric",
    "greater_is_better",
    "chance",
    "baseline",
    "seeds",
    "title",
    "arguments",
    "rows",
    "vary",
    "search",
    "launch",
)


@dataclass(frozen=True)
class Search:
    """A search for the best value of an option, for every row by itself, on validation data.

    option: its dotted name.
    values: values to choose from.
    seeds: seeds of the runs in which they are compared.
    """

    option: str
    values: tuple[Any, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A plan: the rows to compare, the seeds, and how.

    source: the name of its file, for messages.
    folder: folder of that file.
    script: script whose `main(arguments)` is run.
    title: title of tables and plots.
    metric: name of the metric, without `eval_`.
    greater_is_better: whether more of it is better.
    chance: value of the metric for guesses.
    baseline: group that others are compared with.
    seeds: seeds that every row is run with.
    rows: rows in the order of the plan.
    search: search that comes first; None for none.
    launch: beginning of the command of a run, in place of a worker process.
    lines: line of every key.
    """

    source: str
    folder: Path
    script: Path
    title: str | None
    metric: str
    greater_is_better: bool
    chance: float | None
    baseline: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    search: Search | None
    launch: tuple[str, ...]
    lines: Mapping[str, int] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The settings that decide all results, besides options of rows and seeds; for JSON.

        The folder is not among it: a plan may be moved while it is half done.
        """
        search = self.search
        return {
            "script": self.script.name,
            "launch": list(self.launch),
            "search": None
            if search is None
            else {
                "option": search.option,
                "values": list(search.values),
                "seeds": list(search.seeds),
                "metric": self.metric,
                "greater_is_better": self.greater_is_better,
            },
        }

    def line_of(self, key: str) -> int | None:
        """The line of a key of the plan."""
        return self.lines.get(key)

    def where(self, key: str) -> str:
        """`plan.yaml, line 3, metric`: how a message begins that is about a key of the plan."""
        return self._where(self.line_of(key), key)

    def where_row(self, row: Row, option: str | None = None) -> str:
        """`plan.yaml, line 14, row 'lam'`: how a message begins that is about a row, or about one of its options."""
        line = row.line if option is None else row.line_of(option)
        return self._where(line, f"row {row.name!r}" + ("" if option is None else f", {option}"))

    def _where(self, line: int | None, what: str) -> str:
        return ", ".join([self.source, *([] if line is None else [f"line {line}"]), what])


def read_plan(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    seeds: int | Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
) -> Plan:
    """Read a plan and check all that can be checked without its script.

    Args:
        source: a YAML file, or a mapping with the same keys; relative paths start from the file's folder, or from
            where the process is.
        seeds: instead of those of the plan.
        rows: only these, by their names or groups; what they need the runs of, and the baseline, come with them.

    Raises:
        ValueError: for an invalid plan: `plan.yaml, line 12, rows.lam: …`.
    """
    written = read_source(source)
    for key in written.values:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS) or " Options of the script belong under arguments, or under a row."
            raise written.error((key,), f"a plan has no key {key!r}, only {', '.join(_KEYS)}.{hint}")
    script = _read_script(written)
    metric = _needed(written, "metric", str, "accuracy").strip().removeprefix("eval_")
    if not metric:
        raise written.error(("metric",), "name the metric that rows are compared by, such as accuracy.")
    planned = _read_seeds(written, ("seeds",), _needed(written, "seeds", None, "5"))
    all_rows = read_rows(written)
    plan = Plan(
        source=written.name,
        folder=written.folder,
        script=script,
        title=_optional(written, "title", str, "Sentiment of films"),
        metric=metric,
        greater_is_better=_is_greater_better(written, metric),
        chance=_read_chance(written),
        baseline=_read_baseline(written, all_rows),
        seeds=planned if seeds is None else _read_seeds(PlanSource("seeds", written.folder, {}), (), seeds),
        rows=all_rows,
        search=_read_search(written, planned),
        launch=_read_launch(written),
        lines={str(place[0]): line for place, line in written.lines.items() if len(place) == 1},
    )
    return plan if rows is None else replace(plan, rows=_only(plan, rows))


def command_of(
    plan: Plan,
    row: Row,
    seed: int,
    folder: Path,
    folder_of: Callable[[Row], Path] | None,
    extra: Mapping[str, Any],
) -> list[str]:
    """The arguments that the plan's script is run with, once.

    Args:
        plan: plan whose script is run.
        row: row to run.
        seed: seed to run it with.
        folder: folder that the run writes to.
        folder_of: gives the folder of the run of another row with the same seed. None if there are none yet: an option
            that needs one then gets the value that it has in that other row, or is left out.
        extra: options over those of the row, by their dotted names; None leaves one out.

    Raises:
        ValueError: for a placeholder that cannot be filled in any more, such as a variable that is no longer set.
    """
    rows = {other.name: other for other in plan.rows}

    def folder_of_row(name: str) -> str:
        assert folder_of is not None
        return str(folder_of(rows[row.targets[name]]))

    options = merge(ADDED, row.options)
    for name, value in extra.items():
        options = merge(options, nested(name, value, options))
    if folder_of is None:
        options = {name: _without_run(name, value, row, rows) for name, value in options.items()}
    run = Run(seed, folder_of_row)
    filled = {name: fill(value, plan.folder, run) for name, value in options.items()}
    return command_line({"output_dir": str(folder), "seed": seed, "record_run": True} | filled)


def _without_run(option: str, value: Any, row: Row, rows: Mapping[str, Row]) -> Any:
    """The value of an option before there are runs: what the run that it names begins with, or None."""
    while names := rows_in(value):
        row = rows[row.targets[names[0]]]
        value = row.options.get(option)
    return value


# --- The keys of a plan ----------------------------------------------------------------------------------------------


def _needed(source: PlanSource, key: str, kind: type | None, example: str) -> Any:
    """The value of a key that every plan has."""
    value = source.values.get(key)
    if value is None:
        raise source.error(
            (key,) if key in source.values else (), f"the plan says no {key}; such as `{key}: {example}`."
        )
    return value if kind is None else check_kind(source, (key,), value, kind, example)


def _optional(source: PlanSource, key: str, kind: type, example: str) -> Any:
    value = source.values.get(key)
    return value if value is None else check_kind(source, (key,), value, kind, example)


def _filled(source: PlanSource, place: Place, text: str) -> str:
    """A text that belongs to all runs, with its placeholders filled in."""
    try:
        return str(fill(text, source.folder))
    except ValueError as error:
        raise source.error(place, str(error)) from error


def _read_script(source: PlanSource) -> Path:
    text = _needed(source, "script", str, "run_text_classification.py")
    script = Path(source.folder, _filled(source, ("script",), text))
    if not script.is_file():
        beside = [path.name for path in sorted(script.parent.glob("*.py"))] if script.parent.is_dir() else []
        hint = did_you_mean(script.name, beside)
        raise source.error(("script",), f"there is no file {str(script)!r}; the path starts from the plan.{hint}")
    if script.suffix != ".py":
        raise source.error(("script",), f"{text!r} is no Python file.")
    return script.resolve()


def _is_greater_better(source: PlanSource, metric: str) -> bool:
    given = _optional(source, "greater_is_better", bool, "true")
    return not (metric in _ERRORS or metric.endswith("loss")) if given is None else given


def _read_chance(source: PlanSource) -> float | None:
    value = source.values.get("chance")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise source.error(("chance",), f"expected a number, the metric of guesses, got {value!r}.")
    return float(value)


def _read_seeds(source: PlanSource, place: Place, value: Any, first: int = 0) -> tuple[int, ...]:
    """Seeds from a list, or so many from the first on."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise source.error(place, f"at least one seed is needed, got {value}; a single one is a list: [{value}].")
        return tuple(range(first, first + value))
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise source.error(place, f"expected how many seeds, such as 5, or a list of them, got {value!r}.")
    seeds = check_values(source, place, list(value))
    for number, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
            raise source.error((*place, number), f"a seed is a whole number from 0 to {_LARGEST_SEED}, got {seed!r}.")
    return tuple(seeds)


def _read_baseline(source: PlanSource, rows: Sequence[Row]) -> str:
    groups = dict.fromkeys(row.group for row in rows)
    name = _optional(source, "baseline", str, next(iter(groups)))
    if name is not None and name not in groups:
        hint = did_you_mean(name, groups)
        raise source.error(
            ("baseline",), f"there is no row {name!r}; the rows are {', '.join(map(repr, groups))}.{hint}"
        )
    return next(iter(groups)) if name is None else name


def _read_search(source: PlanSource, seeds: Sequence[int]) -> Search | None:
    """Read the search. Its seeds are others than the plan's unless they are named: a rate is not chosen by luck."""
    given = dict(_optional(source, "search", dict, "{learning_rate: [0.001, 0.0001]}") or {})
    if not given:
        return None
    own = _read_seeds(source, ("search", "seeds"), given.pop("seeds", None) or 1, first=max(seeds) + 1)
    if len(given) != 1:
        raise source.error(
            ("search",), f"a search is over one option, such as {{learning_rate: [0.001, 0.0001]}}, got {list(given)}."
        )
    ((name, values),) = given.items()
    place = ("search", name)
    check_option(source, place, name)
    if name in (source.values.get("vary") or {}):
        raise source.error(place, f"the plan varies {name!r} of every row already.")
    return Search(name, tuple(check_values(source, place, values)), own)


def _read_launch(source: PlanSource) -> tuple[str, ...]:
    parts = _optional(source, "launch", list, '[accelerate, launch, --num_processes, "2"]') or []
    for number, part in enumerate(parts):
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            raise source.error(("launch", number), f"expected a word of a command line, got {part!r}.")
    return tuple(_filled(source, ("launch", number), str(part)) for number, part in enumerate(parts))


def _only(plan: Plan, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows with these names, those that they use, and the baseline."""
    by_name = {row.name: row for row in plan.rows}
    kept = {row.name for row in plan.rows if row.group == plan.baseline}
    for name in names:
        found = {row.name for row in plan.rows if name in (row.name, row.group, row.written)}
        if not found:
            groups = dict.fromkeys(row.group for row in plan.rows)
            raise ValueError(
                f"{plan.source} has no row {name!r}; its rows are {', '.join(map(repr, groups))}."
                f"{did_you_mean(name, groups)}"
            )
        kept |= found
    waiting = sorted(kept)
    while waiting:
        for other in by_name[waiting.pop()].uses:
            if other not in kept:
                kept.add(other)
                waiting.append(other)
    return tuple(row for row in plan.rows if row.name in kept)
