"""Samples of a fusion model as people have them, and the parts of a processor for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import ASTFeatureExtractor, BertTokenizerFast, VideoMAEImageProcessor, ViTImageProcessor

from hf_lam import HfLamFusionForSequenceClassification

from .hosts import make_host, perturb_mechanisms

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat", "saw", "another", "one"]
TEXTS = ["a cat sat", "the cat saw another cat on the mat", "one mat"]
RATE = 16000
HOSTS = {"text": "bert", "image": "vit", "video": "videomae", "audio": "ast"}
# What tables have for nothing.
MISSING = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT]


def make_parts() -> dict[str, Any]:
    """Those of a processor for all modalities with an encoder, which fit `make_fused`."""
    return {
        "tokenizer": BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=40),
        "image_processor": ViTImageProcessor(size={"height": 16, "width": 16}),
        "video_processor": VideoMAEImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, num_frames=4
        ),
        "feature_extractor": ASTFeatureExtractor(num_mel_bins=16, max_length=32),
    }


def make_fused() -> Any:
    """A small model for all modalities, whose mechanisms and classifier have a say in what it returns."""
    torch.manual_seed(0)
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        **{name: make_host(host) for name, host in HOSTS.items()},
        num_hidden_layers=2,
        num_labels=3,
        hf_lam={"locomt": {"views": "half"}, "lam": {"rank": 2}},
    ).eval()
    perturb_mechanisms(model)
    model.classifier.weight.data *= 50
    return model


def raw(count: int = 3) -> dict[str, list[Any]]:
    """Samples of all modalities, in the forms that processors take."""
    generator = np.random.default_rng(0)

    def picture() -> np.ndarray:
        return generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)

    return {
        "text": TEXTS[:count],
        "images": [Image.fromarray(picture()) for _ in range(count)],
        "videos": [[picture() for _ in range(4)] for _ in range(count)],
        "audio": [generator.standard_normal(3000 + 500 * i).astype(np.float32) for i in range(count)],
    }


def without(inputs: dict[str, list[Any]], **missing: list[int]) -> dict[str, list[Any]]:
    """The same samples, some of which lack a modality."""
    return {
        name: [None if i in missing.get(name, []) else value for i, value in enumerate(values)]
        for name, values in inputs.items()
    }


def process(processor: Any, inputs: dict[str, Any], **options: Any) -> Any:
    return processor(**inputs, sampling_rate=RATE, return_tensors="pt", padding=True, **options)


def rows(batch: Any) -> list[dict[str, Any]]:
    """The samples of a batch, as a data set has them."""
    count = len(next(iter(batch.values())))
    return [{key: values[i] for key, values in batch.items()} for i in range(count)]


def samples_of(processor: Any, inputs: dict[str, list[Any]], kind: str | None) -> list[dict[str, Any]]:
    """Every sample processed by itself, with what it has."""
    samples = []
    for i in range(len(inputs["text"])):
        one = {name: [values[i]] for name, values in inputs.items() if values[i] is not None}
        batch = processor(**one, sampling_rate=RATE, return_tensors=kind)
        samples.append({name: values[0] for name, values in batch.items()})
    return samples
