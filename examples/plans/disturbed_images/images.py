"""Take a small ViT from dot products to synthesised attention (STT), and test it on disturbed images.

For every seed a ViT is trained from scratch, and kept in `--checkpoints_dir`. The same checkpoint then goes four ways,
for as many further steps in the same order:

    stock      the ViT as it is
    dense      `SttConfig("dense")` at once: without queries and keys, its maps untrained
    random     `SttConfig("random")` at once
    hardened   `SttConfig("mixture")`: `fit_synthesizers`, then `SttAnnealingCallback`, then `harden`, which leaves
               what `dense` is, but not from untrained maps

All are tested on images as they are (`accuracy`), and with `noise`, `blur` and `occlusion`, none of which they were
trained on.

    python images.py --data digits --way hardened --checkpoints_dir checkpoints --max_steps 600 --learning_rate 1e-3 \\
        --do_train --do_eval --output_dir out

`digits` are scikit-learn's (8 × 8 pixels, a patch is a pixel); half of its test images are those of validation here.
`av_mnist` are the images of `--data_dir`: `train.parquet`, `validation.parquet` and `test.parquet` with the columns
`image`, `image_shape` and `label` (28 × 28 pixels, a patch is 4 × 4).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import hf_lam
from hf_lam.demo import Images
from hf_lam.training import SttAnnealingCallback
from hf_lam.training.arguments import RunArguments
from hf_lam.training.recorded_runs import is_recorded, run_recorded, train_once
from hf_lam.training.recording import RecordingTrainer

WAYS = ("stock", "dense", "random", "hardened")
DATA = ("digits", "av_mnist")
SPLITS = ("train", "validation", "test")
CONDITIONS = ("accuracy", "noise", "blur", "occlusion")
# The synthesizers are fitted to the attention on this many training images.
FIT_IMAGES = 512


@dataclass
class ImageArguments:
    """The images to use, and the way to disturb them."""

    checkpoints_dir: str = field(metadata={"help": "Folder of the ViTs that the rows of a seed start from."})
    data: str = field(default="digits", metadata={"help": f"One of {', '.join(DATA)}."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the parquet files of av_mnist."})
    way: str = field(default="stock", metadata={"help": f"One of {', '.join(WAYS)}."})
    vit_steps: int = field(default=1000, metadata={"help": "For the ViT that all rows start from."})
    annealing_end: float = field(
        default=0.3, metadata={"help": "Fraction of --max_steps after which `hardened` has no dot products any more."}
    )
    hidden_size: int = field(default=64, metadata={"help": "Width of the ViT, with 4 layers of 4 heads."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images."})

    def __post_init__(self) -> None:
        for option, given, known in (("--data", self.data, DATA), ("--way", self.way, WAYS)):
            if given not in known:
                raise ValueError(f"{option} {given!r} is unknown: choose one of {', '.join(known)}.")
        if self.data == "av_mnist":
            missing = [name for name in SPLITS if not Path(self.data_dir or "", f"{name}.parquet").is_file()]
            if missing:
                raise ValueError(f"--data_dir {self.data_dir!r} has no {missing[0]}.parquet.")


# --- data ------------------------------------------------------------------------------------------------------------


def load_images(arguments: ImageArguments) -> dict[str, Images]:
    """The images of each split, `(N, 1, H, W)` with values from 0 to 1."""
    if arguments.data == "digits":
        digits = load_digits()
        pixels, labels = digits.images / 16, digits.target
        splits = {}
        for name, share in (("train", 0.3), ("validation", 0.5)):
            part, pixels, of_part, labels = train_test_split(
                pixels, labels, test_size=share, random_state=0, stratify=labels
            )
            splits[name] = _images(part, of_part)
        splits["test"] = _images(pixels, labels)
    else:
        splits = {name: _read(Path(str(arguments.data_dir), f"{name}.parquet")) for name in SPLITS}
    count = arguments.max_train_samples
    train = splits["train"]
    return {**splits, "train": Images(train.pixel_values[:count], train.labels[:count])}


def _read(path: Path) -> Images:
    rows = Dataset.from_parquet(str(path)).select_columns(["image", "image_shape", "label"])
    pixels = [np.frombuffer(row["image"], np.uint8).reshape(row["image_shape"]) for row in rows]
    return _images(np.stack(pixels) / 255, np.array(rows["label"]))


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    return Images(torch.from_numpy(pixels).float().unsqueeze(1), torch.from_numpy(labels).long())


def disturbed(images: Images, condition: str) -> Images:
    """The images with one disturbance, the same for every run: its random part has a seed of its own."""
    pixels = images.pixel_values
    generator = torch.Generator().manual_seed(0)
    if condition == "noise":
        pixels = (pixels + 0.3 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    elif condition == "blur":
        pixels = blurred(pixels, sigma=pixels.shape[-1] / 14)
    elif condition == "occlusion":
        pixels = occluded(pixels, round(0.4 * pixels.shape[-1]), generator)
    return Images(pixels, images.labels)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Convolved with a Gaussian of `sigma` pixels, the border repeated."""
    radius = max(1, round(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    padded = torch.nn.functional.pad(pixels, (radius,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, weights.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, weights.view(1, 1, 1, -1))


def occluded(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cover a random place of each image with a black square of `size` pixels."""
    height, width = pixels.shape[2:]
    pixels = pixels.clone()
    tops = torch.randint(height - size + 1, (len(pixels),), generator=generator)
    lefts = torch.randint(width - size + 1, (len(pixels),), generator=generator)
    for image, top, left in zip(pixels, tops.tolist(), lefts.tolist(), strict=True):
        image[:, top : top + size, left : left + size] = 0
    return pixels


# --- models ----------------------------------------------------------------------------------------------------------


def make_vit(size: int, hidden_size: int) -> ViTForImageClassification:
    """Four layers on patches of a seventh of the image, or of one pixel where it is small."""
    options: dict[str, Any] = {"num_labels": 10}
    config = ViTConfig(
        image_size=size,
        patch_size=max(1, size // 7),
        num_channels=1,
        hidden_size=hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        **options,
    )
    return ViTForImageClassification(config)


def vit_of(train: Images, arguments: ImageArguments, training: RunArguments) -> PreTrainedModel:
    """The ViT that all rows of a seed start from; trained now if it is not there. `--check_only` has it untrained."""
    decides = (arguments.hidden_size, arguments.vit_steps, training.learning_rate)
    folder = Path(arguments.checkpoints_dir, "-".join(map(str, (arguments.data, training.seed, len(train), *decides))))
    set_seed(training.seed)
    model = make_vit(train.pixel_values.shape[-1], arguments.hidden_size)
    if training.check_only:
        return model
    train_once(folder, model, train, training, max_steps=arguments.vit_steps)
    return ViTForImageClassification.from_pretrained(folder)


def take_way(model: PreTrainedModel, train: Images, arguments: ImageArguments, fits: bool) -> PreTrainedModel:
    if arguments.way == "stock":
        return model
    if arguments.way != "hardened":
        return hf_lam.convert(model, hf_lam.SttConfig(arguments.way))
    model = hf_lam.convert(model, hf_lam.SttConfig("mixture"))
    if fits:
        batches = [{"pixel_values": part} for part in train.pixel_values[:FIT_IMAGES].split(64)]
        hf_lam.fit_synthesizers(model, batches)
    return model


# --- a run -----------------------------------------------------------------------------------------------------------


class DisturbingTrainer(RecordingTrainer):
    """Evaluates on the images as they are, and with each disturbance."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        images: Any = eval_dataset or self.eval_dataset
        metrics = {
            f"{metric_key_prefix}_{condition}": self.accuracy(disturbed(images, condition)) for condition in CONDITIONS
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def accuracy(self, images: Images) -> float:
        model: Any = self.model
        model.eval()
        right = sum(
            int((model(pixel_values=pixels.to(model.device)).logits.argmax(-1).cpu() == labels).sum())
            for pixels, labels in zip(images.pixel_values.split(256), images.labels.split(256), strict=True)
        )
        return right / len(images)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    kinds: Any = (ImageArguments, RunArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(per_device_train_batch_size=64, lr_scheduler_type="cosine", dataloader_pin_memory=False)
    wanted, training = parser.parse_args_into_dataclasses(arguments)
    names = ("seed", "max_steps", "num_train_epochs", "learning_rate", "weight_decay", "per_device_train_batch_size")
    settings = {**asdict(wanted), **{name: getattr(training, name) for name in names}}
    images = load_images(wanted)
    model: Any
    if is_recorded(training, settings):
        model = AutoModelForImageClassification.from_pretrained(str(training.output_dir))
    else:
        vit = vit_of(images["train"], wanted, training)
        set_seed(training.seed)
        model = take_way(vit, images["train"], wanted, fits=not training.check_only)
    is_mixture = wanted.way == "hardened"
    trainer = DisturbingTrainer(
        model=model,
        args=training,
        train_dataset=images["train"],
        eval_dataset=images["validation"],
        callbacks=[SttAnnealingCallback(end=wanted.annealing_end)] if is_mixture and training.do_train else [],
    )
    finish = hf_lam.harden if is_mixture else None
    return run_recorded(trainer, CONDITIONS, settings, images["test"], finish)


if __name__ == "__main__":
    main()
