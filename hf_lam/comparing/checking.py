"""Every row is tried up to its first step, so that a comparison does not end hours later with a spelling mistake."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from .output_folder import read_json
from .plan import Plan, Row
from .plan_options import texts_in
from .plan_source import did_you_mean
from .runner import Runner
from .runs import Run
from .workers import Task

_FOLDER = "check"
# How argparse, and transformers' parser, begin what they say of an option that a script does not have.
_UNKNOWN = re.compile(r"unrecognized arguments?:|arguments are not used by the HfArgumentParser")
_OF_THE_RUNNER = ("check_only", "record_run", "data_seed")


def check_rows(runner: Runner, rows: Sequence[Row], *, test: bool) -> None:
    """Try rows up to the first step.

    Args:
        runner: runner of the plan.
        rows: rows to try.
        test: whether the test data must be there, too.

    Raises:
        ValueError: for all rows that cannot be run, and for a metric that they do not give.
    """
    plan, folder = runner.plan, runner.output / _FOLDER
    runs = [Run(row, plan.seeds[0], folder / row.slug, f"{row.name}, check") for row in rows]
    if plan.search is not None and runs:
        # A value that is none is one for every row.
        runs += [
            Run(
                rows[0],
                plan.seeds[0],
                folder / f"{rows[0].slug}.{number}",
                f"{rows[0].name}, check",
                {plan.search.option: value},
            )
            for number, value in enumerate(plan.search.values)
        ]
    of_key = {run.folder: run for run in runs}
    extra: dict[str, Any] = {"check_only": True, **({"do_predict": True} if test else {})}
    metrics: dict[str, list[str]] = {}
    shutil.rmtree(folder, ignore_errors=True)

    def before(task: Task) -> None:
        of_key[task.key].folder.parent.mkdir(parents=True, exist_ok=True)
        runner.reporter.started(task.label)

    def after(task: Task, error: str | None, seconds: float | None) -> str | None:
        run = of_key[task.key]
        if error is None:
            found = read_json(run.folder / "check.json")
            metrics[run.row.name] = list(found.get("metrics") or [])
            if not found:
                error = f"{plan.script.name} wrote no check.json to its --output_dir when it was given --check_only"
        runner.reporter.ended(task.label, run.row.name, seconds, None)
        return error

    runner.reporter.phase("check", [run.row.name for run in runs])
    errors = runner.pool.run([runner.task(run, extra, None) for run in runs], before, after)
    messages: dict[str, list[str]] = {}
    for key, error in errors.items():
        messages.setdefault(_with_hint(plan, error), []).append(_where(plan, of_key[key].row, error))
    problems = [f"{places[0]}{_and_more(places)}: {message}" for message, places in messages.items()]
    if not problems:
        problems = _check_metric(plan, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    if problems:
        raise ValueError("\n".join(problems))


def _check_metric(plan: Plan, metrics: dict[str, list[str]]) -> list[str]:
    for row, known in metrics.items():
        if plan.metric not in known:
            hint = did_you_mean(plan.metric, known)
            only = f"only {', '.join(known)}.{hint}"
            return [f"{plan.where('metric')}: the runs of {row!r} do not give {plan.metric!r}, {only}"]
    return []


def _where(plan: Plan, row: Row, error: str) -> str:
    """The row, and the option that a message is about, if it names one that the plan has."""
    named = [name for name in re.findall(r"--([A-Za-z_]\w*)", error) if any(_top(x) == name for x in row.lines)]
    if not named:
        return plan.where_row(row, next(_quoted(row, error), None))
    # The message may name what within the option is wrong.
    inner = [
        x for x in row.lines if _top(x) == named[0] and re.search(rf"\b{re.escape(x.rpartition('.')[2])}\b", error)
    ]
    return plan.where_row(row, max([named[0], *inner], key=lambda name: name.count(".")))


def _quoted(row: Row, error: str) -> Iterator[str]:
    """Options that a message quotes, in its order: what reads a map may say no more than what is wrong in it."""
    texts = {".".join(map(str, place)): text for place, text in texts_in(row.options, ())}
    for word in re.findall(r"'([^']*)'", error):
        yield from (name for name in row.lines if "." in name and name.rpartition(".")[2] == word)
        yield from (name for name, text in texts.items() if text == word)


def _top(option: str) -> str:
    return option.partition(".")[0].replace("-", "_")


def _with_hint(plan: Plan, error: str) -> str:
    if not _UNKNOWN.search(error):
        return error
    added = [name for name in _OF_THE_RUNNER if name in error]
    if not added:
        return error
    what = "start without the check (--no_check)" if added == ["check_only"] else "null in the plan leaves it out"
    if "record_run" in added:
        what = "see what a script must do in docs/compare.md"
    return f"{error}. {plan.script.name} must know {', '.join(f'--{name}' for name in added)}; or {what}."


def _and_more(places: Sequence[str]) -> str:
    return f" (and {len(places) - 1} more)" if len(places) > 1 else ""
