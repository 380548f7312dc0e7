# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The names of weights: in a model, in its files, and in those of its host's older releases.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import PrefixChange, WeightConverter

from .families_hf_lam import has_decoder, list_heads
from .hosts_facts_hf_lam import COMPOSED, ENCODER_ALONE, ENCODER_PREFIXES, OPTIONAL_PARTS
from .injection_hf_lam import injected_encoders, injection_of
from .mechanism_hf_lam import MARK


@functools.cache
def register_conversions(stock: Any, config_class: Any) -> None:
    """Let transformers rename the weights of the class of ours for a stock one, and of its model type, like that's.

    Checkpoints keep names of older transformers releases and are renamed while loading, but for classes outside of
    transformers only if they are registered. transformers looks for the name of a class first and for the model type
    where there is none, and so it does for ours.
    Done with the first model, since making transformers' table takes longer than importing hf_lam; with `overwrite`,
    because several copies of this file may be loaded in one process.
    """
    if stock is None:  # not the class of a family
        return
    names = {f"HfLam{stock.__name__}": stock.__name__, config_class.model_type: config_class.host_model_type}
    for ours, theirs in names.items():
        mapping = get_checkpoint_conversion_mapping(theirs)
        if mapping is not None:
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


def is_of_mechanism(name: str) -> bool:
    return name.startswith("hf_lam.") or ".hf_lam." in name


def is_optional(name: str) -> bool:
    return any(part in name for part in OPTIONAL_PARTS)


def is_mark(name: str) -> bool:
    """Whether a tensor only says that a mechanism without weights of its own was there, which older files do not."""
    return is_of_mechanism(name) and name.rpartition(".")[2] == MARK


def dropped_projections(model: nn.Module) -> list[str]:
    """The names of the projections that the identity has replaced, for attention without scores."""
    without = [base for base in injected_encoders(model) if injection_of(base).replacement is not None]
    names = {module: name for name, module in model.named_modules()} if without else {}
    return [
        f"{names[attention]}.{child}"
        for base in without
        for attention in injection_of(base).attentions
        for child, module in attention.named_children()
        if isinstance(module, nn.Identity)
    ]


def has_fused_weights(model_class: Any) -> bool:
    """Whether tensors of a class of ours are stored as one in the files of its host, or may be."""
    if model_class.config_class.host_model_type in COMPOSED:
        return True  # the encoder may be of any family
    register_conversions(model_class.host_class, model_class.config_class)
    names = (model_class.__name__, model_class.config_class.model_type)
    return any(isinstance(c, WeightConverter) for n in names for c in get_checkpoint_conversion_mapping(n) or ())


@contextmanager
def leaving_unfused(model: Any) -> Iterator[None]:
    """Store the remaining parts of fused tensors separately while this lasts."""
    dropped = dropped_projections(model)
    if not dropped:
        yield
        return
    before = vars(model).get("_weight_conversions")
    used = before
    if used is None:
        # As in `save_pretrained`: whether there was such a prefix is known of a model that was loaded alone.
        used = [c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)]
    model._weight_conversions = [
        conversion
        for conversion in used
        if not isinstance(conversion, WeightConverter)
        or not any(pattern in name for pattern in conversion.target_patterns for name in dropped)
    ]
    try:
        yield
    finally:
        model._weight_conversions = before


def list_encoder_prefixes(model_class: Any) -> dict[str, str]:
    """The beginnings of an encoder's weight names in other files of a family with a decoder, and in this class.

    A checkpoint holds the decoder, too, and an encoder may have been saved alone, for a head to start from.
    """
    if model_class.host_class is None:
        return {}
    kind = model_class.config_class.host_model_type
    if not has_decoder(kind):
        return {}
    is_encoder = model_class.host_class.__name__ in list_heads(kind)["AutoModel"]
    return dict.fromkeys(ENCODER_PREFIXES, "") if is_encoder else {ENCODER_ALONE: "encoder."}
