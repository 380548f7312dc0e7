"""Run the fine-tuning scripts: tiny checkpoints and data for them, their command line, and what they leave behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from helpers.hosts import SIZES
from helpers.scripts import script_module

COMMON: dict[str, Any] = {
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": "none",
    "logging_steps": 1,
    "do_train": True,
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "learning_rate": 1e-3,
}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
GOOD, BAD, OTHER = ("good", "great", "fine"), ("bad", "poor", "awful"), ("the", "a", "film", "plot", "is", "not")
TEXT, IMAGE, VIDEO = (f"run_{kind}_classification" for kind in ("text", "image", "video"))


def command_line(**options: Any) -> list[str]:
    """`--key value` for every option that is not None; a list has several values."""
    line = []
    for name, value in {**COMMON, **options}.items():
        if value is not None:
            line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line


def main(script: str, **options: Any) -> dict[str, float]:
    """The script in this process."""
    with script_module(script) as module:
        return module.main(command_line(**options))


def make_bert(folder: Path, **config: Any) -> str:
    """A tiny BERT with dropout, and a tokenizer that knows the words of `write_sentences`."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    torch.manual_seed(0)
    options = {**SIZES, **DROPOUT, "vocab_size": len(words), "max_position_embeddings": 40, **config}
    BertModel(BertConfig(**options)).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


def make_vit(folder: Path, **config: Any) -> str:
    torch.manual_seed(0)
    options = {**SIZES, **DROPOUT, "image_size": 8, "patch_size": 4, "num_labels": 10, **config}
    ViTForImageClassification(ViTConfig(**options)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def make_videomae(folder: Path) -> str:
    torch.manual_seed(0)
    config = VideoMAEConfig(**SIZES, image_size=16, patch_size=8, num_frames=4, num_labels=4)
    VideoMAEForVideoClassification(config).save_pretrained(folder)
    sides = {"height": 16, "width": 16}
    VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size=sides).save_pretrained(folder)
    return str(folder)


def write_sentences(path: Path, count: int, seed: int = 0) -> str:
    """A csv file; the class of a sentence is that of one of its words."""
    generator = torch.Generator().manual_seed(seed)
    pick = lambda words: words[int(torch.randint(len(words), (), generator=generator))]  # noqa: E731
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for index in range(count):
            words = [pick(OTHER) for _ in range(2 + int(torch.randint(5, (), generator=generator)))]
            words[index % len(words)] = pick(GOOD if index % 2 else BAD)
            writer.writerow([" ".join(words), index % 2])
    return str(path)


def write_digits(folder: Path, train: int = 48, validation: int = 20) -> str:
    """Scikit-learn's digits in the form of an imagefolder."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(train + validation):
        split = "train" if index < train else "validation"
        target = folder / split / f"digit_{digits.target[index]}" / f"{index:04}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype("uint8")).save(target)
    return str(folder)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses_in(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def results_in(folder: Path) -> dict[str, float]:
    return json.loads((folder / "all_results.json").read_text())
