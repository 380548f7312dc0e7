# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The encoders of the fusion model's modalities: made for it, and taken over from checkpoints.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .fusion_layers_hf_lam import FusionEncoder
from .hosts_facts_hf_lam import LAST_NORMS, LAYER_FAMILIES, LAYER_OPTIONS, PARTS, UNUSED_NORMS, read_input_shape
from .injection_hf_lam import injected_encoders

# Dimensions of one sample. Audio is mel bands over time, for an audio encoder or as an image with channels.
_DIMENSIONS = {"text": (1,), "image": (3,), "video": (4,), "audio": (2, 3)}


def make_encoder(name: str, config: Any) -> Any:
    """The encoder of a modality, without what a fusion model has no use for."""
    encoder_config = config.modality_config(name)
    if type(encoder_config) not in MODEL_MAPPING:
        raise ValueError(f"AutoModel knows no model for the {type(encoder_config).__name__} of the {name}.")
    model_class: Any = MODEL_MAPPING[type(encoder_config)]
    if isinstance(model_class, (tuple, list)):
        model_class = model_class[0]
    if getattr(encoder_config, "is_encoder_decoder", False) or getattr(encoder_config, "is_decoder", False):
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which is a decoder or has one; give an encoder."
        )
    is_text = model_class.main_input_name == "input_ids"
    if is_text != (name == "text"):
        wanted = "input_ids" if name == "text" else "pixel_values or input_values"
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which takes {model_class.main_input_name}; an encoder for "
            f"{name} takes {wanted}."
        )
    if getattr(encoder_config, "mask_ratio", None):
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which drops tokens at random "
            f"(mask_ratio={encoder_config.mask_ratio}); give another encoder, such as ViT."
        )
    shape = read_input_shape(encoder_config)
    if not is_text and shape is None:
        raise ValueError(
            f"{type(encoder_config).__name__} of the {name} does not say how large its inputs are (image_size and "
            "num_channels, or max_length and num_mel_bins), which a fusion model needs."
        )
    if shape is not None and len(shape) not in _DIMENSIONS[name]:
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which takes inputs of shape (batch, "
            f"{', '.join(map(str, shape))}); that is no {name}."
        )
    # Parameters without a gradient would stop data parallel training: mask tokens, poolers, and norms before those.
    if hasattr(encoder_config, "vision_use_head"):
        encoder_config.vision_use_head = False
    has_option = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    encoder = model_class(encoder_config, **({"add_pooling_layer": False} if has_option else {}))
    if isinstance(getattr(encoder, "pooler", None), nn.Module):
        encoder.pooler = None
    for child in UNUSED_NORMS.get(encoder_config.model_type, ()):
        setattr(encoder, child, nn.Identity())
    for module in encoder.modules():
        if isinstance(getattr(module, "mask_token", None), nn.Parameter):
            module.mask_token = None
    if any(getattr(module, "is_causal", False) for module in encoder.modules()):
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, whose tokens see only what comes before them; give an "
            "encoder such as BERT."
        )
    if config.norm_first and config.num_hidden_layers > 0:
        for child in LAST_NORMS:
            if getattr(encoder, child, None) is not None:
                setattr(encoder, child, nn.Identity())
    return encoder


# --- from pretrained encoders ----------------------------------------------------------------------------------------


def check_config_options(config_class: Any, options: Mapping[str, Any]) -> None:
    """A misspelt option would become an attribute of the configuration that nobody reads."""
    known = {field.name for field in dataclasses.fields(config_class)}
    known |= {"baseline", "num_labels", "attn_implementation", "output_attentions", "name_or_path"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(
            f"from_modality_pretrained has no option {', '.join(unknown)}: give modalities, options of "
            f"{config_class.__name__}, or for from_pretrained those with the name of a modality in front."
        )


def load_source(name: str, source: Any, options: dict[str, Any]) -> Any:
    """The encoder of a modality's checkpoint."""
    if isinstance(source, PreTrainedModel):
        if options:
            raise ValueError(f"{sorted(options)} have no meaning for {name}, which is a loaded model.")
        if injected_encoders(source):
            raise ValueError(
                f"the {name} model has hf_lam mechanisms of its own, which a fusion model would lose: it has them in "
                "its fusion layers. Call hf_lam.remove on it first."
            )
        return source.base_model
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{name} must be a transformers model, a folder or a Hub id, got {type(source).__name__}.")
    return AutoModel.from_pretrained(source, **options).base_model


def copy_encoder(name: str, source: nn.Module, target: nn.Module) -> None:
    expected, found = target.state_dict(), source.state_dict()
    lacking = sorted(key for key in expected if key not in found or found[key].shape != expected[key].shape)
    if lacking:
        raise ValueError(
            f"{type(source).__name__} of the {name} does not have {len(lacking)} weights of {type(target).__name__}, "
            f"such as {lacking[0]}."
        )
    target.load_state_dict({key: found[key] for key in expected})


def _layers_and_names(name: str, source: nn.Module) -> tuple[list[nn.Module], bool, tuple[str, ...]]:
    """An encoder's layers, whether they normalise first, and what they call the parts of a layer."""
    layers: list[nn.Module] = [module for module in source.modules() if isinstance(module, GradientCheckpointingLayer)]
    for norm_first, names in LAYER_FAMILIES:
        parts = {child for child, _ in layers[0].named_modules()} if layers else set()
        weights = {key.rpartition(".")[0] for key, _ in layers[0].named_parameters()} if layers else set()
        if set(names) <= parts and weights == set(names):
            return layers, norm_first, names
    raise ValueError(
        f"the layers of {type(source).__name__} cannot become fusion layers: they have other parts than attention, "
        f"two norms and a feed-forward layer. Leave out fusion_from={name!r}, or name another modality."
    )


def read_layer_options(name: str, source: Any) -> dict[str, Any]:
    """The options of fusion layers that are like an encoder's own."""
    _, norm_first, _ = _layers_and_names(name, source)
    options: dict[str, Any] = {"norm_first": norm_first}
    for option, other in LAYER_OPTIONS:
        found = next((name for name in (option, other) if hasattr(source.config, name)), None)
        if found is not None:
            options[option] = getattr(source.config, found)
    return options


@torch.no_grad()
def copy_layers(name: str, source: Any, encoder: FusionEncoder) -> None:
    """Let the fusion layers start from the last layers of an encoder."""
    layers, _, names = _layers_and_names(name, source)
    if len(encoder.layers) > len(layers):
        raise ValueError(
            f"fusion_from={name!r} has {len(layers)} layers, but there are {len(encoder.layers)} fusion layers."
        )
    for target, layer in zip(encoder.layers, layers[len(layers) - len(encoder.layers) :], strict=True):
        for ours, theirs in zip(PARTS, names, strict=True):
            _copy_part(name, layer.get_submodule(theirs), target.get_submodule(ours))
    last_norm = next((getattr(source, child, None) for child in LAST_NORMS if hasattr(source, child)), None)
    if isinstance(encoder.norm, nn.LayerNorm) and isinstance(last_norm, nn.LayerNorm):
        _copy_part(name, last_norm, encoder.norm)


def _copy_part(name: str, source: Any, target: Any) -> None:
    if source.weight.shape != target.weight.shape:
        raise ValueError(
            f"the fusion layers cannot start from the {name} encoder: a weight has the shape "
            f"{tuple(target.weight.shape)} there and {tuple(source.weight.shape)} here. Leave out the sizes, which "
            "are then the encoder's."
        )
    target.weight.copy_(source.weight)
    # VideoMAE's keys have no bias.
    target.bias.copy_(source.bias) if source.bias is not None else target.bias.zero_()
