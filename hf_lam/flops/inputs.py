"""A batch of the size that a model is configured for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.fusion_encoders_hf_lam import InputKind, read_input_kind
from ..modeling.host_attention_hf_lam import encoder_side_of, find_encoder
from ..modeling.hosts_facts_hf_lam import (
    SAMPLING_RATE,
    count_samples,
    is_composed,
    is_fusion,
    read_input_shape,
    takes_patches,
    takes_waveform,
)
from ..modeling.hosts_hf_lam import find_input_module, input_name_of, max_length_of, read_tokens
from ..modeling.injection_hf_lam import injected_encoders, injection_of
from ..modeling.option_checks_hf_lam import is_count
from ..parameters import only_injected_encoder

# Vectors of a modality of which nothing says how many there are, and frames of a second of sound.
_VECTORS = 32
_FRAMES = 50


def encoder_of(model: PreTrainedModel) -> Any:
    """The encoder with mechanisms, or the one inside of a task model without any.

    Raises:
        ValueError: if several encoders have mechanisms.
    """
    return only_injected_encoder(model) if injected_encoders(model) else find_encoder(model)


def example_inputs(
    model: PreTrainedModel, batch_size: int = 1, *, lengths: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """A batch of the size that the model is made for, on its device.

    Text is as long as the spans of the model's views add up to, or else as the model can take; where it has token
    types, they divide it evenly. Images, videos and spectrograms are zeros, of the size that the model's mechanisms
    are made for where they say one, and else of that in its configuration. Plain sound is as long as mechanisms are
    made for. A fusion model gets all of its modalities: plain sound of one second, and of features the most vectors
    that a sample can have, or 32 where there is no limit. A decoder that is beside the encoder gets its first token.

    Args:
        model: an encoder, or a task model on top of one, with or without mechanisms.
        batch_size: number of samples, which all are alike.
        lengths: other lengths, by the name of the modality (`text` for a model of text): tokens of a text, vectors of
            features, samples or frames of sound. Images and whatever else has one size are left out.

    Raises:
        ValueError: if `batch_size` is below 1, nothing says the sizes, or a length is none that the model takes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    base = encoder_of(model)
    lengths = {} if lengths is None else lengths
    _check_lengths(model, base, lengths)
    if is_composed(model.config):
        encoder: Any = encoder_side_of(model)
        inputs = example_inputs(encoder, batch_size, lengths=lengths)
        return inputs | _first_token(model, base, batch_size)
    if is_fusion(base.config):
        lengths = {**_lengths_in_step(model, base), **lengths}
        inputs = {}
        for name in base.config.modalities:
            inputs |= _make_modality(model, base, name, batch_size, lengths.get(name))
        return inputs | (_first_token(model, base, batch_size) if model.can_generate() else {})
    if input_name_of(base) == "input_ids":
        return _make_text(model, base, batch_size, lengths.get("text"))
    return _make_media(base, find_input_module(model, base), batch_size)


def _first_token(model: Any, base: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """The token that a decoder begins with."""
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    return {"decoder_input_ids": torch.full((batch_size, 1), start, device=base.device)}


def _check_lengths(model: PreTrainedModel, base: Any, lengths: Mapping[str, int]) -> None:
    longest = _find_longest(base)
    for name, length in lengths.items():
        if name not in longest:
            others = f"; it has {', '.join(longest)}" if longest else ""
            raise ValueError(f"lengths: {type(model).__name__} has no {name!r} of different lengths{others}.")
        most = longest[name]
        if not is_count(length, 1, *([] if most is None else [most])):
            limit = "" if most is None else f" to {most}"
            raise ValueError(f"lengths: {name} must be an integer from 1{limit}, got {length!r}.")


def _find_longest(base: Any) -> dict[str, int | None]:
    """The most tokens, vectors or samples of sound of what differs in length, by its modality; None for no limit."""
    if not is_fusion(base.config):
        return {"text": max_length_of(base)} if input_name_of(base) == "input_ids" else {}
    longest: dict[str, int | None] = {}
    for name in base.config.modalities:
        part = base.modality_model(name)
        if name in (base.config.features or ()):
            longest[name] = part.config.max_length
        elif (kind := _kind_of(part)) is not None and kind.masked is not None and not takes_patches(part.config):
            longest[name] = kind.most
    return longest


def _kind_of(encoder: Any) -> InputKind | None:
    return read_input_kind(encoder.config, type(encoder), max_length_of(encoder))


def _lengths_in_step(model: Any, base: Any) -> dict[str, int]:
    """The lengths at which all modalities that a head labels in step have as many tokens."""
    longest = _find_longest(base)
    names = [name for name in getattr(model, "label_modalities", ()) if name in longest]
    if len(names) < 2:
        return {}
    before = {name: base.class_tokens[name] if name != "text" else 0 for name in names}
    places = min((longest[name] or max(_VECTORS, before[name] + 1)) - before[name] for name in names)
    return {name: max(1, places) + before[name] for name in names}


def _make_modality(
    model: PreTrainedModel, base: Any, name: str, batch_size: int, length: int | None
) -> dict[str, torch.Tensor]:
    """One modality, by the names of the arguments of the fusion model."""
    part, has = base.modality_model(name), base.config.modality_arguments(name)
    if name in (base.config.features or ()):
        options = part.config
        length = length or options.max_length or max(_VECTORS, options.class_tokens)
        return {has.values: torch.zeros(batch_size, length, options.size, dtype=base.dtype, device=base.device)}
    if name == "text":
        return _make_text(model, part, batch_size, length)
    kind = _kind_of(part)
    if kind is not None and kind.masked is not None and not takes_patches(part.config):
        length = length or kind.most or (SAMPLING_RATE if takes_waveform(part.config) else _FRAMES)
        shape = [length if size is None else size for size in kind.sizes]
        return {has.values: torch.zeros(batch_size, *shape, dtype=part.dtype, device=part.device)}
    made = _make_media(part, part, batch_size)
    ours = {str(input_name_of(part)): has.values, "pixel_attention_mask": has.mask}
    ours |= {other: key for key, other in has.others.items()}
    return {str(ours[key]): value for key, value in made.items()}


def _make_media(base: Any, entered: Any, batch_size: int) -> dict[str, Any]:
    """Images, videos, spectrograms or sound.

    entered: the module that gets them: the encoder, or one around it.
    """
    grid = _choose_grid(base)
    shape = None if entered is None else _shape_of(base, entered.config, grid)
    if shape is None:
        raise ValueError(
            f"the configuration of {type(base).__name__} does not say how large its {base.main_input_name} is; give "
            "inputs."
        )
    name = str(input_name_of(entered))
    inputs: dict[str, Any] = {name: torch.zeros(batch_size, *shape, dtype=base.dtype, device=base.device)}
    if takes_patches(entered.config):
        grid = grid or read_tokens(base).grid
        inputs["pixel_attention_mask"] = torch.ones(batch_size, shape[0], dtype=torch.long, device=base.device)
        inputs["spatial_shapes"] = torch.tensor([grid] * batch_size, device=base.device)
    if grid and "interpolate_pos_encoding" in inspect.signature(type(entered).forward).parameters:
        inputs["interpolate_pos_encoding"] = True
    return inputs


def _shape_of(base: Any, config: Any, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    shape = read_input_shape(config, grid)
    if shape is None and hasattr(config, "conv_kernel") and base in injected_encoders(base):
        lengths = _lengths_of(base)
        return (count_samples(config, min(lengths)),) if lengths else None
    return shape


def _choose_grid(base: Any) -> tuple[int, ...]:
    """The grid of the inputs that an encoder's mechanisms are made for, where it is not the host's own."""
    if base not in injected_encoders(base):
        return ()
    injection = injection_of(base)
    own = injection.host.tokens.grid
    for config in injection.configs.values():
        grid = tuple(b if a is None else a for a, b in zip(config.input_grid(injection.host), own, strict=False))
        if grid not in ((), own):
            return grid
    return ()


def _make_text(
    model: PreTrainedModel, base: Any, batch_size: int, length: int | None = None
) -> dict[str, torch.Tensor]:
    length = length or _choose_length(base)
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
    length, lengths = max_length_of(base), _lengths_of(base) if base in injected_encoders(base) else []
    if not lengths and length is None:
        raise ValueError(f"{type(base).__name__} does not say how long its texts get; give inputs.")
    return min(lengths + ([] if length is None else [length]))


def _lengths_of(base: Any) -> list[int]:
    """The lengths that an encoder's inputs have at most, or exactly, as its mechanisms say."""
    configs = injection_of(base).configs.values()
    exact = [config.exact_tokens for config in configs if config.exact_tokens is not None]
    return exact or [config.max_tokens for config in configs if config.max_tokens is not None]
