"""The contents of a folder that go to the Hub: the model, its processor, and the results of its run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult
from transformers import AutoConfig

from . import processors
from .buildable import model_class_of
from .cards import METRIC_NAMES
from .earlier_cards import weight_files
from .names import heads_of
from .processor_checks import check_processor_files, try_processor
from .processors import UnavailableError

# What `Trainer` writes of a run, what the names in it begin with, and the split that is meant.
_RESULT_FILES = ("eval_results.json", "predict_results.json")
_SPLITS = {"eval": "validation", "predict": "test", "test": "test"}
# Metrics that are no property of a model.
_UNMEASURED = (
    "runtime",
    "samples",
    "samples_per_second",
    "steps_per_second",
    "model_preparation_time",
    "epoch",
    "step",
    "total_flos",
)


class Measured(NamedTuple):
    """One number. split: None if its name does not say."""

    metric: str
    split: str | None
    value: float


def load_model(folder: Path) -> Any:
    """The `HfLam…` model in a folder, by the class it was saved from; the code in the folder is not run.

    Raises:
        ValueError: if there is another model, or none.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{str(folder / 'config.json')!r} cannot be read as a configuration: {error}") from error
    names = heads_of(type(config))
    name = next(iter(config.architectures or ()), "None")
    if name not in names:
        raise ValueError(
            f"{str(folder)!r} holds a model of class {name}, not one of {', '.join(names) or 'the HfLam… classes'}. "
            "Convert it with hf_lam.convert first; one of transformers is uploaded by its own push_to_hub, or by hf "
            "upload."
        )
    return model_class_of(name).from_pretrained(folder)


def load_processor(folder: Path, model: Any) -> Any:
    """The tokenizer, image processor, feature extractor or processor in a folder, tried once.

    Returns:
        None if there is none, or if its class needs a package that is not installed.

    Raises:
        ValueError: if its files are damaged, if it fails, or if it does not fit the model.
    """
    check_processor_files(folder, model.config)
    try:
        processor = processors.load_processor(str(folder), model)
    except UnavailableError:
        return None
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(
            f"the tokenizer or processor in {str(folder)!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if processor is not None:
        try_processor(processor, model.config, folder)
    return processor


def copy_results(source: Path, folder: Path, is_described: bool) -> tuple[list[Measured], list[str]]:
    """Copy the result files of a run of `Trainer`, and read its metrics and what the user should know of the rest.

    A checkpoint has no such files; the metrics that its run measured at the same step are in the trainer's state.

    Args:
        source: folder of the run.
        folder: folder to copy the files to.
        is_described: whether the card in `source` is known to be that of its weights. If not, files that are older
            than the weights may be of another model, and are left out.
    """
    found: dict[str, Any] = {}
    notes = []
    saved = max((path.stat().st_mtime_ns for path in weight_files(source) if not is_described), default=0)
    for name in _RESULT_FILES:
        path = source / name
        if path.is_file() and path.stat().st_mtime_ns < saved:
            notes.append(f"{name} is older than the weights, so its numbers are not on the card.")
        elif path.is_file():
            found |= _json_in(path)
            shutil.copyfile(path, folder / name)
    state = source / "trainer_state.json"
    if not found and source.name.startswith("checkpoint-") and state.is_file():
        content = _json_in(state)
        found = logged_at(content.get("log_history") or (), content.get("global_step") or 0)
    return evaluated(found), notes


def _json_in(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} holds no JSON object ({error}); remove it, or write it again.") from error


def logged_at(log_history: Iterable[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """All that `Trainer` has logged at a step."""
    return {name: value for entry in log_history if entry.get("step") == step for name, value in entry.items()}


def evaluated(metrics: Mapping[str, Any]) -> list[Measured]:
    """The metrics of a run that were measured on validation or test data, and are finite numbers."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, Real) and math.isfinite(value)}
    return measured({name: value for name, value in numbers.items() if name.partition("_")[0] in _SPLITS})


def measured(metrics: Mapping[str, Any]) -> list[Measured]:
    """The metrics of a run that are a property of the model; their names are such as `eval_accuracy`."""
    rows = []
    for name, value in metrics.items():
        prefix, _, rest = name.partition("_")
        split = _SPLITS.get(prefix)
        metric = name if split is None else rest
        is_measured = not any(metric == end or metric.endswith(f"_{end}") for end in _UNMEASURED)
        if metric and is_measured and prefix != "train":
            rows.append(Measured(metric, split, float(value)))
    return rows


def as_results(found: Iterable[Measured], dataset: str | None, task: str | None) -> list[EvalResult]:
    """Convert measured numbers to the Hub's form.

    Args:
        found: the numbers.
        dataset: data set that they were measured on, an id on the Hub or a name.
        task: the Hub's name of the task.
    """
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=dataset or "unknown",
            dataset_name=dataset or "unknown",
            dataset_split=split,
            metric_type=metric,
            metric_name=METRIC_NAMES.get(metric, metric),
            metric_value=value,
        )
        for metric, split, value in found
    ]
