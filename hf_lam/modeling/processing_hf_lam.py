# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The processor of a fusion model: text, images, videos and audio in, tensors out.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.processing_utils import TextKwargs
from transformers.utils import PROCESSOR_NAME

from .configuration_hf_lam import copy_code
from .configuration_hf_lam_fusion import INPUT_NAMES

# Of every modality: the part of the processor that reads it.
PARTS = {
    "text": "tokenizer",
    "image": "image_processor",
    "video": "video_processor",
    "audio": "feature_extractor",
}
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class HfLamFusionProcessor(ProcessorMixin):
    """A tokenizer, an image processor, a video processor and a feature extractor for audio: those that a model needs.

    Args:
        tokenizer: for text.
        image_processor: for images, such as `ViTImageProcessor`.
        video_processor: for videos: a video processor (transformers has them with torchvision), or an image processor
            for lists of frames, such as `VideoMAEImageProcessor`.
        feature_extractor: for audio, such as `ASTFeatureExtractor`.

    Raises:
        ValueError: if all are `None`.
        TypeError: for an argument of another kind.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        image_processor: Any = None,
        video_processor: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        super().__init__(tokenizer, image_processor, video_processor, feature_extractor)
        if not self.modalities:
            raise ValueError(f"{type(self).__name__} needs at least one of {', '.join(PARTS.values())}.")

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As in transformers, but any of them may be `None`, and frames may go through an image processor."""
        if argument is None:
            return type(None)
        # Video processors are image processors to transformers, too.
        kind = "image_processor" if argument_name == "video_processor" else argument_name
        return super().check_argument_for_proper_class(kind, argument)

    @property
    def modalities(self) -> list[str]:
        """The modalities that it can process."""
        return [name for name, part in PARTS.items() if getattr(self, part) is not None]

    @property
    def model_input_names(self) -> list[str]:
        """The arguments of the model that it makes, without `has_…`."""
        names = []
        for modality in self.modalities:
            if modality == "text":
                names += [name for name in TEXT_INPUTS if name in self.tokenizer.model_input_names]
            else:
                names.append(INPUT_NAMES[modality])
        return names

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        return_tensors: Any = None,
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        videos_kwargs: Mapping[str, Any] | None = None,
        audio_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of a fusion model, from one sample or from a list of them for every modality.

        In a list, `None`, or what pandas has in place of it (NaN, NA), stands for a sample that lacks the modality.

        What is for a model (`return_tensors="pt"`) leaves out a modality that all samples lack, and the `has_…` of one
        that none lacks. What is for a data set (lists, the default, and `"np"`) has the same columns whatever its
        samples lack: those of every modality that was given, so that batches of `dataset.map(…, batched=True)` fit
        together.

        Args:
            text: a string or a list of them; a tuple of two strings is a pair. Here and below, a column of a data set
                or of a table is as good as a list.
            images: an image, a list with one image for each sample, or an array `(B, …)` of them, as the image
                processor takes them.
            videos: a list of frames or an array `(frames, …)`; or a list with one of them for each sample, or an array
                `(B, frames, …)`.
            audio: a mono waveform, as an array, a list of numbers, or a dictionary with `array` and `sampling_rate`;
                or a list of them.
            sampling_rate: of the `audio` that does not say its own, in Hz; that of the feature extractor unless given.
            return_tensors: `"pt"` or `"np"` for tensors `(B, …)`; `None` for lists with one entry for each sample.
            text_kwargs: more options for the tokenizer.
            images_kwargs: options for the image processor.
            videos_kwargs: options for the video processor.
            audio_kwargs: options for the feature extractor.
            kwargs: options for the tokenizer, such as `padding`, `truncation` and `max_length`.

        Returns:
            Those of `input_ids`, `attention_mask`, `token_type_ids`, `pixel_values`, `video_values` and `audio_values`
            that were asked for, always with a batch axis; and `has_text`, `has_image`, `has_video` or `has_audio`,
            `(B,)` bool: which samples have a modality. What stands in for the missing ones is blank.

        Raises:
            TypeError: for an option that no tokenizer has.
            ValueError: for nothing at all, also in one sample; a modality without its part of the processor; batch
                sizes that disagree; or images, videos or audio of several shapes. The message names the modality.
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}.")
        unknown = sorted(set(kwargs) - set(TextKwargs.__annotations__))
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: no option of a tokenizer; options of the other parts go into images_kwargs, "
                "videos_kwargs and audio_kwargs."
            )
        tokenizer_kwargs = {**(text_kwargs or {}), **kwargs}
        given = {
            "text": _samples_of_text(text, bool(tokenizer_kwargs.get("is_split_into_words"))),
            "image": _samples(images, _is_batch_of_images),
            "video": _samples(videos, _is_batch_of_videos),
            "audio": _samples(audio, _is_batch_of_audio),
        }
        samples = {name: values for name, values in given.items() if values is not None}
        self._check_samples(samples)
        has = {name: [value is not None for value in values] for name, values in samples.items()}
        options = {
            "image": dict(images_kwargs or {}),
            "video": dict(videos_kwargs or {}),
            "audio": {"sampling_rate": sampling_rate, **(audio_kwargs or {})},
        }
        output: dict[str, Any] = {}
        is_for_model = return_tensors == "pt"
        for name in samples:
            if is_for_model and not any(has[name]):
                continue
            if name == "text":
                encoded = self._encode_text(samples[name], has[name], tokenizer_kwargs)
                output.update(BatchFeature(encoded, tensor_type=return_tensors))
            else:
                tensors = self._encode(name, samples[name], options[name])
                output[INPUT_NAMES[name]] = _as(tensors, return_tensors)
            if not (is_for_model and all(has[name])):
                output[f"has_{name}"] = _as([torch.tensor(flag) for flag in has[name]], return_tensors)
        return BatchFeature(output)

    def _check_samples(self, samples: Mapping[str, list[Any]]) -> None:
        if not samples:
            raise ValueError(f"{type(self).__name__}: give at least one of text, images, videos and audio.")
        for name in samples:
            self._part(name)
        sizes = {name: len(values) for name, values in samples.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the modalities have different numbers of samples: {sizes}. Use None for missing ones.")
        (size,) = set(sizes.values())
        if size == 0:
            raise ValueError(f"there are no samples in {', '.join(samples)}.")
        lacking = [i for i in range(size) if all(values[i] is None for values in samples.values())]
        if lacking:
            raise ValueError(f"samples {lacking[:5]} have no modality at all: each needs one of {', '.join(samples)}.")

    def _part(self, name: str) -> Any:
        part = getattr(self, PARTS[name])
        if part is None:
            raise ValueError(
                f"this processor has no {PARTS[name]} for {name}; it was made for {', '.join(self.modalities)}."
            )
        return part

    def _encode_text(self, samples: list[Any], has: list[bool], options: Mapping[str, Any]) -> dict[str, Any]:
        # Another text in place of a missing one makes no row longer, and works for pairs and lists of words as well.
        word = self.tokenizer.unk_token or "."
        blank: Any = [word] if options.get("is_split_into_words") else word
        filler = next((value for value in samples if value is not None), blank)
        filled = [filler if value is None else value for value in samples]
        encoded = self.tokenizer(filled, **{**options, "return_tensors": None})
        blanks = {"input_ids": self.tokenizer.pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
        return {
            key: [
                list(row) if is_there else [blanks[key]] * len(row)
                for row, is_there in zip(encoded[key], has, strict=True)
            ]
            for key in TEXT_INPUTS
            if key in encoded
        }

    def _encode(self, name: str, samples: list[Any], options: dict[str, Any]) -> list[torch.Tensor]:
        """One tensor for each sample, zeros for those that lack the modality."""
        part = self._part(name)
        present = [value for value in samples if value is not None] or [_blank(name, part)]
        if name == "audio":
            decoded = [value for value in present if isinstance(value, Mapping)]
            undecoded = next((value for value in decoded if value.get("array") is None), None)
            if undecoded is not None:
                raise ValueError(
                    "audio must be decoded: a dictionary needs an array and its sampling_rate, got "
                    f"{', '.join(map(str, undecoded))}."
                )
            rates = {options.get("sampling_rate"), *(value.get("sampling_rate") for value in decoded)} - {None}
            expected = getattr(part, "sampling_rate", None)
            if expected is not None and rates - {expected}:
                given = ", ".join(sorted(map(str, rates)))
                raise ValueError(
                    f"audio of {given} Hz was given to a {type(part).__name__} for {expected} Hz; resample it first."
                )
            options = {**options, "sampling_rate": next(iter(rates), expected)}
            present = [value["array"] if isinstance(value, Mapping) else value for value in present]
            present = [value.numpy(force=True) if isinstance(value, torch.Tensor) else value for value in present]
        elif name == "video":
            present = [value if isinstance(value, (str, Mapping)) else list(value) for value in present]
        elif any(isinstance(value, (list, tuple)) for value in present):
            raise ValueError("images must be a list with one image for each sample, got a list of lists.")
        # The first of these names is that of the values: pixel_values, pixel_values_videos, input_values, …
        tensors = [_tensor(values) for values in part(present, **options)[part.model_input_names[0]]]
        if len(tensors) != len(present):
            raise ValueError(
                f"{type(part).__name__} made {len(tensors)} outputs of {len(present)} {name} samples; a fusion model "
                "takes one for each."
            )
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise ValueError(
                f"the {name} samples of a batch must have one shape, got {shapes} from {type(part).__name__}. Give "
                + ("videos with the same number of frames." if name == "video" else "it a fixed size.")
            )
        frames = options.get("num_frames", getattr(part, "num_frames", None)) if name == "video" else None
        if isinstance(frames, int) and shapes[0][0] != frames:
            raise ValueError(f"video: {type(part).__name__} is for {frames} frames, got {shapes[0][0]}.")
        processed = iter(tensors)
        return [torch.zeros_like(tensors[0]) if value is None else next(processed) for value in samples]

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """That of the tokenizer."""
        return self._part("text").batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """That of the tokenizer."""
        return self._part("text").decode(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; a part that is not there is left out, but for a tokenizer, which is not part of it."""
        output = {key: value for key, value in super().to_dict().items() if value is not None}
        if self.tokenizer is None:
            # A folder may have a tokenizer that is not this processor's.
            output["tokenizer"] = None
        return output | {"auto_map": {"AutoProcessor": f"processing_hf_lam.{type(self).__name__}"}}

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save the tokenizer's files, `processor_config.json` with everything else, and the code beside them.

        Args:
            save_directory: a folder, also one with a model in it.
            push_to_hub: push it as well, to `repo_id`, or else to a repository with the folder's name.
            kwargs: those of `push_to_hub`.

        Returns:
            The path of `processor_config.json`.
        """
        folder = Path(save_directory)
        copy_code(Path(__file__).parent, folder)
        if self.tokenizer is not None:
            self.tokenizer._set_processor_class(type(self).__name__)
            self.tokenizer.save_pretrained(folder)
        self.to_json_file(folder / PROCESSOR_NAME)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)
        return [str(folder / PROCESSOR_NAME)]

    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        processor_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        processor_dict = processor_dict or {}
        if processor_dict.get("processor_class") != cls.__name__:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} has no {PROCESSOR_NAME} of a {cls.__name__}. Make one of its "
                f"parts, such as {cls.__name__}(tokenizer=AutoTokenizer.from_pretrained(...)), and save it there."
            )
        arguments = []
        for name in cls.get_attributes():
            options = processor_dict.get(name)
            if name == "tokenizer":
                has_one = name not in processor_dict
                argument = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs) if has_one else None
            elif options is None:
                argument = None
            else:
                kind = next(key for key in _CLASS_KEYS if key in options)
                argument = cls.get_possibly_dynamic_module(options[kind]).from_dict(dict(options))
            arguments.append(argument)
        return arguments


# Where transformers writes the class of a part; a video processor may have the key of an image processor, too.
_CLASS_KEYS = ("video_processor_type", "image_processor_type", "feature_extractor_type")


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: `None`, or one of those of pandas, which are NaN, NA and NaT."""
    if isinstance(value, Real):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _blank(name: str, part: Any) -> Any:
    """A sample that no batch has, for the shape of its values."""
    if name == "audio":
        return torch.zeros(getattr(part, "sampling_rate", None) or 16000)
    channels = getattr(part, "image_mean", None)
    image = torch.zeros(32, 32, len(channels) if isinstance(channels, Sequence) else 3, dtype=torch.uint8).numpy()
    frames = getattr(part, "num_frames", None)
    return [image] * (frames if isinstance(frames, int) else 1) if name == "video" else image


def _samples_of_text(text: Any, is_split_into_words: bool) -> list[Any] | None:
    """A list with one text for each sample, from one text or a list of them."""
    if is_split_into_words:
        return _samples(text, lambda value: not isinstance(next((x for x in value if not is_missing(x)), None), str))
    return _samples(text, lambda value: isinstance(value, list))


def _samples(values: Any, is_batch: Callable[[Any], bool]) -> list[Any] | None:
    if values is None:
        return None
    if _is_column(values):
        values = list(values)
    samples = list(values) if is_batch(values) else [values]
    return [None if is_missing(value) else value for value in samples]


def _is_column(values: Any) -> bool:
    """Whether it is a column of a data set or of a table: one axis of objects, and no list."""
    if isinstance(values, (str, bytes, list, tuple)):
        return False
    dtype = getattr(values, "dtype", None)
    if isinstance(values, Sequence):
        return True
    if getattr(values, "ndim", 0) != 1 or dtype is None:
        return False
    is_of_objects = str(dtype) in ("object", "str", "string") or getattr(dtype, "kind", "") == "U"
    # pandas makes numbers, NaN, of a column without any value.
    return is_of_objects or (hasattr(values, "isna") and bool(values.isna().all()))


def _is_batch_of_images(images: Any) -> bool:
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4


def _is_batch_of_videos(videos: Any) -> bool:
    if not isinstance(videos, (list, tuple)):
        return getattr(videos, "ndim", 0) == 5
    first = next((video for video in videos if not is_missing(video)), None)
    # Frames are images or arrays of two or three axes; a path in a list is that of a video.
    return first is None or isinstance(first, (list, tuple, str, Mapping)) or getattr(first, "ndim", 0) == 4


def _is_batch_of_audio(audio: Any) -> bool:
    if not isinstance(audio, (list, tuple)):
        return getattr(audio, "ndim", 0) == 2
    first = next((waveform for waveform in audio if not is_missing(waveform)), None)
    return not isinstance(first, (int, float))


def _tensor(values: Any) -> torch.Tensor:
    """What a processor gives for one sample: a tensor, an array, or a list of them for the frames of a video."""
    if isinstance(values, (list, tuple)) and not isinstance(values[0], (int, float)):
        return torch.stack([_tensor(value) for value in values])
    return torch.as_tensor(values)


def _as(tensors: list[torch.Tensor], return_tensors: str | None) -> Any:
    if return_tensors is None:
        return [tensor.numpy() for tensor in tensors]
    stacked = torch.stack(tensors)
    return stacked if return_tensors == "pt" else stacked.numpy()
