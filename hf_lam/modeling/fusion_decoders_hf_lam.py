# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The decoders of fusion models that write text, made and loaded.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from .decoder_options_hf_lam import decoder_config_of, find_decoder_class
from .fusion_sources_hf_lam import WHERE
from .injection_hf_lam import injected_encoders


def make_decoder(config: Any) -> Any:
    """A decoder without trained weights."""
    return find_decoder_class(config)(config)


def width_of(config: Any) -> int:
    """The width of the tokens that a decoder's cross-attention looks at."""
    return getattr(config, "cross_attention_hidden_size", None) or config.hidden_size


class DecoderSource(NamedTuple):
    """The origin of a decoder; its weights have not been read.

    config: configuration of the decoder, with cross-attention.
    has_encoder: whether the weights are those of an encoder, too.
    given: a model or its name; None where there are no weights.
    options: options for loading it.
    """

    config: Any
    has_encoder: bool
    given: Any
    options: dict[str, Any]


def read_decoder(given: Any, options: dict[str, Any]) -> DecoderSource:
    """Read where a decoder starts from; its weights are not read.

    Args:
        given: a loaded model, a folder or a Hub id; or a configuration, for random weights.
        options: options for loading it.

    Raises:
        TypeError: if it is none of these, or for options where nothing is loaded.
        ValueError: for a model that cannot be a decoder, or has mechanisms.
    """
    is_name = isinstance(given, (str, os.PathLike))
    if options and not is_name:
        raise TypeError(
            f"{', '.join(f'decoder_{name}' for name in sorted(options))}: no option of a fusion model, and a "
            f"{type(given).__name__} as decoder is not loaded, which would take others."
        )
    if isinstance(given, (PreTrainedConfig, Mapping)):
        return DecoderSource(decoder_config_of(given), False, None, {})
    if isinstance(given, PreTrainedModel):
        if injected_encoders(given):
            raise ValueError(
                f"the decoder is a {type(given).__name__} with hf_lam mechanisms, which work on encoders. Call "
                "hf_lam.remove on it first."
            )
        return DecoderSource(decoder_config_of(given.config), given.config.is_encoder_decoder, given, {})
    if not is_name:
        raise TypeError(f"decoder must be a model, a folder, a Hub id or a configuration, got {type(given).__name__}.")
    config = AutoConfig.from_pretrained(given, **{key: options[key] for key in WHERE if key in options})
    return DecoderSource(decoder_config_of(config), config.is_encoder_decoder, given, options)


class LoadedDecoder(NamedTuple):
    """The weights that a decoder starts from.

    model: loaded model with these weights.
    random: names of the weights that no checkpoint gave it.
    """

    model: Any
    random: set[str]


def load_decoder(source: DecoderSource) -> LoadedDecoder | None:
    """The model of a source; None for a configuration alone."""
    if source.given is None:
        return None
    if isinstance(source.given, PreTrainedModel):
        return LoadedDecoder(source.given, set())
    loader, options = find_decoder_class(source.config), {"config": copy.deepcopy(source.config)}
    if source.has_encoder:
        # Of the embeddings that both share, a decoder by itself would find none.
        loader, options = AutoModelForSeq2SeqLM, {}
    model, info = loader.from_pretrained(source.given, **options, **source.options, output_loading_info=True)
    return LoadedDecoder(model, set(info["missing_keys"]))


@torch.no_grad()
def copy_decoder(source: LoadedDecoder, target: Any) -> list[str]:
    """Let a decoder have the weights of another, which may lack cross-attention and the layer that gives words.

    Args:
        source: a model of the same family.
        target: the decoder of a fusion model.

    Returns:
        The names of its weights that stay random; masks on cross-attention start as the identity.

    Raises:
        ValueError: for other weights that the source does not have; the message names one.
    """
    expected = target.state_dict()
    found = source.model.state_dict()
    if not found.keys() & expected.keys():  # one without the layer that gives words
        found = {f"{target.base_model_prefix}.{key}": value for key, value in found.items()}
    lacking = {key for key in expected if key not in found or key in source.random}
    tied = target.all_tied_weights_keys
    lacking -= {key for key in lacking if key in tied and tied[key] not in lacking}
    differing = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    plain = copy.deepcopy(target.config)
    plain.add_cross_attention = False
    with torch.device("meta"):
        needed = set(make_decoder(plain).state_dict())
    needed = {key for key in needed if key.startswith(f"{target.base_model_prefix}.")}
    wrong = [*differing, *sorted(lacking & needed)]
    if wrong:
        raise ValueError(
            f"the decoder checkpoint, a {type(source.model).__name__}, does not have {len(wrong)} weights of "
            f"{type(target).__name__}, such as {wrong[0]}. Give the checkpoint of such a model."
        )
    target.load_state_dict({key: found[key] for key in expected.keys() & found.keys() - lacking}, strict=False)
    return sorted(key for key in lacking if ".hf_lam." not in key)
