# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The decoder of a model that writes text: which of transformers' can be one, and the tokens around a text.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from .option_checks_hf_lam import as_config, check_host_options, is_count

TOKEN_IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
# What a decoder is made with here, whatever its configuration says.
_AS_DECODER = ("is_decoder", "add_cross_attention")
# Arguments that the forward of a decoder must take.
_TAKES = ("inputs_embeds", "encoder_hidden_states", "encoder_attention_mask", "use_cache")
# Decoders that take it, and yet cannot be one here.
_SOUND = "writes codes of sound, several at a time"
_REFUSED = {
    "big_bird": "has no cache for the keys and values of its cross-attention, so it cannot write word by word",
    "gpt_bigcode": "takes no mask of what its cross-attention sees, so a sample would depend on its batch",
    "megatron-bert": "has cross-attention that needs as many tokens as there are words",
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
    "prophetnet": "predicts several words ahead, and writes other words with a cache than without",
}


def decoder_config_of(config: Any) -> Any:
    """The configuration of a decoder as an object, with causal attention and cross-attention; None for None.

    Raises:
        ValueError: if it is none, or that of a model that cannot be a decoder; the message names it.
    """
    if config is None:
        return None
    config = as_config("decoder", config, "a decoder with cross-attention, such as GPT-2 or BERT")
    find_decoder_class(config)
    check_host_options("decoder", config)
    config = copy.deepcopy(config)
    for option in _AS_DECODER:
        setattr(config, option, True)
    if config.is_encoder_decoder:
        config.is_encoder_decoder = False
        # There is no encoder, and transformers reads off its layers how large a cache has to be.
        for name in list(config.to_dict()):
            of_decoder = name.replace("encoder_", "decoder_", 1)
            if of_decoder != name and hasattr(config, of_decoder):
                setattr(config, name, getattr(config, of_decoder))
    return config


def find_decoder_class(config: Any) -> Any:
    """The class of a decoder with cross-attention.

    Raises:
        ValueError: if there is none for that configuration; the message names the model.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"decoder is a {type(config).__name__}, of which transformers has no causal language model. {_OTHERS}"
        )
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    decoder_class = found[0] if isinstance(found, (tuple, list)) else found
    reason = _REFUSED.get(config.model_type)
    if not set(_TAKES) <= set(inspect.signature(decoder_class.forward).parameters):
        reason = "has no cross-attention, with which it would see the tokens of a fusion model"
    if reason is not None:
        raise ValueError(f"decoder is for {decoder_class.__name__}, which {reason}. {_OTHERS}")
    return decoder_class


_OTHERS = "Give a decoder with cross-attention, such as BERT, RoBERTa, GPT-2, BART or TrOCR."


def read_token_ids(config: Any) -> dict[str, Any]:
    """The ids of the tokens around a text: those that a fusion model's configuration has, or else its decoder's.

    Raises:
        ValueError: for one that is not in the decoder's vocabulary.
    """
    found = {name: getattr(config, name) for name in TOKEN_IDS}
    if config.decoder is None:
        return found
    words = getattr(config.decoder, "vocab_size", None)
    for name, ids in found.items():
        if ids is not None and not _are_tokens(name, ids, words):
            raise ValueError(
                f"HfLamFusionConfig: {name} must be a token of the decoder, from 0 to {(words or 0) - 1}, got {ids!r}."
            )
        if ids is None:
            inherited = getattr(config.decoder, name, None)
            # A configuration that was made smaller keeps the ids of its class.
            found[name] = inherited if _are_tokens(name, inherited, words or 1) else None
    if found["decoder_start_token_id"] is None:
        found["decoder_start_token_id"] = found["bos_token_id"]
    if found["pad_token_id"] is None:
        ends = found["eos_token_id"]
        found["pad_token_id"] = ends[0] if isinstance(ends, (list, tuple)) else ends
    return found


def _are_tokens(name: str, ids: Any, words: int | None) -> bool:
    """Whether an option has a token of a vocabulary, or several that may end a text; `words` is None if unknown."""
    several = ids if name == "eos_token_id" and isinstance(ids, (list, tuple)) and ids else [ids]
    return all(is_count(each, 0, words - 1) if words else is_count(each, 0) for each in several)
