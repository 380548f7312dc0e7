# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""What a fusion model is called with, sorted by modality and checked; every message names the modality.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .configuration_hf_lam_fusion import (
    ENCODER_ARGUMENTS,
    FEATURE_MASK,
    FEATURE_POSITIONS,
    FEATURES,
    OTHER_NAMES,
    ModalityArguments,
)
from .fusion_encoders_hf_lam import ModalityInput, check_encoder_input, check_shapes_beside
from .fusion_features_hf_lam import FeatureOptions

# What a model takes besides its inputs: for outputs, and what `Trainer` may pass.
_OPTIONS = {"output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch"}


def read_inputs(
    model: Any, arguments: Mapping[str, Any], more: Mapping[str, Any]
) -> tuple[dict[str, ModalityInput], dict[str, Any]]:
    """The modalities that a batch has, in the order of the sequence, and the options for outputs.

    Args:
        model: the fusion model.
        arguments: those of `forward` that are named there, of whatever modality.
        more: its other arguments: those of the model's features, and options.

    Raises:
        TypeError: for an argument that the model does not have, or that is no tensor.
        ValueError: for no modality, one that the model does not have, or shapes that do not fit.
    """
    config = model.config
    by_modality = {name: config.modality_arguments(name) for name in config.modalities}
    ours = {key for name, has in by_modality.items() for key in (*has.names, f"has_{name}")}
    options = {key: value for key, value in more.items() if key not in ours}
    _check_options(config, options)
    given = {key: value for key, value in {**arguments, **more}.items() if value is not None and key not in options}
    for key, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{key} must be a tensor, got {type(value).__name__}.")
    for key in given:
        if key not in ours:
            name = _modality_of(key)
            raise ValueError(
                f"this model has no {name} that takes {key}; its modalities are {config.modalities}, which take "
                f"{', '.join(has.values for has in by_modality.values())}."
            )
    inputs = {}
    for name, has in by_modality.items():
        if has.values in given:
            others = {other: given[key] for key, other in has.others.items() if key in given}
            mask = None if has.mask is None else given.get(has.mask)
            inputs[name] = ModalityInput(given[has.values], mask, others, given.get(f"has_{name}"))
            continue
        alone = [key for key in (*has.names, f"has_{name}") if key in given]
        if alone:
            raise ValueError(f"{alone[0]} of the {name} was given without {has.values}.")
    if not inputs:
        expected = ", ".join(f"{has.values} ({name})" for name, has in by_modality.items())
        raise ValueError(f"no modality was given; give at least one of {expected}.")
    _check_shapes(model, inputs, by_modality)
    return inputs, options


def _check_options(config: Any, options: Mapping[str, Any]) -> None:
    """Nothing may be ignored without a word: it could be a modality under another name."""
    unknown = sorted(name for name, value in options.items() if name not in _OPTIONS and value is not None)
    if not unknown:
        return
    meant = [f"{name} is {OTHER_NAMES[name]} here" for name in unknown if name in OTHER_NAMES]
    endings = (FEATURES, FEATURE_MASK, FEATURE_POSITIONS)
    if not meant and any(name.startswith("has_") or name.endswith(endings) for name in unknown):
        meant = [f"its modalities are {config.modalities}"]
    raise TypeError(f"a fusion model takes no {', '.join(unknown)}" + "".join(f"; {hint}" for hint in meant) + ".")


def _modality_of(key: str) -> str:
    """The modality that an argument of `forward` with its own name is about."""
    return next(name for name, has in ENCODER_ARGUMENTS.items() if key in (*has.names, f"has_{name}"))


def _check_shapes(
    model: Any, inputs: Mapping[str, ModalityInput], by_modality: Mapping[str, ModalityArguments]
) -> None:
    sizes = {name: given.values.shape[0] for name, given in inputs.items()}
    batch_size = next(iter(sizes.values()))
    if any(size != batch_size for size in sizes.values()):
        raise ValueError(f"the modalities have different batch sizes: {sizes}.")
    if batch_size == 0:
        raise ValueError(f"the batch has no samples: {sizes}.")
    for name, given in inputs.items():
        has, options = by_modality[name], model.config.modality_config(name)
        if isinstance(options, FeatureOptions):
            _check_features(name, given, has, options)
        else:
            longest = model.max_lengths[model.config.modalities.index(name)]
            check_encoder_input(name, model.modality_model(name), given, has, longest)
        if given.present is not None and tuple(given.present.shape) != (batch_size,):
            raise ValueError(f"has_{name} must be of shape ({batch_size},), got {tuple(given.present.shape)}.")


def _check_features(name: str, given: ModalityInput, has: ModalityArguments, options: FeatureOptions) -> None:
    values = given.values
    if values.dim() != 3 or values.shape[2] != options.size or not values.is_floating_point():
        raise ValueError(
            f"{has.values} must be numbers of shape (batch, vectors, {options.size}), got {values.dtype} of "
            f"{tuple(values.shape)}."
        )
    if values.shape[1] < max(1, options.class_tokens) or values.shape[1] > (options.max_length or values.shape[1]):
        raise ValueError(
            f"{has.values} has {values.shape[1]} vectors; it must have from {max(1, options.class_tokens)} to "
            f"{options.max_length or 'any number'}."
        )
    check_shapes_beside(name, given, has, values.shape[:2])
    positions = given.others.get("positions")
    if positions is not None and options.positions is None:
        raise ValueError(f"{name}{FEATURE_POSITIONS} was given, but the {name} have no positions (positions=None).")
    if positions is not None and options.positions == "learned" and positions.is_floating_point():
        raise ValueError(f"{name}{FEATURE_POSITIONS} must be whole numbers, as the positions are learned.")


def check_presence(model: Any, is_present: torch.Tensor) -> None:
    """Whether every sample has a modality.

    Args:
        model: the fusion model.
        is_present: `(B, m)` bool, which modalities each sample has.

    Raises:
        ValueError: if a sample has none.
    """
    lacking = (~is_present.any(1)).nonzero().flatten().tolist()
    if lacking:
        raise ValueError(
            f"samples {lacking[:5]} of the batch have no modality at all: each needs at least one of "
            f"{model.config.modalities}."
        )
