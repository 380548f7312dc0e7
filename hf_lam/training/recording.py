"""The record of a run: what its model costs, what it started from, in which order it saw the data.

By these, runs are compared: two rows of a comparison are only as far apart as what they were given is the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..flops import cost
from ..modeling.host_attention_hf_lam import find_encoder
from ..modeling.layers_hf_lam import container_of
from ..modeling.saving_hf_lam import staging
from ..parameters import head_parameters, list_carriers, mechanism_parameters
from .arguments import DataArguments, ModelArguments, RunArguments
from .columns import AnyDataset
from .lengths import Lengths
from .predictions import PredictingTrainer, is_argument, is_input

logger = logging.get_logger(__name__)

RECORD_FILE = "run.json"
CHECK_FILE = "check.json"
BATCH_FILE = "batch.safetensors"

# Of an argument of a batch, so many bytes are hashed: enough to tell samples apart, and nothing beside a step.
_HASHED = 2**14
# How many samples the model is tried on.
_TRIED = 2

# What a model is not made by: where things are written, what is shown, and what is done after training.
_AFTER = ("do_predict", "do_eval", "test_", "max_predict_samples", "per_device_eval_", "eval_accumulation_", "push_")
_AROUND = (
    *("output_dir", "cache_dir", "token", "hub_", "log", "report_to", "disable_tqdm", "run_name", "project"),
    *("save_", "dataloader_num_", "dataloader_p", "dataloader_m", "preprocessing_num_workers", "use_cpu"),
    *("resume_from_checkpoint", "trackio_", "include_", "local_rank", "check_only"),
)


# --- the order of the data -------------------------------------------------------------------------------------------


class BatchOrder(TrainerCallback, ExportableState):
    """Hashes of all batches of a training, one for each argument of the model: what came, and in which order.

    Each hash is a chain: it hashes the one before with what came next. So it fits into a checkpoint, and a run that
    was resumed ends with the same hashes as one that was not.

    digests: hashes in hexadecimal, by the name of the argument.
    """

    def __init__(self, digests: Mapping[str, str] | None = None) -> None:
        self.digests: dict[str, str] = dict(digests or {})

    def add(self, batch: Mapping[str, Any]) -> None:
        """One batch, as the model gets it."""
        for name, value in batch.items():
            if isinstance(value, Tensor):
                digest = hashlib.sha256(self.digests.get(name, "").encode())
                digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
                digest.update(_bytes_of(_thin(value)))
                self.digests[name] = digest.hexdigest()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        callbacks: Any = state.stateful_callbacks
        saved = (callbacks or {}).get(type(self).__name__)
        if state.global_step and isinstance(saved, Mapping):
            self.digests = dict(saved["attributes"]["digests"])

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"digests": dict(self.digests)}}


def _thin(tensor: Tensor) -> Tensor:
    """The tensor, or of each of its samples so many elements, at even distances, that `_HASHED` bytes are left."""
    if tensor.ndim == 0 or tensor.numel() * tensor.element_size() <= _HASHED:
        return tensor
    samples = tensor.detach().reshape(len(tensor), -1)
    kept = max(1, _HASHED // (len(tensor) * tensor.element_size()))
    # An odd distance does not stay in one column of a picture, whose sides are even as a rule.
    return samples[:, :: -(-samples.shape[1] // kept) | 1]


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class RecordingTrainer(PredictingTrainer):
    """A `PredictingTrainer` that notes the order of the data, if it is asked to.

    order: order of the batches that the main process trained on.
    starts: result of `hash_starts` for the model before training.
    """

    order: BatchOrder | None = None
    starts: Mapping[str, str] = {}

    def record_order(self) -> None:
        self.order = BatchOrder()
        self.add_callback(self.order)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        if self.order is not None and self.is_world_process_zero():
            self.order.add(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def try_model(self) -> list[float]:
        """The loss of the first training samples, in training mode and without gradients; and that of the longest.

        Which is the longest is known of a table of tokens. A model may be made for shorter ones.
        """
        dataset: Any = self.train_dataset
        model: Any = self.model
        tried = [list(islice(iter(dataset), _TRIED))]
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            lengths = Lengths(dataset, "input_ids", self.args.length_column_name).lengths
            tried.append([dataset[lengths.index(max(lengths))]])
        with torch.no_grad():
            batches = (self._prepare_inputs(self.data_collator(samples)) for samples in tried)
            return [self.compute_loss(model.train(), batch).mean().item() for batch in batches]

    def count_flops(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, int | None]:
        """Count the FLOPs of one sample, as a mean over a batch; None where they cannot be counted."""
        nothing: dict[str, int | None] = {"flops": None, "attention_flops": None}
        if self._is_sharded:
            return nothing
        try:
            report = cost(model, {name: value.to(model.device) for name, value in inputs.items()})
        except Exception as error:  # whatever it is: a number in a table is no reason to lose a trained model
            logger.warning(f"The FLOPs of {type(model).__name__} cannot be counted: {error}")
            return nothing
        size = len(next(iter(inputs.values())))
        attention = report.forward_attention + sum(report.added.values())
        return {"flops": round(report.flops / size), "attention_flops": round(attention / size)}


# --- what it starts from ---------------------------------------------------------------------------------------------


def hash_starts(model: PreTrainedModel) -> dict[str, str]:
    """The weights before the first step: `head`, those outside of the encoder, and `host`, all but the mechanisms'."""
    try:
        encoder = find_encoder(model)
    except ValueError:  # there are several, on which mechanisms cannot be put
        encoder = model.base_model
    added = {id(tensor) for base in list_carriers(model) for tensor in _tensors_of(container_of(base))}
    head = {id(parameter) for parameter in head_parameters(model, [encoder])} - added
    named = [(name, tensor) for name, tensor in sorted(model.state_dict(keep_vars=True).items())]
    parts = {
        "head": [(name, tensor) for name, tensor in named if id(tensor) in head],
        "host": [(name, tensor) for name, tensor in named if id(tensor) not in added],
    }
    return {part: _hash(tensors) for part, tensors in parts.items()}


def _tensors_of(module: nn.Module) -> Iterable[Tensor]:
    return (*module.parameters(), *module.buffers())


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


# --- before training -------------------------------------------------------------------------------------------------


def check_run(trainer: RecordingTrainer, metrics: list[str]) -> None:
    """Try the model on two of the training samples, and write down that it can be trained.

    Args:
        trainer: before training.
        metrics: the names of those that an evaluation gives.

    Raises:
        ValueError: if the model or its loss cannot be computed of these samples.
    """
    try:
        losses = trainer.try_model()
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"the model does not run on the training samples: {error}") from error
    for loss, which in zip(losses, ("first training samples", "longest training sample"), strict=False):
        if not math.isfinite(loss):
            raise ValueError(f"the loss of the {which} is {loss}; look at values and labels.")
    if trainer.is_world_process_zero():
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        _write(Path(str(trainer.args.output_dir)), CHECK_FILE, {"metrics": metrics, **count_parameters(model)})


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count all parameters, those that train, and those of the mechanisms."""
    parameters = list(model.parameters())
    added = mechanism_parameters(model) if list_carriers(model) else []
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "mechanism_parameters": sum(parameter.numel() for parameter in added),
    }


# --- after training --------------------------------------------------------------------------------------------------


def write_record(
    trainer: RecordingTrainer,
    model: PreTrainedModel,
    samples: AnyDataset,
    facts: Mapping[str, Any],
) -> None:
    """Write `run.json` and `batch.safetensors` into the folder of a run, the first of them last of all.

    Args:
        trainer: trainer after training.
        model: model as it was saved.
        samples: samples for that model, of validation, or else of training.
        facts: facts of the run, besides what is counted here.
    """
    if not trainer.is_world_process_zero():
        return
    size = trainer.args.per_device_eval_batch_size
    batch = trainer.data_collator(list(islice(iter(samples), size)))
    # Samples that are evaluated may say where they come from, or what predictions are compared with.
    tensors = {name: x.contiguous() for name, x in batch.items() if isinstance(x, Tensor) and is_argument(name)}
    folder = Path(str(trainer.args.output_dir))
    with staging(folder, ".recording.") as partial:
        save_file(tensors, partial / BATCH_FILE)
        os.replace(partial / BATCH_FILE, folder / BATCH_FILE)
    content = {
        **count_parameters(model),
        **trainer.count_flops(model, {name: value for name, value in tensors.items() if is_input(name)}),
        "steps": trainer.state.global_step,
        "orders": {} if trainer.order is None else dict(sorted(trainer.order.digests.items())),
        **facts,
    }
    _write(folder, RECORD_FILE, content)


def _write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder, ".recording.") as partial:
        (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial / name, folder / name)


# --- when it is there already ----------------------------------------------------------------------------------------


def settings_of(model: ModelArguments, data: DataArguments, training: RunArguments) -> dict[str, Any]:
    """The options of a command that decide which model comes out of it, as JSON has them."""
    options = {**asdict(model), **asdict(data), **training.to_dict()}
    kept = {name: value for name, value in sorted(options.items()) if not name.startswith((*_AFTER, *_AROUND))}
    return json.loads(json.dumps(kept, default=str))


def recorded_settings(training: RunArguments) -> dict[str, Any] | None:
    """The settings of the finished run in the output folder; None unless this command predicts its test data."""
    path = Path(str(training.output_dir), RECORD_FILE)
    if not (training.do_train and training.do_predict and path.is_file()):
        return None
    return json.loads(path.read_text(encoding="utf-8"))["settings"]


def is_finished(model: ModelArguments, data: DataArguments, training: RunArguments) -> bool:
    """Whether the output folder has what this command would train, so that only its test data are left to predict.

    Raises:
        ValueError: if the folder is that of a run with other options, or its model is not there any more.
    """
    folder = Path(str(training.output_dir))
    its = recorded_settings(training) if training.record_run else None
    if its is None:
        return False
    ours = settings_of(model, data, training)
    for name in sorted(its.keys() & ours.keys()):
        if its[name] != ours[name]:
            raise ValueError(
                f"--output_dir {str(folder)!r} has a finished run with {name}={its[name]!r}, where this one has "
                f"{ours[name]!r}. Choose another folder, or give the options of that run to predict its test data."
            )
    if not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"--output_dir {str(folder)!r} has a finished run, and its model is not there any more. Choose another "
            "folder to train it again."
        )
    return True
