# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The classes of transformers for an encoder and its heads, read from transformers' own tables.

A family is what transformers calls a model type: one configuration, an encoder, and the heads on it. No file of a
family is imported here before one of its classes is asked for.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .hosts_facts_hf_lam import AUTO_CLASSES, COMPOSED, DECODER_TABLES, HEADS_WITHOUT_DECODER, UNLISTED_ENCODERS


def name_config(model_type: str) -> str | None:
    """The name of the configuration class of a family; None if it has no encoder that an Auto class loads."""
    return CONFIG_MAPPING_NAMES.get(model_type) if list_heads(model_type) else None


def find_type(config_name: str) -> str | None:
    """The family of a configuration class."""
    return next((kind for kind, name in CONFIG_MAPPING_NAMES.items() if name == config_name), None)


def has_decoder(model_type: str) -> bool:
    """Whether the models of a family are an encoder and a decoder that are its own."""
    return model_type not in COMPOSED and any(model_type in getattr(modeling_auto, table) for table in DECODER_TABLES)


def list_heads(model_type: str) -> dict[str, tuple[str, ...]]:
    """The names of the classes of a family by the Auto class that loads them: its encoder, and the heads on it.

    Several, if the Auto class chooses among them by `architectures`. Whether mechanisms can be attached to one shows
    when it is built. A model that is made of two others is all that its family has.
    """
    if model_type in COMPOSED:
        name, autos = COMPOSED[model_type]
        return dict.fromkeys(autos, (name,))
    with_decoder = has_decoder(model_type)
    decoder = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    heads = {}
    for auto, table in AUTO_CLASSES.items():
        names = getattr(modeling_auto, table).get(model_type, ())
        names = tuple(name for name in ((names,) if isinstance(names, str) else names) if name != decoder)
        if with_decoder and auto == "AutoModel":
            names = tuple(f"{name.removesuffix('Model')}Encoder" for name in names)
        if names and (not with_decoder or auto == "AutoModel" or auto in HEADS_WITHOUT_DECODER):
            heads[auto] = names
    if model_type in UNLISTED_ENCODERS:
        heads["AutoModel"] = (UNLISTED_ENCODERS[model_type],)
    return heads


def list_families() -> list[str]:
    """The model types that may be those of encoders: an Auto class loads one, and it does not just decode."""
    decoding = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    both = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return [kind for kind in CONFIG_MAPPING_NAMES if list_heads(kind) and (kind not in decoding or kind in both)]


@functools.cache
def _types_by_class() -> dict[str, str]:
    return {
        name: model_type
        for model_type in reversed(CONFIG_MAPPING_NAMES)
        for names in list_heads(model_type).values()
        for name in names
    }


def find_class(name: str) -> Any:
    """The class of transformers of that name, for an encoder or a head on one; None if it is not one of these."""
    model_type = _types_by_class().get(name)
    if model_type is None:
        return None
    found: Any = getattr(transformers, name, None)
    if found is None:  # an encoder inside of a model with a decoder, which is not exported
        whole = getattr(transformers, str(modeling_auto.MODEL_MAPPING_NAMES.get(model_type)), None)
        found = None if whole is None else getattr(sys.modules[whole.__module__], name, None)
    # Where a family needs a package that is not installed, transformers has a dummy in the place of its classes.
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None
