"""Does runs of a plan: those that are not finished, each after those that it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .plan import Plan, Row, command_of
from .progress import Reporter
from .runs import (
    TEST_LOG,
    TEST_METRIC,
    Record,
    Run,
    begin,
    check_metric,
    in_order_of_use,
    move_log,
    of_any_machine,
    read_metrics,
    read_record,
    read_result,
    remove_model,
    settings_of,
    without_folders,
)
from .workers import Pool, Task


@dataclass
class Runner:
    """Runs of a plan, by a pool of workers.

    launch: the command that starts a run, with its full path; empty where workers call the script.
    keeps: whether the model of a run that has just been finished stays for now.
    records: records of the finished runs that were looked at, by folder.
    errors: reasons of the runs that failed, by folder.
    """

    plan: Plan
    output: Path
    pool: Pool
    reporter: Reporter
    launch: Sequence[str]
    keeps: Callable[[Run], bool]
    records: dict[Path, Record] = field(default_factory=dict)
    errors: dict[Path, str] = field(default_factory=dict)

    def record_of(self, run: Run) -> Record | None:
        """Read the record of a run; None if it is not finished."""
        if run.folder not in self.records:
            record = read_record(run.folder)
            if record is None:
                return None
            self.records[run.folder] = record
        return self.records[run.folder]

    def task(self, run: Run, extra: Mapping[str, Any], folder_of: Callable[[Row], Path] | None) -> Task:
        """Describe a run as a task for a worker.

        Args:
            run: the run.
            extra: options over those of the run, by name.
            folder_of: gives the folder of the run of a row that this one uses; with None, options that name one are
                left out.
        """
        arguments = command_of(self.plan, run.row, run.seed, run.folder, folder_of, {**run.found, **extra})
        if not self.launch:
            return Task(run.folder, run.label, run.log, arguments=arguments, seed=run.seed)
        return Task(run.folder, run.label, run.log, command=[*self.launch, str(self.plan.script), *arguments])

    def do(self, title: str, wanted: Sequence[Run], used_by: Callable[[Run], Sequence[Run]]) -> None:
        """Do what is not finished of the wanted runs, and what they use; one that fails is in `errors` then."""
        of_key = {run.folder: run for run in in_order_of_use(wanted, used_by, self.record_of)}
        tasks = [self._task_after(run, used_by(run)) for run in of_key.values()]

        def before(task: Task) -> None:
            run = of_key[task.key]
            self.records.pop(run.folder, None)
            begin(run)
            self.reporter.started(task.label)

        def after(task: Task, error: str | None, seconds: float | None) -> str | None:
            run = of_key[task.key]
            error = self._fail(run, str(error)) if seconds is None else self._finish(run, error)
            self.reporter.ended(task.label, run.row.name, seconds, error)
            return error

        done_before = sum(run.folder not in of_key for run in wanted)
        self.reporter.phase(title, [run.row.name for run in of_key.values()], done_before)
        self.pool.run(tasks, before, after)

    def test(self, runs: Sequence[Run], used_by: Callable[[Run], Sequence[Run]]) -> None:
        """Let finished runs go on from where they are, to what their models say of the test data."""
        untested = {run.folder: run for run in runs if (record := self.record_of(run)) and not record.is_tested}
        tasks = [self._task_after(run, used_by(run), {"do_predict": True}) for run in untested.values()]

        def before(task: Task) -> None:
            untested[task.key].log.unlink(missing_ok=True)
            self.reporter.started(task.label)

        def after(task: Task, error: str | None, seconds: float | None) -> str | None:
            run = untested[task.key]
            error = self._finish_test(run, error)
            self.reporter.ended(task.label, run.row.name, seconds, error)
            return error

        self.reporter.phase("test", [run.row.name for run in untested.values()], len(runs) - len(untested))
        # What they use is finished: none of them waits for another.
        self.pool.run([replace(task, needs=()) for task in tasks], before, after)

    def _task_after(self, run: Run, used: Sequence[Run], extra: Mapping[str, Any] | None = None) -> Task:
        folders = {other.row.name: other.folder for other in used}
        return replace(self.task(run, extra or {}, lambda row: folders[row.name]), needs=list(folders.values()))

    def _finish(self, run: Run, error: str | None) -> str | None:
        """Store what a run gave that has ended; the error that counts."""
        move_log(run)
        if error is None:
            try:
                result, seconds = read_result(self.plan, run)
            except ValueError as problem:
                error = str(problem)
        if error is not None:
            remove_model(run.folder)
            return self._fail(run, error)
        record = Record(settings_of(self.plan, run), True, False, seconds, result)
        record.write(run.folder)
        self.records[run.folder] = record
        self.errors.pop(run.folder, None)
        if not self.keeps(run):
            self.remove_model(run)
        return None

    def _finish_test(self, run: Run, error: str | None) -> str | None:
        move_log(run, TEST_LOG)
        metrics = read_metrics(run.folder)
        if error is None:
            try:
                check_metric(self.plan, metrics, "predict")
            except ValueError as problem:
                error = str(problem)
        if error is not None:
            return self._fail(run, f"the test failed: {error}")
        record = self.records[run.folder]
        new = {name: value for name, value in of_any_machine(metrics).items() if name.startswith(TEST_METRIC)}
        result = {**record.result, "metrics": {**record.result["metrics"], **new}}
        self.records[run.folder] = replace(record, is_tested=True, result=result)
        self.records[run.folder].write(run.folder)
        return None

    def remove_model(self, run: Run) -> None:
        """Leave of a finished run what it gave, and its log."""
        record = self.record_of(run)
        if record is not None and record.has_model:
            self.records[run.folder] = replace(record, has_model=False)
            # Before anything goes, so that nobody takes what is left for a model.
            self.records[run.folder].write(run.folder)
            remove_model(run.folder)

    def _fail(self, run: Run, error: str) -> str:
        folders = {self.output: "OUTPUT_DIR", self.plan.folder: "{plan}"}
        self.errors[run.folder] = without_folders(error, folders)
        return self.errors[run.folder]
