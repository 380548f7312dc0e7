"""Batches of sounds, and for fusion models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, default_data_collator
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..modeling.configuration_hf_lam_fusion import INPUT_NAMES, OTHER_NAMES
from ..modeling.processing_hf_lam import TEXT_INPUTS, is_missing

# Axes of one sample.
_AXES = {"text": 1, "image": 3, "video": 4, "audio": 2}
_LABELS = ("labels", "label", "label_ids")


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


class FusionCollator:
    """A data collator for fusion models: it pads the text, stacks the rest, and marks what a sample lacks.

    A sample is a dictionary of the arguments of `HfLamFusionForSequenceClassification`, without a batch axis (or with
    one of size 1), as lists, arrays or tensors. It lacks a modality if it does not have the argument, if that is
    `None` (or NaN or NA, as tables of pandas have it), or if `has_text`, `has_image`, `has_video` or `has_audio` says
    so. A batch has blank values in place of what samples lack, and `has_…`, `(B,)` bool, which are all true unless
    they say so; a modality that no sample has is left out. `labels`, `label` or `label_ids` become `labels`: whole
    numbers long, others float, vectors stacked. What else the samples have is left to transformers'
    `default_data_collator`.

    Args:
        processor: an `HfLamFusionProcessor`, a tokenizer, or `None` for samples without text.
        pad_to_multiple_of: the length of the padded text, for example 8 for half precision on a GPU.

    Raises:
        ValueError: when called with samples that have no modality at all, texts without a tokenizer, values of
            several shapes, or labels in some of the samples only. The message names the modality.
    """

    def __init__(self, processor: Any = None, pad_to_multiple_of: int | None = None) -> None:
        is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
        self.tokenizer = processor if is_tokenizer else getattr(processor, "tokenizer", None)
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch of the samples."""
        if not samples:
            raise ValueError("FusionCollator got no samples to make a batch of.")
        for other, meant in OTHER_NAMES.items():
            if any(other in sample for sample in samples):
                raise ValueError(f"samples have {other}, which a fusion model does not take; call it {meant}.")
        has = {name: [_has(sample, name) for sample in samples] for name in INPUT_NAMES}
        lacking = [i for i in range(len(samples)) if not any(flags[i] for flags in has.values())]
        if lacking:
            raise ValueError(
                f"samples {lacking[:5]} of the batch have no modality at all: each needs one of "
                f"{', '.join(INPUT_NAMES.values())}."
            )
        batch: dict[str, torch.Tensor] = {}
        for name, flags in has.items():
            if not any(flags):
                continue
            batch |= self._pad_text(samples, flags) if name == "text" else _stack(name, samples, flags)
            if not all(flags):
                batch[f"has_{name}"] = torch.tensor(flags)
        known = {*TEXT_INPUTS, *INPUT_NAMES.values(), *(f"has_{name}" for name in INPUT_NAMES), *_LABELS}
        others = [{key: value for key, value in sample.items() if key not in known} for sample in samples]
        if others[0]:
            batch |= default_data_collator(others)
        return batch | _labels(samples)

    def _pad_text(self, samples: Sequence[Mapping[str, Any]], has: list[bool]) -> dict[str, torch.Tensor]:
        if self.tokenizer is None:
            raise ValueError("the samples have text, and FusionCollator was made without a tokenizer to pad it.")
        first = samples[has.index(True)]
        keys = [key for key in TEXT_INPUTS if not is_missing(first.get(key))]
        if any(
            flag and is_missing(sample.get(key)) for sample, flag in zip(samples, has, strict=True) for key in keys
        ):
            raise ValueError(f"text: some samples have {', '.join(keys)}, others only some of these.")
        rows = [
            {key: _array("text", sample[key]).tolist() if is_there else [] for key in keys}
            for sample, is_there in zip(samples, has, strict=True)
        ]
        padded = pad_without_fast_tokenizer_warning(
            self.tokenizer, rows, padding=True, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt"
        )
        return dict(padded)


def _has(sample: Mapping[str, Any], name: str) -> bool:
    flag = sample.get(f"has_{name}")
    return not is_missing(sample.get(INPUT_NAMES[name])) and (is_missing(flag) or bool(np.all(np.asarray(flag))))


def _array(name: str, value: Any) -> Any:
    """One sample as an array or a tensor, without an axis for the batch."""
    array = value if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim == _AXES[name] + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != _AXES[name]:
        raise ValueError(
            f"{INPUT_NAMES[name]} of one sample of {name} must have {_AXES[name]} axes, got "
            f"shape {tuple(array.shape)}."
        )
    return array


def _stack(name: str, samples: Sequence[Mapping[str, Any]], has: list[bool]) -> dict[str, torch.Tensor]:
    key = INPUT_NAMES[name]
    tensors = [
        torch.as_tensor(_array(name, sample[key])) for sample, is_there in zip(samples, has, strict=True) if is_there
    ]
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"{key} of the {name} samples of a batch must have one shape, got {shapes}.")
    # Lists of numbers turn into float64 or int64, which is not what models are in.
    is_narrow = tensors[0].is_floating_point() and tensors[0].dtype != torch.float64
    dtype = tensors[0].dtype if is_narrow else torch.float32
    present = iter(tensors)
    return {
        key: torch.stack([(next(present) if is_there else torch.zeros_like(tensors[0])).to(dtype) for is_there in has])
    }


def _labels(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    values = [next((sample[key] for key in _LABELS if not is_missing(sample.get(key))), None) for sample in samples]
    given = [value for value in values if value is not None]
    if not given:
        return {}
    if len(given) != len(values):
        raise ValueError(f"{len(given)} of {len(values)} samples have labels; all must have them, or none.")
    tensors = [torch.as_tensor(value if isinstance(value, torch.Tensor) else np.asarray(value)) for value in given]
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"the labels of a batch must have one shape, got {shapes}.")
    stacked = torch.stack(tensors)
    return {"labels": stacked.float() if stacked.is_floating_point() else stacked.long()}
