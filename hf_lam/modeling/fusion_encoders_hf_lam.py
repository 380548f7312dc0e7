# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The encoders of the fusion model's modalities: made for it, and run.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import MODEL_MAPPING
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_hf_lam_fusion import ModalityArguments
from .hosts_facts_hf_lam import LAST_NORMS, UNUSED_NORMS, read_input_shape

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
            f"{name}_config is for {model_class.__name__}, which is a decoder or has one (is_decoder or "
            "is_encoder_decoder); give an encoder."
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
    if hasattr(encoder_config, "pred_num_hidden_layers"):
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which has a predictor behind its encoder that would run in "
            "vain and never be trained; give another encoder, such as VideoMAE."
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


class Layers(NamedTuple):
    """How many layers an encoder has, and what its configuration says."""

    found: int
    said: int


def count_layers(encoder: Any) -> Layers:
    """The layers of an encoder; those that are shared or are no layers of transformers' own are not seen."""
    found = sum(isinstance(module, GradientCheckpointingLayer) for module in encoder.modules())
    return Layers(found, encoder.config.num_hidden_layers)


def explain_encoder(name: str, encoder: Any, made: Layers) -> str | None:
    """Why a modality's encoder cannot be saved so that it loads again: somebody has cut its layers; None if it can.

    made: what `count_layers` gave when it was made.
    """
    now = count_layers(encoder)
    # Not every class has as many layers as its configuration says.
    expected = now.said if made.found == made.said else made.found if now.said == made.said else now.found
    if now.found == expected:
        return None
    return (
        f"the {name} encoder has {now.found} layers, and its configuration says {now.said}. Set "
        f"config.{name}_config.num_hidden_layers={now.found}."
    )


class ModalityInput(NamedTuple):
    """What a batch has of one modality.

    values: `(B, …)`.
    mask: `(B, …)`, 1 for what counts of the values; None if all does.
    others: more arguments of the encoder, by its names.
    present: `(B,)`, which samples have it, as `has_…` says; None if nothing is said.
    """

    values: torch.Tensor
    mask: torch.Tensor | None
    others: dict[str, torch.Tensor]
    present: torch.Tensor | None


class Encoded(NamedTuple):
    """What an encoder makes of one modality of a batch.

    hidden_states: its tokens, `(B, L, width)`.
    token_mask: `(B, L)` bool, which of them count; None if all do.
    """

    hidden_states: torch.Tensor
    token_mask: torch.Tensor | None


def run_encoder(
    name: str,
    encoder: Any,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    others: Mapping[str, torch.Tensor],
) -> Encoded:
    """The tokens of one modality.

    Args:
        name: of the modality.
        encoder: what `make_encoder` made.
        values: `(B, …)`.
        mask: `(B, …)`, 1 for what counts of the values; `None` if all does.
        others: more arguments of the encoder.
    """
    if values.is_floating_point():
        values = values.to(encoder.dtype)
    if name == "text" and mask is None:
        mask = torch.ones_like(values)
    options = dict(others) if mask is None else {"attention_mask": mask, **others}
    hidden_states = encoder(**{encoder.main_input_name: values}, return_dict=True, **options).last_hidden_state
    if hidden_states.dim() != 3:
        raise ValueError(
            f"the {name} encoder {type(encoder).__name__} gives {tuple(hidden_states.shape)}, which is no sequence of "
            "tokens (batch, tokens, features)."
        )
    return Encoded(hidden_states, None if mask is None else mask.bool())


def blank_input(name: str, encoder: Any, batch_size: int = 1) -> torch.Tensor:
    """The smallest input that an encoder takes, of zeros."""
    shape = read_input_shape(encoder.config) or (1,)
    dtype = torch.long if name == "text" else encoder.dtype
    return torch.zeros(batch_size, *shape, dtype=dtype, device=encoder.device)


def check_encoder_input(
    name: str, encoder: Any, given: ModalityInput, arguments: ModalityArguments, longest: int | None
) -> None:
    """Whether a modality's encoder takes what a batch has.

    Args:
        name: of the modality.
        encoder: what `make_encoder` made.
        given: what the batch has.
        arguments: what this is called in the fusion model.
        longest: the most tokens that the encoder takes; `None` for no limit.

    Raises:
        ValueError: if it does not; the message names the argument.
    """
    values, shape = given.values, read_input_shape(encoder.config)
    if shape is not None and tuple(values.shape[1:]) != shape:
        raise ValueError(
            f"{arguments.values} of the {name} must be of shape (batch, {', '.join(map(str, shape))}), as its encoder "
            f"{type(encoder).__name__} was made for, got {tuple(values.shape)}."
        )
    if shape is None and (values.dim() != 2 or (longest is not None and values.shape[1] > longest)):
        raise ValueError(
            f"{arguments.values} of the {name} must be of shape (batch, tokens) with at most {longest} tokens, got "
            f"{tuple(values.shape)}."
        )
    check_shapes_beside(name, given, arguments, values.shape)


def check_shapes_beside(name: str, given: ModalityInput, arguments: ModalityArguments, shape: torch.Size) -> None:
    """Whether the mask and what else comes with the values of a modality have the shape that they must have."""
    beside: dict[str, torch.Tensor | None] = {key: given.others.get(other) for key, other in arguments.others.items()}
    if arguments.mask is not None:
        beside[arguments.mask] = given.mask
    for key, tensor in beside.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{key} is for the {name} and must be of shape {tuple(shape)}, as {arguments.values} is, got "
                f"{tuple(tensor.shape)}."
            )
