"""Take a ViT from dot products to synthesised attention, and see what that does to accuracy and robustness.

For every seed a small ViT is trained from scratch. Then the same checkpoint goes four ways, for as many further steps
in the same order:

    stock      the ViT as it is
    dense      `SttConfig("dense")` at once: without queries and keys, its maps untrained
    random     `SttConfig("random")` at once
    hardened   `SttConfig("mixture")`: `fit_synthesizers`, then `SttAnnealingCallback`, then `harden`, which leaves
               what `dense` is, but not from untrained maps

All are tested on images as they are, and with noise, blur and occlusion, none of which they were trained on.

    python examples/stt_images.py --data digits av_mnist --output_dir stt-images --seeds 0 1 2

`digits` are scikit-learn's 8 × 8 digits; `av_mnist` are the images of `--data_dir` (`train.parquet` and
`test.parquet` with the columns `image`, `image_shape` and `label`). Every finished run is a JSON file in
`--output_dir`; started again, the script goes on where it was stopped.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from study import Run, mean_sd, run_all, stored_result, trained, write_results
from torch import Tensor
from transformers import (
    HfArgumentParser,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from transformers.utils import logging

import hf_lam
from hf_lam.demo import Images
from hf_lam.training import SttAnnealingCallback

RUNS = ("stock", "dense", "random", "hardened")
DATA = ("digits", "av_mnist")
CONDITIONS = ("clean", "noise", "blur", "occlusion")
# The synthesizers are fitted to the attention on this many training images.
FIT_IMAGES = 512


@dataclass
class StudyArguments:
    """What is compared. How it is trained is in transformers' own `TrainingArguments`."""

    data: list[str] = field(default_factory=lambda: list(DATA), metadata={"help": f"Which of {', '.join(DATA)}."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the parquet files of av_mnist; default $HF_LAM_DATA/av_mnist."}
    )
    runs: list[str] = field(default_factory=lambda: list(RUNS), metadata={"help": f"Which of {', '.join(RUNS)}."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run of each kind per seed."})
    vit_steps: int = field(default=1000, metadata={"help": "For the ViT that all runs start from."})
    more_steps: int = field(default=600, metadata={"help": "For each run."})
    annealing_end: float = field(
        default=0.3, metadata={"help": "Fraction of --more_steps after which `hardened` has no dot products any more."}
    )
    hidden_size: int = field(default=64, metadata={"help": "Width of the ViT, with 4 layers of 4 heads."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images."})
    quick: bool = field(default=False, metadata={"help": "A try-out: 256 training images, a few steps."})

    def __post_init__(self) -> None:
        for option, given, known in (("--runs", self.runs, RUNS), ("--data", self.data, DATA)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"{option}: unknown {unknown}; choose from {', '.join(known)}.")
        if self.quick:
            self.max_train_samples = self.max_train_samples or 256
            self.vit_steps = self.more_steps = 5

    @property
    def folder(self) -> Path:
        root = os.environ.get("HF_LAM_DATA")
        if self.data_dir is None and not root:
            raise ValueError("give --data_dir FOLDER, or set HF_LAM_DATA to the folder that holds av_mnist/.")
        return Path(self.data_dir or Path(str(root), "av_mnist"))


# --- Data ------------------------------------------------------------------------------------------------------------


def load_images(name: str, study: StudyArguments) -> tuple[Images, Images]:
    """Training and test images, `(N, 1, H, W)` with values from 0 to 1."""
    if name == "digits":
        digits = load_digits()
        parts = train_test_split(
            digits.images / 16, digits.target, test_size=0.3, random_state=0, stratify=digits.target
        )
        train, test = (_images(*pair) for pair in ((parts[0], parts[2]), (parts[1], parts[3])))
    else:
        train, test = (_read(study.folder / f"{split}.parquet") for split in ("train", "test"))
    count = study.max_train_samples
    return Images(train.pixel_values[:count], train.labels[:count]), test


def _read(path: Path) -> Images:
    if not path.is_file():
        raise ValueError(f"--data_dir {str(path.parent)!r} has no {path.name}.")
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
    """With a black square of `size` pixels at a random place in each."""
    height, width = pixels.shape[2:]
    pixels = pixels.clone()
    tops = torch.randint(height - size + 1, (len(pixels),), generator=generator)
    lefts = torch.randint(width - size + 1, (len(pixels),), generator=generator)
    for image, top, left in zip(pixels, tops.tolist(), lefts.tolist(), strict=True):
        image[:, top : top + size, left : left + size] = 0
    return pixels


# --- One run ---------------------------------------------------------------------------------------------------------


def make_vit(train: Images, study: StudyArguments) -> ViTForImageClassification:
    """Four layers on patches of a seventh of the image, or of one pixel where it is small."""
    size = train.pixel_values.shape[-1]
    options: dict[str, Any] = {"num_labels": 10}
    config = ViTConfig(
        image_size=size,
        patch_size=max(1, size // 7),
        num_channels=1,
        hidden_size=study.hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=2 * study.hidden_size,
        **options,
    )
    return ViTForImageClassification(config)


def run_one(
    run: str, seed: int, vit: Path, train: Images, test: Images, study: StudyArguments, training: TrainingArguments
) -> dict[str, Any]:
    """Take the checkpoint `vit` one of the ways, and test where it leads. Plain JSON values."""
    set_seed(seed)
    model: Any = ViTForImageClassification.from_pretrained(vit)
    callbacks: list[TrainerCallback] = []
    fit = None
    if run == "hardened":
        model = hf_lam.convert(model, hf_lam.SttConfig("mixture"))
        batches = [{"pixel_values": part} for part in train.pixel_values[:FIT_IMAGES].split(64)]
        fit = hf_lam.fit_synthesizers(model, batches).to_dict()
        callbacks.append(SttAnnealingCallback(end=study.annealing_end))
    elif run != "stock":
        model = hf_lam.convert(model, hf_lam.SttConfig(run))
    before = {condition: accuracy(model, disturbed(test, condition)) for condition in CONDITIONS}
    seconds = trained(model, train, training, seed, study.more_steps, callbacks)
    if run == "hardened":
        hf_lam.harden(model)
    report = hf_lam.cost(model)
    return {
        "run": run,
        "seed": seed,
        "accuracy_before": before,
        "accuracy": {condition: accuracy(model, disturbed(test, condition)) for condition in CONDITIONS},
        "fit": fit,
        "parameters": report.parameters,
        "attention_flops": report.forward_attention,
        "synthesis_flops": report.synthesis,
        "flops": report.flops,
        "train_images": len(train),
        "test_images": len(test),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def accuracy(model: PreTrainedModel, images: Images) -> float:
    """Fraction of the images that the model classifies right."""
    model.eval()
    right = sum(
        int((model(pixel_values=pixels.to(model.device)).logits.argmax(-1).cpu() == labels).sum())
        for pixels, labels in zip(images.pixel_values.split(256), images.labels.split(256), strict=True)
    )
    return right / len(images)


# --- The study -------------------------------------------------------------------------------------------------------


def settings_of(data: str, run: str, seed: int, study: StudyArguments, training: TrainingArguments) -> dict[str, Any]:
    """Everything that decides a run's result: a stored result counts only for the same settings."""
    return {
        "data": data,
        "run": run,
        "seed": seed,
        "vit_steps": study.vit_steps,
        "more_steps": study.more_steps,
        "annealing_end": study.annealing_end if run == "hardened" else None,
        "hidden_size": study.hidden_size,
        "max_train_samples": study.max_train_samples,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "batch_size": training.per_device_train_batch_size,
    }


def markdown_table(results: list[dict[str, Any]]) -> str:
    """Accuracy in percent, mean ± standard deviation over the seeds, one table for each kind of images."""
    lines = []
    for data in dict.fromkeys(result["data"] for result in results):
        lines += [
            f"| {data} | clean | noise | blur | occlusion | parameters | GFLOPs |",
            "| --- | --- | --- | --- | --- | ---: | ---: |",
        ]
        for run in RUNS:
            of_run = [result for result in results if result["data"] == data and result["run"] == run]
            if of_run:
                cells = [
                    mean_sd([100 * result["accuracy"][condition] for result in of_run]) for condition in CONDITIONS
                ]
                first = of_run[0]
                lines.append(f"| {run} | {' | '.join(cells)} | {first['parameters']:,} | {first['flops'] / 1e9:.4f} |")
        lines.append("")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> tuple[StudyArguments, TrainingArguments]:
    kinds: Any = (StudyArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(
        output_dir="stt-images",
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
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
        images = {data: load_images(data, study) for data in study.data}
        runs = [
            Run(
                (data, run, seed),
                output / "runs" / f"{data}-{run}-seed{seed}.json",
                settings_of(data, run, seed, study, training),
            )
            for data in study.data
            for seed in study.seeds
            for run in study.runs
        ]
        done = [stored_result(run.path, run.settings) for run in runs]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.set_verbosity_error()

    def measure(data: str, run: str, seed: int) -> dict[str, Any]:
        train, test = images[data]
        vit = output / "checkpoints" / f"{data}-seed{seed}"
        if not vit.is_dir():
            set_seed(seed)
            model = make_vit(train, study)
            trained(model, train, training, seed, study.vit_steps)
            partial = vit.with_name(f".{vit.name}.partial")
            model.save_pretrained(partial)
            os.replace(partial, vit)
        return {"data": data, **run_one(run, seed, vit, train, test, study, training)}

    results = run_all(runs, done, measure)
    write_results(output, results, markdown_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
