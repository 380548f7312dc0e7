# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a fusion model, sorted by modality and checked; every message names the modality.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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
from .fusion_features_hf_lam import FeatureInput, FeatureOptions

# What a model takes besides its inputs: for outputs, and what `Trainer` may pass.
_OPTIONS = {
    "output_attentions",
    "output_hidden_states",
    "output_modality_states",
    "return_dict",
    "num_items_in_batch",
}


class NamingForward:
    """A `forward` of a fusion model whose signature, on a model, names the arguments of that model's own features.

    They reach it as keywords that no class can list. Without their names `Trainer` would drop these columns of a data
    set, and `torch.export` could not be told that their sizes may change.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __get__(self, model: Any, owner: Any = None) -> Any:
        return self.function if model is None else NamingMethod(self.function, model)


class NamingMethod:
    """A stand-in for `model.forward`, like a bound method in everything but its signature.

    Args:
        function: forward of the class, which takes keywords of any name.
        model: the fusion model.
    """

    def __init__(self, function: Callable[..., Any], model: Any) -> None:
        self.__func__ = function
        self.__self__ = model
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, "forward")

    @property
    def __signature__(self) -> inspect.Signature:
        signature, config = inspect.signature(self.__func__), self.__self__.config
        _, *parameters, keywords = signature.parameters.values()
        named = [key for name in config.features or () for key in config.modality_arguments(name).names]
        named += [f"has_{name}" for name in config.features or ()]
        known = {parameter.name for parameter in parameters}
        own = [inspect.Parameter(key, keywords.KEYWORD_ONLY, default=None) for key in named if key not in known]
        return signature.replace(parameters=[*parameters, *own, keywords])


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
            if name in (config.features or ()) and given[has.values].shape[1:2] == (0,):
                continue  # no sample has a vector
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
        has, part = by_modality[name], model.modality_model(name)
        if isinstance(part, FeatureInput):
            _check_features(name, given, has, part.config)
        else:
            check_encoder_input(name, part, given, has, model.max_lengths[model.config.modalities.index(name)])
        if given.present is not None and tuple(given.present.shape) != (batch_size,):
            raise ValueError(f"has_{name} must be of shape ({batch_size},), got {tuple(given.present.shape)}.")


def _check_features(name: str, given: ModalityInput, has: ModalityArguments, options: FeatureOptions) -> None:
    values = given.values
    if values.dim() != 3 or values.shape[2] != options.size:
        one = " For one vector a sample, give features.unsqueeze(1)." if values.dim() == 2 else ""
        raise ValueError(
            f"{has.values} must be of shape (batch, vectors, {options.size}), got {tuple(values.shape)}.{one}"
        )
    # An exported program has no one to tell, and a comparison would limit its sizes.
    if options.max_length is not None and not torch.compiler.is_exporting() and values.shape[1] > options.max_length:
        raise ValueError(f"{has.values} must have at most {options.max_length} vectors, got {values.shape[1]}.")
    check_shapes_beside(name, given, has, values.shape[:2])
    positions = given.others.get("positions")
    if positions is not None and options.positions is None:
        raise ValueError(
            f"{name}{FEATURE_POSITIONS} was given, but features[{name!r}] has positions=None. Leave it out, or make "
            "the model with 'sinusoidal' or 'learned' positions."
        )
    if positions is not None and options.positions == "learned" and positions.is_floating_point():
        raise ValueError(
            f"{name}{FEATURE_POSITIONS} must be whole numbers, since these positions are learned, got "
            f"{positions.dtype}."
        )


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
