"""A batch of the size that a model is configured for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.configuration_hf_lam_fusion import INPUT_NAMES
from ..modeling.host_attention_hf_lam import find_encoder
from ..modeling.hosts_facts_hf_lam import count_samples, is_fusion, read_input_shape, takes_patches
from ..modeling.hosts_hf_lam import find_input_module, input_name_of, max_length_of, read_tokens
from ..modeling.injection_hf_lam import injected_encoders, injection_of
from ..parameters import only_injected_encoder


def encoder_of(model: PreTrainedModel) -> Any:
    """The encoder with mechanisms, or the one inside of a task model without any.

    Raises:
        ValueError: if several encoders have mechanisms.
    """
    return only_injected_encoder(model) if injected_encoders(model) else find_encoder(model)


def example_inputs(model: PreTrainedModel, batch_size: int = 1) -> dict[str, Any]:
    """A batch of the size that the model is made for, on its device.

    Text is as long as the spans of the model's views add up to, or else as the model can take; where it has token
    types, they divide it evenly. Images, videos and spectrograms are zeros, of the size that the model's mechanisms
    are made for where they say one, and else of that in its configuration. Plain sound is as long as mechanisms are
    made for. A fusion model gets all of its modalities.

    Raises:
        ValueError: if `batch_size` is below 1, or nothing says the sizes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    base = encoder_of(model)
    if is_fusion(base.config):
        inputs: dict[str, Any] = {}
        for modality in base.config.modalities:
            encoder = base.modality_model(modality)
            if modality == "text":
                inputs |= _make_text(model, encoder, batch_size)
            else:
                inputs[INPUT_NAMES[modality]] = _make_media(encoder, encoder, batch_size)[str(input_name_of(encoder))]
        return inputs
    if input_name_of(base) == "input_ids":
        return _make_text(model, base, batch_size)
    return _make_media(base, find_input_module(model, base), batch_size)


def _make_media(base: Any, entered: Any, batch_size: int) -> dict[str, Any]:
    """Images, videos, spectrograms or sound.

    entered: the module that gets them: the encoder, or one around it.
    """
    grid = _choose_grid(base)
    shape = None if entered is None else _shape_of(base, entered.config, grid)
    if shape is None:
        raise ValueError(
            f"the configuration of {type(base).__name__} does not say how large its {base.main_input_name} is; give "
            "inputs."
        )
    name = str(input_name_of(entered))
    inputs: dict[str, Any] = {name: torch.zeros(batch_size, *shape, dtype=base.dtype, device=base.device)}
    if takes_patches(entered.config):
        grid = grid or read_tokens(base).grid
        inputs["pixel_attention_mask"] = torch.ones(batch_size, shape[0], dtype=torch.long, device=base.device)
        inputs["spatial_shapes"] = torch.tensor([grid] * batch_size, device=base.device)
    if grid and "interpolate_pos_encoding" in inspect.signature(type(entered).forward).parameters:
        inputs["interpolate_pos_encoding"] = True
    return inputs


def _shape_of(base: Any, config: Any, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    shape = read_input_shape(config, grid)
    if shape is None and hasattr(config, "conv_kernel") and base in injected_encoders(base):
        lengths = _lengths_of(base)
        return (count_samples(config, min(lengths)),) if lengths else None
    return shape


def _choose_grid(base: Any) -> tuple[int, ...]:
    """The grid of the inputs that an encoder's mechanisms are made for, where it is not the host's own."""
    if base not in injected_encoders(base):
        return ()
    injection = injection_of(base)
    own = injection.host.tokens.grid
    for config in injection.configs.values():
        grid = tuple(b if a is None else a for a, b in zip(config.input_grid(injection.host), own, strict=False))
        if grid not in ((), own):
            return grid
    return ()


def _make_text(model: PreTrainedModel, base: Any, batch_size: int) -> dict[str, torch.Tensor]:
    length = _choose_length(base)
    shape: tuple[int, ...] = (batch_size, length)
    if "MultipleChoice" in type(model).__name__:
        shape = (batch_size, 1, length)
    # Not the padding token, from which some hosts make their positions.
    token = 1 if getattr(base.config, "pad_token_id", None) != 1 else 0
    inputs = {"input_ids": torch.full(shape, token, device=base.device)}
    types = getattr(base.config, "type_vocab_size", 0)
    if types >= 2 and "token_type_ids" in inspect.signature(type(base).forward).parameters:
        inputs["token_type_ids"] = (torch.arange(length, device=base.device) * types // length).expand(shape).clone()
    return inputs


def _choose_length(base: Any) -> int:
    """The length that an encoder's mechanisms need, or the longest text that they and it take."""
    length, lengths = max_length_of(base), _lengths_of(base) if base in injected_encoders(base) else []
    if not lengths and length is None:
        raise ValueError(f"{type(base).__name__} does not say how long its texts get; give inputs.")
    return min(lengths + ([] if length is None else [length]))


def _lengths_of(base: Any) -> list[int]:
    """How long the inputs of an encoder are at most, or exactly, as its mechanisms say."""
    configs = injection_of(base).configs.values()
    exact = [config.exact_tokens for config in configs if config.exact_tokens is not None]
    return exact or [config.max_tokens for config in configs if config.max_tokens is not None]
