# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Checks of options: of a mechanism's configuration, for its `__post_init__`, and of the host's.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN

# No model has more tokens, features or classes, nor more layers. One that had would not fail but hang, or ask for all
# the memory there is, and nobody would know why.
MOST = 10_000_000
MOST_LAYERS = 10_000


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless the option is one of the choices."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{type(config).__name__}: {name} must be one of {list(choices)}, got {value!r}.")


def check_bool(config: Any, name: str) -> None:
    """Raises a `ValueError` unless the option is True or False."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ValueError(f"{type(config).__name__}: {name} must be True or False, got {value!r}.")


def check_positive_or_none(config: Any, name: str) -> None:
    """Raises a `ValueError` unless the option is None or a positive integer."""
    value = getattr(config, name)
    if value is not None and not is_count(value, 1):
        raise ValueError(
            f"{type(config).__name__}: {name} must be None or an integer from 1 to {MOST:,}, got {value!r}."
        )


def is_count(value: Any, least: int, most: int = MOST) -> bool:
    """Whether a value is an integer, which True is not, from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


# --- of the host -----------------------------------------------------------------------------------------------------

# Sizes in configurations of encoders: the least and the most that one can be.
_SIZES = {
    **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"), (1, MOST)),
    **dict.fromkeys(("max_position_embeddings", "image_size", "patch_size", "num_channels"), (1, MOST)),
    **dict.fromkeys(("num_frames", "tubelet_size", "encoder_stride", "pooler_output_size"), (1, MOST)),
    **dict.fromkeys(("type_vocab_size", "num_labels", "chunk_size_feed_forward"), (0, MOST)),
    **dict.fromkeys(("decoder_hidden_size", "decoder_num_attention_heads", "decoder_intermediate_size"), (0, MOST)),
    **dict.fromkeys(("num_hidden_layers", "decoder_num_hidden_layers"), (0, MOST_LAYERS)),
}
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
_NOT_NEGATIVE = ("layer_norm_eps", "initializer_range")


def check_host_option(owner: str, name: str, value: Any) -> None:
    """Raises a `ValueError` for a value that no encoder can have, whatever its type says.

    owner: whose option it is, for the message.
    """
    if name in _SIZES:
        least, most = _SIZES[name]
        numbers = value if isinstance(value, (list, tuple)) else [value]
        integers = [n if isinstance(n, bool) else int(n) for n in numbers if isinstance(n, Integral)]  # numpy's, too
        wrong = [number for number in integers if not is_count(number, least, most)]
        if wrong or not numbers:
            reason = " A model with more would fill all memory." if wrong and wrong[0] > most else ""
            raise ValueError(
                f"{owner}: {name} must be an integer of at least {least} and at most {most:,}, got {value!r}.{reason}"
            )
    elif name == "hidden_act" and isinstance(value, str) and value not in ACT2FN:
        raise ValueError(f"{owner}: hidden_act={value!r} is unknown to transformers.")
    elif isinstance(value, (int, float)):
        if name in _PROBABILITIES and not (0 <= value <= 1 and not isinstance(value, bool)):
            raise ValueError(f"{owner}: {name} is a probability, from 0 to 1, got {value!r}.")
        if name in _NOT_NEGATIVE and not (0 <= value < math.inf and not isinstance(value, bool)):
            raise ValueError(f"{owner}: {name} must be a number of at least 0, got {value!r}.")


def as_config(owner: str, config: Any, wanted: str) -> Any:
    """A configuration, or the dictionary of one, as an object.

    Args:
        owner: name of the option, for messages.
        config: value of the option.
        wanted: kind of model that is expected, with examples.

    Raises:
        ValueError: if it is neither, or if the model is not one of transformers' own.
    """
    if isinstance(config, Mapping):
        check_host_options(owner, config)
        model_type = str(config.get("model_type"))
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"{owner} has the model type {model_type!r}, which transformers does not know as one of its own. Give "
                f"the configuration of {wanted}."
            )
        return CONFIG_MAPPING[model_type](**{key: value for key, value in config.items() if key != "model_type"})
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"{owner} must be a configuration or a dictionary, got {type(config).__name__}.")
    return config


def check_host_options(owner: str, config: Any) -> None:
    """The same for all options of an encoder's configuration, or of its dictionary."""
    for name in (*_SIZES, *_PROBABILITIES, *_NOT_NEGATIVE, "hidden_act"):
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        # What a class says is no option: XLNet has -1 positions, which is no end of them.
        if value is not None and not isinstance(getattr(type(config), name, None), property):
            check_host_option(owner, name, value)
