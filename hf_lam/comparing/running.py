"""A comparison, from the check of its rows to the files that say what came out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .checking import check_rows
from .output_folder import RUNS, holding, read_json, write_json, write_text
from .plan import Plan
from .progress import Reporter
from .results import Comparison, assemble, assemble_times, unequal_runs
from .runner import Runner
from .runs import LOG, TEST_LOG, Record, Run, check_metric, differences, last_lines, read_record, settings_of
from .searching import runs_of_search, search
from .tables import latex_table, markdown_table
from .workers import Pool, Task, find_command, worker_environments

_SCRATCH = "timing"
_TIMING = (sys.executable, "-m", "hf_lam.comparing.timing")
# Of the logs of runs that failed.
_LINES_SHOWN, _LOGS_SHOWN = 12, 5
_NAMES_SHOWN = 5


def run_plan(
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    jobs: int = 1,
    test: bool = False,
    keep_models: bool = False,
    check: bool = True,
    timing: bool = True,
) -> Comparison:
    """Do the runs of a plan that an earlier start has not finished, and write the results.

    In `output` there are then results.json, times.json, results.md, results.tex and figures, and in its folder `runs`
    the log and the results of every run.

    Args:
        plan: plan to run.
        output: a new folder, or the folder of an earlier start, to go on there.
        jobs: number of runs that go on at the same time.
        test: whether the test data are used, once, when all runs are done.
        keep_models: whether the trained models stay.
        check: whether all rows are tried up to their first step before anything is trained.
        timing: whether the models of the first seed are timed at the end.

    Returns:
        The contents of results.json. A run that failed has an `error` there; another start tries it again.

    Raises:
        ValueError: before anything is trained, for rows that cannot work, for a folder that another process uses or
            that was made with other settings, and for test data that are asked for when the models are gone.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs!r}.")
    launch = [find_command(plan.launch[0]), *plan.launch[1:]] if plan.launch else []
    folder = Path(output).expanduser().absolute()
    runs = [
        Run(row, seed, folder / RUNS / row.slug / f"seed-{seed}", f"{row.name}, seed {seed}")
        for seed in plan.seeds
        for row in plan.rows
    ]
    with holding(folder) as lock, Reporter(jobs) as reporter:
        try:
            runs = _check_stored(plan, folder, runs, test)
            _say_what_is_missing(runs, keep_models, reporter)
            used = {name for row in plan.rows for name in row.uses}

            def keeps(run: Run) -> bool:
                of_plan = run.folder.is_relative_to(folder / RUNS)
                return run.row.name in used or (of_plan and (test or keep_models or run.seed == plan.seeds[0]))

            with Pool(plan.script, worker_environments(jobs), lock) as pool:
                runner = Runner(plan, folder, pool, reporter, launch, keeps)
                if check:
                    begun = {run.row.name for run in runs if runner.record_of(run) is not None}
                    check_rows(runner, [row for row in plan.rows if row.name not in begun], test=test)
                runs, searched = _train(runner, runs, test)
            results = assemble(plan, runs, runner.records, runner.errors, searched, test=test)
            if timing:
                _time(runner, runs, lock)
            times = assemble_times(runs, runner.records)
            _write(folder, results, times, reporter)
            _say_what_is_odd(runner, runs, results)
            if not keep_models:
                _remove_models(runner, runs, test)
            return Comparison(results, times)
        except KeyboardInterrupt:
            finished = sum(read_record(run.folder) is not None for run in runs)
            raise KeyboardInterrupt(
                f"stopped with {finished} of {len(runs)} runs finished; the same command with the same --output_dir "
                "goes on from there."
            ) from None


def _check_stored(plan: Plan, output: Path, runs: Sequence[Run], test: bool) -> list[Run]:
    """The runs, those that are finished with what was found for them.

    Raises:
        ValueError: if a finished run had other settings, or is to be tested and its model is gone.
    """
    known, gone = [], []
    others: dict[str, list[str]] = {}
    for run in [*runs, *runs_of_search(plan, output)]:
        record = read_record(run.folder)
        if record is not None:
            run = replace(run, found=record.settings["found"])
            changed = differences(record.settings, settings_of(plan, run))
            if changed:
                others.setdefault(changed, []).append(run.label)
            if test and not (record.is_tested or record.has_model):
                gone.append(run.label)
            _check_stored_metric(plan, run, record)
        known.append(run)
    if others:
        alike = [f"{_some(labels)}: {changed}" for changed, labels in others.items()]
        raise ValueError(
            f"{str(output)!r} has finished runs with other settings. {'. '.join(alike[:_NAMES_SHOWN])}. Choose "
            "another --output_dir, or remove what differs in it."
        )
    known = known[: len(runs)]
    gone = [run.label for run in known if run.label in gone]
    if gone:
        raise ValueError(
            f"test data need the trained models, and those of {_some(gone)} were removed at the end of an earlier "
            f"start. Remove {str(output / RUNS)!r} to train them again, or choose another --output_dir; --keep_models "
            "would have kept them."
        )
    return known


def _check_stored_metric(plan: Plan, run: Run, record: Record) -> None:
    try:
        check_metric(plan, record.result["metrics"], "eval")
    except ValueError as error:
        raise ValueError(f"{plan.where('metric')}: {run.label}, which is finished: {error}.") from error


def _say_what_is_missing(runs: Sequence[Run], keep_models: bool, reporter: Reporter) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        reporter.note('There will be no figures without matplotlib: pip install "hf-lam[viz]".')
    records = [record for run in runs if (record := read_record(run.folder)) is not None]
    gone = sum(not record.has_model for record in records)
    if keep_models and gone:
        reporter.note(f"{gone} runs were finished by an earlier start, which did not keep their models.")


def _train(runner: Runner, runs: Sequence[Run], test: bool) -> tuple[list[Run], list[dict[str, Any]]]:
    """Search, train and test; the runs with what was found for them, and what the search gave."""
    plan, entries = runner.plan, []
    if plan.search is not None:
        begun = {run.row.name: run.found[plan.search.option] for run in runs if run.found}
        searched = search(runner, plan.search, begun)
        entries = searched.entries
        for run in runs:
            if run.row.name in searched.errors:
                runner.errors[run.folder] = searched.errors[run.row.name]
        runs = [
            replace(run, found={plan.search.option: searched.found[run.row.name]})
            if run.row.name in searched.found
            else run
            for run in runs
        ]

    def used_by(run: Run) -> list[Run]:
        return [other for other in runs if other.seed == run.seed and other.row.name in run.row.uses]

    runner.do("runs", [run for run in runs if run.folder not in runner.errors], used_by)
    if test:
        runner.test(runs, used_by)
    return list(runs), entries


def _time(runner: Runner, runs: Sequence[Run], lock: int | None) -> None:
    """Measure what takes how long, with the models of the first seed, in a process of its own.

    Nothing is measured if all that are there were measured before.
    """
    first = [run for run in runs if run.seed == runner.plan.seeds[0]]
    there = [run for run in first if (record := runner.record_of(run)) is not None and record.has_model]
    if all(runner.records[run.folder].times is not None for run in there):
        return
    scratch = runner.output / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    request, answer = scratch / "request.json", scratch / "times.json"
    write_json(request, {"folders": {run.row.name: str(run.folder) for run in there}, "threads": None})
    task = Task(scratch, "timing", scratch / LOG, command=[*_TIMING, str(request), str(answer)])

    def after(task: Task, error: str | None, seconds: float | None) -> str | None:
        runner.reporter.ended(task.label, "timing", seconds, error)
        return error

    runner.reporter.phase("timing", ["timing"])
    with Pool(runner.plan.script, worker_environments(1), lock) as pool:
        pool.run([task], lambda task: runner.reporter.started(task.label), after)
    measured = read_json(answer)
    shutil.rmtree(scratch, ignore_errors=True)
    for run in there:
        row = (measured.get("rows") or {}).get(run.row.name)
        if row is not None:
            times = {"processor": measured.get("processor"), "threads": measured.get("threads"), "row": row}
            runner.records[run.folder] = replace(runner.records[run.folder], times=times)
            runner.records[run.folder].write(run.folder)


def _write(output: Path, results: Mapping[str, Any], times: Mapping[str, Any], reporter: Reporter) -> None:
    write_json(output / "results.json", results)
    write_json(output / "times.json", times)
    write_text(output / "results.md", markdown_table(results, times))
    write_text(output / "results.tex", latex_table(results, times))
    if importlib.util.find_spec("matplotlib") is not None:
        # Figures are drawn with a package that imports torch, which nothing else here needs.
        from .plots import write_plots

        write_plots(results, times, output)
    reporter.note(f"Written to {output}.")


def _say_what_is_odd(runner: Runner, runs: Sequence[Run], results: Mapping[str, Any]) -> None:
    unequal = list(unequal_runs(results))
    if unequal:
        runner.reporter.note(
            "Not the same samples in the same order, or not as many steps, as the baseline with the same seed: "
            f"{_some(unequal)}."
        )
    failed = [run for run in runs if run.folder in runner.errors]
    alike: dict[str, list[Run]] = {}
    for run in failed:
        # The folder of a run in its message is no other reason.
        alike.setdefault(runner.errors[run.folder].replace(run.folder.name, ""), []).append(run)
    for of in list(alike.values())[:_LOGS_SHOWN]:
        runner.reporter.note(f"{_some([run.label for run in of])} failed: {runner.errors[of[0].folder]}")
        log = of[0].folder / (TEST_LOG if runner.record_of(of[0]) is not None else LOG)
        lines = last_lines(log, _LINES_SHOWN)
        if lines:
            runner.reporter.note("\n".join([f"  The end of {log}:", *(f"    {line}" for line in lines)]))
    if failed:
        more = f", in {len(alike)} ways" if len(alike) > _LOGS_SHOWN else ""
        runner.reporter.note(
            f"{len(failed)} of {len(runs)} runs failed{more}. Another start with this --output_dir tries them again."
        )


def _remove_models(runner: Runner, runs: Sequence[Run], test: bool) -> None:
    """Remove the models of all runs but those whose test is still to be done."""
    for run in runs:
        if not (test and run.folder in runner.errors):
            runner.remove_model(run)


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMES_SHOWN} more" if len(texts) > _NAMES_SHOWN else ""
    return "; ".join(texts[:_NAMES_SHOWN]) + more
