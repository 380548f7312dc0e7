"""Tiny fusion models with modalities of vectors, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch

from helpers.fusion_models import FUSION_CONFIGS, HOSTS, SIZES
from helpers.hosts import CONFIGS, make_inputs, perturb_mechanisms
from hf_lam import HfLamFusionConfig, HfLamFusionForSequenceClassification

# One of each kind: positions of its own, any length; learned ones; and vectors of the width of the fusion layers.
FEATURES: dict[str, Any] = {
    "clips": {"size": 20, "max_length": 9, "positions": "learned"},
    "words": {"size": 12},
    "summary": {"size": 32, "project": False, "norm": False, "positions": None, "class_tokens": 1},
}
# Vectors of the two samples of `make_vectors`.
COUNTS = {"clips": (6, 4), "words": (5, 3), "summary": (2, 2)}


def make_vector_fusion(
    model_class: Any = HfLamFusionForSequenceClassification,
    encoders: tuple[str, ...] = (),
    hf_lam: Any = None,
    **config: Any,
) -> Any:
    """A tiny fusion model in eval mode with `FEATURES`, after encoders of some of the four modalities.

    Args:
        model_class: its class.
        encoders: modalities that have an encoder.
        hf_lam: mechanisms: a name of `FUSION_CONFIGS`, mechanism configurations or their dictionary, or None.
        **config: options of `HfLamFusionConfig`.
    """
    torch.manual_seed(0)
    configs = {f"{name}_config": CONFIGS[HOSTS[name]](**SIZES[name]) for name in encoders}
    options = {"features": FEATURES, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37}
    options |= {"num_hidden_layers": 2, "num_labels": 3, "initializer_range": 0.1}
    block = FUSION_CONFIGS[hf_lam] or None if isinstance(hf_lam, str) else hf_lam
    model = model_class(HfLamFusionConfig(**{**configs, **options, **config}, hf_lam=block)).eval()
    if model.config.hf_lam is not None:
        perturb_mechanisms(model)
    return model


def make_vectors(names: Any = tuple(FEATURES)) -> dict[str, torch.Tensor]:
    """Vectors of two samples, with padding in the second one where it has fewer."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in names:
        longest, short = COUNTS[name]
        inputs[f"{name}_features"] = torch.randn(2, longest, FEATURES[name]["size"], generator=generator)
        if short < longest:
            inputs[f"{name}_mask"] = (torch.arange(longest) < torch.tensor([longest, short])[:, None]).long()
    return inputs


def make_text(batch: int = 2) -> dict[str, torch.Tensor]:
    """What `make_fusion_inputs` has of text."""
    return make_inputs("bert", batch=batch, seed=1)
