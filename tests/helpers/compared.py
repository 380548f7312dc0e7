"""Results as `hf-lam compare` writes them, made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STEPS = (10, 20, 30, 40)


def make_run(seed: int, value: float | None, metric: str = "accuracy", error: str | None = None) -> dict[str, Any]:
    """A run whose metric is `value`, on the test data a hundredth less; its curve rises to it."""
    if error is not None or value is None:
        return {"seed": seed, "error": error, "metrics": {}, "steps": None, "curve": []}
    curve = [
        {
            "step": step,
            "epoch": step / 40,
            f"eval_{metric}": value - 0.2 * (1 - step / 40) ** 2,
            "loss": 20 / (5 + step),
        }
        for step in STEPS
    ]
    metrics = {f"eval_{metric}": value, f"predict_{metric}": value - 0.01, "train_loss": 0.1}
    return {"seed": seed, "error": None, "metrics": metrics, "steps": 40, "curve": curve}


def make_row(
    name: str,
    values: Mapping[int, float | None],
    *,
    point: Mapping[str, Any] | None = None,
    group: str | None = None,
    flops: float = 2e9,
    parameters: int = 1000,
    added: int = 0,
    metric: str = "accuracy",
    errors: Mapping[int, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    runs = [make_run(seed, value, metric, (errors or {}).get(seed)) for seed, value in values.items()]
    return {
        "name": name,
        "group": group or name,
        "point": dict(point or {}),
        "options": {},
        "found": {},
        "parameters": parameters,
        "trainable_parameters": parameters,
        "mechanism_parameters": added,
        "flops": flops,
        "attention_flops": flops / 10,
        "runs": runs,
        **more,
    }


def make_results(rows: Sequence[Mapping[str, Any]], **plan: Any) -> dict[str, Any]:
    said = {
        "script": "run.py",
        "title": "A study",
        "metric": "accuracy",
        "greater_is_better": True,
        "chance": 0.5,
        "baseline": rows[0]["group"],
        "seeds": [run["seed"] for run in rows[0]["runs"]],
        "tested": False,
        "tested_runs": 0,
        **plan,
    }
    return {"format": 1, "plan": said, "versions": {}, "rows": list(rows), "search": []}


def make_times(rows: Sequence[Mapping[str, Any]], batch: int = 32) -> dict[str, Any]:
    """Milliseconds in proportion to the FLOPs."""
    measured = {}
    for row in rows:
        median = row["flops"] / 1e8
        spread = {"median": median, "low": 0.95 * median, "high": 1.1 * median}
        step = {end: 3 * value for end, value in spread.items()}
        seconds = {str(run["seed"]): 60.0 + run["seed"] for run in row["runs"] if run["error"] is None}
        measured[row["name"]] = {"inference_ms": spread, "step_ms": step, "batch": batch, "train_seconds": seconds}
    return {"processor": "a processor", "threads": 2, "rows": measured}


def draw_values(mean: float, spread: float, seeds: int, draw: int = 0, common: float = 0.0) -> dict[int, float]:
    """Values by seed; `common` is the spread of what a seed does to all rows."""
    shared = np.random.default_rng(0).normal(0, common, seeds)
    own = np.random.default_rng(1 + draw).normal(mean, spread, seeds)
    return {seed: float(value) for seed, value in enumerate(shared + own)}
