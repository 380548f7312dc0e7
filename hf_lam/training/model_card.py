"""The model card of a fine-tuning run: what the model is, what it was trained with, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult
from transformers import PreTrainedModel
from transformers.utils import logging

from ..hub.cards import METRIC_NAMES, draw_pictures, link, model_card, task_of
from ..hub.earlier_cards import CARD_FILE, CardContent, card_in, weights_of
from ..hub.folders import evaluated
from .arguments import DataArguments, ModelArguments, looks_local
from .predictions import is_input

if TYPE_CHECKING:
    from .finetuning import Task
    from .goals import Goal
    from .trainer import HfLamTrainer

logger = logging.get_logger(__name__)

# Of every kind of task: what a model of transformers is loaded with.
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "video-classification": "AutoModelForVideoClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "multimodal-classification": "AutoModelForSequenceClassification",
    "multimodal-token-classification": "AutoModelForTokenClassification",
    "moment-retrieval": "AutoModel",
    "multimodal-captioning": "AutoModelForSeq2SeqLM",
    "image-to-text": "AutoModelForImageTextToText",
}
# Of those, what the Hub has a name for is the task of the head.
_MULTIMODAL = (
    *("multimodal-classification", "multimodal-token-classification", "multimodal-captioning"),
    "moment-retrieval",
)


def write_model_card(
    folder: str | Path, trainer: HfLamTrainer, task: Task, task_name: str, results: Mapping[str, float]
) -> None:
    """Write `README.md` of a trained model. It names Hub ids, and only the last names of local files and folders.

    Args:
        folder: folder of the saved model.
        trainer: trainer after training; its model is the one that was saved.
        task: task from `open_task`.
        task_name: one of `AUTO_CLASSES`.
        results: results, named as in `all_results.json`; there may be none yet.
    """
    arguments, data, model = task.arguments, task.data, trainer.model
    assert isinstance(model, PreTrainedModel)
    sources = _sources(arguments)
    bases = [] if arguments.from_scratch else [name for name in sources if not _is_local(name)]
    content = CardContent(
        bases=bases,
        license=card_in(sources[0]).license if len(sources) == 1 and not arguments.from_scratch else {},
        datasets=[data.dataset_name] if data.dataset_name and not _is_local(data.dataset_name) else [],
        weights=weights_of(Path(folder)),
        results=_results(task, task_of(model) or task_name, results),
        origin=_origin(arguments),
        data=_about_data(task, results),
        training=_hyperparameters(trainer, task),
        pictures=_pictures(trainer, Path(folder), task.goal),
    )
    card = model_card(
        model,
        content,
        name=_name(trainer),
        repository=_repository(trainer),
        processor=trainer.processing_class,
        auto_class=AUTO_CLASSES[task_name],
        task=None if task_name in _MULTIMODAL else task_name,
        packages=["datasets", *(["peft"] if arguments.lora_rank else [])],
    )
    card.save(Path(folder, CARD_FILE))


def _name(trainer: HfLamTrainer) -> str:
    return str(_repository(trainer) or Path(str(trainer.args.output_dir)).resolve().name).split("/")[-1]


def _repository(trainer: HfLamTrainer) -> str | None:
    return getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id


def _is_local(name: str) -> bool:
    return looks_local(name) or Path(name).exists()


def _sources(arguments: ModelArguments) -> list[str]:
    """The checkpoints that the model was made of, as they were given."""
    encoders = getattr(arguments, "encoders", None)
    if encoders is None or arguments.model_name_or_path:
        return list(filter(None, [arguments.model_name_or_path]))
    return list(filter(None, [*encoders().values(), getattr(arguments, "decoder_model", None)]))


def _link(name: str) -> str:
    return f"a local folder (`{Path(name).resolve().name}`)" if _is_local(name) else link(name)


def _pictures(trainer: HfLamTrainer, folder: Path, goal: Goal) -> dict[str, str]:
    model: Any = trainer.model
    try:
        sample = _sample(trainer)
        inputs = None if sample is None else _inputs_of(trainer, sample)
        predicted = {} if sample is None or inputs is None else goal.draw(model, sample, inputs, folder)
        return {**predicted, **draw_pictures(model, inputs, folder, trainer.processing_class)}
    except Exception as error:  # whatever it is: a picture is no reason to end a run in a traceback
        logger.warning(f"The card has no pictures, which could not be drawn: {error}")
        return {}


def _sample(trainer: HfLamTrainer) -> dict[str, Any] | None:
    """One sample that the model has seen in evaluation or training; None where none can be had."""
    dataset: Any = trainer.eval_dataset or trainer.train_dataset
    if dataset is None or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None  # a forward pass of one process would wait for the others
    return next(iter(dataset))


def _inputs_of(trainer: HfLamTrainer, sample: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the model for a sample, on its device."""
    model: Any = trainer.model
    return {name: x.to(model.device) for name, x in trainer.data_collator([sample]).items() if is_input(name)}


def _results(task: Task, task_name: str, results: Mapping[str, float]) -> list[EvalResult]:
    data, is_held_out = task.data, task.is_held_out
    return [
        EvalResult(
            task_type=task_name,
            dataset_type=_data_name(data, str(split)),
            dataset_name=_data_name(data, str(split)),
            dataset_config=data.dataset_config_name,
            dataset_split=None if split == "validation" and is_held_out else getattr(data, f"{split}_split_name"),
            dataset_revision=data.dataset_revision,
            metric_type=metric,
            metric_name=METRIC_NAMES.get(metric, metric),
            metric_value=value,
        )
        for metric, split, value in evaluated(results)
    ]


def _data_name(data: DataArguments, split: str = "train") -> str:
    """The Hub id of the data, or the last name of the file or folder that the split comes from."""
    if data.dataset_name is not None and not _is_local(data.dataset_name):
        return data.dataset_name
    given = data.files() or data.folders()
    own = given.get(split, next(iter(given.values()), None))
    return Path(str(data.dataset_name or data.data_dir or own)).resolve().name


# --- Text ------------------------------------------------------------------------------------------------------------


def _origin(arguments: ModelArguments) -> str:
    sources = " and ".join(_link(name) for name in _sources(arguments))
    if not sources:
        return "trained from random weights on vectors that were computed before"
    origin = (
        f"trained from random weights, with the configuration of {sources}"
        if arguments.from_scratch
        else f"fine-tuned from {sources}"
    )
    changes = [f"`{name}={json.dumps(value)}`" for name, value in arguments.overrides().items()]
    return origin + (f", changed to {', '.join(changes)}" if changes else "")


def _about_data(task: Task, results: Mapping[str, float]) -> str:
    data = task.data
    name = _data_name(data)
    if data.dataset_name is not None and not _is_local(data.dataset_name):
        text = f"[{name}](https://hf.co/datasets/{name})"
        text += f", configuration `{data.dataset_config_name}`" if data.dataset_config_name else ""
        text += f", revision `{data.dataset_revision}`" if data.dataset_revision else ""
    else:
        files = [f"`{Path(path).resolve().name}`" for path in data.files().values()]
        folders = [f"`{Path(path).resolve().name}`" for path in data.folders().values()]
        text = f"A local folder, `{name}`"
        if files or folders:
            text = f"Local {'files' if files else 'folders'}: {', '.join(files or folders)}"
    sizes = {
        "training": results.get("train_samples"),
        "evaluation": results.get("eval_samples"),
        "prediction": results.get("predict_samples"),
    }
    said = [f"{int(size):,} samples for {purpose}" for purpose, size in sizes.items() if size is not None]
    if task.is_held_out:
        said.append("the samples for evaluation were held out of the training data")
    return f"{text}. {'; '.join(said)}{'. ' * bool(said)}{task.goal.describe()}"


def _hyperparameters(trainer: HfLamTrainer, task: Task) -> str:
    arguments, training, state = task.arguments, task.training, trainer.state
    # Not that of the arguments: --auto_find_batch_size may have halved it.
    size = state.train_batch_size or training.train_batch_size
    teacher = arguments.teacher_model
    model: Any = trainer.model
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    values = {
        "Learning rate": training.learning_rate,
        "Learning rate of the mechanisms": training.mechanism_learning_rate,
        "Schedule": f"{getattr(training.lr_scheduler_type, 'value', training.lr_scheduler_type)}, "
        f"{training.get_warmup_steps(state.max_steps)} steps of warmup",
        "Optimizer": f"{getattr(training.optim, 'value', training.optim)}, weight decay {training.weight_decay:g}",
        "Samples per step": f"{size * training.gradient_accumulation_steps * training.world_size} "
        f"({training.world_size} × {size} × "
        f"{training.gradient_accumulation_steps}: processes, batch, accumulation)",
        "Steps": f"{state.global_step:,}" + (f" ({state.epoch:g} epochs)" if state.epoch else ""),
        "Precision": "bf16" if training.bf16 else "fp16" if training.fp16 else None,
        "Seed": training.seed,
        "Frozen": f"all but {trained:,} of {total:,} parameters" if arguments.freeze_host else None,
        "LoRA": f"rank {arguments.lora_rank}, merged into the weights" if arguments.lora_rank else None,
        "Distillation": f"from {_link(teacher)}, weight {training.distillation_weight}, "
        f"temperature {training.distillation_temperature}"
        + (f", hidden states with weight {hidden:g}" if (hidden := training.hidden_distillation_weight) else "")
        if teacher
        else None,
        "Control": f"feed-forward layers wider by as many parameters as {', '.join(arguments.mechanism)} would add"
        if arguments.control
        else None,
        "Views": f"calibrated on {_link(arguments.calibrate_views_on)}, budget {arguments.views_budget:g}"
        if arguments.calibrate_views_on
        else None,
        "Annealed until": f"{arguments.annealing_end:g} of the steps" if arguments.annealing_end else None,
        "Hardened": "after training" if arguments.harden else None,
    }
    rows = [f"| {name} | {value} |" for name, value in values.items() if value is not None]
    return "\n".join(["| option | value |", "| --- | --- |", *rows])
