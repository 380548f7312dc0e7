"""Rows of a data set as samples of a fusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..modeling.hosts_facts_hf_lam import read_input_shape
from ..modeling.processing_hf_lam import ARGUMENTS
from ..modeling.samples_hf_lam import is_missing
from .label_lists import read_list
from .media import UnreadableError, read_audio, read_image, read_video
from .models import count_channels, count_frames
from .vectors import VectorColumn, read_vectors


class FusionRows:
    """Reads the modalities of a row, and makes inputs of a fusion model of them.

    Args:
        config: configuration of the model.
        processor: an `HfLamFusionProcessor`.
        columns: column of every modality with an encoder.
        vectors: column of every other modality, with options.
        label_column: column whose lists must be as long as the vectors; None if there is one label to a sample.
        max_tokens: number of tokens that longer texts are cut to.
        max_seconds: number of seconds that longer sounds are cut to.
        is_mel_first: whether spectrograms are (mel bins, frames).
        cuts_window: whether a sound that is shorter than the window of its encoder (Whisper) stays as long as it is.

    Raises:
        ValueError: for an audio encoder that does not take what the feature extractor makes.
    """

    def __init__(
        self,
        config: Any,
        processor: Any,
        columns: Mapping[str, str],
        vectors: Mapping[str, VectorColumn],
        *,
        label_column: str | None = None,
        max_tokens: int = 128,
        max_seconds: float = 30.0,
        is_mel_first: bool = False,
        cuts_window: bool = False,
    ) -> None:
        self.config = config
        self.processor = processor
        self.columns = dict(columns)
        self.vectors = dict(vectors)
        self.label_column = label_column
        self.max_seconds = max_seconds
        self.is_mel_first = is_mel_first
        self.extractor: Any = processor.feature_extractor if "audio" in columns else None
        self.sampling_rate = getattr(self.extractor, "sampling_rate", None)
        # Of an encoder of spectrograms as they are, (frames, mel bins).
        self.spectrogram_size = self._spectrogram_size()
        self.options: dict[str, Any] = {"truncation": True, "max_length": max_tokens} if "text" in columns else {}
        if cuts_window:
            self.options["audio_kwargs"] = {"padding": "longest"}

    @property
    def files(self) -> list[str]:
        """The columns that may have files."""
        media = [column for name, column in self.columns.items() if name != "text"]
        return [*media, *(source.column for source in self.vectors.values())]

    def _spectrogram_size(self) -> tuple[int, ...] | None:
        if self.extractor is None or not hasattr(self.config.audio_config, "frequency_stride"):
            return None
        size = read_input_shape(self.config.audio_config)
        made = (getattr(self.extractor, "max_length", None), getattr(self.extractor, "num_mel_bins", None))
        if made != size:
            raise ValueError(
                f"the feature extractor makes spectrograms of {made} (frames, mel bins), the audio encoder takes "
                f"{size}."
            )
        return size

    def read(self, row: Mapping[str, Any], root: str | None) -> dict[str, Any]:
        """The modalities of a row by name, None for those that it lacks.

        Args:
            row: row of the data set.
            root: the folder that relative paths start from.

        Raises:
            UnreadableError: for a modality that cannot be read, with the reason.
        """
        sample = {
            name: None if is_missing(row[column]) else self._read(name, row[column], row.get(f"{column}_shape"), root)
            for name, column in self.columns.items()
        }
        for name, source in self.vectors.items():
            size = self.config.features[name]["size"]
            shape = row.get(f"{source.column}_shape")
            sample[name] = read_vectors(name, row[source.column], size, shape, root)
        if all(value is None for value in sample.values()):
            names = [*self.columns.values(), *(source.column for source in self.vectors.values())]
            raise UnreadableError(f"it has nothing in {', '.join(names)}")
        self._check_lengths(row, sample)
        return sample | self._positions(row, sample)

    def _read(self, name: str, value: Any, shape: Any, root: str | None) -> Any:
        if name == "image":
            return read_image(value, shape, root, count_channels(self.config.image_config))
        if name == "video":
            video = self.config.video_config
            return read_video(value, count_frames(video), shape, root, count_channels(video))
        return self._read_sound(value, shape, root) if name == "audio" else str(value)

    def _read_sound(self, value: Any, shape: Any, root: str | None) -> np.ndarray:
        sound = read_audio(value, self.sampling_rate, shape, root)
        if sound.ndim == 1:
            rate = self.sampling_rate
            return sound if rate is None else sound[: round(self.max_seconds * rate)]
        if self.spectrogram_size is None:
            raise UnreadableError(f"audio: {type(self.extractor).__name__} takes a waveform, not a spectrogram")
        sound = sound.T if self.is_mel_first else sound
        if sound.shape != self.spectrogram_size:
            raise UnreadableError(
                f"audio: its spectrogram is {sound.shape} (frames, mel bins), the encoder takes "
                f"{self.spectrogram_size}; see also --spectrogram_mel_first"
            )
        # As the feature extractor does with those that it makes.
        extractor = self.extractor
        return (sound - extractor.mean) / (2 * extractor.std) if extractor.do_normalize else sound

    def _check_lengths(self, row: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
        """Whether the modalities whose positions have labels are of one length, with a label for each."""
        if self.label_column is None:
            return
        counts = {name: self._count(name, sample[name]) for name in self.config.labelled_modalities}
        found = {name: count for name, count in counts.items() if count is not None}
        if not found:
            raise UnreadableError(f"it has nothing in {', '.join(counts)}, whose vectors have labels")
        if len(set(found.values())) > 1:
            said = ", ".join(f"{count} of the {name}" for name, count in found.items())
            raise UnreadableError(f"it has vectors of different numbers, {said}; each of them shares a label")
        for name in found:
            longest = self.config.features[name]["max_length"]
            if longest is not None and len(sample[name]) > longest:
                raise UnreadableError(
                    f"{name}: it has {len(sample[name])} vectors, which have labels; max_length is {longest}"
                )
        count, labels = next(iter(found.values())), read_list(row.get(self.label_column))
        if isinstance(labels, (list, tuple)) and len(labels) != count:
            raise UnreadableError(f"it has {len(labels)} labels in {self.label_column!r} for {count} vectors")

    def _count(self, name: str, vectors: np.ndarray | None) -> int | None:
        return None if vectors is None else len(vectors) - self.config.features[name]["class_tokens"]

    def _positions(self, row: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
        """The positions of vectors, as `NAME_positions`."""
        found = {}
        for name, source in self.vectors.items():
            if source.positions_column is None or sample[name] is None:
                continue
            value = row[source.positions_column]
            positions = None if is_missing(value) else np.asarray(read_list(value))
            if positions is None or positions.shape != sample[name].shape[:1] or positions.dtype.kind not in "iuf":
                raise UnreadableError(
                    f"{name}: its positions in {source.positions_column!r} must be {len(sample[name])} numbers, one "
                    "for each vector"
                )
            found[f"{name}_positions"] = positions
        return found

    def encode(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of the model, of what `read` gave: None for what the sample lacks, as rows need the same columns."""
        inputs: dict[str, Any] = dict.fromkeys(self.processor.model_input_names)
        given: dict[str, Any] = {
            argument: [sample[name]]
            for name, argument in ARGUMENTS.items()
            if name in self.columns and sample[name] is not None
        }
        if "audio" in given and given["audio"][0].ndim == 2:
            (inputs["audio_values"],) = given.pop("audio")
        vectors = {name: [sample[name]] for name in self.vectors if sample[name] is not None}
        placed = [name for name, source in self.vectors.items() if source.positions_column is not None]
        inputs |= dict.fromkeys(f"{name}_positions" for name in placed)
        if vectors:
            given["features"] = vectors
            given["positions"] = {name: [sample[f"{name}_positions"]] for name in placed if name in vectors} or None
        if given:
            made = self.processor(**given, sampling_rate=self.sampling_rate, return_tensors="np", **self.options)
            inputs |= {key: made[key][0] for key in inputs if key in made}
        return inputs

    def count_labels(self, inputs: Mapping[str, Any]) -> int:
        """Count the positions of a sample that have a prediction, in the output of `encode`."""
        for name in self.config.labelled_modalities:
            count = self._count(name, inputs[f"{name}_features"])
            if count is not None:
                return count
        raise AssertionError("a sample without vectors is not read")
