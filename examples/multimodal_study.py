"""Image and speech in one model: does a learnable mask help, and what do attention views save?

For every seed one ViT learns to read digits from images and one to hear them in spectrograms. Every row of the study
then starts from the same two checkpoints, has the same fusion layers on top, and trains for as many steps on the same
samples in the same order. Two tasks:

    digit   which digit do image and speech show? (Images lost 72 % of their variance, speech is noisy.)
    match   does the speech say the digit in the image? Half of the pairs are re-drawn, so that neither modality
            alone says anything, and no sum of what they say does. The images are whole.

Rows (of three fusion layers):

    image, audio          one modality alone
    image_lam, audio_lam  with a learnable mask
    late                  no fusion layers: the mean of what both encoders pool
    full                  attention over all tokens
    mbt                   bottleneck of 4 tokens between the modalities
    self                  LoCoMT, every head in its own modality
    half                  LoCoMT, half of the heads self, the others cross
    random                LoCoMT, views drawn at random
    low_self, high_self   LoCoMT, self views in the lowest layer and cross views above, and the other way round
    calibrated            LoCoMT, the table that `calibrate_views` finds on the trained `full` for half of its FLOPs
    lam_shared, lam       LAM, one mask for all layers, and one for each
    lam_half              LAM in each layer, on the views of `half`

    python examples/multimodal_study.py --data_dir DATA --output_dir multimodal --seeds 0 1 2

`DATA` holds `av_mnist/` and `mnist/` with `train.parquet`, `validation.parquet` and `test.parquet`. Every finished run
is a JSON file in `--output_dir`; started again, the script goes on where it was stopped. Several may run side by side
with different `--seeds` or `--tasks`; the last one, started with all of them, writes the tables and the plot.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from study import Run, mean_sd, run_all, stored_result, trained, write_atomically, write_results
from torch import Tensor
from transformers import (
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from transformers.utils import logging

import hf_lam
from hf_lam import HfLamFusionForSequenceClassification, LamConfig, LocomtConfig

TASKS = ("digit", "match")
SPLITS = ("train", "validation", "test")
HEADS, LAYERS = 4, 3


def _table(*views: str) -> LocomtConfig:
    """The same view for all heads of a layer."""
    return LocomtConfig(views=[[view] * HEADS for view in views])


CROSS = "cross:image-audio"
# What differs from row to row: options of the fusion model.
ROWS: dict[str, dict[str, Any]] = {
    "image": {},
    "image_lam": {"hf_lam": LamConfig()},
    "audio": {},
    "audio_lam": {"hf_lam": LamConfig()},
    "late": {"baseline": "late"},
    "full": {},
    "mbt": {"baseline": "bottleneck"},
    "self": {"baseline": "self"},
    "half": {"hf_lam": LocomtConfig(views="half")},
    "random": {"hf_lam": LocomtConfig(views="random(0)")},
    "low_self": {"hf_lam": _table("self", CROSS, CROSS)},
    "high_self": {"hf_lam": _table(CROSS, CROSS, "self")},
    "calibrated": {},  # once `full` is trained
    "lam_shared": {"hf_lam": LamConfig(scope="shared")},
    "lam": {"hf_lam": LamConfig()},
    "lam_half": {"hf_lam": [LamConfig(), LocomtConfig(views="half")]},
}


@dataclass
class StudyArguments:
    """What is compared. How it is trained is in transformers' own `TrainingArguments`."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with av_mnist/ and mnist/; default $HF_LAM_DATA."}
    )
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": f"Which of {', '.join(TASKS)}."})
    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": f"Which of {', '.join(ROWS)}."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run of each row and task per seed."})
    encoder_epochs: int = field(default=9, metadata={"help": "For the two encoders that all rows start from."})
    digit_epochs: int = field(default=3, metadata={"help": "For each row of the task digit."})
    match_epochs: int = field(default=12, metadata={"help": "For each row of the task match."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the encoders and the fusion layers."})
    budget: float = field(default=0.5, metadata={"help": "Of `calibrated`, as a fraction of the FLOPs of `full`."})
    max_samples: int | None = field(default=None, metadata={"help": "Use the first so many of each split."})
    timing_steps: int = field(default=20, metadata={"help": "Training steps of each row that are timed."})
    quick: bool = field(default=False, metadata={"help": "A try-out: 128 samples, one epoch of everything."})

    def __post_init__(self) -> None:
        for option, given, known in (("--rows", self.rows, ROWS), ("--tasks", self.tasks, TASKS)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"{option}: unknown {unknown}; choose from {', '.join(known)}.")
        if "calibrated" in self.rows and "full" not in self.rows:
            raise ValueError("--rows: calibrated needs full, on which it is calibrated.")
        if self.quick:
            self.max_samples = self.max_samples or 128
            self.encoder_epochs = self.digit_epochs = self.match_epochs = 1
            self.timing_steps = 2

    @property
    def folder(self) -> Path:
        root = self.data_dir or os.environ.get("HF_LAM_DATA")
        if not root:
            raise ValueError(
                "give --data_dir FOLDER, or set HF_LAM_DATA to the folder that holds av_mnist/ and mnist/."
            )
        return Path(root)

    def epochs(self, task: str) -> int:
        return {"digit": self.digit_epochs, "match": self.match_epochs}[task]


# --- Data ------------------------------------------------------------------------------------------------------------


@dataclass
class Split:
    """Images `(N, 1, 28, 28)`, degraded and whole; spectrograms `(N, 1, mel bands, frames)`; digits `(N,)`."""

    degraded: Tensor
    whole: Tensor
    sounds: Tensor
    digits: Tensor


class Pairs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Images and sounds by index, with labels; `modalities` says which of both a sample has."""

    def __init__(
        self, images: Tensor, sounds: Tensor, image_of: Tensor, sound_of: Tensor, labels: Tensor, modalities: set[str]
    ) -> None:
        self.inputs = {}
        if "image" in modalities:
            self.inputs["pixel_values"] = (images, image_of)
        if "audio" in modalities:
            self.inputs["audio_values"] = (sounds, sound_of)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = {name: values[which[index]] for name, (values, which) in self.inputs.items()}
        return {**sample, "labels": self.labels[index]}


def load_split(name: str, study: StudyArguments) -> Split:
    paths = {kind: study.folder / kind / f"{name}.parquet" for kind in ("av_mnist", "mnist")}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(f"--data_dir {str(study.folder)!r} has no {path.parent.name}/{path.name}.")
    rows = Dataset.from_parquet(str(paths["av_mnist"]))
    rows = rows.select(range(min(len(rows), study.max_samples or len(rows))))
    whole_of = {row["mnist_index"]: np.asarray(row["image"]) for row in Dataset.from_parquet(str(paths["mnist"]))}
    degraded = [np.frombuffer(row["image"], np.uint8).reshape(row["image_shape"]) for row in rows]
    sounds = [np.frombuffer(row["spectrogram"], "<f2").reshape(row["spectrogram_shape"]) for row in rows]
    # Decibels from -80 to 0, the loudest.
    spectrograms = torch.from_numpy(np.stack(sounds)).float().unsqueeze(1) / 20 + 2
    whole = [whole_of[index] for index in rows["mnist_index"]]
    return Split(_pixels(degraded), _pixels(whole), spectrograms, torch.tensor(rows["label"]))


def _pixels(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float().unsqueeze(1) / 127.5 - 1


def matching_pairs(digits: Tensor, seed: int, rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Which image goes with which sound, and whether they show the same digit; half of them do.

    Args:
        digits: `(N,)` of the samples, which are image and sound of one digit each.
        seed: of the draw.
        rounds: how many times to go through all sounds, with other images each time.

    Returns:
        Indices of the images and of the sounds, and labels, 1 for the same digit: each `(rounds · N,)`.
    """
    draw = np.random.default_rng(seed)
    values = digits.numpy()
    of_digit = {digit: np.flatnonzero(values == digit) for digit in np.unique(values)}
    not_of = {digit: np.flatnonzero(values != digit) for digit in of_digit}
    images, labels = [], []
    for round_ in range(rounds):
        same = draw.permutation(len(values)) >= len(values) // 2
        # In the first round the pairs that stay are those of the data.
        kept = [i if round_ == 0 else draw.choice(of_digit[digit]) for i, digit in enumerate(values)]
        drawn = [draw.choice(not_of[digit]) for digit in values]
        images.append(np.where(same, kept, drawn))
        labels.append(same)
    sounds = torch.arange(len(values)).repeat(rounds)
    return torch.from_numpy(np.concatenate(images)), sounds, torch.from_numpy(np.concatenate(labels)).long()


def pairs_of(task: str, split: Split, modalities: set[str], seed: int, epochs: int = 1) -> Pairs:
    """The samples of a task. For `match`, every epoch of training has pairs of its own."""
    if task == "digit":
        every = torch.arange(len(split.digits))
        return Pairs(split.degraded, split.sounds, every, every, split.digits, modalities)
    images, sounds, labels = matching_pairs(split.digits, seed, epochs)
    return Pairs(split.whole, split.sounds, images, sounds, labels, modalities)


# --- Models ----------------------------------------------------------------------------------------------------------


def encoder_config(modality: str, study: StudyArguments) -> ViTConfig:
    """Two layers; tokens are patches of 7 × 7 pixels, or two frames of the spectrogram with all mel bands."""
    options: dict[str, Any] = {"num_labels": 10, "image_size": 28, "patch_size": 7}
    if modality == "audio":
        options |= {"image_size": (64, 64), "patch_size": (64, 2)}
    return ViTConfig(
        **options,
        num_channels=1,
        hidden_size=study.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=2 * study.hidden_size,
        hidden_dropout_prob=0.1,
        # With 0.02, which is made for wide models, so narrow ones attend to nothing for a long time.
        initializer_range=study.hidden_size**-0.5,
    )


def encoder_of(modality: str, seed: int, train: Split, study: StudyArguments, training: TrainingArguments) -> Path:
    """The folder of a trained encoder; trained now if it is not there."""
    folder = Path(str(training.output_dir), "encoders", f"{modality}-seed{seed}")
    settings = {"modality": modality, "seed": seed, **_common_settings(study, training)}
    if not _is_saved(folder, settings):
        set_seed(seed)
        model = ViTForImageClassification(encoder_config(modality, study))
        images = train.degraded if modality == "image" else train.sounds  # to a ViT, both are images
        every = torch.arange(len(images))
        pairs = Pairs(images, train.sounds, every, every, train.digits, {"image"})
        trained(model, pairs, training, seed, _steps(len(pairs), study.encoder_epochs, training))
        _save(model, folder, settings)
    return folder


def _is_saved(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a model was saved there. Raises a `ValueError` if it was trained with other settings."""
    return stored_result(folder / "settings.json", settings) is not None


def _save(model: PreTrainedModel, folder: Path, settings: dict[str, Any]) -> None:
    """Save a model with its settings, whole or not at all; a study that runs beside this one may have been first."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    model.save_pretrained(partial)
    write_atomically(partial / "settings.json", json.dumps({"settings": settings, "result": {}}, indent=2) + "\n")
    if folder.is_dir():
        shutil.rmtree(partial)
    else:
        os.replace(partial, folder)


def _steps(samples: int, epochs: int, training: TrainingArguments) -> int:
    return max(1, samples // training.per_device_train_batch_size) * epochs


def modalities_of(row: str) -> set[str]:
    first = row.split("_")[0]
    return {first} if first in ("image", "audio") else {"image", "audio"}


def make_model(
    task: str, row: str, seed: int, encoders: dict[str, Path], study: StudyArguments, options: dict[str, Any]
) -> Any:
    """The model of a row, on the trained encoders; the fusion layers of all rows start from the same weights."""
    set_seed(seed)
    common = {
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * study.hidden_size,
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-6,
        "initializer_range": study.hidden_size**-0.5,
        "num_labels": {"digit": 10, "match": 2}[task],
    }
    sources: dict[str, Any] = {name: encoders[name] for name in modalities_of(row)}
    return HfLamFusionForSequenceClassification.from_modality_pretrained(**sources, **common, **options)


# --- One run ---------------------------------------------------------------------------------------------------------


def run_one(
    task: str, row: str, seed: int, splits: dict[str, Split], study: StudyArguments, training: TrainingArguments
) -> dict[str, Any]:
    """Train one row and test it. Plain JSON values."""
    encoders = {name: encoder_of(name, seed, splits["train"], study, training) for name in ("image", "audio")}
    trained_full = Path(str(training.output_dir), "full", f"{task}-seed{seed}")
    options = dict(ROWS[row])
    views = None
    settings = settings_of(task, "full", seed, study, training)
    if row == "calibrated":
        if not _is_saved(trained_full, settings):
            raise ValueError(f"{str(trained_full)!r} is missing: run the row full with this seed first.")
        options["hf_lam"] = views = calibrated_on(trained_full, task, seed, splits["train"], study)
    model = make_model(task, row, seed, encoders, study, options)
    train = pairs_of(task, splits["train"], modalities_of(row), seed, study.epochs(task))
    rounds = study.epochs(task) if task == "digit" else 1  # the pairs of `match` hold all epochs
    seconds = trained(model, train, training, seed, _steps(len(train), rounds, training))
    if row == "full" and not _is_saved(trained_full, settings):
        _save(model, trained_full, settings)
    accuracies = {
        name: accuracy(model, pairs_of(task, splits[name], modalities_of(row), 0)) for name in ("validation", "test")
    }
    sample = {name: values[which[:1]] for name, (values, which) in train.inputs.items()}
    report = hf_lam.cost(model, sample)
    return {
        "task": task,
        "row": row,
        "seed": seed,
        **accuracies,
        "views": None if views is None else views.views,
        "parameters": report.parameters,
        "mechanism_parameters": report.mechanism_parameters,
        "attention_flops": report.forward_attention,
        "flops": report.flops,
        "tested": {name: len(splits[name].digits) for name in ("validation", "test")},
        "seconds": round(seconds, 1),
    }


def calibrated_on(folder: Path, task: str, seed: int, train: Split, study: StudyArguments) -> LocomtConfig:
    """The table of views for the attention of a trained model, measured on 512 samples of the training set."""
    model = HfLamFusionForSequenceClassification.from_pretrained(folder)
    hf_lam.inject(model, LocomtConfig(views="full"))
    pairs = pairs_of(task, train, {"image", "audio"}, seed)
    samples = [pairs[index] for index in range(min(512, len(pairs)))]
    batches = [_batch(samples[start : start + 64]) for start in range(0, len(samples), 64)]
    return hf_lam.calibrate_views(model, batches, study.budget)[0]


def _batch(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


@torch.no_grad()
def accuracy(model: Any, pairs: Pairs) -> float:
    """Fraction of the samples that the model classifies right."""
    model.eval()
    right = 0
    for start in range(0, len(pairs), 250):
        batch = _batch([pairs[index] for index in range(start, min(start + 250, len(pairs)))])
        batch = {name: values.to(model.device) for name, values in batch.items()}
        right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(pairs)


# --- Time ------------------------------------------------------------------------------------------------------------


def seconds_per_step(
    results: list[dict[str, Any]], splits: dict[str, Split], study: StudyArguments, training: TrainingArguments
) -> dict[str, float]:
    """Median seconds of a training step of every row, all of them in turn, so that none has the machine to itself."""
    seed, task = results[0]["seed"], results[0]["task"]
    encoders = {name: encoder_of(name, seed, splits["train"], study, training) for name in ("image", "audio")}
    views = {
        r["row"]: r["views"] for r in results if r["views"] is not None and (r["task"], r["seed"]) == (task, seed)
    }
    size = training.per_device_train_batch_size
    steps = {}
    for row in dict.fromkeys(result["row"] for result in results):
        options = {"hf_lam": LocomtConfig(views=views[row])} if row in views else ROWS[row]
        model = make_model(task, row, seed, encoders, study, options).train()
        pairs = pairs_of(task, splits["train"], modalities_of(row), seed)
        batch = _batch([pairs[index % len(pairs)] for index in range(size)])
        steps[row] = (model, batch, torch.optim.AdamW(model.parameters(), training.learning_rate))
    seconds: dict[str, list[float]] = {row: [] for row in steps}
    for number, row in zip(range((study.timing_steps + 1) * len(steps)), cycle(steps), strict=False):
        model, batch, optimizer = steps[row]
        started = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number >= len(steps):  # the first of each warms up
            seconds[row].append(time.perf_counter() - started)
    return {row: statistics.median(values) for row, values in seconds.items()}


# --- Tables and plot -------------------------------------------------------------------------------------------------


def by_row(results: list[dict[str, Any]], task: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The results of a task: `[row][seed]`."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        if result["task"] == task:
            rows.setdefault(result["row"], {})[result["seed"]] = result
    return rows


def markdown_table(results: list[dict[str, Any]], seconds: dict[str, float]) -> str:
    """Accuracy in percent, mean ± standard deviation over the seeds, and the costs of one sample."""
    tasks = [task for task in TASKS if any(result["task"] == task for result in results)]
    tables = {task: by_row(results, task) for task in tasks}
    lines = [
        f"| row | {' | '.join(f'{task}, test' for task in tasks)} | {' | '.join(f'{t}, validation' for t in tasks)} | "
        "attention GFLOPs | GFLOPs | parameters | seconds a step |",
        "| --- " * (2 * len(tasks) + 1) + "| ---: " * 4 + "|",
    ]
    for row in ROWS:
        runs = {task: list(tables[task].get(row, {}).values()) for task in tasks}
        if not any(runs.values()):
            continue
        cells = [
            mean_sd([100 * run[split] for run in runs[task]]) if runs[task] else ""
            for split in ("test", "validation")
            for task in tasks
        ]
        every = [run for task in tasks for run in runs[task]]
        attention = statistics.mean(run["attention_flops"] for run in every) / 1e9
        total = statistics.mean(run["flops"] for run in every) / 1e9
        lines.append(
            f"| {row} | {' | '.join(cells)} | {attention:.5f} | {total:.4f} | {every[0]['parameters']:,} | "
            f"{seconds[row]:.3f} |"
        )
    return "\n".join([*lines, "", *questions(tables)]) + "\n"


def questions(tables: dict[str, dict[str, dict[int, dict[str, Any]]]]) -> list[str]:
    """Differences in test accuracy, in points, seed by seed: mean ± standard deviation."""
    asked = (
        ("LAM on image + audio", "lam", "full"),
        ("LAM on the image alone", "image_lam", "image"),
        ("LAM on the audio alone", "audio_lam", "audio"),
        ("calibrated views at half the attention FLOPs, against full", "calibrated", "full"),
        ("half self, half cross, against full", "half", "full"),
        ("self views in the low layer, against the high one", "low_self", "high_self"),
    )
    lines = ["| difference in points | " + " | ".join(tables) + " |", "| --- " * (1 + len(tables)) + "|"]
    for words, row, other in asked:
        cells = []
        for runs in tables.values():
            seeds = runs.get(row, {}).keys() & runs.get(other, {}).keys()
            points = [100 * (runs[row][seed]["test"] - runs[other][seed]["test"]) for seed in sorted(seeds)]
            cells.append(mean_sd(points) if points else "")
        lines.append(f"| {words} (`{row}` − `{other}`) | {' | '.join(cells)} |")
    return lines


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy over GFLOPs, one panel for each task."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(result["task"] == task for result in results)]
    figure = Figure(figsize=(4.5 * len(tasks) + 1.5, 4.5), layout="constrained")
    looks = {row: {"color": f"C{index % 8}", "marker": "os^"[index // 8]} for index, row in enumerate(ROWS)}
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for row, runs in by_row(results, task).items():
            accuracies = [100 * run["test"] for run in runs.values()]
            flops = statistics.mean(run["flops"] for run in runs.values()) / 1e9
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0
            mean = statistics.mean(accuracies)
            panel.errorbar(flops, mean, yerr=spread, label=row, linestyle="", markersize=5, capsize=2, **looks[row])
        panel.set(title=task, xlabel="GFLOPs a sample", ylabel="test accuracy, %")
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# --- The study -------------------------------------------------------------------------------------------------------


def settings_of(task: str, row: str, seed: int, study: StudyArguments, training: TrainingArguments) -> dict[str, Any]:
    """Everything that decides a run's result: a stored result counts only for the same settings."""
    return {
        "task": task,
        "row": row,
        "seed": seed,
        "epochs": study.epochs(task),
        "budget": study.budget if row == "calibrated" else None,
        **_common_settings(study, training),
    }


def _common_settings(study: StudyArguments, training: TrainingArguments) -> dict[str, Any]:
    """What decides the encoders."""
    return {
        "encoder_epochs": study.encoder_epochs,
        "hidden_size": study.hidden_size,
        "max_samples": study.max_samples,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "batch_size": training.per_device_train_batch_size,
    }


def parse_arguments(arguments: list[str] | None = None) -> tuple[StudyArguments, TrainingArguments]:
    kinds: Any = (StudyArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(
        output_dir="multimodal",
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=200,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    study, training = parser.parse_args_into_dataclasses(arguments)
    return study, training


def main(arguments: list[str] | None = None) -> int:
    try:
        study, training = parse_arguments(arguments)
        output = Path(str(training.output_dir))
        runs = [
            Run(
                (task, row, seed),
                output / "runs" / f"{task}-{row}" / f"seed{seed}.json",
                settings_of(task, row, seed, study, training),
            )
            for seed in study.seeds
            for task in study.tasks
            for row in ROWS
            if row in study.rows
        ]
        done = [stored_result(run.path, run.settings) for run in runs]
        splits = {name: load_split(name, study) for name in SPLITS}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.set_verbosity_error()

    def measure(task: str, row: str, seed: int) -> dict[str, Any]:
        result = run_one(task, row, seed, splits, study, training)
        print(f"    test {result['test']:.3f}, {result['seconds']:.0f} s", flush=True)
        return result

    results = run_all(runs, done, measure)
    seconds = seconds_per_step(results, splits, study, training)
    for result in results:
        result["seconds_per_step"] = seconds[result["row"]]
    write_results(output, results, markdown_table(results, seconds))
    plot(results, output / "results.png")
    print(f"The plot is in {output / 'results.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
