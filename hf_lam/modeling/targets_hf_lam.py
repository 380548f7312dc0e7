# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Texts that a model learns to write, as labels.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .samples_hf_lam import is_missing

# No label, in every loss of transformers.
NO_LABEL = -100
# What may stand for the start and the end of a text, the better first.
_STARTS, _ENDS = ("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id")


def token_ids_of(tokenizer: Any) -> dict[str, int]:
    """The tokens around a text, as the options of a fusion model's configuration; those that a tokenizer has.

    BERT's tokenizer has none for the start and the end of a text, and those around a sentence stand for them.
    """
    start, end = _first(tokenizer, _STARTS), _first(tokenizer, _ENDS)
    pad = tokenizer.pad_token_id
    found = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end if pad is None else pad}
    return {name: token for name, token in found.items() if token is not None}


def _first(tokenizer: Any, names: Sequence[str]) -> int | None:
    return next((token for name in names if (token := getattr(tokenizer, name, None)) is not None), None)


def encode_targets(tokenizer: Any, texts: Sequence[Any], options: Mapping[str, Any]) -> list[list[int]]:
    """Encode texts as labels: the tokens of each, and the end token.

    The start token is no label: the decoder begins with it.

    Args:
        tokenizer: tokenizer of the decoder.
        texts: one text for each sample.
        options: options for calling the tokenizer. With `truncation`, `max_length` counts the labels, the end
            included.

    Raises:
        ValueError: for samples without a text; the message names them.
    """
    lacking = [index for index, text in enumerate(texts) if is_missing(text)]
    if lacking:
        raise ValueError(f"samples {lacking[:5]} have no text in text_target, and a model cannot learn from them.")
    end = _first(tokenizer, _ENDS)
    options = {"truncation": options.get("max_length") is not None, **options, "padding": False}
    if options["truncation"] and options.get("max_length") is not None and end is not None:
        options["max_length"] -= 1
    options |= {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    rows = tokenizer(text_target=list(texts), **options)["input_ids"]
    return [list(row) if end is None else [*row, end] for row in rows]


def pad_targets(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Labels of several lengths as one tensor, `(B, T)`."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=NO_LABEL)
