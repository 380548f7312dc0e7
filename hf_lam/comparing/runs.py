"""Runs on disk: what a finished one has left, by what settings, and what of it stays."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .output_folder import read_json, write_json
from .plan import Plan, Row

# A run is finished when this file is there.
RESULT = "result.json"
LOG, TEST_LOG = "log.txt", "test-log.txt"
# What metrics of the test data begin with.
TEST_METRIC = "predict_"
# The files that are kept of a run when its model is not.
_KEPT = re.compile(r"(\w+_)?results?\.json|run\.json|trainer_state\.json|.*\.(csv|jsonl)|(test-)?log\.txt")
# Measured by a clock, or of the memory of this machine.
_OF_THE_MACHINE = re.compile(r"_(runtime|per_second|preparation_time|compilation_time|mem_\w+)$")
_MOST_DIFFERENCES = 5


@dataclass(frozen=True)
class Run:
    """One run of the script.

    row: row of the plan.
    seed: its seed.
    folder: its `--output_dir`.
    label: name of the run for messages.
    found: options over those of the row.
    """

    row: Row
    seed: int
    folder: Path
    label: str
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """The place of its log while it runs, outside of a folder that the script may want to be empty."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Record:
    """The stored record of a finished run.

    settings: settings that decided its result.
    has_model: whether the model that it saved is still there.
    is_tested: whether the metrics have those of the test data.
    seconds: duration of its training in seconds.
    result: its entry in `results.json`, with what it says about its row under `row`.
    times: measured times of its model, as in `times.json`, and the machine; None before they are measured.
    """

    settings: Mapping[str, Any]
    has_model: bool
    is_tested: bool
    seconds: float | None
    result: Mapping[str, Any]
    times: Mapping[str, Any] | None = None

    def write(self, folder: Path) -> None:
        write_json(folder / RESULT, {**self.__dict__})


def read_record(folder: Path) -> Record | None:
    """Read the record of a run; None if it is not finished."""
    values = read_json(folder / RESULT)
    return Record(**values) if set(values) == set(Record.__dataclass_fields__) else None


# --- what was run ----------------------------------------------------------------------------------------------------


def settings_of(plan: Plan, run: Run) -> dict[str, Any]:
    """Everything that decides the result of a run, as JSON has it."""
    rows = {row.name: row for row in plan.rows}
    used: dict[str, Any] = {}

    def use(row: Row) -> None:
        for name in row.uses:
            if name not in used:
                used[name] = rows[name].options
                use(rows[name])

    use(run.row)
    settings = {
        **plan.settings(),
        "seed": run.seed,
        "options": run.row.options,
        "found": run.found,
        "options of rows that it uses": used,
        "versions": versions(),
    }
    return json.loads(json.dumps(settings))


def versions() -> dict[str, str]:
    """The versions of packages that decide a result besides its settings."""
    from ..modeling.version_hf_lam import __version__

    return {"hf_lam": __version__, "transformers": version("transformers"), "torch": version("torch")}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The differences between the settings of a stored run and those that are wanted: `learning_rate 0.1, now 0.3`."""
    found = [
        f"{name} {_shown(before)}, now {_shown(now)}"
        for key in sorted(set(stored) | set(wanted))
        for name, before, now in _differing(key, stored.get(key), wanted.get(key))
    ]
    more = f" and {len(found) - _MOST_DIFFERENCES} more" if len(found) > _MOST_DIFFERENCES else ""
    return "; ".join(found[:_MOST_DIFFERENCES]) + more


def _differing(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(set(before) | set(now)):
            inner = key if name in ("options", "versions") else f"{name}.{key}"
            yield from _differing(inner, before.get(key), now.get(key))
    elif before != now:
        yield name, before, now


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


# --- what came out ---------------------------------------------------------------------------------------------------


def read_result(plan: Plan, run: Run) -> tuple[dict[str, Any], float | None]:
    """Read the result of a run that has ended without an error, and the seconds of its training, if it says so.

    Raises:
        ValueError: if it wrote no metrics, or not the metric of the plan.
    """
    metrics = read_metrics(run.folder)
    if not metrics:
        raise ValueError("the script ended without writing all_results.json to its --output_dir")
    check_metric(plan, metrics, "eval")
    recorded = read_json(run.folder / "run.json")
    result = {
        "metrics": of_any_machine(metrics),
        "steps": recorded.get("steps"),
        "orders": recorded.get("orders") or {},
        "starts": recorded.get("starts") or {},
        "curve": _curve_in(run.folder),
        "row": {
            name: recorded.get(name)
            for name in ("parameters", "trainable_parameters", "mechanism_parameters", "flops", "attention_flops")
        },
    }
    return result, metrics.get("train_runtime")


def read_metrics(folder: Path) -> dict[str, Any]:
    """All numbers in the metrics that a run has written; those that are not finite are None."""
    return {
        name: _finite(value) for name, value in read_json(folder / "all_results.json").items() if _is_number(value)
    }


def of_any_machine(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without what a clock has measured."""
    return {name: value for name, value in metrics.items() if not _OF_THE_MACHINE.search(name)}


def check_metric(plan: Plan, metrics: Mapping[str, Any], prefix: str) -> None:
    """Raises a `ValueError` if the metric of the plan is not among those of a run."""
    name = f"{prefix}_{plan.metric}"
    if name not in metrics:
        known = sorted(key for key in of_any_machine(metrics) if key.startswith(f"{prefix}_"))
        raise ValueError(f"the script gave no {name}, only {', '.join(known) or 'other numbers'}")
    if metrics[name] is None:
        raise ValueError(f"its {name} is not a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _curve_in(folder: Path) -> list[dict[str, Any]]:
    """The losses and the metrics of the validation data as training went on, by step."""
    points: dict[int, dict[str, Any]] = {}
    history = read_json(folder / "trainer_state.json").get("log_history")
    for entry in history if isinstance(history, list) else []:
        kept = {
            name: _finite(value)
            for name, value in entry.items()
            if _is_number(value) and (name == "loss" or name.startswith("eval_")) and not _OF_THE_MACHINE.search(name)
        }
        if kept and _is_number(entry.get("step")):
            point = points.setdefault(entry["step"], {"step": entry["step"], "epoch": entry.get("epoch")})
            point.update(kept)
    return [points[step] for step in sorted(points)]


# --- what stays ------------------------------------------------------------------------------------------------------


def begin(run: Run) -> None:
    """Remove what an earlier start has left of a run that was not finished."""
    shutil.rmtree(run.folder, ignore_errors=True)
    run.log.unlink(missing_ok=True)
    run.folder.parent.mkdir(parents=True, exist_ok=True)


def move_log(run: Run, name: str = LOG) -> None:
    """Put the log of a run that has ended beside what it wrote."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.log.is_file():
        run.log.replace(run.folder / name)


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log; nothing if there is none."""
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:] if log.is_file() else []


def remove_model(folder: Path) -> None:
    """Leave of what a run wrote what it gave, and its log."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not _KEPT.fullmatch(path.name):
            path.unlink(missing_ok=True)


def without_folders(message: str, folders: Mapping[Path, str]) -> str:
    """A message with folders of this machine named by what they are, so that it is the same on others."""
    for folder in sorted(folders, key=lambda folder: -len(str(folder))):
        if folder != Path(folder.anchor):
            message = message.replace(str(folder), folders[folder])
    return message


def in_order_of_use(
    wanted: Sequence[Run], used_by: Callable[[Run], Sequence[Run]], record_of: Callable[[Run], Record | None]
) -> list[Run]:
    """The runs that are to be done: those that are not finished, each after those that it uses.

    What a run uses, and is finished, is done again if its model is gone.
    """
    found: dict[Path, Run] = {}

    def place(run: Run) -> None:
        if run.folder not in found:
            for used in used_by(run):
                record = record_of(used)
                if record is None or not record.has_model:
                    place(used)
            found[run.folder] = run

    for run in wanted:
        if record_of(run) is None:
            place(run)
    return list(found.values())
