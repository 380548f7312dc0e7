"""A batch of the size that a model is configured for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.configuration_hf_lam_fusion import INPUT_NAMES
from ..modeling.hosts_facts_hf_lam import is_fusion, read_input_shape
from ..modeling.hosts_hf_lam import max_length_of
from ..modeling.injection_hf_lam import injected_encoders, injection_of
from ..parameters import only_injected_encoder


def encoder_of(model: PreTrainedModel) -> Any:
    """The encoder with mechanisms, or the one inside of a task model without any.

    Raises:
        ValueError: if several encoders have mechanisms.
    """
    return only_injected_encoder(model) if injected_encoders(model) else model.base_model


def example_inputs(model: PreTrainedModel, batch_size: int = 1) -> dict[str, torch.Tensor]:
    """A batch of the size that the model is configured for, on its device.

    Text is as long as the spans of the model's views add up to, or else as the model can take; where it has token
    types, they divide it evenly. Images, videos and spectrograms are zeros. A fusion model gets all of its modalities.

    Raises:
        ValueError: if `batch_size` is below 1, or the model's configuration does not give the sizes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    base = encoder_of(model)
    if is_fusion(base.config):
        inputs: dict[str, torch.Tensor] = {}
        for modality in base.config.modalities:
            encoder = base.modality_model(modality)
            if modality == "text":
                inputs |= _make_text(model, encoder, batch_size)
            else:
                inputs[INPUT_NAMES[modality]] = _make_grid(encoder, batch_size)
        return inputs
    if base.main_input_name == "input_ids":
        return _make_text(model, base, batch_size)
    return {base.main_input_name: _make_grid(base, batch_size)}


def _make_grid(base: Any, batch_size: int) -> torch.Tensor:
    """Images, videos or spectrograms."""
    shape = read_input_shape(base.config) if base.main_input_name in ("pixel_values", "input_values") else None
    if shape is None:
        raise ValueError(
            f"the configuration of {type(base).__name__} does not say how large its {base.main_input_name} is; give "
            "inputs."
        )
    return torch.zeros(batch_size, *shape, dtype=base.dtype, device=base.device)


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
    configs = list(injection_of(base).configs.values()) if base in injected_encoders(base) else []
    exact = [config.exact_tokens for config in configs if config.exact_tokens is not None]
    if exact:
        return exact[0]
    length = max_length_of(base)
    if length is None:
        raise ValueError(f"{type(base).__name__} does not say how long its texts get; give inputs.")
    return min([length, *(config.max_tokens for config in configs if config.max_tokens is not None)])
