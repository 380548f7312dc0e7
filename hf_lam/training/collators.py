"""Batches of sounds, and for fusion models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, default_data_collator
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..modeling.configuration_hf_lam_fusion import (
    ENCODER_ARGUMENTS,
    FEATURES,
    OTHER_NAMES,
    ModalityArguments,
    feature_arguments,
)
from ..modeling.sample_padding_hf_lam import pad_samples
from ..modeling.samples_hf_lam import is_missing
from ..modeling.vectors_hf_lam import as_numbers
from .label_padding import LABELS, MOMENT_LABELS, pad_labels, pad_moment_labels, read_labels

# Axes of the values of one sample. Sounds are waves, spectrograms, or spectrograms as images; one vector may stand for
# a sample of one.
_AXES = {"input_ids": (1,), "pixel_values": (3,), "video_values": (4,), "audio_values": (1, 2, 3)}
_EXTRACTED_AXES = (1, 2)  # of sounds from a feature extractor
_VECTOR_AXES = (1, 2)
_PATCHES = "spatial_shapes"
_PATCH_AXES = (2,)


class SoundCollator:
    """A data collator for models that take sounds: it pads them to the longest of a batch, as their processor does.

    Args:
        processor: the feature extractor that made the inputs of the samples. It says whether what is padded is masked.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of the samples; what is no input of the model, such as labels, is stacked."""
        names = {*self.processor.model_input_names, "attention_mask"}
        inputs = [{name: value for name, value in sample.items() if name in names} for sample in samples]
        others = [{name: value for name, value in sample.items() if name not in names} for sample in samples]
        batch = self.processor.pad(inputs, padding=True, return_tensors="pt")
        return {**batch, **(default_data_collator(others) if others[0] else {})}


class Stream(NamedTuple):
    """One modality of a batch.

    name: name of the modality.
    arguments: names of its arguments in the model.
    rows: arrays by the name of the argument, one for each sample; None for samples that lack the modality.
    """

    name: str
    arguments: ModalityArguments
    rows: dict[str, list[np.ndarray | None]]

    @property
    def values(self) -> list[np.ndarray | None]:
        """The values of the first argument."""
        return self.rows[self.arguments.values]


class FusionCollator:
    """A data collator for fusion models: it pads what has a length, stacks the rest, and marks what a sample lacks.

    A sample is a dictionary of the arguments of a fusion model's `forward`, without a batch axis (or with one of size
    1), as lists, arrays or tensors. It lacks a modality if it does not have the argument, if that is `None` (or NaN or
    NA, as tables of pandas have it) or empty, or if `has_text`, `has_image`, `has_video`, `has_audio`, `has_NAME` or a
    mask of zeros says so. A batch has blank values in place of what samples lack, and `has_…`, `(B,)` bool, which are
    all true unless they say so; a modality that no sample has is left out.

    Every key `NAME_features` is a modality of vectors, `(L, size)`, with its `NAME_mask` and `NAME_positions`. Vectors
    and sounds become fp32. Vectors get a mask, as do sounds of several lengths (`audio_mask`) and patches of images
    (`image_mask`).

    `labels`, `label` or `label_ids` become `labels`: whole numbers long, others float. Vectors of them are stacked, or
    padded, with -100 or NaN, where they are of several lengths. Those of moment retrieval, `span_labels`, `(windows,
    2)`, and `saliency_labels`, `(clips,)`, are padded with NaN. What else the samples have is left to transformers'
    `default_data_collator`.

    Args:
        processor: an `HfLamFusionProcessor`, a tokenizer, or `None` for samples without text.
        pad_to_multiple_of: the length of the padded text, for example 8 for half precision on a GPU.
        label_modalities: whose places are labelled, as `model.label_modalities` of a token classifier, or of a model
            of moments, says. They are padded to one length and on one side, that of the text if it is one of them, and
            the labels with them.

    Raises:
        ValueError: when called with samples that have no modality at all, texts without a tokenizer, values of
            several shapes, or labels in some of the samples only. The message names the modality.
    """

    def __init__(
        self,
        processor: Any = None,
        pad_to_multiple_of: int | None = None,
        label_modalities: Sequence[str] | None = None,
    ) -> None:
        is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
        self.tokenizer = processor if is_tokenizer else getattr(processor, "tokenizer", None)
        self.has_extractor = getattr(processor, "feature_extractor", None) is not None
        self.pad_to_multiple_of = pad_to_multiple_of
        self.label_modalities = tuple(label_modalities or ())

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch of the samples."""
        if not samples:
            raise ValueError("FusionCollator got no samples to make a batch of.")
        for other, meant in OTHER_NAMES.items():
            if any(other in sample for sample in samples):
                raise ValueError(f"samples have {other}, which a fusion model does not take; call it {meant}.")
        modalities = _find_modalities(samples)
        has = [[has_modality(sample, name, arguments) for sample in samples] for name, arguments in modalities]
        lacking = [i for i, flags in enumerate(zip(*has, strict=True)) if not any(flags)]
        if lacking:
            raise ValueError(
                f"samples {lacking[:5]} of the batch have no modality at all: each needs one of "
                f"{', '.join(arguments.values for _, arguments in modalities)}."
            )
        streams = [
            Stream(name, arguments, _read_rows(samples, name, arguments, flags, self.has_extractor))
            for (name, arguments), flags in zip(modalities, has, strict=True)
            if any(flags)
        ]
        length = self._labelled_length(streams)
        batch: dict[str, torch.Tensor] = {}
        for stream in streams:
            batch |= self._pad(stream, length)
            flags = [row is not None for row in stream.values]
            if not all(flags):
                batch[f"has_{stream.name}"] = torch.tensor(flags)
        known = {
            *LABELS,
            *MOMENT_LABELS,
            *(key for name, arguments in modalities for key in (*arguments.names, f"has_{name}")),
        }
        others = [{key: value for key, value in sample.items() if key not in known} for sample in samples]
        if others[0]:
            batch |= default_data_collator(others)
        lengths = _lengths(self._labelled(streams), len(samples))
        labels = read_labels(samples)
        if labels is not None:
            batch["labels"] = pad_labels(labels, lengths, length, self._is_left)
        return batch | pad_moment_labels(samples, lengths, length)

    @property
    def _is_left(self) -> bool:
        """Whether what is labelled has its padding before it."""
        return "text" in self.label_modalities and getattr(self.tokenizer, "padding_side", "right") == "left"

    def _labelled(self, streams: Sequence[Stream]) -> list[Stream]:
        """The texts and vectors among the labelled modalities: others have as many places as their encoder says."""
        text = ENCODER_ARGUMENTS["text"]
        return [
            stream
            for stream in streams
            if stream.name in self.label_modalities and (stream.arguments == text or _is_of_vectors(stream))
        ]

    def _labelled_length(self, streams: Sequence[Stream]) -> int:
        """The length that all that is labelled is padded to; 0 if nothing is."""
        labelled = self._labelled(streams)
        longest = max((len(row) for stream in labelled for row in stream.values if row is not None), default=0)
        if self.pad_to_multiple_of and any(stream.name == "text" for stream in labelled):
            longest += -longest % self.pad_to_multiple_of
        return longest

    def _pad(self, stream: Stream, length: int) -> dict[str, torch.Tensor]:
        """The arguments of one modality. length: the least, if it is labelled."""
        name, arguments = stream.name, stream.arguments
        length = length if name in self.label_modalities else 0
        if arguments == ENCODER_ARGUMENTS["text"]:
            return self._pad_text(stream, length)
        if name in ("image", "video") and not _is_of_vectors(stream) and _PATCHES not in stream.rows:
            return {arguments.values: _stack(name, arguments.values, stream.values)}
        is_left = bool(length) and self._is_left
        masks = stream.rows.get(str(arguments.mask))
        axis = _time_axis(stream.values, masks) if arguments == ENCODER_ARGUMENTS["audio"] else 0
        label = f"{arguments.values} of the {name} samples"
        values, filled = pad_samples(label, stream.values, axis, length, 0, is_left)
        batch = {arguments.values: values.float()}
        is_uneven = len({row.shape for row in stream.values if row is not None}) > 1
        if masks is not None or is_uneven or _is_of_vectors(stream) or _PATCHES in stream.rows:
            mask = filled
            if masks is not None:
                own = _pad_beside(stream, str(arguments.mask), filled, is_left).long()
                mask = torch.where(torch.tensor([[mask is not None] for mask in masks]), own, filled)
            batch[str(arguments.mask)] = mask
        for key in arguments.others:
            if key == _PATCHES and key in stream.rows:
                batch[key] = pad_samples(f"{key} of the {name} samples", stream.rows[key], 0)[0].long()
            elif key in stream.rows:
                batch[key] = _pad_beside(stream, key, filled, is_left)
        return batch

    def _pad_text(self, stream: Stream, length: int) -> dict[str, torch.Tensor]:
        if self.tokenizer is None:
            raise ValueError("the samples have text, and FusionCollator was made without a tokenizer to pad it.")
        rows = [
            {key: [] if row is None else row.tolist() for key, row in zip(stream.rows, of_sample, strict=True)}
            for of_sample in zip(*stream.rows.values(), strict=True)
        ]
        options: dict[str, Any] = {"padding": True, "pad_to_multiple_of": self.pad_to_multiple_of}
        if length:
            options = {"padding": "max_length", "max_length": length}
        return dict(pad_without_fast_tokenizer_warning(self.tokenizer, rows, **options, return_tensors="pt"))


def _find_modalities(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, ModalityArguments]]:
    """Find the modalities that have an encoder, and those of vectors that the samples have, in their order."""
    keys = dict.fromkeys(key for sample in samples for key in sample if key.endswith(FEATURES))
    names = [key.removesuffix(FEATURES) for key in keys]
    return [*ENCODER_ARGUMENTS.items(), *((name, feature_arguments(name)) for name in names)]


def _is_of_vectors(stream: Stream) -> bool:
    return stream.arguments == feature_arguments(stream.name)


def has_modality(sample: Mapping[str, Any], name: str, arguments: ModalityArguments) -> bool:
    """Whether a sample has a modality.

    Args:
        sample: arguments of a fusion model.
        name: name of the modality.
        arguments: names of its arguments in the model, from `config.modality_arguments(name)`.
    """
    if is_missing(sample.get(arguments.values)):
        return False
    said = [sample.get(f"has_{name}"), sample.get(str(arguments.mask))]
    # A mask of zeros is a sample without the modality.
    return all(is_missing(flags) or bool(np.any(np.asarray(flags))) for flags in said)


def _read_rows(
    samples: Sequence[Mapping[str, Any]],
    name: str,
    arguments: ModalityArguments,
    has: Sequence[bool],
    has_extractor: bool,
) -> dict[str, list[np.ndarray | None]]:
    """Read the arguments that the samples have of one modality, by name."""
    present = [sample if is_there else None for sample, is_there in zip(samples, has, strict=True)]
    rows: dict[str, list[np.ndarray | None]] = {}
    for key in arguments.names:
        is_given = [sample is not None and not is_missing(sample.get(key)) for sample in present]
        if not any(is_given):
            continue
        # Only the mask of vectors, sounds and patches goes without saying.
        if is_given != list(has) and (key != arguments.mask or arguments == ENCODER_ARGUMENTS["text"]):
            raise ValueError(f"{name}: some samples have {', '.join((*rows, key))}, others only some of these.")
        axes: tuple[int, ...] = (1,)
        if key == arguments.values:
            axes = _AXES.get(key, _VECTOR_AXES)
            if key == "audio_values" and has_extractor:
                axes = _EXTRACTED_AXES
            elif key == "pixel_values" and any(sample and not is_missing(sample.get(_PATCHES)) for sample in present):
                axes = _PATCH_AXES
        rows[key] = [
            _read_array(name, key, sample[key], axes) if sample is not None and is_there else None
            for sample, is_there in zip(present, is_given, strict=True)
        ]
    return rows


def _read_array(name: str, key: str, value: Any, axes: tuple[int, ...]) -> np.ndarray:
    """One sample as an array, without an axis for the batch."""
    try:
        array = as_numbers(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} of one sample of {name} must be numbers; {error}.") from error
    is_of_vectors = key.endswith(FEATURES)
    is_wave = array.ndim == 2 and axes[0] == 1 and not is_of_vectors
    if (array.ndim > max(axes) or is_wave) and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in axes:
        wanted = " or ".join(map(str, axes))
        raise ValueError(f"{key} of one sample of {name} must have {wanted} axes, got shape {array.shape}.")
    return array[None] if is_of_vectors and array.ndim == 1 else array


def _stack(name: str, key: str, rows: Sequence[np.ndarray | None]) -> torch.Tensor:
    """Images or videos of one shape, and zeros for those that are not there."""
    shapes = sorted({row.shape for row in rows if row is not None})
    if len(shapes) > 1:
        raise ValueError(f"{key} of the {name} samples of a batch must have one shape, got {shapes}.")
    stacked, _ = pad_samples(key, rows)
    # Lists of numbers turn into float64 or int64, which is not what models are in.
    return stacked if stacked.dtype == torch.float16 else stacked.float()


def _pad_beside(stream: Stream, key: str, filled: torch.Tensor, is_left: bool) -> torch.Tensor:
    """Pad arguments with a number for each place of the values, `(B, length)`.

    filled: `(B, length)`, where the values are.
    """
    rows = stream.rows[key]
    for index, (row, values, places) in enumerate(zip(rows, stream.values, filled, strict=True)):
        count = int(places.sum())
        if row is not None and values is not None and row.shape[0] != count:
            raise ValueError(
                f"{key} of sample {index} has {row.shape[0]} places, and {stream.arguments.values} has {count}."
            )
    padded, _ = pad_samples(f"{key} of the {stream.name} samples", rows, 0, filled.shape[1], 0, is_left)
    return padded.float() if padded.is_floating_point() else padded.long()


def _time_axis(values: Sequence[np.ndarray | None], masks: Sequence[np.ndarray | None] | None) -> int | None:
    """The axis of time in sounds; None if it is the one that they differ in, if any."""
    if masks is None:
        return None
    lengths = [
        (x.shape, len(mask)) for x, mask in zip(values, masks, strict=True) if x is not None and mask is not None
    ]
    axes = range(len(lengths[0][0]))
    return next((axis for axis in reversed(axes) if all(shape[axis] == count for shape, count in lengths)), None)


def _lengths(streams: Sequence[Stream], count: int) -> list[int | None]:
    """The number of places of each sample in the labelled modalities; None if it has none of them."""
    rows = [[row for stream in streams if (row := stream.values[index]) is not None] for index in range(count)]
    return [max(map(len, of_sample)) if of_sample else None for of_sample in rows]
