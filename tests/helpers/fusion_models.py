"""Tiny fusion models of text, image, video and audio, and inputs for them.

Any of the modalities can be one of vectors instead of one with an encoder (`as_features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from helpers.hosts import CONFIGS, make_inputs, perturb_mechanisms
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForSequenceClassification,
    HfLamFusionModel,
    LamConfig,
    LocomtConfig,
    mechanism_parameters,
)
from hf_lam.modeling.configuration_hf_lam_fusion import (
    ENCODER_ARGUMENTS,
    INPUT_NAMES,
    MODALITIES,
    feature_arguments,
)

HOSTS = {"text": "bert", "image": "vit", "video": "videomae", "audio": "ast"}
# Sizes other than the hosts': the video has another width than the fusion layers, so it is projected.
SIZES: dict[str, dict[str, int]] = {
    "text": {"num_hidden_layers": 2},
    "image": {"num_hidden_layers": 1},
    "video": {"num_hidden_layers": 1, "hidden_size": 24},
    "audio": {"num_hidden_layers": 1},
}
# Tokens of each modality with the inputs of `make_fusion_inputs`.
LENGTHS = {"text": 11, "image": 17, "video": 8, "audio": 34}
# Of modalities of vectors: one has learned positions, and one a token for the sample, as its encoder would.
FEATURES: dict[str, dict[str, Any]] = {
    "text": {"size": 12, "max_length": 40, "class_tokens": 1},
    "image": {"size": 20, "max_length": 17, "positions": "learned"},
    "video": {"size": 24, "max_length": 8, "norm": False},
    "audio": {"size": 32, "max_length": 34, "project": False, "norm": False, "positions": None, "class_tokens": 2},
}

DIRECTED = [
    ["text>image", "self", "full", "self:audio+video>text"],
    ["audio>image+self:text", "image>audio", "cross:text-video", "self+text>audio"],
]
# What the fusion layers can have, for four modalities, two layers and four heads.
FUSION_CONFIGS: dict[str, tuple[LamConfig | LocomtConfig, ...]] = {
    "none": (),
    "full": (LocomtConfig(views="full"),),
    "half": (LocomtConfig(views="half"),),
    "random": (LocomtConfig(views="random(1)"),),
    "directed": (LocomtConfig(views=DIRECTED),),
    "bottleneck": (LocomtConfig(views="self", bottleneck_tokens=2),),
    "lam": (LamConfig(),),
    "lam_shared_rank": (LamConfig(scope="shared", rank=2, per_head=True),),
    "lam_embeddings": (LamConfig(source="embeddings", per_head=True),),
    "lam_half": (LamConfig(), LocomtConfig(views="half")),
    "annealing": (LocomtConfig(views="half", annealing=True),),
}


def fusion_config(
    modalities: Sequence[str] = MODALITIES,
    num_hidden_layers: int = 2,
    hf_lam: Any = None,
    sizes: dict[str, dict[str, Any]] | None = None,
    as_features: Sequence[str] = (),
    **config: Any,
) -> HfLamFusionConfig:
    """A configuration of tiny encoders, or vectors; see `make_fusion`."""
    encoders: dict[str, Any] = {
        f"{name}_config": CONFIGS[HOSTS[name]](**SIZES[name], **(sizes or {}).get(name, {}))
        for name in modalities
        if name not in as_features
    }
    if as_features:
        encoders["features"] = {
            name: {**FEATURES[name], **(sizes or {}).get(name, {})} for name in modalities if name in as_features
        }
    if isinstance(hf_lam, str):
        hf_lam = FUSION_CONFIGS[hf_lam]
    options = {"modalities": list(modalities), "hidden_size": 32, "intermediate_size": 37, "num_labels": 3}
    options["num_attention_heads"] = 4
    return HfLamFusionConfig(
        **encoders,
        **{**options, "num_hidden_layers": num_hidden_layers, "hf_lam": hf_lam or None, **config},
    )


def make_fusion(
    modalities: Sequence[str] = MODALITIES,
    head: bool = True,
    num_hidden_layers: int = 2,
    hf_lam: Any = None,
    perturb: bool = True,
    seed: int = 0,
    **config: Any,
) -> Any:
    """A tiny fusion model in eval mode, all of whose parameters are random, biases too, with logits of size 1.

    Args:
        modalities: which, in the order of the sequence.
        head: `HfLamFusionForSequenceClassification`, or else `HfLamFusionModel`.
        num_hidden_layers: fusion layers.
        hf_lam: mechanisms: a name of `FUSION_CONFIGS`, mechanism configurations or their dictionary, or None.
        perturb: move the mechanisms away from the identity.
        seed: of all weights.
        **config: options of `HfLamFusionConfig`, and `as_features`: modalities that are given as vectors.
    """
    config.setdefault("initializer_range", 0.1)
    torch.manual_seed(seed)
    model_class: Any = HfLamFusionForSequenceClassification if head else HfLamFusionModel
    model = model_class(fusion_config(modalities, num_hidden_layers, hf_lam, **config)).eval()
    has_mechanisms = model.config.hf_lam is not None
    mechanisms = {id(parameter) for parameter in (mechanism_parameters(model) if has_mechanisms else ())}
    for parameter in model.parameters():
        if id(parameter) not in mechanisms:
            parameter.data += 0.1 * torch.randn_like(parameter)
    if head:
        model.classifier.weight.data.normal_()
    if perturb and has_mechanisms:
        perturb_mechanisms(model)
    return model


def make_fusion_inputs(
    modalities: Sequence[str] = MODALITIES, batch: int = 2, seed: int = 1, as_features: Sequence[str] = ()
) -> dict[str, Any]:
    """Inputs by modality, of the lengths in `LENGTHS`; the text of every second sample has 7 tokens and padding."""
    inputs: dict[str, Any] = {}
    for i, name in enumerate(modalities):
        if name in as_features:
            values = make_vectors(name, batch, seed + i)
        else:
            values = make_inputs(HOSTS[name], batch=batch, seed=seed + i)
            if name != "text":
                values = {INPUT_NAMES[name]: next(iter(values.values()))}
        inputs |= values
    return inputs


def make_vectors(name: str, batch: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, LENGTHS[name], FEATURES[name]["size"], generator=generator)
    if name != "text":
        return {f"{name}_features": values}
    mask = torch.ones(batch, LENGTHS[name], dtype=torch.long)
    mask[1::2, 7:] = 0
    return {f"{name}_features": values, f"{name}_mask": mask}


def arguments_of(name: str) -> set[str]:
    """What a modality is given with, but for `has_…`, with an encoder or as vectors."""
    return {*ENCODER_ARGUMENTS[name].names, *feature_arguments(name).names}


def lacking(model: torch.nn.Module) -> list[str]:
    """The parameters without a finite gradient."""
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
