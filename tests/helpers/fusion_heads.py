"""Tiny fusion models of text and two modalities of vectors with each of the heads, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config

from helpers.hosts import CONFIGS, perturb_mechanisms
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForConditionalGeneration,
    HfLamFusionForEmbedding,
    HfLamFusionForMomentRetrieval,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    LamConfig,
    LocomtConfig,
)

HEADS: dict[str, Any] = {
    "sequence": HfLamFusionForSequenceClassification,
    "token": HfLamFusionForTokenClassification,
    "embedding": HfLamFusionForEmbedding,
    "moments": HfLamFusionForMomentRetrieval,
    "generation": HfLamFusionForConditionalGeneration,
}
MECHANISMS: dict[str, Any] = {
    "none": None,
    "half": LocomtConfig(views="half"),
    "bottleneck": LocomtConfig(views="self", bottleneck_tokens=2),
    "lam": LamConfig(rank=2),
    "lam_half": (LamConfig(rank=2), LocomtConfig(views="half")),
}
# The decoder's words, and the tokens around a text.
WORDS, PAD, START, END = 40, 0, 1, 2
# Vectors of the longest sample, and of the second.
LENGTH, SHORT = 6, 4


def head_config(mechanism: str = "none", **options: Any) -> HfLamFusionConfig:
    defaults = {
        "text_config": CONFIGS["bert"](num_hidden_layers=1),
        "features": {"clips": {"size": 5, "dropout": 0.0}, "sound": {"size": 7, "norm": False}},
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "num_labels": 3,
        "projection_dim": 8,
        "moments": {"num_queries": 4, "dropout": 0.0},
        "initializer_range": 0.1,
        "hf_lam": MECHANISMS[mechanism],
    }
    return HfLamFusionConfig(**{**defaults, **options})


def make_head(head: str, mechanism: str = "none", seed: int = 0, **options: Any) -> Any:
    """One of `HEADS` in eval mode; the mechanisms are not at the identity."""
    torch.manual_seed(seed)
    if head == "generation":
        options = {"decoder": decoder_config(), "decoder_start_token_id": START, "pad_token_id": PAD} | options
    model = HEADS[head](head_config(mechanism, **options)).eval()
    for module in model.children():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_()
    if model.config.hf_lam is not None:
        perturb_mechanisms(model)
    return model


def decoder_config(**options: Any) -> GPT2Config:
    """Of another width than the fusion layers."""
    sizes = {"vocab_size": WORDS, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**sizes, **dropouts, initializer_range=0.1, bos_token_id=START, eos_token_id=END, **options)


def head_inputs(batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Every second sample is shorter, in all three modalities."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, LENGTH, dtype=torch.long)
    mask[1::2, SHORT:] = 0
    return {
        "input_ids": torch.randint(1, 99, (batch, LENGTH), generator=generator),
        "attention_mask": mask,
        "clips_features": torch.randn(batch, LENGTH, 5, generator=generator),
        "clips_mask": mask.clone(),
        "sound_features": torch.randn(batch, LENGTH, 7, generator=generator),
        "sound_mask": mask.clone(),
    }


def take(inputs: dict[str, Tensor], index: int, length: int = LENGTH) -> dict[str, Tensor]:
    """One sample alone, cut to its own length."""
    alone = {key: value[index : index + 1] for key, value in inputs.items()}
    return {key: value if key.startswith("has_") else value[:, :length] for key, value in alone.items()}


def token_labels(batch: int = 2, classes: int = 3, seed: int = 2) -> Tensor:
    """A class for each vector, none for the padding of `head_inputs`."""
    labels = torch.randint(0, classes, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels[1::2, SHORT:] = -100
    return labels


def text_labels(batch: int = 2, length: int = 5, seed: int = 4) -> Tensor:
    """Words and the end of a text; every second text is shorter."""
    labels = torch.randint(3, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))
    labels[:, -1] = END
    labels[1::2, -3:] = torch.tensor([END, -100, -100])
    return labels


def moment_labels(batch: int = 2, seed: int = 3) -> dict[str, Tensor]:
    """Two windows in every second sample, one in the others; people's scores of the clips in them."""
    generator = torch.Generator().manual_seed(seed)
    spans = torch.rand(batch, 2, 2, generator=generator) * 0.5 + 0.25
    spans[1::2, 1] = torch.nan
    scores = torch.full((batch, LENGTH), -1.0)
    scores[:, 1:3] = torch.tensor([3.0, 9.0])
    scores[1::2, SHORT:] = torch.nan
    return {"span_labels": spans, "saliency_labels": scores}
