"""A classifier of texts, images, videos or sounds as a server needs it: read an input, run a batch, say what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from batching import Sample
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    default_data_collator,
)

import hf_lam  # noqa: F401  (so that saved models load without code of theirs)
from hf_lam.training.collators import SoundCollator
from hf_lam.training.frame_processors import FrameProcessor
from hf_lam.training.media import read_audio, read_image, read_video
from hf_lam.training.models import count_channels, count_frames, process

# By kind: what loads a model, and which classes there are.
KINDS: dict[str, tuple[Any, Any]] = {
    "text": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    "image": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
    "video": (AutoModelForVideoClassification, MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING),
    "audio": (AutoModelForAudioClassification, MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING),
}


class Classifier:
    """A saved classifier.

    kind: `text`, `image`, `video` or `audio`.
    prepare: makes a sample out of an input: a text, or a file as bytes. Raises a `ValueError` if it cannot be read.

    Args:
        folder: a folder of the model, or its name on the Hub. Code that comes with it does not run: hf_lam has it.
        max_tokens: the most tokens of a text; longer ones are cut. `None` for as many as the model takes.
        max_seconds: longer sounds are cut.

    Raises:
        ValueError: if it is no classifier of one of these kinds.
    """

    def __init__(self, folder: str, *, max_tokens: int | None = None, max_seconds: float = 30) -> None:
        self.kind = _kind_of(AutoConfig.from_pretrained(folder), folder)
        self.model: PreTrainedModel = KINDS[self.kind][0].from_pretrained(folder).eval()
        self.config = self.model.config
        makers = {"text": self._of_texts, "image": self._of_images, "video": self._of_videos, "audio": self._of_sounds}
        self.prepare, self._collate = makers[self.kind](folder, max_tokens, max_seconds)

    @torch.inference_mode()
    def run(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The logits of each sample of a batch."""
        batch = self._collate([sample.inputs for sample in samples])
        logits = self.model(**batch).logits
        return list(logits.float().cpu().numpy())

    def describe(self, logits: np.ndarray, top_k: int | None = None) -> list[dict[str, Any]]:
        """Labels with scores, the best first: probabilities, or the numbers themselves of a regression."""
        kind = self.config.problem_type or ("regression" if len(logits) == 1 else "single_label_classification")
        values = torch.from_numpy(logits)
        if kind == "multi_label_classification":
            values = values.sigmoid()
        elif kind == "single_label_classification":
            values = values.softmax(-1)
        order = range(len(values)) if kind == "regression" else values.argsort(descending=True).tolist()[:top_k]
        return [{"label": self.config.id2label[index], "score": round(float(values[index]), 6)} for index in order]

    # --- what each kind of input becomes -------------------------------------------------------------------------

    def _of_texts(self, folder: str, max_tokens: int | None, _: float) -> tuple[Callable[[Any], Sample], Any]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        known = (max_tokens, tokenizer.model_max_length, getattr(self.config, "max_position_embeddings", None))
        longest = min(number for number in known if number)

        def prepare(text: str) -> Sample:
            inputs = dict(tokenizer(text, truncation=True, max_length=longest))
            return Sample(inputs, len(inputs["input_ids"]))

        return prepare, DataCollatorWithPadding(tokenizer)

    def _of_images(self, folder: str, *_: Any) -> tuple[Callable[[Any], Sample], Any]:
        processor, channels = FrameProcessor.from_pretrained(folder), count_channels(self.config)

        def prepare(content: bytes) -> Sample:
            return _stacked(process(processor, self.model, read_image(content, num_channels=channels)))

        return prepare, default_data_collator

    def _of_videos(self, folder: str, *_: Any) -> tuple[Callable[[Any], Sample], Any]:
        processor = FrameProcessor.from_pretrained(folder)
        frames, channels = count_frames(self.config), count_channels(self.config)

        def prepare(content: bytes) -> Sample:
            video = read_video(content, frames, num_channels=channels)
            return _stacked(process(processor, self.model, video))

        return prepare, default_data_collator

    def _of_sounds(self, folder: str, _: int | None, max_seconds: float) -> tuple[Callable[[Any], Sample], Any]:
        processor = AutoFeatureExtractor.from_pretrained(folder)
        rate = processor.sampling_rate
        # Padding that is not masked would be heard: such sounds share a batch with others of their length alone.
        is_masked = bool(getattr(processor, "return_attention_mask", False))

        def prepare(content: bytes) -> Sample:
            sound = read_audio(content, rate)[: round(max_seconds * rate)]
            inputs = process(processor, self.model, sound, sampling_rate=rate)
            size = len(inputs[self.model.main_input_name])
            return Sample(inputs, size, None if is_masked else size)

        return prepare, SoundCollator(processor)


def _stacked(inputs: dict[str, Any]) -> Sample:
    """A sample that shares a batch with others of its shapes."""
    shapes = tuple((name, np.shape(value)) for name, value in inputs.items())
    return Sample(inputs, group=shapes)


def _kind_of(config: Any, folder: str) -> str:
    architecture = (config.architectures or ["model that does not say its class"])[0]
    for kind, (_, classes) in KINDS.items():
        if type(config) in classes:
            found = classes[type(config)]
            names = [each.__name__ for each in (found if isinstance(found, (tuple, list)) else [found])]
            if architecture in names:
                return kind
    raise ValueError(
        f"{folder!r} is a {architecture}; what is served here are classifiers of texts, images, videos and sounds "
        "(…ForSequenceClassification, …ForImageClassification, …ForVideoClassification, …ForAudioClassification)."
    )
