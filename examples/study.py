"""What the studies in this folder share: training, results that survive an interruption, means with their spread."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import hf_lam


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
