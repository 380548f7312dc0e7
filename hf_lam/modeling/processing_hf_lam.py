# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The processor of a fusion model: text, images, videos and audio in, tensors out.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.processing_utils import TextKwargs
from transformers.utils import PROCESSOR_NAME

from .configuration_hf_lam import copy_code
from .configuration_hf_lam_fusion import ENCODER_ARGUMENTS, FEATURE_POSITIONS, feature_arguments
from .media_inputs_hf_lam import (
    Inputs,
    blank_sample,
    encode_images,
    encode_sounds,
    encode_texts,
    encode_videos,
    input_names,
)
from .sample_padding_hf_lam import pad_samples
from .samples_hf_lam import Given, columns_of, is_missing, read_samples, row_or_batch
from .targets_hf_lam import encode_targets, pad_targets, token_ids_of
from .vectors_hf_lam import read_vector_options, vector_options

# Of every modality with an encoder: the part of the processor that reads it, and the argument of its call.
PARTS = {
    "text": "tokenizer",
    "image": "image_processor",
    "video": "video_processor",
    "audio": "feature_extractor",
}
# The tokenizer of what a model writes: the name of its part, and of its folder beside the processor's files.
DECODER_TOKENIZER = "decoder_tokenizer"
# What a text to learn from is called, as an argument and as a column.
TARGET = "text_target"
ARGUMENTS = {"text": "text", "image": "images", "video": "videos", "audio": "audio"}
_ENCODE = {"image": encode_images, "video": encode_videos, "audio": encode_sounds}
_NOT_GIVEN: Any = object()


class HfLamFusionProcessor(ProcessorMixin):
    """A tokenizer, an image processor, a video processor and a feature extractor for audio, and how vectors are read.

    Args:
        tokenizer: tokenizer of the texts.
        image_processor: processor of the images, such as `ViTImageProcessor`.
        video_processor: processor of the videos: a video processor (transformers has them with torchvision), or an
            image processor for their frames, such as `VideoMAEImageProcessor`.
        feature_extractor: feature extractor of the audio, such as `ASTFeatureExtractor`, `WhisperFeatureExtractor` or
            `Wav2Vec2FeatureExtractor`.
        decoder_tokenizer: tokenizer of the texts that the model writes, if it writes any; it may be the one of the
            texts that it reads.
        features: options of the modalities of vectors by name, such as `{"clips": {"size": 512}}`; see
            `VectorOptions`. A number alone is the size.

    Raises:
        ValueError: if all are `None`, or for options of features that are none.
        TypeError: for an argument of another kind.
    """

    decoder_tokenizer: Any

    def __init__(
        self,
        tokenizer: Any = None,
        image_processor: Any = None,
        video_processor: Any = None,
        feature_extractor: Any = None,
        decoder_tokenizer: Any = None,
        features: Any = None,
    ) -> None:
        super().__init__(tokenizer, image_processor, video_processor, feature_extractor, decoder_tokenizer)
        self.features: Any = (None if features is None else read_vector_options(features)) or None
        if not self.modalities:
            raise ValueError(f"{type(self).__name__} needs at least one of {', '.join(PARTS.values())} and features.")
        both = sorted(name for name in self.features or () if getattr(self, PARTS.get(name, ""), None) is not None)
        if both:
            raise ValueError(f"{', '.join(both)} cannot be features and have a {PARTS[both[0]]}; name them otherwise.")

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Check an argument as in transformers, but any may be `None`, and an image processor may read frames."""
        if argument is None:
            return type(None)
        # Video processors are image processors to transformers, too.
        kind = {"video_processor": "image_processor", DECODER_TOKENIZER: "tokenizer"}.get(argument_name, argument_name)
        return super().check_argument_for_proper_class(kind, argument)

    @property
    def modalities(self) -> list[str]:
        """The modalities that it can process."""
        return [name for name, part in PARTS.items() if getattr(self, part) is not None] + list(self.features or ())

    @property
    def decoder_token_ids(self) -> dict[str, int]:
        """The tokens around a text that the model writes, as options of its configuration.

        Raises:
            ValueError: without a `decoder_tokenizer`.
        """
        return token_ids_of(self._decoder_tokenizer)

    @property
    def _decoder_tokenizer(self) -> Any:
        if self.decoder_tokenizer is None:
            raise ValueError(
                f"this processor has no {DECODER_TOKENIZER}, of the texts that a model writes; it was made for "
                f"{', '.join(self.modalities)}."
            )
        return self.decoder_tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """The arguments of the model that it makes, without `has_…`."""
        names: list[str] = []
        for modality in self.modalities:
            if modality in (self.features or ()):
                names += feature_arguments(modality).names
            else:
                names += input_names(modality, getattr(self, PARTS[modality]))
        return names

    def __call__(
        self,
        text: Any = _NOT_GIVEN,
        images: Any = _NOT_GIVEN,
        videos: Any = _NOT_GIVEN,
        audio: Any = _NOT_GIVEN,
        *,
        features: Mapping[str, Any] | None = None,
        positions: Mapping[str, Any] | None = None,
        text_target: Any = None,
        sampling_rate: int | None = None,
        return_tensors: Any = None,
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        videos_kwargs: Mapping[str, Any] | None = None,
        audio_kwargs: Mapping[str, Any] | None = None,
        target_kwargs: Mapping[str, Any] | None = None,
        common_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of a fusion model, from one sample or from a list of them for every modality.

        In a list, `None`, what pandas has in place of it (NaN, NA), and what is empty stand for a sample that lacks
        the modality; `None` alone, for one or all samples that do.

        What is for a model (`return_tensors="pt"`) leaves out a modality that all samples lack, and the `has_…` of one
        that none lacks. What is for a data set (lists, the default, and `"np"`) has the same columns whatever its
        samples lack: those of every modality that was given, so that batches of `dataset.map(…, batched=True)` fit
        together. In lists, sounds and vectors keep their own lengths; `FusionCollator` pads them.

        A row or a batch of a data set, or a table of pandas, with columns that are called as the modalities (and
        `NAME_positions`), may be given alone: `dataset.map(processor, batched=True, fn_kwargs={"padding": True})`, or
        row by row, which makes the same rows, `dataset.with_transform(processor)`. Other columns are not looked at.

        Args:
            text: a string or a list of them; a tuple of two strings is a pair. Here and below, a column of a data set
                or of a table is as good as a list.
            images: an image, a list with one image for each sample, or an array `(B, …)` of them, as the image
                processor takes them.
            videos: a list of frames or an array `(frames, …)`; or a list with one of them for each sample, or an array
                `(B, frames, …)`.
            audio: a mono waveform, as an array, a list of numbers, or a dictionary with `array` and `sampling_rate`;
                or a list of them.
            features: vectors, by the name of their modality: `(L, size)` of one sample, or a list with one of them for
                each sample, or an array `(B, L, size)`. Where other modalities have several samples, `(B, size)` is
                one vector for each.
            positions: position of each vector, such as the second at which a clip begins, by the name of the modality:
                `(L,)`, or a list with one of them for each sample.
            text_target: the text that a model learns to write, or a list with one for each sample, for the
                `decoder_tokenizer`. Alone, labels are all that is made.
            sampling_rate: rate in Hz of `audio` that does not give its own; the feature extractor's unless given.
            return_tensors: `"pt"` or `"np"` for tensors `(B, …)`; `None` for lists with one entry for each sample.
            text_kwargs: more options for the tokenizer.
            images_kwargs: options for the image processor.
            videos_kwargs: options for the video processor.
            audio_kwargs: options for the feature extractor. Sounds for Whisper are 30 s long, with silence after the
                sound, unless `{"padding": "longest"}` leaves them their own lengths.
            target_kwargs: options for the `decoder_tokenizer`, such as `max_length`, which cuts longer texts.
            common_kwargs: `return_tensors`, where processors of transformers take it as well.
            kwargs: options for the tokenizer, such as `padding`, `truncation` and `max_length`.

        Returns:
            The arguments of the model that belong to what was given, always with a batch axis (but for a row of a
            data set); and `has_text`, `has_image`, `has_video`, `has_audio` or `has_NAME`, `(B,)` bool: which samples
            have a modality. What stands in for the missing ones is blank. With `text_target` also `labels`: the tokens
            of the text and of its end, without that of its start. In tensors, -100 is behind shorter ones.

        Raises:
            TypeError: for an option that no tokenizer has.
            ValueError: for nothing at all, also in one sample; a modality without its part of the processor; batch
                sizes that disagree; images or videos of several shapes; or vectors of another size. The message names
                the modality.
        """
        return_tensors = (common_kwargs or {}).get("return_tensors", return_tensors)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}.")
        unknown = sorted(set(kwargs) - set(TextKwargs.__annotations__))
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: no option of a tokenizer; options of the other parts go into images_kwargs, "
                "videos_kwargs and audio_kwargs."
            )
        options: dict[str, dict[str, Any]] = {
            "text": {**(text_kwargs or {}), **kwargs},
            "image": dict(images_kwargs or {}),
            "video": dict(videos_kwargs or {}),
            "audio": {"sampling_rate": sampling_rate, **(audio_kwargs or {})},
        }
        arguments = {"text": text, "image": images, "video": videos, "audio": audio}
        values = {name: value for name, value in arguments.items() if value is not _NOT_GIVEN}
        targets = None if text_target is None else self._read_targets(text_target)
        if targets is not None and not values and features is None:
            return BatchFeature(self._encode_targets(targets, target_kwargs or {}, return_tensors))
        is_batch = row_or_batch(text)
        columns = columns_of(text)
        is_of_columns = isinstance(columns, Mapping)
        if is_of_columns:
            if len(values) > 1 or features is not None or positions is not None:
                raise ValueError("a row or a batch of a data set has all modalities; give nothing else beside it.")
            values, positions = self._columns(columns)
            if targets is None and self.decoder_tokenizer is not None and columns.get(TARGET) is not None:
                targets = self._read_targets(columns[TARGET])
        else:
            self._check_names("features", features or {})
            self._check_names("positions", positions or {})
            values |= features or {}
        kinds = {"text": "words" if options["text"].get("is_split_into_words") else "text"}
        given = {
            name: Given("vectors" if name in (self.features or ()) else kinds.get(name, name), value)
            for name, value in values.items()
            if not (is_missing(value) and name not in self.modalities)
        }
        placed = {f"{name}{FEATURE_POSITIONS}": Given("numbers", value) for name, value in (positions or {}).items()}
        samples, is_several = read_samples(given | placed, is_batch)
        places = {name: samples.pop(f"{name}{FEATURE_POSITIONS}") for name in positions or {}}
        self._check_samples(samples, places)
        output: dict[str, Any] = {}
        for name, values_of in samples.items():
            output |= self._encode(name, values_of, places.get(name), options.get(name, {}), return_tensors)
        if targets is not None:
            count = len(next(iter(samples.values())))
            if len(targets) != count:
                raise ValueError(f"text_target has {len(targets)} texts for {count} samples.")
            output |= self._encode_targets(targets, target_kwargs or {}, return_tensors)
        if is_of_columns and not is_several:
            output = {name: rows[0] for name, rows in output.items()}
        return BatchFeature(output)

    def _read_targets(self, targets: Any) -> list[Any]:
        return [targets] if isinstance(targets, str) else list(targets)

    def _encode_targets(
        self, targets: list[Any], options: Mapping[str, Any], return_tensors: str | None
    ) -> dict[str, Any]:
        rows = encode_targets(self._decoder_tokenizer, targets, options)
        return {"labels": rows if return_tensors is None else _convert(pad_targets(rows), return_tensors)}

    def _check_names(self, argument: str, given: Mapping[str, Any]) -> None:
        unknown = sorted(set(given) - set(self.features or ()))
        if unknown:
            has = f"its features are {', '.join(self.features)}" if self.features else "it has no features"
            raise ValueError(f"{argument} has {', '.join(unknown)}, which this processor was not made for; {has}.")

    def _columns(self, columns: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The modalities of a row or a batch of a data set, and the positions of those that have any."""
        values: dict[str, Any] = {}
        for name in self.modalities:
            column = next((key for key in (name, ARGUMENTS.get(name, name)) if key in columns), None)
            if column is not None:
                values[name] = None if is_missing(columns[column]) else columns[column]
        if not values:
            raise ValueError(
                f"none of the columns {', '.join(map(str, columns))} is called as a modality of this processor: "
                f"{', '.join(self.modalities)}. Rename one, or name the arguments: processor(text=rows['sentence'])."
            )
        places = {
            name: columns[column]
            for name, options in (self.features or {}).items()
            if name in values and options["positions"] is not None
            if (column := f"{name}{FEATURE_POSITIONS}") in columns
        }
        return values, {name: None if is_missing(value) else value for name, value in places.items()}

    def _check_samples(self, samples: Mapping[str, list[Any]], places: Mapping[str, list[Any]]) -> None:
        name_of = type(self).__name__
        if not samples:
            raise ValueError(f"{name_of}: give at least one of {', '.join(ARGUMENTS.values())} or features.")
        for name in samples:
            if name not in (self.features or ()):
                self._part(name)
        sizes = {name: len(values) for name, values in samples.items()}
        sizes |= {f"{name} positions": len(values) for name, values in places.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the modalities have different numbers of samples: {sizes}. Use None for missing ones.")
        size = next(iter(sizes.values()))
        if size == 0:
            raise ValueError(f"there are no samples in {', '.join(samples)}.")
        lacking = [i for i in range(size) if all(values[i] is None for values in samples.values())]
        if lacking:
            raise ValueError(f"samples {lacking[:5]} have no modality at all: each needs one of {', '.join(samples)}.")
        for name in places:
            if name not in samples:
                raise ValueError(f"positions of {name} were given without its features.")
            if vector_options(self.features[name]).positions is None:
                raise ValueError(f"positions of {name} were given, but it has none (positions=None).")

    def _part(self, name: str) -> Any:
        part = getattr(self, PARTS[name])
        if part is None:
            raise ValueError(
                f"this processor has no {PARTS[name]} for {name}; it was made for {', '.join(self.modalities)}."
            )
        return part

    def _encode(
        self,
        name: str,
        samples: list[Any],
        places: list[Any] | None,
        options: Mapping[str, Any],
        return_tensors: str | None,
    ) -> dict[str, Any]:
        """The arguments of one modality, and which samples have it."""
        has = [sample is not None for sample in samples]
        if return_tensors == "pt" and not any(has):
            return {}
        if name in (self.features or ()):
            mask = feature_arguments(name).mask
            made = _arrange(has, self._encode_vectors(name, samples, places), mask, return_tensors)
        elif name == "text":
            rows = encode_texts(self._part(name), samples, options, return_tensors is not None)
            made = dict(BatchFeature(rows, tensor_type=return_tensors))
        else:
            part = self._part(name)
            present = [sample for sample in samples if sample is not None] or [blank_sample(name, part)]
            made = _arrange(has, _ENCODE[name](part, present, options), ENCODER_ARGUMENTS[name].mask, return_tensors)
        if not (return_tensors == "pt" and all(has)):
            made[f"has_{name}"] = has if return_tensors is None else _convert(torch.tensor(has), return_tensors)
        return made

    def _encode_vectors(self, name: str, samples: list[Any], places: list[Any] | None) -> Inputs:
        arguments, options = feature_arguments(name), vector_options(self.features[name])
        vectors = [options.prepare(name, sample) for sample in samples if sample is not None]
        rows = {arguments.values: vectors or [torch.zeros(0, options.size).numpy()]}
        if places is not None:
            there = [place for place, sample in zip(places, samples, strict=True) if sample is not None]
            counts = [len(sample) for sample in vectors]
            rows[f"{name}{FEATURE_POSITIONS}"] = [
                options.prepare_positions(name, place, count) for place, count in zip(there, counts, strict=True)
            ] or [options.blank_positions]
        return Inputs(rows, True)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode with the `decoder_tokenizer`, or else with the tokenizer."""
        return self._writer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode with the `decoder_tokenizer`, or else with the tokenizer."""
        return self._writer.decode(*args, **kwargs)

    @property
    def _writer(self) -> Any:
        return self._part("text") if self.decoder_tokenizer is None else self.decoder_tokenizer

    def to_dict(self) -> dict[str, Any]:
        """Write the options as in transformers, without absent parts; an absent tokenizer is written as None."""
        output = {key: value for key, value in super().to_dict().items() if value is not None}
        if self.tokenizer is None:
            # A folder may have a tokenizer that is not this processor's.
            output["tokenizer"] = None
        if self.decoder_tokenizer is not None:
            output[DECODER_TOKENIZER] = True
        return output | {"auto_map": {"AutoProcessor": f"processing_hf_lam.{type(self).__name__}"}}

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save the tokenizer's files, `processor_config.json` with everything else, and the code beside them.

        The files of a `decoder_tokenizer` are in a folder of that name.

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
        if self.decoder_tokenizer is not None:
            self.decoder_tokenizer.save_pretrained(folder / DECODER_TOKENIZER)
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
            elif name == DECODER_TOKENIZER:
                place = {**kwargs, "subfolder": "/".join(filter(None, [kwargs.get("subfolder"), name]))}
                argument = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **place) if options else None
            elif options is None:
                argument = None
            else:
                kind = next(key for key in _CLASS_KEYS if key in options)
                argument = cls.get_possibly_dynamic_module(options[kind]).from_dict(dict(options))
            arguments.append(argument)
        return arguments


# Where transformers writes the class of a part; a video processor may have the key of an image processor, too.
_CLASS_KEYS = ("video_processor_type", "image_processor_type", "feature_extractor_type")


def _arrange(has: list[bool], inputs: Inputs, mask: str | None, return_tensors: str | None) -> dict[str, Any]:
    """Arguments with an entry for every sample, blank for those that lack the modality.

    mask: argument that says which places count, for samples that keep their own lengths.
    """
    made: dict[str, Any] = {}
    for argument, rows in inputs.rows.items():
        # A missing sample has the length 0 if samples keep lengths of their own.
        blank = (rows[0][:0] if inputs.is_variable else rows[0]).copy()
        blank.fill(0)
        present = iter(rows)
        arranged = [next(present) if is_there else None for is_there in has]
        if return_tensors is None:
            made[argument] = [blank if row is None else row for row in arranged]
            continue
        tensor, filled = pad_samples(argument, arranged if any(has) else [blank] * len(has))
        made[argument] = _convert(tensor, return_tensors)
        if inputs.is_variable and mask is not None and mask not in inputs.rows:
            made.setdefault(mask, _convert(filled, return_tensors))
    return made


def _convert(tensor: torch.Tensor, return_tensors: str | None) -> Any:
    return tensor if return_tensors == "pt" else tensor.numpy()
