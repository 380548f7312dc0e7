"""Image and speech in one model, in two tasks, on two encoders that are trained first.

    digit   which digit do image and speech show? (Images lost 72 % of their variance, speech is noisy.)
    match   does the speech say the digit in the image? Half of the pairs are re-drawn, in training anew in every
            epoch, so that neither modality alone says anything, and no sum of what they say does. The images are
            whole. It takes longer to learn: `--num_train_epochs` are four times as many.

For every seed one ViT learns to read digits from images and one to hear them in spectrograms. All rows of a comparison
start from the same two, which are kept in `--encoders_dir`, with three fusion layers on top:

    python digits.py --task digit --data_dir DATA --encoders_dir encoders --mechanism lam --num_train_epochs 3 \\
        --learning_rate 2e-3 --do_train --do_eval --output_dir out

`DATA` holds `av_mnist/` and `mnist/` with `train.parquet`, `validation.parquet` and `test.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    DefaultDataCollator,
    HfArgumentParser,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import hf_lam
from hf_lam import HfLamFusionForSequenceClassification, LocomtConfig
from hf_lam.mechanism_options import read_mechanisms
from hf_lam.training.arguments import RunArguments
from hf_lam.training.recorded_runs import is_recorded, run_recorded, train_once
from hf_lam.training.recording import RecordingTrainer
from hf_lam.training.widening import widen_like

# How many classes there are, and how many epochs for each that is asked for.
TASKS = {"digit": 10, "match": 2}
ROUNDS = {"digit": 1, "match": 4}
MODALITIES = ("image", "audio")
SPLITS = ("train", "validation", "test")
HEADS, LAYERS = 4, 3


@dataclass
class DigitArguments:
    """The task, and the model."""

    data_dir: str = field(metadata={"help": "Folder with av_mnist/ and mnist/."})
    encoders_dir: str = field(metadata={"help": "Folder of the encoders that the rows of a seed start from."})
    task: str = field(default="digit", metadata={"help": f"One of {', '.join(TASKS)}."})
    modalities: list[str] = field(default_factory=lambda: list(MODALITIES), metadata={"help": "What the model gets."})
    baseline: str | None = field(default=None, metadata={"help": "late, bottleneck or self, in place of full fusion."})
    mechanism: list[str] = field(
        default_factory=list, metadata={"action": "extend", "help": "Of the fusion layers: lam, locomt."}
    )
    mechanism_config: str | None = field(default=None, metadata={"help": "Their options, as JSON."})
    control: bool = field(default=False, metadata={"help": "As many parameters in wider feed-forward layers instead."})
    calibrate_views_on: str | None = field(default=None, metadata={"help": "Folder of a trained model."})
    views_budget: float = field(default=0.5, metadata={"help": "A fraction of its attention FLOPs."})
    encoder_epochs: int = field(default=9, metadata={"help": "Of the two encoders."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the encoders and the fusion layers."})
    max_samples: int | None = field(default=None, metadata={"help": "Use the first so many of each split."})

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"--task {self.task!r} is unknown: choose one of {', '.join(TASKS)}.")
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown or not self.modalities:
            raise ValueError(f"--modalities {' '.join(self.modalities)}: choose from {', '.join(MODALITIES)}.")
        read_mechanisms("--mechanism", self.mechanism, "--mechanism_config", self.mechanism_config)
        missing = [f"{kind}/{split}.parquet" for kind in ("av_mnist", "mnist") for split in SPLITS]
        missing = [name for name in missing if not Path(self.data_dir, name).is_file()]
        if missing:
            raise ValueError(f"--data_dir {self.data_dir!r} has no {', '.join(missing)}.")


# --- data ------------------------------------------------------------------------------------------------------------


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
        self,
        images: Tensor,
        sounds: Tensor,
        image_of: Tensor,
        sound_of: Tensor,
        labels: Tensor,
        modalities: Sequence[str],
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


def load_split(name: str, arguments: DigitArguments) -> Split:
    paths = {kind: str(Path(arguments.data_dir, kind, f"{name}.parquet")) for kind in ("av_mnist", "mnist")}
    rows = Dataset.from_parquet(paths["av_mnist"])
    rows = rows.select(range(min(len(rows), arguments.max_samples or len(rows))))
    whole_of = {row["mnist_index"]: np.asarray(row["image"]) for row in Dataset.from_parquet(paths["mnist"])}
    degraded = [np.frombuffer(row["image"], np.uint8).reshape(row["image_shape"]) for row in rows]
    sounds = [np.frombuffer(row["spectrogram"], "<f2").reshape(row["spectrogram_shape"]) for row in rows]
    # Decibels from -80 to 0, the loudest.
    spectrograms = torch.from_numpy(np.stack(sounds)).float().unsqueeze(1) / 20 + 2
    whole = [whole_of[index] for index in rows["mnist_index"]]
    return Split(_pixels(degraded), _pixels(whole), spectrograms, torch.tensor(rows["label"]))


def _pixels(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float().unsqueeze(1) / 127.5 - 1


def matching_pairs(digits: Tensor, seed: int, rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Pair images with sounds, and label whether they show the same digit; half of them do.

    Args:
        digits: digits `(N,)` of the samples, each of which is an image and a sound.
        seed: seed of the draw.
        rounds: number of times to go through all sounds, with other images each time.

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


def pairs_of(arguments: DigitArguments, split: Split, seed: int, epochs: int = 1) -> Pairs:
    """The samples of the task. For `match`, every epoch of training has pairs of its own."""
    if arguments.task == "digit":
        every = torch.arange(len(split.digits))
        return Pairs(split.degraded, split.sounds, every, every, split.digits, arguments.modalities)
    images, sounds, labels = matching_pairs(split.digits, seed, epochs)
    return Pairs(split.whole, split.sounds, images, sounds, labels, arguments.modalities)


# --- models ----------------------------------------------------------------------------------------------------------


def encoder_config(modality: str, hidden_size: int) -> ViTConfig:
    """Two layers; tokens are patches of 7 × 7 pixels, or two frames of the spectrogram with all mel bands."""
    options: dict[str, Any] = {"num_labels": 10, "image_size": 28, "patch_size": 7}
    if modality == "audio":
        options |= {"image_size": (64, 64), "patch_size": (64, 2)}
    return ViTConfig(
        **options,
        num_channels=1,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=2 * hidden_size,
        hidden_dropout_prob=0.1,
        # With 0.02, which is made for wide models, so narrow ones attend to nothing for a long time.
        initializer_range=hidden_size**-0.5,
    )


def encoder_of(modality: str, train: Split, arguments: DigitArguments, training: RunArguments) -> Path:
    """The folder of a trained encoder; trained now if it is not there."""
    decides = (arguments.hidden_size, arguments.encoder_epochs, training.learning_rate, training.weight_decay)
    name = "-".join(map(str, (modality, training.seed, len(train.digits), *decides)))
    folder = Path(arguments.encoders_dir, name)
    if folder.is_dir():
        return folder
    set_seed(training.seed)
    model = ViTForImageClassification(encoder_config(modality, arguments.hidden_size))
    images = train.degraded if modality == "image" else train.sounds  # to a ViT, both are images
    every = torch.arange(len(images))
    pairs = Pairs(images, train.sounds, every, every, train.digits, ["image"])
    epochs, warmup = arguments.encoder_epochs, training.warmup_steps
    train_once(folder, model, pairs, training, num_train_epochs=epochs, warmup_steps=warmup)
    return folder


def make_model(arguments: DigitArguments, encoders: dict[str, Any], train: Pairs, seed: int) -> Any:
    """The model on its encoders, folders or models; the fusion layers of a seed start from the same weights."""
    mechanisms = read_mechanisms("--mechanism", arguments.mechanism, "--mechanism_config", arguments.mechanism_config)
    if arguments.calibrate_views_on is not None:
        mechanisms = [calibrated_on(arguments.calibrate_views_on, train, arguments.views_budget)]
    set_seed(seed)
    options: dict[str, Any] = {} if arguments.baseline is None else {"baseline": arguments.baseline}
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        **encoders,
        **options,
        hf_lam=None if arguments.control else mechanisms or None,
        num_hidden_layers=LAYERS,
        intermediate_size=2 * arguments.hidden_size,
        hidden_dropout_prob=0.1,
        layer_norm_eps=1e-6,
        initializer_range=arguments.hidden_size**-0.5,
        num_labels=TASKS[arguments.task],
    )
    return widen_like(model, mechanisms) if arguments.control else model


def calibrated_on(folder: str, train: Pairs, budget: float) -> LocomtConfig:
    """The table of views for the attention of a trained model, measured on 512 samples of the training set."""
    model = HfLamFusionForSequenceClassification.from_pretrained(folder)
    hf_lam.inject(model, LocomtConfig(views="full"))
    collate = DefaultDataCollator()
    samples = [train[index] for index in range(min(512, len(train)))]
    batches = [collate(samples[start : start + 64]) for start in range(0, len(samples), 64)]
    return hf_lam.calibrate_views(model, batches, budget)[0]


# --- a run -----------------------------------------------------------------------------------------------------------


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    kinds: Any = (DigitArguments, RunArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(per_device_train_batch_size=64, per_device_eval_batch_size=250, dataloader_pin_memory=False)
    wanted, training = parser.parse_args_into_dataclasses(arguments)
    names = ("seed", "num_train_epochs", "max_steps", "learning_rate", "weight_decay", "per_device_train_batch_size")
    settings = {**asdict(wanted), **{name: getattr(training, name) for name in names}}
    splits = {name: load_split(name, wanted) for name in SPLITS}
    epochs = max(1, round(training.num_train_epochs * ROUNDS[wanted.task]))
    train = pairs_of(wanted, splits["train"], training.seed, epochs)
    # The pairs of `match` hold all epochs.
    training = replace(training, num_train_epochs=1 if wanted.task == "match" else epochs)
    if is_recorded(training, settings):
        model = HfLamFusionForSequenceClassification.from_pretrained(str(training.output_dir))
    else:
        encoders: dict[str, Any] = {
            name: ViTForImageClassification(encoder_config(name, wanted.hidden_size))
            if training.check_only
            else encoder_of(name, splits["train"], wanted, training)
            for name in wanted.modalities
        }
        model = make_model(wanted, encoders, train, training.seed)
    trainer = RecordingTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=pairs_of(wanted, splits["validation"], 0),
        compute_metrics=accuracy,
    )
    return run_recorded(trainer, ["loss", "accuracy"], settings, pairs_of(wanted, splits["test"], 0))


if __name__ == "__main__":
    main()
