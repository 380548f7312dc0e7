"""Models that are loaded, and what they take: a sentence, a picture or a sound as the tensors of one sample."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from bundled import BUNDLED, prepare_bundled
from PIL import Image, ImageOps
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_lam.cli.common import load_config, load_processor, loading_weights
from hf_lam.flops import example_inputs
from hf_lam.hub.buildable import saved_class_of
from hf_lam.hub.processors import modalities_of
from hf_lam.loading import loading
from hf_lam.modeling.configuration_hf_lam import block_in
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_names
from hf_lam.training.media import read_audio, read_image
from hf_lam.training.models import count_channels, process

MOST_LETTERS = 1000
# More would take seconds, and could not be read in a picture.
MOST_TOKENS = 64
MOST_SECONDS = 10.0
# Pixels of an image before it is resized; Pillow itself only warns at four times as many.
MOST_PIXELS = 25_000_000
KINDS = ("text", "image", "audio")
_HEADS = ("AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoModelForAudioClassification")


class Sample(NamedTuple):
    """One input of a model.

    inputs: what the model is called with, a batch of one.
    tokens: the tokens of a text; None for others.
    notes: what was left out of what the user gave.
    """

    inputs: dict[str, torch.Tensor]
    tokens: list[str] | None = None
    notes: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What a model says of one sample.

    pooled: the mean of the encoder's last hidden states, `(features,)`.
    scores: the probability of every label; empty without a head.
    """

    pooled: torch.Tensor
    scores: dict[str, float]

    @property
    def label(self) -> str | None:
        return max(self.scores, key=lambda name: self.scores[name]) if self.scores else None


@dataclass(frozen=True)
class Loaded:
    """A model with what prepares its inputs.

    kind: `text`, `image` or `audio`.
    takes_drawings: whether images are light strokes on black.
    """

    model: PreTrainedModel
    processor: Any
    kind: str
    takes_drawings: bool = False

    def prepare(self, value: Any) -> Sample:
        """The tensors of a sentence, of a drawing or a picture, or of the file of a sound.

        Raises:
            ValueError: if there is nothing, too much of it, or it cannot be read.
        """
        if self.kind == "text":
            return self._prepare_text(value)
        return self._prepare_image(value) if self.kind == "image" else self._prepare_sound(value)

    def _prepare_text(self, text: Any) -> Sample:
        text = (text or "").strip()
        if not text:
            raise ValueError("There is no sentence: type one.")
        if len(text) > MOST_LETTERS:
            raise ValueError(f"The text has {len(text):,} letters; at most {MOST_LETTERS:,} are taken.")
        made_for = example_inputs(self.model)["input_ids"].shape[-1]
        configs = [config for base in injected_encoders(self.model) for config in injection_of(base).configs.values()]
        is_exact = any(config.exact_tokens is not None for config in configs)
        longest = made_for if is_exact else min(made_for, MOST_TOKENS)
        padding = "max_length" if is_exact else False
        inputs = self.processor(text, truncation=True, max_length=longest, padding=padding, return_tensors="pt")
        length = len(self.processor(text)["input_ids"])
        notes = (f"The text has {length} tokens; the first {longest} are shown.",) if length > longest else ()
        return Sample(dict(inputs), self.processor.convert_ids_to_tokens(inputs["input_ids"][0]), notes)

    def _prepare_image(self, value: Any) -> Sample:
        if value is None:
            raise ValueError("There is no picture: give one.")
        image = strokes_of(value) if self.takes_drawings else read_image(value)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"The picture has {image.width} × {image.height} pixels; at most {MOST_PIXELS:,} are taken."
            )
        image = image.convert("L" if count_channels(self.model.config) == 1 else "RGB")
        return Sample(_batched(process(self.processor, self.model, image)))

    def _prepare_sound(self, value: Any) -> Sample:
        if value is None:
            raise ValueError("There is no sound: record or upload one.")
        rate = self.processor.sampling_rate
        sound = read_audio(value, rate)
        # A feature extractor that has a length cuts what is longer.
        longest = min(MOST_SECONDS, getattr(self.processor, "chunk_length", None) or MOST_SECONDS)
        notes: tuple[str, ...] = ()
        if len(sound) > longest * rate:
            notes = (f"The sound has {len(sound) / rate:.1f} seconds; the model gets the first {longest:g}.",)
        sound = sound[: round(longest * rate)]
        return Sample(_batched(process(self.processor, self.model, sound, sampling_rate=rate)), notes=notes)


def ask(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Answer:
    """What a model says of one sample."""
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
    pooled = output.hidden_states[-1][0].flatten(0, -2).mean(0)
    logits = getattr(output, "logits", None)
    labels: Any = model.config.id2label or {}
    if logits is None or logits.dim() != 2 or logits.shape[-1] != len(labels):
        return Answer(pooled, {})
    scores = logits[0].softmax(-1).tolist()
    return Answer(pooled, {str(labels[index]): score for index, score in enumerate(scores)})


def strokes_of(drawing: Any) -> Image.Image:
    """A drawing as digits are stored: light strokes on black, a square around them, in the middle.

    Args:
        drawing: an image with strokes that are darker or lighter than what is around them, or what a sketchpad gives.

    Raises:
        ValueError: if nothing is drawn.
    """
    if isinstance(drawing, dict):
        drawing = drawing["composite"]
    if drawing is None:
        raise ValueError("Nothing is drawn: draw a digit.")
    if isinstance(drawing, Image.Image) and drawing.mode in ("RGBA", "LA"):
        paper = Image.new("RGBA", drawing.size, "white")
        drawing = Image.alpha_composite(paper, drawing.convert("RGBA"))
    grey = read_image(drawing, num_channels=1)
    values = np.asarray(grey)
    if np.median(values) > 127:
        grey = ImageOps.invert(grey)
    # The faint ends of strokes are no part of them.
    box = grey.point(lambda value: 255 if value > 64 else 0).getbbox()
    if box is None:
        raise ValueError("Nothing is drawn: draw a digit.")
    stroke = grey.crop(box)
    side = round(1.1 * max(stroke.size))
    square = Image.new("L", (side, side))
    square.paste(stroke, ((side - stroke.width) // 2, (side - stroke.height) // 2))
    return square


def _batched(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(np.asarray(values))[None] for name, values in arrays.items()}


# --- loading ---------------------------------------------------------------------------------------------------------


def check_source(source: str, is_own_machine: bool) -> str:
    """The folder or id that a user has typed.

    Args:
        source: what was typed.
        is_own_machine: whether the app answers this machine alone. Visitors may not look into its folders.

    Raises:
        ValueError: if there is none, or it is a path on a machine that is not the user's.
    """
    source = source.strip()
    if not source:
        raise ValueError("There is no model: type a folder, or the id of a repository on the Hub such as user/model.")
    is_path = source.startswith((".", "~", os.sep)) or os.path.exists(source)
    if is_path and not is_own_machine:
        raise ValueError(
            "Folders of this machine are not for its visitors: type the id of a repository on the Hub such as "
            "user/model, or run the app on your own machine."
        )
    return os.path.expanduser(source)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def needs_code(source: str) -> bool:
    """Whether a model can only be loaded with code from its repository, which hf_lam and transformers do not have.

    Raises:
        LoadingError: if the repository or the Hub cannot be read.
        ValueError: if there is no model.
    """
    with loading(source):
        if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
            raise ValueError(f"There is no model in the folder {source!r}: it has no config.json.")
        config, _ = PreTrainedConfig.get_config_dict(source)
    if "auto_map" not in config:
        return False
    block = block_in(config)
    unknown = [name for name in block or {} if name != "version" and name not in mechanism_names()]
    return config.get("model_type") not in CONFIG_MAPPING or bool(unknown)


def load(source: str, trust: bool = False) -> Loaded:
    """A model of text, images or sounds; nothing is unpickled.

    Args:
        source: a folder, or the id of a repository on the Hub.
        trust: run the code in it. Without, the classes of hf_lam and transformers load it.

    Raises:
        LoadingError: if the repository or the Hub cannot be read.
        ValueError: if it is no such model, has nothing that prepares inputs, or needs code of its own.
    """
    if not trust and needs_code(source):
        raise ValueError(
            f"{source!r} needs code of its own, which hf_lam did not write. Read what the check says, and that code; "
            "then tick the box if you trust it."
        )
    config = AutoConfig.from_pretrained(source, trust_remote_code=True) if trust else load_config(source)
    with loading_weights(source):
        model = _class_for(config, trust).from_pretrained(source, trust_remote_code=trust, use_safetensors=True).eval()
    kind = " and ".join(modalities_of(model))
    if kind not in KINDS:
        raise ValueError(f"{source!r} takes {kind}; this app shows models of text, of images or of audio.")
    processor = load_processor(source, model)
    if processor is None:
        raise ValueError(f"{source!r} has no tokenizer, image processor or feature extractor beside its weights.")
    return Loaded(model, processor, kind)


def _class_for(config: Any, trust: bool) -> Any:
    if not trust:
        return saved_class_of(config)
    names = getattr(config, "auto_map", None) or {}
    head = next((name for name in _HEADS if name in names), "AutoModel")
    return getattr(transformers, head)


class Shelf:
    """The models that were used last, by their sources.

    Args:
        cache_folder: where the bundled models are.
        most: how many stay in memory.
    """

    def __init__(self, cache_folder: Path, most: int = 4) -> None:
        self.cache_folder = cache_folder
        self.most = most
        self._loaded: OrderedDict[tuple[str, bool], Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, source: str, trust: bool = False) -> Loaded:
        """A model, loaded unless it is here; the one that was not used for longest may go.

        source: the name of a bundled model, a folder, or an id on the Hub.
        """
        key = source, trust
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self._load(source, trust)
            self._loaded.move_to_end(key)
            if len(self._loaded) > self.most:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def _load(self, source: str, trust: bool) -> Loaded:
        if source not in BUNDLED:
            return load(source, trust)
        loaded = load(str(prepare_bundled(source, self.cache_folder)))
        return Loaded(loaded.model, loaded.processor, loaded.kind, BUNDLED[source].takes_drawings)
