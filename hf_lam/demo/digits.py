"""The data of the demo, handwritten digits, and a ViT for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification


class Images(Dataset[dict[str, torch.Tensor]]):
    """Digits as a model takes them: pixel values `(N, 3, 8, 8)` and labels `(N,)`."""

    def __init__(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        self.pixel_values = pixel_values
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


@dataclass(frozen=True)
class Digits:
    """The three splits, the processor that made them, and the first test image as it was before."""

    train: Images
    validation: Images
    test: Images
    processor: Any
    sample: Any


def load_data(seed: int) -> Digits:
    """The 1,797 digits, split 70 / 15 / 15 with the same share of every class, as the image processor gives them."""
    from PIL import Image
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    # The PIL processor, because torchvision is not required; three channels, as image pipelines give them.
    processor = ViTImageProcessorPil(
        do_convert_rgb=True, size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image).convert("RGB") for image in grey]
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    labels = torch.from_numpy(data.target).long()
    train, rest = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=seed, stratify=data.target)
    validation, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=data.target[rest])

    def subset(indices: np.ndarray) -> Images:
        return Images(pixel_values[indices], labels[indices])

    return Digits(subset(train), subset(validation), subset(test), processor, images[test[0]])


def make_vit() -> ViTForImageClassification:
    """A ViT of 4 layers, 4 heads and width 64 for images of 8 × 8 pixels, with random weights."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=3,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    return ViTForImageClassification(config)


def logits_of(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """`(N, 3, 8, 8)` to `(N, 10)`, in evaluation mode."""
    with torch.no_grad():
        return model.eval()(pixel_values=pixel_values).logits


def accuracy_on(model: Any, images: Images) -> float:
    """The share of images whose digit has the largest logit."""
    return float((logits_of(model, images.pixel_values).argmax(-1) == images.labels).float().mean())


def measure_difference(logits: torch.Tensor, others: torch.Tensor) -> float:
    """The largest difference of two logits."""
    return float((logits - others).abs().max())


def count_parameters(model: Any) -> int:
    """All parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
