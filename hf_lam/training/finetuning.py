"""The course of a fine-tuning run: output folder, training, evaluation, model card."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy
from transformers.utils import logging

from ..modeling.injection_hf_lam import injected_encoders
from .arguments import DataArguments, ModelArguments, RunArguments
from .calibrating import calibrate_for
from .checkpoints import last_checkpoint
from .columns import AnyDataset
from .data import Data, load_data
from .goals import Classes, Goal
from .labels import Labels
from .model_card import write_model_card
from .models import finished, load_config, load_teacher, mechanism_callbacks, prepare_for_training
from .parsing import parse_arguments
from .predictions import CollatorWithSources, is_input
from .recording import CHECK_FILE, RecordingTrainer, check_run, hash_starts, is_finished, settings_of, write_record
from .sources import Sources
from .trainer import HfLamTrainer, HfLamTrainingArguments, wants_fsdp

logger = logging.get_logger(__name__)

# What a run leaves behind that was stopped before its first checkpoint, or that only looked whether it could begin.
_LEFTOVERS = ("runs", CHECK_FILE)

# What makes another model of the trained one, before it is saved.
_CHANGING = ("lora_rank", "harden", "cache_features")

# Of every mechanism's log: this many samples are enough to see the spread of the masks.
_LOGGED_SAMPLES = 8


@contextmanager
def before_training() -> Iterator[None]:
    """End the process with status 2 and a message where the data or the options cannot work, or a file is not there.

    Around everything that comes before the first step; an error during training keeps its traceback.
    """
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@dataclass(frozen=True)
class Task:
    """A run, as the command line describes it.

    arguments: options of the model.
    data: options of the data.
    training: training arguments for `Trainer`.
    splits: `train`, `validation` and `test`, those that the run needs, as they were loaded.
    goal: what the run learns to predict.
    checkpoint: checkpoint that training goes on from; None from the start.
    sources: files that the samples of every split come from.
    is_held_out: whether the split validation is a part of the training data.
    settings: the options that decide which model comes out.
    """

    arguments: Any
    data: Any
    training: RunArguments
    splits: dict[str, AnyDataset]
    goal: Goal
    checkpoint: str | None
    sources: dict[str, Sources] = field(default_factory=dict)
    is_held_out: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """The classes, or what regression predicts, of a task that is about these."""
        assert isinstance(self.goal, Classes)
        return self.goal.labels

    @property
    def predicts_all(self) -> bool:
        """Whether all samples of the split test are predicted."""
        return self.data.max_predict_samples is None and not getattr(self.data, "skip_unreadable", False)


def open_task(
    model_class: type[ModelArguments],
    data_class: type[DataArguments],
    description: str,
    arguments: list[str] | None = None,
    *,
    load: Callable[..., Data] = load_data,
    training_class: type[RunArguments] = RunArguments,
) -> Task:
    """Read the command line, look into the output folder, and load the data.

    If the folder has what this very command has trained (`--record_run`), only the test data are left to predict.

    Args:
        model_class: `ModelArguments` or a class that adds to them.
        data_class: `DataArguments` or a class that adds to them.
        description: docstring of the script; its first paragraph opens `--help`.
        arguments: arguments to read in place of the command line.
        load: `load(data, model, training, checkpoint=config)`, as [`load_data`] does for classes.
        training_class: `RunArguments` or a class that adds to them.

    Raises:
        ValueError: for options or data that cannot work.
    """
    model, data, training = parse_arguments(model_class, data_class, description, arguments, training_class)
    settings = settings_of(model, data, training)
    if is_finished(model, data, training):
        model = model.of_saved_model(str(training.output_dir))
        training.do_train = training.do_eval = training.push_to_hub = False
        training.eval_strategy = IntervalStrategy.NO
    checkpoint = start(training)
    config = None if model.from_scratch or model.model_name_or_path is None else load_config(model)
    loaded = load(data, model, training, checkpoint=config)
    return Task(
        model,
        data,
        training,
        loaded.splits,
        loaded.goal,
        checkpoint,
        loaded.sources,
        loaded.is_held_out,
        settings,
    )


def start(training: HfLamTrainingArguments) -> str | None:
    """Set up logging and the seed, and look into the output folder.

    Returns:
        The checkpoint to go on from, the last whole one in the folder unless `--resume_from_checkpoint` names it.

    Raises:
        ValueError: if the folder holds something else than checkpoints, or the checkpoint that was named is none.
    """
    logging.set_verbosity(training.get_process_log_level())
    checkpoint = _checkpoint_of(training) if training.do_train else None
    if checkpoint is not None:
        logger.warning(f"Going on from {checkpoint}.")
    set_seed(training.seed)
    return checkpoint


def _checkpoint_of(training: HfLamTrainingArguments) -> str | None:
    folder, named = Path(str(training.output_dir)), training.resume_from_checkpoint
    if named is not None and str(named).lower() not in ("true", "false"):
        if not Path(named, TRAINER_STATE_NAME).is_file():
            raise ValueError(f"--resume_from_checkpoint {str(named)!r} is no folder with a {TRAINER_STATE_NAME}.")
        return _with_optimizer(Path(named))
    if folder.is_file():
        raise ValueError(f"--output_dir {str(folder)!r} is a file.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    last = last_checkpoint(folder) if found else None
    if last is not None and str(named).lower() != "false":
        return _with_optimizer(last)
    others = [name for name in found if name not in _LEFTOVERS]
    if last is None:
        others = [name for name in others if not name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")]
    if others:
        raise ValueError(
            f"--output_dir {str(folder)!r} is not empty, and has no checkpoint to go on from: it holds "
            f"{', '.join(others[:5])}. Choose another folder, or empty this one."
            if last is None
            else f"--output_dir {str(folder)!r} is not empty; choose another folder, or go on from {last}."
        )
    if str(named).lower() == "true":
        raise ValueError(f"--resume_from_checkpoint: there is no checkpoint in {str(folder)!r}.")
    return None


def _with_optimizer(checkpoint: Path) -> str:
    """The checkpoint, unless `--save_only_model` left out what training goes on from."""
    if not any(checkpoint.glob("rng_state*")):
        raise ValueError(
            f"{str(checkpoint)!r} was written with --save_only_model: it holds the model, and nothing to go on from. "
            "Choose another --output_dir, and give it as --model_name_or_path to train it anew."
        )
    return str(checkpoint)


def make_trainer(
    task: Task,
    model: PreTrainedModel,
    auto_class: Any,
    splits: Mapping[str, AnyDataset],
    processor: Any,
    collator: Any,
    trainer_class: type[RecordingTrainer] = RecordingTrainer,
) -> RecordingTrainer:
    """The trainer of a run.

    Args:
        task: task from `open_task`; freezing, LoRA, annealing, calibration and the teacher are done as it says.
        model: model from `load_model`.
        auto_class: Auto class that a teacher is loaded with.
        splits: those of the task, ready for the collator. Samples of the split test may say where they come from.
        processor: saved beside the model.
        collator: collator that makes batches.
        trainer_class: class of the trainer.

    Raises:
        ValueError: if the checkpoint to go on from is of another kind of model, or an option does not fit the model.
    """
    arguments, training = task.arguments, task.training
    # The columns of the splits are what the collator needs, by whatever name.
    training.remove_unused_columns = False
    if task.checkpoint is not None:
        _check_checkpoint(task.checkpoint, model, arguments)
    if any(getattr(arguments, name, None) for name in _CHANGING) and _is_sharded(training):
        raise ValueError(
            f"{', '.join(f'--{name}' for name in _CHANGING)} change the trained model, which FSDP and DeepSpeed have "
            "in parts."
        )
    _check_metric(training, task.goal)
    collator = CollatorWithSources(collator)
    if arguments.calibrate_views_on is not None:
        calibrate_for(model, arguments, auto_class, splits["train"], collator, training)
    shown = next(splits[split] for split in ("train", "validation", "test") if split in splits)
    samples = collator(list(islice(shown, _LOGGED_SAMPLES))) if injected_encoders(model) else {}
    callbacks = mechanism_callbacks(model, arguments, {key: x for key, x in samples.items() if is_input(key)})
    teacher = load_teacher(arguments, auto_class)
    starts = hash_starts(model) if training.record_run and training.do_train else {}
    trainer = trainer_class(
        model=prepare_for_training(model, arguments) if training.do_train else model,
        args=training,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        data_collator=collator,
        compute_metrics=task.goal.measure,
        callbacks=callbacks,
        teacher=teacher,
    )
    # A run without mechanisms is what others are compared with.
    trainer.take_loss_for_a_mean()
    trainer.starts = starts
    trainer.kept_outputs = task.goal.outputs
    if starts:
        trainer.record_order()
    return trainer


def _check_metric(training: HfLamTrainingArguments, goal: Goal) -> None:
    """The metric that the best model is chosen by, if one was named, must be one of those that are computed."""
    name, known = training.metric_for_best_model, _metrics_of(goal)
    if name is not None and name.removeprefix("eval_") not in known:
        raise ValueError(f"--metric_for_best_model {name!r}: choose one of {', '.join(known)}.")
    if name is not None and name.removeprefix("eval_") in goal.errors:
        # `TrainingArguments` takes everything but a loss for something of which more is better.
        training.greater_is_better = False


def _metrics_of(goal: Goal) -> list[str]:
    return ["loss", *goal.metrics]


def _is_sharded(training: HfLamTrainingArguments) -> bool:
    return wants_fsdp(training) or training.deepspeed_plugin is not None


def _check_checkpoint(checkpoint: str, model: PreTrainedModel, arguments: ModelArguments) -> None:
    """`Trainer` would load what has the right name and shape, and leave the rest as it is."""
    adapters = _json_file(Path(checkpoint, "adapter_config.json"))
    found, expected = _json_file(Path(checkpoint, "config.json")), json.loads(model.config.to_json_string(False))
    kinds = [({"lora_rank": adapters.get("r")}, {"lora_rank": arguments.lora_rank})]
    if found:  # PEFT, and FSDP that saves in parts, leave it out
        kinds.append((_kind(found), _kind(expected)))
    for its, ours in kinds:
        for name, value in ours.items():
            if its[name] != value:
                raise ValueError(
                    f"{checkpoint!r} is of another run, with {name} {its[name]}, where this one has {value}. Choose "
                    "another --output_dir."
                )


def _json_file(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# What a configuration has that was told of no classes; files leave it out.
_NO_CLASSES = ["LABEL_0", "LABEL_1"]


def _kind(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that a checkpoint must share. Views are annealing until they are reached."""
    block = {name: options for name, options in (config.get("hf_lam") or {}).items() if name != "version"}
    classes = [str(name) for name in (config.get("id2label") or {}).values()]
    return {
        "model_type": config.get("model_type"),
        "mechanisms": {
            name: {key: value for key, value in options.items() if key != "annealing"}
            for name, options in block.items()
        },
        "classes": [] if classes == _NO_CLASSES else classes,
    }


class Uncached(NamedTuple):
    """A run that trained a part of a model, on the outputs of another part, and what it saves.

    whole: gives the whole model, with what was trained in it.
    splits: the data as they are for the whole model.
    """

    whole: Callable[[Any], PreTrainedModel]
    splits: Mapping[str, AnyDataset]


def run(
    trainer: RecordingTrainer,
    task: Task,
    splits: Mapping[str, AnyDataset],
    name: str,
    uncached: Uncached | None = None,
) -> dict[str, float]:
    """Train, save, evaluate and predict, as the training arguments say, and write the model card.

    Args:
        trainer: trainer from `make_trainer`.
        task: task from `open_task`.
        splits: those of the trainer.
        name: name of the kind of task on the Hub, such as `"text-classification"`.
        uncached: the whole model, if the trainer has a part of it, which is evaluated too.

    Returns:
        The metrics of the last evaluation, `{"eval_accuracy": …}`; empty without one.
    """
    training: Any = trainer.args
    metrics: dict[str, float] = {}
    results: dict[str, float] = {}
    known = _metrics_of(task.goal)
    if training.check_only:
        with before_training():
            check_run(trainer, known)
        return metrics
    # From now on: with --push_to_hub, saving the model pushes it.
    trainer.write_card = partial(write_model_card, trainer=trainer, task=task, task_name=name, results=results)
    if training.do_train:
        steps = _steps_of(task.checkpoint)
        result = trainer.train(resume_from_checkpoint=task.checkpoint)
        trained = trainer.get_num_trainable_parameters()
        result.metrics["trainable_parameters"] = trained
        names = _trained_names(trainer.model, task.arguments)
        model = finished(trainer.model, task.arguments)
        if model is not trainer.model:  # adapters were merged
            trainer.model = trainer.model_wrapped = model
        if trainer.is_fsdp_enabled:
            # Checkpoints may be in parts; otherwise `save_model` would then write nothing.
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        saved = model if uncached is None else uncached.whole(model)
        trainer.model = trainer.model_wrapped = saved
        trainer.save_model()
        trainer.model = trainer.model_wrapped = model
        # Where nothing was left to train, an earlier start has reported what it was.
        if result.global_step > steps:
            _report(trainer, "train", result.metrics, splits["train"])
        results |= result.metrics
        trainer.save_state()
    if training.do_eval:
        metrics = trainer.evaluate()
        _report(trainer, "eval", metrics, splits["validation"])
        results |= metrics
    if training.do_predict:
        output = trainer.predict(splits["test"], metric_key_prefix="predict")
        _report(trainer, "predict", output.metrics or {}, splits["test"])
        results |= output.metrics or {}
        if trainer.is_world_process_zero():
            task.goal.write_predictions(Path(training.output_dir), output.predictions, task)
    if training.do_train:
        if uncached is not None:
            trainer.model = trainer.model_wrapped = saved
            trainer.train_dataset = uncached.splits.get("train")
            trainer.eval_dataset = uncached.splits.get("validation")
        if training.push_to_hub:
            trainer.push_to_hub()
        else:
            trainer.create_model_card()
        if training.record_run:
            # After the push: samples are in it.
            shown = splits if uncached is None else uncached.splits
            facts = {"trainable_parameters": trained, "trained": names, "starts": trainer.starts, "metrics": known}
            samples = shown.get("validation", shown["train"])
            write_record(trainer, saved, samples, {**facts, "settings": task.settings})
    return metrics


def _trained_names(model: Any, arguments: ModelArguments) -> list[str]:
    """The parameters of the saved model that were trained; none where it has other ones, merged of those."""
    if arguments.lora_rank is not None:
        return []
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _steps_of(checkpoint: str | None) -> int:
    return 0 if checkpoint is None else _json_file(Path(checkpoint, TRAINER_STATE_NAME))["global_step"]


def _report(trainer: HfLamTrainer, split: str, metrics: dict[str, float], dataset: AnyDataset) -> None:
    if hasattr(dataset, "__len__"):
        metrics[f"{split}_samples"] = len(dataset)
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
