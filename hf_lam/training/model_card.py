"""The model card of a fine-tuning run: what the model is, what it was trained with, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from .. import __version__
from ..modeling.configuration_hf_lam import MECHANISM_CONFIGS, TRAVELLING_FILES
from .arguments import DataArguments, ModelArguments, looks_local

if TYPE_CHECKING:
    from .finetuning import Task
    from .trainer import HfLamTrainer

# Of every kind of task: what its models are loaded with. The names are those of the Hub, except for the last.
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "video-classification": "AutoModelForVideoClassification",
    "multimodal-classification": "AutoModelForSequenceClassification",
}
PAPERS = {
    "lam": ("Learnable attention mask", "Barrios & Jin, *Multi-layer Learnable Attention Mask for Multimodal Tasks*"),
    "locomt": ("Attention views", "Park & Choi, *Multimodal Transformer With a Low-Computational-Cost Guarantee*"),
    "stt": ("Synthesised attention", "Zhu et al., *Synthesizer Based Efficient Self-Attention for Vision Tasks*"),
}
ARXIV = {"lam": "2406.02761", "locomt": "2402.15096", "stt": "2201.01410"}

# Metrics as the fine-tuning scripts call them, and for readers.
METRIC_NAMES = {"accuracy": "Accuracy", "f1": "F1", "map": "Mean average precision", "loss": "Loss"}
# What the names of results begin with, and the split they are of.
_SPLITS = {"eval": "validation", "predict": "test"}
# What is no property of the model.
_UNMEASURED = ("runtime", "samples", "samples_per_second", "steps_per_second", "model_preparation_time")
# An option of a mechanism that is longer, such as a table of views, is left to config.json.
_LONGEST_OPTION = 80


def write_model_card(
    folder: str | Path, trainer: HfLamTrainer, task: Task, task_name: str, results: Mapping[str, float]
) -> None:
    """Write `README.md` of a trained model. It names Hub ids, and of local files and folders their last names alone.

    Args:
        folder: of the saved model.
        trainer: after training; its model is the one that was saved.
        task: what `open_task` gave.
        task_name: one of `AUTO_CLASSES`.
        results: what was measured, named as in `all_results.json`; none of it may be there yet.
    """
    metadata = _metadata(trainer, task, task_name, results)
    sections = {
        "Model": _about(trainer.model, task.arguments),
        "Data": _about_data(task, results),
        "Results": _results_table(task, results),
        "Training": _hyperparameters(trainer, task),
        "Use": _usage(trainer, task_name),
        "Versions": _versions(task.arguments),
        "Citation": _citation(_mechanisms(trainer.model)),
    }
    text = "\n\n".join(f"## {title}\n\n{section}" for title, section in sections.items() if section)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {_name(trainer)}\n\n{text}\n")
    card.save(Path(folder, "README.md"))


def _name(trainer: HfLamTrainer) -> str:
    return str(_repository(trainer) or Path(str(trainer.args.output_dir)).resolve().name).split("/")[-1]


def _repository(trainer: HfLamTrainer) -> str | None:
    return getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id


def _mechanisms(model: Any) -> dict[str, dict[str, Any]]:
    """The options of every mechanism that the model has, by its name."""
    block = getattr(model.config, "hf_lam", None) or {}
    return {name: block[name] for name in MECHANISM_CONFIGS if name in block}


def _is_local(name: str) -> bool:
    return looks_local(name) or Path(name).exists()


def _sources(arguments: ModelArguments) -> list[str]:
    """The checkpoints that the model was made of, as they were given."""
    encoders = getattr(arguments, "encoders", None)
    names = [arguments.model_name_or_path] if encoders is None or arguments.model_name_or_path else encoders().values()
    return list(filter(None, names))


def _link(name: str) -> str:
    return f"a local folder (`{Path(name).resolve().name}`)" if _is_local(name) else f"[{name}](https://hf.co/{name})"


# --- Metadata --------------------------------------------------------------------------------------------------------


def _metadata(trainer: HfLamTrainer, task: Task, task_name: str, results: Mapping[str, float]) -> ModelCardData:
    arguments, data, is_held_out = task.arguments, task.data, _is_held_out(task)
    bases = [] if arguments.from_scratch else [name for name in _sources(arguments) if not _is_local(name)]
    measured = [
        EvalResult(
            task_type=task_name,
            dataset_type=_data_name(data, split),
            dataset_name=_data_name(data, split),
            dataset_config=data.dataset_config_name,
            dataset_split=None if split == "validation" and is_held_out else getattr(data, f"{split}_split_name"),
            dataset_revision=data.dataset_revision,
            metric_type=metric,
            metric_name=METRIC_NAMES.get(metric, metric),
            metric_value=value,
        )
        for split, metrics in _by_split(results).items()
        for metric, value in metrics.items()
        if metric != "loss"
    ]
    options: dict[str, Any] = {
        "base_model": bases[0] if len(bases) == 1 else bases or None,
        "datasets": [data.dataset_name] if data.dataset_name and not _is_local(data.dataset_name) else None,
        "metrics": list(dict.fromkeys(result.metric_type for result in measured)) or None,
        # What the Hub knows.
        "pipeline_tag": None if task_name == "multimodal-classification" else task_name,
        "eval_results": measured or None,
    }
    tags = ["hf_lam", *_mechanisms(trainer.model)]
    return ModelCardData(library_name="transformers", model_name=_name(trainer), tags=tags, **options)


def _data_name(data: DataArguments, split: str = "train") -> str:
    """The Hub id of the data, or the last name of the file or folder that the split comes from."""
    if data.dataset_name is not None and not _is_local(data.dataset_name):
        return data.dataset_name
    files = [getattr(data, f"{name}_file") for name in (split, "train", "validation", "test")]
    return Path(str(data.dataset_name or data.data_dir or next(filter(None, files)))).resolve().name


def _is_held_out(task: Task) -> bool:
    """Whether the samples for evaluation are a part of the training data, which had no split of their own."""
    split = getattr(task.splits.get("validation"), "split", None)
    return str(split) == task.data.train_split_name != task.data.validation_split_name


def _by_split(results: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of `validation` and `test`, as far as they were measured."""
    found: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        prefix, _, metric = key.partition("_")
        if prefix in _SPLITS and metric not in _UNMEASURED:
            found.setdefault(_SPLITS[prefix], {})[metric] = value
    return found


# --- Text ------------------------------------------------------------------------------------------------------------


def _about(model: Any, arguments: ModelArguments) -> str:
    sources = " and ".join(_link(name) for name in _sources(arguments))
    origin = (
        f"trained from random weights, with the configuration of {sources}"
        if arguments.from_scratch
        else f"fine-tuned from {sources}"
    )
    changes = [f"`{name}={json.dumps(value)}`" for name, value in arguments.overrides().items()]
    origin += f", changed to {', '.join(changes)}" if changes else ""
    text = f"`{type(model).__name__}`, {origin}."
    mechanisms = _mechanisms(model)
    if not mechanisms:
        return f"{text} Its attention is that of transformers."
    lines = []
    for name, options in mechanisms.items():
        # Not shown are those that are off or left to the host.
        shown = {key: json.dumps(value) for key, value in options.items() if value not in (None, False)}
        said = ", ".join(
            f"`{key}={value}`" if len(value) <= _LONGEST_OPTION else f"`{key}` in `config.json`"
            for key, value in shown.items()
        )
        lines.append(f"- {PAPERS[name][0]} (`{name}`, {_arxiv(name)}){': ' * bool(said)}{said}")
    return f"{text} Its attention has, from `hf_lam`:\n\n" + "\n".join(lines)


def _about_data(task: Task, results: Mapping[str, float]) -> str:
    data = task.data
    name = _data_name(data)
    if data.dataset_name is not None and not _is_local(data.dataset_name):
        text = f"[{name}](https://hf.co/datasets/{name})"
        text += f", configuration `{data.dataset_config_name}`" if data.dataset_config_name else ""
        text += f", revision `{data.dataset_revision}`" if data.dataset_revision else ""
    else:
        files = [data.train_file, data.validation_file, data.test_file]
        kept = [f"`{Path(file).name}`" for file in files if file is not None]
        text = f"Local files: {', '.join(kept)}" if kept else f"A local folder, `{name}`"
    sizes = {
        "training": results.get("train_samples"),
        "evaluation": results.get("eval_samples"),
        "prediction": results.get("predict_samples"),
    }
    said = [f"{int(size):,} samples for {purpose}" for purpose, size in sizes.items() if size is not None]
    if _is_held_out(task):
        said.append("those for evaluation were held out of the training data")
    classes = task.labels.names
    shown = ", ".join(f"`{name}`" for name in classes[:10]) + (", …" if len(classes) > 10 else "")
    kind = "any number to a sample" if task.labels.is_multi_label else "one to a sample"
    return f"{text}. {'; '.join(said)}{'. ' * bool(said)}{len(classes)} classes, {kind}: {shown}."


def _results_table(task: Task, results: Mapping[str, float]) -> str:
    found = _by_split(results)
    if not found:
        return ""
    rows = [
        f"| {METRIC_NAMES.get(metric, metric)} | {split} | {value:.4f} |"
        for split, metrics in found.items()
        for metric, value in metrics.items()
    ]
    return "\n".join(["| metric | split | value |", "| --- | --- | ---: |", *rows])


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
        "Samples a step": f"{size * training.gradient_accumulation_steps * training.world_size} "
        f"({training.world_size} × {size} × "
        f"{training.gradient_accumulation_steps}: processes, batch, accumulation)",
        "Steps": f"{state.global_step:,}" + (f" ({state.epoch:g} epochs)" if state.epoch else ""),
        "Precision": "bf16" if training.bf16 else "fp16" if training.fp16 else None,
        "Seed": training.seed,
        "Frozen": f"all but {trained:,} of {total:,} parameters" if arguments.freeze_host else None,
        "LoRA": f"rank {arguments.lora_rank}, merged into the weights" if arguments.lora_rank else None,
        "Distillation": f"from {_link(teacher)}, weight {training.distillation_weight}, "
        f"temperature {training.distillation_temperature}"
        if teacher
        else None,
        "Annealed until": f"{arguments.annealing_end:g} of the steps" if arguments.annealing_end else None,
        "Hardened": "after training" if arguments.harden else None,
    }
    rows = [f"| {name} | {value} |" for name, value in values.items() if value is not None]
    return "\n".join(["| option | value |", "| --- | --- |", *rows])


def _usage(trainer: HfLamTrainer, task_name: str) -> str:
    model: Any = trainer.model
    auto_class, processor = AUTO_CLASSES[task_name], _processor_class(trainer)
    has_code = hasattr(model.config, "hf_lam")
    option = ", trust_remote_code=True" if has_code else ""
    names = ", ".join([auto_class, *filter(None, [processor])])
    lines = [
        f"from transformers import {names}",
        "",
        f'name = "{_repository(trainer) or f"./{_name(trainer)}"}"',
        f"model = {auto_class}.from_pretrained(name{option})",
        *([f"processor = {processor}.from_pretrained(name{option})"] if processor else []),
    ]
    code = "```python\n" + "\n".join(lines) + "\n```"
    if not has_code:
        return code
    return (
        f"{code}\n\n`trust_remote_code=True` runs the {len(TRAVELLING_FILES)} Python files of this repository "
        "(`*_hf_lam*.py`), which import nothing beyond `torch`, `transformers` and what these need. Read them first, "
        "and give a commit as `revision=` to get no others later. The package `hf_lam` is not needed."
    )


def _processor_class(trainer: HfLamTrainer) -> str | None:
    processor = trainer.processing_class
    if processor is None:
        return None
    if isinstance(processor, PreTrainedTokenizerBase):
        return "AutoTokenizer"
    return "AutoImageProcessor" if isinstance(processor, BaseImageProcessor) else "AutoProcessor"


def _versions(arguments: ModelArguments) -> str:
    packages = ["transformers", "torch", "datasets", *(["peft"] if arguments.lora_rank else [])]
    return ", ".join([f"hf_lam {__version__}", *(f"{package} {version(package)}" for package in packages)]) + "."


def _citation(mechanisms: Mapping[str, Any]) -> str:
    return "\n".join(f"- {PAPERS[name][1]}, {_arxiv(name)}" for name in mechanisms)


def _arxiv(name: str) -> str:
    return f"[arXiv {ARXIV[name]}](https://arxiv.org/abs/{ARXIV[name]})"
