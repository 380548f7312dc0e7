# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The encoders of the fusion model's modalities: made for it, and run.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import MODEL_MAPPING
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_hf_lam_fusion import ModalityArguments
from .families_hf_lam import find_class, has_decoder, list_heads
from .fusion_sound_hf_lam import align_left, count_up, prepare_waveforms, run_waveforms, run_window
from .hosts_facts_hf_lam import (
    FRAMES_PER_TOKEN,
    MASK_TOKENS,
    ONLY_FOR_POOLING,
    POOLING_OPTIONS,
    SEES_PADDING,
    UNUSED_MODULES,
    count_samples,
    explain_no_tokens,
    name_last_norm,
    read_frame_size,
    read_input_shape,
    read_size_options,
    takes_any_number_of_frames,
    takes_patches,
    takes_waveform,
    takes_whole_patches,
    takes_window,
)

# --- what an encoder takes -------------------------------------------------------------------------------------------


class InputKind(NamedTuple):
    """The shape of an encoder's input for one sample.

    sizes: sizes of its dimensions; None where they differ from sample to sample.
    masked: the dimension that a mask is about; None where the encoder takes no mask.
    most: the most places of that dimension; None for no limit.
    """

    sizes: tuple[int | None, ...]
    masked: int | None = None
    most: int | None = None

    def describe(self) -> str:
        """The shape of a batch, in words."""
        most = "any number" if self.most is None else f"at most {self.most}"
        return f"(batch, {', '.join(most if size is None else str(size) for size in self.sizes)})"


def read_input_kind(encoder_config: Any, model_class: Any, longest: int | None = None) -> InputKind | None:
    """Read the kind of input that an encoder takes; None if its configuration does not say.

    Args:
        encoder_config: its configuration.
        model_class: its class.
        longest: the most tokens of a text; None for no limit.
    """
    if _is_of_text(model_class):
        return InputKind((None,), 0, longest)
    if takes_waveform(encoder_config):
        return InputKind((None,), 0)
    frame_size = read_frame_size(encoder_config)
    if frame_size is not None:
        return InputKind((None, frame_size), 0)
    shape = read_input_shape(encoder_config)
    if shape is None:
        return None
    if takes_window(encoder_config):
        return InputKind((shape[0], None), 1, shape[1])
    if takes_patches(encoder_config):
        return InputKind((None, shape[1]), 0)
    if takes_any_number_of_frames(encoder_config):
        return InputKind((None, *shape[1:]))
    if len(shape) == 3 and read_size_options(encoder_config, model_class) is not None:
        return InputKind((shape[0], None, None))
    return InputKind(shape)


def _is_of_text(model_class: Any) -> bool:
    return model_class.main_input_name == "input_ids"


# How many dimensions a sample can have. Sound is a wave, frames, bands over time, or an image with channels.
_DIMENSIONS = {"text": (1,), "image": (2, 3), "video": (4,), "audio": (1, 2, 3)}


# Arguments that the forward of an encoder may ask for besides its values.
_GIVEN = ("self", "args", "kwargs", "attention_mask", "pixel_attention_mask", "spatial_shapes")


def _check_kind(name: str, encoder_config: Any, model_class: Any) -> None:
    """Whether an encoder is one of a modality; a `ValueError` that names both if not."""
    is_text = _is_of_text(model_class)
    if is_text != (name == "text"):
        wanted = "input_ids" if name == "text" else "pixel_values, input_values or input_features"
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which takes {model_class.main_input_name}; an encoder for "
            f"{name} takes {wanted}."
        )
    if getattr(encoder_config, "mask_ratio", None):
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which drops tokens at random "
            f"(mask_ratio={encoder_config.mask_ratio}); give another encoder, such as ViT."
        )
    for cause, reason in SEES_PADDING.items():
        if encoder_config.model_type == cause or getattr(encoder_config, cause, None):
            raise ValueError(
                f"{name}_config is for {model_class.__name__} ({cause}): {reason}, so that a sound would depend on "
                "the others of its batch. Give another encoder, such as Wav2Vec2Model without an adapter."
            )
    arguments = inspect.signature(model_class.forward).parameters.items()
    needs = [key for key, parameter in arguments if parameter.default is parameter.empty and key not in _GIVEN]
    needs = [key for key in needs if key != model_class.main_input_name]
    if needs:
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which also needs {', '.join(needs)}; give an encoder "
            "such as BERT, ViT, VideoMAE or AST."
        )
    kind = read_input_kind(encoder_config, model_class)
    if kind is None:
        raise ValueError(
            f"{type(encoder_config).__name__} of the {name} does not say how large its inputs are (image_size and "
            "num_channels, or max_length and num_mel_bins), which a fusion model needs."
        )
    problem = None if len(kind.sizes) < 3 else explain_no_tokens(encoder_config)
    if problem is not None:
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, {problem}; give an encoder such as ViT or VideoMAE."
        )
    is_row = name == "image" and len(kind.sizes) == 2
    if len(kind.sizes) not in _DIMENSIONS[name] or takes_patches(encoder_config) != is_row:
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, which takes inputs of shape {kind.describe()}; that is no "
            f"{name}."
        )


# --- making one ------------------------------------------------------------------------------------------------------


def find_encoder_class(name: str, encoder_config: Any) -> Any:
    """The class of a modality's encoder; of a model with a decoder, that of its encoder.

    Raises:
        ValueError: if there is none; the message names the modality.
    """
    kind = type(encoder_config)
    if getattr(encoder_config, "is_decoder", False):
        raise ValueError(
            f"{name}_config is a {kind.__name__} with is_decoder=True, whose tokens see only what comes before them; "
            "give an encoder such as BERT."
        )
    with_decoder = has_decoder(encoder_config.model_type) or getattr(encoder_config, "is_encoder_decoder", False)
    if kind in MODEL_MAPPING and not with_decoder:
        model_class: Any = MODEL_MAPPING[kind]
        return model_class[0] if isinstance(model_class, (tuple, list)) else model_class
    if not with_decoder or takes_window(encoder_config):
        found = (find_class(each) for each in list_heads(encoder_config.model_type).get("AutoModel", ()))
        model_class = next((each for each in found if each is not None), None)
        if model_class is not None:
            return model_class
    without = "transformers has no model for it" if not with_decoder else "it is for a model with a decoder"
    raise ValueError(
        f"{name}_config is a {kind.__name__}, and {without}; give the configuration of an encoder such as BERT, ViT, "
        "VideoMAE, AST or Whisper."
    )


def make_encoder(name: str, config: Any) -> Any:
    """The encoder of a modality, without what a fusion model has no use for.

    Args:
        name: name of the modality.
        config: configuration of the fusion model.

    Raises:
        ValueError: for an encoder of another modality; the message names both.
    """
    encoder = build_encoder(name, config.modality_config(name))
    if config.norm_first and config.num_hidden_layers > 0:
        last_norm = name_last_norm(encoder)
        if last_norm is not None and getattr(encoder, last_norm) is not None:
            setattr(encoder, last_norm, nn.Identity())
    return encoder


def build_encoder(name: str, encoder_config: Any) -> Any:
    """Build the encoder as `make_encoder` does, with the norm behind the last layer."""
    model_class = find_encoder_class(name, encoder_config)
    _check_kind(name, encoder_config, model_class)
    # Parameters without a gradient would stop data parallel training: mask tokens, poolers, and norms before those.
    for option in POOLING_OPTIONS:
        if hasattr(encoder_config, option):
            setattr(encoder_config, option, False)
    if hasattr(encoder_config, "mask_time_prob"):
        encoder_config.apply_spec_augment = False
    has_option = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    encoder = model_class(encoder_config, **({"add_pooling_layer": False} if has_option else {}))
    if getattr(encoder, "use_head", False):  # in transformers 5.18, SigLIP 2 has no option for it
        encoder.use_head, encoder.head = False, None
    for child in UNUSED_MODULES:
        if isinstance(getattr(encoder, child, None), nn.Module):
            setattr(encoder, child, None)
    for child in ONLY_FOR_POOLING.get(encoder_config.model_type, ()):
        setattr(encoder, child, nn.Identity())
    for module in encoder.modules():
        for token in MASK_TOKENS:
            if isinstance(getattr(module, token, None), nn.Parameter):
                setattr(module, token, None)
    if any(getattr(module, "is_causal", False) for module in encoder.modules()):
        raise ValueError(
            f"{name}_config is for {model_class.__name__}, whose tokens see only what comes before them; give an "
            "encoder such as BERT."
        )
    if takes_waveform(encoder_config):
        if not (hasattr(encoder, "feature_extractor") and hasattr(encoder.encoder, "pos_conv_embed")):
            raise ValueError(
                f"{name}_config is for {model_class.__name__}, whose convolutions are others than those of wav2vec "
                "2.0; give an encoder such as Wav2Vec2Model."
            )
        prepare_waveforms(encoder)
    return encoder


class Layers(NamedTuple):
    """The layers that an encoder has, by their number and by its configuration."""

    found: int
    said: int


def find_layers(encoder: Any) -> list[Any]:
    """The layers of an encoder; those that are shared or are no layers of transformers' own are not seen."""
    return [
        module
        for path, module in encoder.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and not path.startswith(_BESIDE)
    ]


# The convolutions of an encoder of plain sound are made of layers, too, as is V-JEPA 2's predictor.
_BESIDE = ("feature_extractor.", "predictor.")


def count_layers(encoder: Any) -> Layers:
    """Count the layers of an encoder, by `find_layers` and by its configuration."""
    return Layers(len(find_layers(encoder)), encoder.config.num_hidden_layers)


def explain_encoder(name: str, encoder: Any, made: Layers) -> str | None:
    """Why a modality's encoder cannot be saved so that it loads again: somebody has cut its layers; None if it can.

    made: the layers that `count_layers` found when the encoder was made.
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


# --- running one -----------------------------------------------------------------------------------------------------


class ModalityInput(NamedTuple):
    """The values and masks of one modality in a batch.

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
    """The tokens that an encoder makes of one modality of a batch.

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
    """The tokens of one modality. What is padding changes nothing: a sample gets in a batch what it gets alone.

    Args:
        name: name of the modality.
        encoder: encoder that `make_encoder` made.
        values: `(B, …)`.
        mask: `(B, …)`, 1 for what counts of the values; `None` if all does.
        others: further arguments of the encoder.

    Raises:
        ValueError: if the encoder gives no sequence of tokens.
    """
    config = encoder.config
    if values.is_floating_point():
        values = values.to(encoder.dtype)
    if name == "audio" and takes_window(config):
        return Encoded(*run_window(encoder, values, mask))
    if name == "audio" and takes_waveform(config):
        return Encoded(*run_waveforms(encoder, values, mask))
    options: dict[str, Any] = dict(others)
    if name == "text":
        # Without values, as where FLOPs are counted, transformers cannot see whether a mask leaves anything out.
        mask = torch.ones_like(values) if mask is None and not values.is_meta else mask
        options["attention_mask"] = mask
    elif takes_patches(config):
        mask, options["spatial_shapes"] = _read_patches(values, mask, others)
        options["pixel_attention_mask"] = mask
    elif mask is not None:  # frames of sound
        values, lengths = align_left(values, mask, dim=1)
        mask = options["attention_mask"] = count_up(lengths, values.shape[1])
    elif tuple(values.shape[1:]) != read_input_shape(config):
        options |= read_size_options(config, type(encoder)) or {}
    if "skip_predictor" in inspect.signature(type(encoder).forward).parameters:
        options["skip_predictor"] = True
    outputs = encoder(**{encoder.main_input_name: values}, return_dict=True, **options)
    hidden_states = getattr(outputs, "last_hidden_state", None)
    if hidden_states is None or hidden_states.dim() != 3:
        found = "no last_hidden_state" if hidden_states is None else tuple(hidden_states.shape)
        raise ValueError(
            f"the {name} encoder {type(encoder).__name__} gives {found}, which is no sequence of tokens (batch, "
            "tokens, features)."
        )
    return Encoded(hidden_states, None if mask is None else mask.bool())


def _read_patches(
    values: torch.Tensor, mask: torch.Tensor | None, others: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read which patches there are, and their rows and columns: a square of all unless something else is said."""
    shapes = others.get("spatial_shapes")
    if shapes is None:
        shapes = torch.full((values.shape[0], 2), isqrt(values.shape[1]), device=values.device)
    # Those of a sample without an image are zero, which the encoder cannot resize its positions to.
    shapes = shapes.clamp(min=1)
    return count_up(shapes.prod(1), values.shape[1]).long() if mask is None else mask, shapes


def blank_input(name: str, encoder: Any, batch_size: int = 1) -> torch.Tensor:
    """The smallest input that an encoder takes, of zeros."""
    config = encoder.config
    dtype = torch.long if name == "text" else encoder.dtype
    shape: tuple[int, ...] = read_input_shape(config) or (1,)
    if takes_waveform(config):
        shape = (count_samples(config, 1),)
    elif read_frame_size(config) is not None:
        shape = (1, read_frame_size(config) or 0)
    elif takes_window(config):
        shape = (config.num_mel_bins, FRAMES_PER_TOKEN)
    elif takes_patches(config):
        shape = (1, shape[1])
    return torch.zeros(batch_size, *shape, dtype=dtype, device=encoder.device)


# --- what a batch has ------------------------------------------------------------------------------------------------


def check_encoder_input(
    name: str, encoder: Any, given: ModalityInput, arguments: ModalityArguments, longest: int | None
) -> None:
    """Check that a modality's encoder takes what a batch has.

    Args:
        name: name of the modality.
        encoder: encoder that `make_encoder` made.
        given: the modality's values and masks in the batch.
        arguments: names of these arguments in the fusion model.
        longest: the most tokens that the encoder takes; `None` for no limit.

    Raises:
        ValueError: if it does not; the message names the argument.
    """
    values, made_for = given.values, type(encoder).__name__
    kind = read_input_kind(encoder.config, type(encoder), longest)
    assert kind is not None
    if not _fits(kind, values):
        raise ValueError(
            f"{arguments.values} of the {name} must be of shape {kind.describe()}, as its encoder {made_for} was made "
            f"for, got {tuple(values.shape)}."
        )
    if kind.sizes[-2:] == (None, None):
        _check_size(name, encoder, values, arguments)
    if kind.masked is None and given.mask is not None:
        raise ValueError(
            f"{arguments.mask} was given, but the {name} encoder {made_for} takes no mask. Say with has_{name} which "
            f"samples have one."
        )
    takes_shapes = takes_patches(encoder.config)
    shapes = given.others.get("spatial_shapes")
    if name == "image" and not takes_shapes and shapes is not None:
        raise ValueError(f"spatial_shapes was given, but the {name} encoder {made_for} takes images, not patches.")
    if name == "image" and takes_shapes and shapes is None and isqrt(values.shape[1]) ** 2 != values.shape[1]:
        raise ValueError(
            f"{arguments.values} of the {name} has {values.shape[1]} patches, which are no square: give the rows and "
            "columns of each in spatial_shapes."
        )
    check_shapes_beside(
        name,
        given._replace(others={key: value for key, value in given.others.items() if key != "spatial_shapes"}),
        arguments,
        values.shape[:1] if kind.masked is None else (values.shape[0], values.shape[1 + kind.masked]),
    )
    if shapes is not None and tuple(shapes.shape) != (values.shape[0], 2):
        raise ValueError(f"spatial_shapes must be of shape ({values.shape[0]}, 2), got {tuple(shapes.shape)}.")


def _fits(kind: InputKind, values: torch.Tensor) -> bool:
    found = tuple(values.shape[1:])
    if len(found) != len(kind.sizes):
        return False
    pairs = zip(kind.sizes, found, strict=True)
    if not all(length == size or (size is None and length > 0) for size, length in pairs):
        return False
    return kind.masked is None or kind.most is None or found[kind.masked] <= kind.most


def _check_size(name: str, encoder: Any, values: torch.Tensor, arguments: ModalityArguments) -> None:
    patch = encoder.config.patch_size
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
    pairs = list(zip(values.shape[-2:], sides, strict=True))
    if any(size < side for size, side in pairs):
        problem = "less than one patch"
    elif takes_whole_patches(encoder.config) and any(size % side for size, side in pairs):
        problem = "no whole number of patches"
    else:
        return
    raise ValueError(
        f"{arguments.values} of the {name} has {values.shape[-2]} × {values.shape[-1]} pixels: {problem} of "
        f"{type(encoder).__name__}, which have {sides[0]} × {sides[1]}."
    )


def check_shapes_beside(name: str, given: ModalityInput, arguments: ModalityArguments, shape: Sequence[int]) -> None:
    """Whether the mask and what else comes with the values of a modality have the shape that they must have."""
    beside: dict[str, torch.Tensor | None] = {key: given.others.get(other) for key, other in arguments.others.items()}
    if arguments.mask is not None:
        beside[arguments.mask] = given.mask
    for key, tensor in beside.items():
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{key} is for the {name} and must be of shape {tuple(shape)}, as {arguments.values} is, got "
                f"{tuple(tensor.shape)}."
            )
