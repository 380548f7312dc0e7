# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Checks of what a fusion model is called with; every message names the modality.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .configuration_hf_lam_fusion import INPUT_NAMES, OTHER_NAMES
from .hosts_facts_hf_lam import read_input_shape

# What a model takes besides its inputs: for outputs, and what `Trainer` may pass.
_OPTIONS = {"output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch"}


def check_options(options: Mapping[str, Any]) -> None:
    """Nothing may be ignored without a word: it could be a modality under another name."""
    unknown = sorted(name for name, value in options.items() if name not in _OPTIONS and value is not None)
    if unknown:
        meant = [f"{name} is {OTHER_NAMES[name]} here" for name in unknown if name in OTHER_NAMES]
        raise TypeError(f"a fusion model takes no {', '.join(unknown)}" + "".join(f"; {hint}" for hint in meant) + ".")


def check_inputs(
    model: Any,
    given: Mapping[str, torch.Tensor | None],
    is_there: Mapping[str, torch.Tensor | None],
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
) -> tuple[int, torch.device]:
    """What can be seen from the shapes; returns the batch size and the device of the inputs."""
    known = model.config.modalities
    tensors = {INPUT_NAMES[name]: values for name, values in given.items()}
    tensors |= {f"has_{name}": present for name, present in is_there.items()}
    for argument, value in tensors.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{argument} must be a tensor, got {type(value).__name__}.")
    for name, argument in INPUT_NAMES.items():
        if name not in known and (given[name] is not None or is_there[name] is not None):
            raise ValueError(f"this model has no {name}, for {argument} or has_{name}; its modalities are {known}.")
        if given[name] is None and is_there[name] is not None:
            raise ValueError(f"has_{name} was given without {argument}.")
    inputs = {name: given[name] for name in known if given[name] is not None}
    if not inputs:
        expected = ", ".join(f"{INPUT_NAMES[name]} ({name})" for name in known)
        raise ValueError(f"no modality was given; give at least one of {expected}.")
    sizes = {name: len(values) for name, values in inputs.items() if values is not None}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the modalities have different batch sizes: {sizes}.")
    (batch_size,) = set(sizes.values())
    if batch_size == 0:
        raise ValueError(f"the batch has no samples: {sizes}.")
    for name, values in inputs.items():
        assert values is not None
        _check_size(model, name, values)
        present = is_there[name]
        if present is not None and tuple(present.shape) != (batch_size,):
            raise ValueError(f"has_{name} must be of shape ({batch_size},), got {tuple(present.shape)}.")
    for argument, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        text = given["text"]
        if tensor is not None and (text is None or tensor.shape != text.shape):
            wanted = None if text is None else tuple(text.shape)
            raise ValueError(
                f"{argument} is for the text and must have the shape of input_ids, {wanted}, got "
                f"{tuple(tensor.shape)}."
            )
    first = next(iter(inputs.values()))
    assert first is not None
    return batch_size, first.device


def _check_size(model: Any, name: str, values: torch.Tensor) -> None:
    argument, shape = INPUT_NAMES[name], read_input_shape(model.config.modality_config(name))
    if shape is not None and tuple(values.shape[1:]) != shape:
        raise ValueError(
            f"{argument} of the {name} must be of shape (batch, {', '.join(map(str, shape))}), as its encoder "
            f"{type(model.modality_model(name)).__name__} was made for, got {tuple(values.shape)}."
        )
    longest = model.max_lengths[model.config.modalities.index(name)]
    if shape is None and (values.dim() != 2 or (longest is not None and values.shape[1] > longest)):
        raise ValueError(
            f"{argument} of the {name} must be of shape (batch, tokens) with at most {longest} tokens, got "
            f"{tuple(values.shape)}."
        )


def check_presence(model: Any, is_present: torch.Tensor) -> None:
    lacking = (~is_present.any(1)).nonzero().flatten().tolist()
    if lacking:
        raise ValueError(
            f"samples {lacking[:5]} of the batch have no modality at all: each needs at least one of "
            f"{model.config.modalities}."
        )
