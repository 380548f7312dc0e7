"""A run of a script of one's own, as `hf-lam compare` asks for it: tried, trained, written down, tested in the end.

training = parse(...)                                  # RunArguments, beside options of one's own
settings = {"layers": 4, "seed": training.seed}        # what decides the model
done = is_recorded(training, settings)
model = load(training.output_dir) if done else make_model(...)
trainer = RecordingTrainer(model=model, args=training, ...)
run_recorded(trainer, ["accuracy"], settings, test)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import PreTrainedModel, Trainer, TrainingArguments

from .arguments import RunArguments
from .recording import RecordingTrainer, check_run, hash_starts, recorded_settings, write_record

# Of the arguments of a run, those that a model which several runs start from is trained with as well.
_SHARED = (
    *("seed", "learning_rate", "weight_decay", "lr_scheduler_type"),
    *("per_device_train_batch_size", "disable_tqdm"),
)


def is_recorded(training: RunArguments, settings: Mapping[str, Any]) -> bool:
    """Whether the output folder has the finished run of this very command, so that only its test data are left.

    Raises:
        ValueError: if it has a run with other settings.
    """
    its, ours = recorded_settings(training), json.loads(json.dumps(settings))
    if its is None:
        return False
    differing = sorted(name for name in its.keys() | ours.keys() if its.get(name) != ours.get(name))
    if differing:
        raise ValueError(
            f"--output_dir {str(training.output_dir)!r} has a finished run with another {', '.join(differing)}; "
            "choose another folder."
        )
    return True


def run_recorded(
    trainer: RecordingTrainer,
    metrics: Sequence[str],
    settings: Mapping[str, Any],
    test: Any = None,
    finish: Callable[[Any], Any] | None = None,
) -> dict[str, float]:
    """Do what the arguments of a trainer say: `check_only`, or train, evaluate, save, record, and predict.

    Args:
        trainer: trainer with the model as it starts; or, if `is_recorded` said so, as the run left it.
        metrics: names of the metrics that an evaluation gives, without `eval_`.
        settings: settings that decide the model that comes out, for JSON.
        test: data of `do_predict`; their metrics begin with `predict_`.
        finish: function that changes the trained model in place before it is evaluated and saved, such as
            `hf_lam.harden`.

    Returns:
        All metrics.

    Raises:
        ValueError: if the model cannot be trained on the data, with `check_only`; as from `is_recorded`.
    """
    training: Any = trainer.args
    if training.check_only:
        check_run(trainer, [*metrics])
        return {}
    found: dict[str, float] = {}

    def keep(part: str, values: dict[str, float]) -> None:
        trainer.save_metrics(part, values)
        found.update(values)

    if training.do_train and not is_recorded(training, settings):
        model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
        trainer.starts = hash_starts(model)
        trainer.record_order()
        keep("train", trainer.train().metrics)
        trained = trainer.get_num_trainable_parameters()
        if finish is not None:
            finish(model)
        if training.do_eval:
            keep("eval", trainer.evaluate())
        trainer.save_state()
        trainer.save_model()
        if training.record_run:
            facts = {"trainable_parameters": trained, "starts": trainer.starts, "metrics": [*metrics]}
            samples: Any = trainer.eval_dataset or trainer.train_dataset
            write_record(trainer, model, samples, {**facts, "settings": dict(settings)})
    if training.do_predict and test is not None:
        keep("predict", trainer.evaluate(test, metric_key_prefix="predict"))
    return found


# --- what several runs start from ------------------------------------------------------------------------------------


def write_once(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a folder, whole or not at all, unless it is there. Of several runs, one makes it.

    Args:
        folder: folder that several runs read. The others wait until it is there.
        write: function that gets the path of a folder that is not there yet, beside it.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():  # another process was first
            return
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that died
        write(partial)
        os.replace(partial, folder)


def train_once(folder: Path, model: PreTrainedModel, dataset: Any, training: RunArguments, **options: Any) -> None:
    """Train a model that several runs start from, and save it, unless an earlier run has.

    Args:
        folder: folder of the model.
        model: model before training; it is trained in place.
        dataset: data set for `Trainer`.
        training: arguments of the run, for the seed, the learning rate and its schedule, weight decay and the size of
            batches.
        **options: further options of `TrainingArguments`, such as the number of steps.
    """

    def write(partial: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            plain = TrainingArguments(
                scratch,
                save_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
                **{name: getattr(training, name) for name in _SHARED},
                **options,
            )
            Trainer(model=model, args=plain, train_dataset=dataset).train()
        model.save_pretrained(partial)

    write_once(folder, write)
