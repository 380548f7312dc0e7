# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Texts, images, videos and sounds through the parts of a processor, as the arguments of a fusion model.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from .configuration_hf_lam_fusion import ENCODER_ARGUMENTS
from .vectors_hf_lam import as_numbers

_MASKS = ("attention_mask", "pixel_attention_mask", "padding_mask")
_PADDING: tuple[str, ...] = ("padding", "pad_to_multiple_of", "padding_side")
_DO_NOT_PAD = (None, False, "do_not_pad")
_MAX_LENGTH = "max_length"


class Inputs(NamedTuple):
    """Arguments of a model for the samples that have a modality.

    rows: arrays by the name of the argument, one for each of these samples.
    is_variable: whether every sample keeps its own length.
    """

    rows: dict[str, list[Any]]
    is_variable: bool


def input_names(name: str, part: Any) -> list[str]:
    """The arguments of the model that a part of a processor makes.

    name: name of the modality.
    """
    arguments, made = ENCODER_ARGUMENTS[name], part.model_input_names
    has_mask = _pads_to(part) != _MAX_LENGTH if name == "audio" else any(key.endswith("_mask") for key in made)
    masks = [arguments.mask] if arguments.mask is not None and has_mask else []
    # What a part calls its values goes by many names.
    return [arguments.values, *masks, *(key for key in arguments.others if key in made)]


def encode_texts(
    tokenizer: Any, samples: Sequence[Any], options: Mapping[str, Any], is_for_tensors: bool
) -> dict[str, list[list[int]]]:
    """The arguments for texts, a list for each sample; padding and zeros of the attention mask for `None`.

    Args:
        tokenizer: tokenizer of the processor.
        samples: a text, a pair or a list of words for each sample, or `None`.
        options: options for calling the tokenizer.
        is_for_tensors: whether samples without a text must be as long as the others.
    """
    options = {**options, "return_tensors": None}
    padding: dict[str, Any] = {
        name: options.pop(name) for name in ("padding", "pad_to_multiple_of", "padding_side") if name in options
    }
    is_padded = padding.get("padding") not in _DO_NOT_PAD
    if is_padded:
        # With a length and without padding, a tokenizer would take it for one to cut to.
        options.setdefault("truncation", False)
    word = tokenizer.unk_token or "."
    blank: Any = [word] if options.get("is_split_into_words") else word
    has = [sample is not None for sample in samples]
    # Without any text, one is encoded for nothing but the names of its arguments.
    encoded = tokenizer([sample for sample in samples if sample is not None] or [blank], **options)
    names = [name for name in ENCODER_ARGUMENTS["text"].names if name in encoded]
    # Not without a token, as lists of nothing have no type in a data set.
    width = max(map(len, encoded["input_ids"])) if is_for_tensors and any(has) and not is_padded else 1
    blanks = {"input_ids": tokenizer.pad_token_id or 0}
    rows = {}
    for name in names:
        present = iter(encoded[name])
        rows[name] = [list(next(present)) if is_there else [blanks.get(name, 0)] * width for is_there in has]
    if not is_padded:
        return rows
    if padding["padding"] == _MAX_LENGTH:
        padding["max_length"] = options.get("max_length")
    padded = pad_without_fast_tokenizer_warning(
        tokenizer, rows, **padding, return_attention_mask="attention_mask" in names
    )
    return {name: padded[name] for name in names}


def encode_images(part: Any, images: Sequence[Any], options: Mapping[str, Any]) -> Inputs:
    """The arguments for images.

    Raises:
        ValueError: for several images in one sample, or several shapes.
    """
    pictures = [_read_picture(image) for image in images]
    made = part(pictures, **options)
    names = {"spatial_shapes": "spatial_shapes"} if "spatial_shapes" in made else {}
    return Inputs(_rows("image", part, made, len(pictures), names), False)


def encode_videos(part: Any, videos: Sequence[Any], options: Mapping[str, Any]) -> Inputs:
    """The arguments for videos, through a video processor, or through an image processor for their frames.

    Raises:
        ValueError: for several shapes, or another number of frames than the processor says.
    """
    clips = [
        video if isinstance(video, (str, Mapping)) else [_read_picture(frame) for frame in video] for video in videos
    ]
    made = part(clips, **options)
    key = part.model_input_names[0]
    tensors = [_tensor(values) for values in made[key]]
    counts = [len(clip) for clip in clips]
    if len(tensors) == sum(counts) and all(tensor.ndim == 3 for tensor in tensors):
        # It was made for images, and takes every frame for one.
        frames = iter(tensors)
        made = {key: [torch.stack([next(frames) for _ in range(count)]) for count in counts]}
    rows = _rows("video", part, made, len(clips), {})
    expected = options.get("num_frames", getattr(part, "num_frames", None))
    (found,) = {len(row) for row in rows[ENCODER_ARGUMENTS["video"].values]}
    if isinstance(expected, int) and found != expected:
        raise ValueError(f"video: {type(part).__name__} is for {expected} frames, got {found}.")
    return Inputs(rows, False)


def encode_sounds(part: Any, sounds: Sequence[Any], options: Mapping[str, Any]) -> Inputs:
    """The arguments for sounds.

    What an extractor pads to a fixed size stays so, without a mask unless one is asked for: this is how the models of
    such extractors were trained. Other sounds go through it one by one, so that what becomes of one is the same in
    every batch, and keep their lengths.

    Args:
        part: the feature extractor.
        sounds: arrays or lists of numbers, dictionaries with `array` and `sampling_rate`, or decoders of torchcodec.
        options: options for calling the extractor, with `sampling_rate`.

    Raises:
        ValueError: for sounds that are not decoded, of another rate than the extractor's, or of several shapes.
    """
    waves, options = _read_sounds(part, sounds, dict(options))
    taken = inspect.signature(type(part).__call__).parameters
    is_fixed = "padding" not in taken or options.get("padding", _pads_to(part)) == _MAX_LENGTH
    wants_mask = options.pop("return_attention_mask", None)
    if wants_mask is None:
        wants_mask = not is_fixed or _pads_to(part) != _MAX_LENGTH
    if "return_attention_mask" in taken:
        options["return_attention_mask"] = bool(wants_mask)
    if is_fixed:
        return Inputs(_rows("audio", part, part(waves, **options), len(waves), {}), False)
    every = [_rows("audio", part, part([wave], **options), 1, {}) for wave in waves]
    rows = {name: [row for made in every for row in made[name]] for name in every[0]}
    arguments = ENCODER_ARGUMENTS["audio"]
    if rows[arguments.values][0].ndim == 1 and "pad_to_multiple_of" not in options:
        # All of a wave that is not padded counts.
        rows = {arguments.values: rows[arguments.values]}
    return Inputs(rows, True)


def _pads_to(extractor: Any) -> Any:
    """The padding that a feature extractor does by default; those that cannot be told make one size."""
    taken = inspect.signature(type(extractor).__call__).parameters
    return taken["padding"].default if "padding" in taken else _MAX_LENGTH


def blank_sample(name: str, part: Any) -> Any:
    """A sample that no batch has, for the shape of its values."""
    if name == "audio":
        return torch.zeros(getattr(part, "sampling_rate", None) or 16000).numpy()
    channels = getattr(part, "image_mean", None)
    count = len(channels) if isinstance(channels, Sequence) else 3
    image = torch.zeros(32, 32, count, dtype=torch.uint8).numpy()
    frames = getattr(part, "num_frames", None)
    return [image] * (frames if isinstance(frames, int) else 1) if name == "video" else image


def _rows(
    name: str, part: Any, made: Mapping[str, Any], count: int, others: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Read the output of a part, an array for each sample, by the names of the model's arguments.

    others: further outputs to take: the part's name of each, by the name of the model's argument.
    """
    arguments = ENCODER_ARGUMENTS[name]
    # The first of these names is that of the values: pixel_values, pixel_values_videos, input_values, …
    names = {arguments.values: part.model_input_names[0], **others}
    mask = next((key for key in _MASKS if key in made), None)
    if arguments.mask is not None and mask is not None:
        names[arguments.mask] = mask
    rows = {argument: [_tensor(values).numpy() for values in made[key]] for argument, key in names.items()}
    if arguments.mask in rows:
        rows[arguments.mask] = [row.astype("int64") for row in rows[arguments.mask]]
    values = rows[arguments.values]
    if len(values) != count:
        raise ValueError(
            f"{type(part).__name__} made {len(values)} outputs of {count} {name} samples; a fusion model takes one "
            "for each."
        )
    shapes = sorted({row.shape for row in values})
    if len(shapes) > 1:
        raise ValueError(
            f"the {name} samples of a batch must have one shape, got {shapes} from {type(part).__name__}. Give "
            + ("videos with the same number of frames." if name == "video" else "it a fixed size.")
        )
    return rows


def _tensor(values: Any) -> torch.Tensor:
    """One sample of a processor's output: a tensor, an array, or a list of them for the frames of a video."""
    if isinstance(values, (list, tuple)) and not isinstance(values[0], (int, float)):
        return torch.stack([_tensor(value) for value in values])
    return torch.as_tensor(values)


def _read_picture(image: Any) -> Any:
    """A picture of nested lists, as data sets give arrays that were put into them, as an array; others as they are."""
    if not isinstance(image, (list, tuple)):
        return image
    try:
        picture = as_numbers(image)
    except (TypeError, ValueError):
        picture = None
    if picture is None or picture.ndim not in (2, 3):
        raise ValueError("images must be a list with one image for each sample, got a list of lists.")
    is_of_bytes = picture.dtype.kind == "i" and picture.min() >= 0 and picture.max() <= 255
    return picture.astype("uint8") if is_of_bytes else picture


def _read_sounds(part: Any, sounds: Sequence[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The waves, and the options with their sampling rate."""
    decoded = [_decode(sound) for sound in sounds]
    undecoded = next((sound for sound in decoded if isinstance(sound, Mapping) and sound.get("array") is None), None)
    if undecoded is not None:
        raise ValueError(
            "audio must be decoded: a dictionary needs an array and its sampling_rate, got "
            f"{', '.join(map(str, undecoded))}."
        )
    own = {sound.get("sampling_rate") for sound in decoded if isinstance(sound, Mapping)}
    rates = {options.get("sampling_rate"), *own} - {None}
    expected = getattr(part, "sampling_rate", None)
    if expected is not None and rates - {expected}:
        given = ", ".join(sorted(map(str, rates)))
        raise ValueError(
            f"audio of {given} Hz was given to a {type(part).__name__} for {expected} Hz; resample it first."
        )
    waves = [sound["array"] if isinstance(sound, Mapping) else sound for sound in decoded]
    return [as_numbers(wave) for wave in waves], {**options, "sampling_rate": next(iter(rates), expected)}


def _decode(sound: Any) -> Any:
    """A decoder of torchcodec, as data sets have them, as a dictionary with its sound; other sounds as they are."""
    if not hasattr(sound, "get_all_samples"):
        return sound
    samples = sound.get_all_samples()
    # (channels, time)
    return {"array": samples.data.float().mean(0), "sampling_rate": samples.sample_rate}
