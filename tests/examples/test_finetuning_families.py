"""The scripts on encoders of other families: they train, resume as if nothing had happened, freeze and adapt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    BitImageProcessor,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessor,
    VivitImageProcessor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from helpers.families import FAMILIES
from helpers.finetuning import BAD, GOOD, OTHER, main, results_in, saved

pytestmark = pytest.mark.slow

RATE = 1000
KINDS = {"text": "run_text_classification", "image": "run_image_classification"}
KINDS |= {"video": "run_video_classification", "audio": "run_audio_classification"}
HEADS = {"text": "SequenceClassification", "image": "ImageClassification", "video": "VideoClassification"}


def make_tokenizer() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    options = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


CROP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
PROCESSORS: dict[str, Any] = {
    "modernbert": make_tokenizer,
    "dinov2": lambda: BitImageProcessor(**CROP),
    "beit": lambda: BitImageProcessor(**CROP),
    "siglip2_vision": lambda: Siglip2ImageProcessor(patch_size=4, max_num_patches=16),
    "vivit": lambda: VivitImageProcessor(**CROP),
    # Its own processor needs torchvision; another one of the same size does as well.
    "vjepa2": lambda: VivitImageProcessor(**CROP),
    "wav2vec2": lambda: Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True),
    "hubert": lambda: Wav2Vec2FeatureExtractor(sampling_rate=RATE),
    "whisper": lambda: WhisperFeatureExtractor(16, RATE, hop_length=25, chunk_length=1, n_fft=50),
    "ast": lambda: ASTFeatureExtractor(num_mel_bins=16, max_length=32),
}


def write_samples(kind: str, folder: Path) -> dict[str, str]:
    """Noise, as raw bytes with their shapes, or words, in three classes."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(12):
        label = index % 3
        if kind == "text":
            words = [*generator.choice(OTHER, 3 + index % 4), (GOOD[0], BAD[0], OTHER[0])[label]]
            rows.append({"sentence": " ".join(words), "label": label})
            continue
        if kind == "audio":
            array = generator.normal(0, 0.1 + label, 400 + 20 * index).astype(np.float32)
        else:
            shape = (16, 16, 3) if kind == "image" else (4, 16, 16, 3)
            array = generator.integers(0, 100 + 70 * label, shape, dtype=np.uint8)
        rows.append({kind: array.tobytes(), f"{kind}_shape": list(array.shape), "label": label})
    for split in ("train", "validation"):
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return {"data_dir": str(folder)}


def make(name: str, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The script of a family, and the options that name a tiny model and its data."""
    kind = FAMILIES[name].kind
    FAMILIES[name].make(HEADS.get(kind, "AudioClassification")).save_pretrained(tmp_path / "model")
    PROCESSORS[name]().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    options = write_samples(kind, tmp_path / "data")
    if kind == "text":
        options["max_seq_length"] = 12
    return KINDS[kind], {"model_name_or_path": tmp_path / "model", "max_steps": 4, **options}


@pytest.mark.parametrize("name", ["modernbert", "dinov2", "siglip2_vision", "vjepa2", "wav2vec2", "whisper"])
def test_training_resumes_as_if_uninterrupted(name: str, tmp_path: Path) -> None:
    script, options = make(name, tmp_path)
    options |= {"mechanism": "lam", "mechanism_config": '{"rank": 2}', "save_steps": 2, "do_eval": True}
    options |= {"mechanism_learning_rate": 0.1}
    main(script, output_dir=tmp_path / "out", **options)
    whole = saved(tmp_path / "out")
    moved = [tensor for key, tensor in whole.items() if ".hf_lam." in f".{key}"]
    assert moved and any(tensor.abs().max() > 0 for tensor in moved)
    assert 0 <= results_in(tmp_path / "out")["eval_accuracy"] <= 1
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    main(script, output_dir=tmp_path / "again", **options)
    again = saved(tmp_path / "again")
    assert whole.keys() == again.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=1e-6, msg=key)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "lam" in card and f"pipeline_tag: {FAMILIES[name].kind}-classification" in card


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("modernbert", {"lora_rank": 2}),
        ("beit", {"freeze_host": True}),
        ("siglip2_vision", {"lora_rank": 2}),
        ("vivit", {"lora_rank": 2}),
        ("hubert", {"lora_rank": 2}),
        ("whisper", {"freeze_host": True}),
        ("ast", {"lora_rank": 2}),
    ],
)
def test_what_of_the_host_trains(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    script, model = make(name, tmp_path)
    options = options | {"mechanism": "lam", "mechanism_config": '{"rank": 2}', "gradient_checkpointing": True}
    main(script, output_dir=tmp_path / "out", **model, **options)
    stock, trained = saved(tmp_path / "model"), saved(tmp_path / "out")
    changed = {key for key, tensor in stock.items() if not torch.equal(trained[key], tensor)}
    head = {key for key in stock if key.startswith(("classifier", "projector", "head.")) or "pooler." in key}
    adapted = changed - head
    assert head & changed
    if options.get("freeze_host"):
        assert not adapted
    else:
        layers = {key for key in adapted if any(part in key for part in ("attn", "attention", "q_proj", "query"))}
        assert adapted and adapted == layers
    assert any(tensor.abs().max() > 0 for key, tensor in trained.items() if ".hf_lam." in f".{key}")


def test_sounds_are_grouped_by_length(tmp_path: Path) -> None:
    script, options = make("wav2vec2", tmp_path)
    found = main(script, output_dir=tmp_path / "a", do_eval=True, train_sampling_strategy="group_by_length", **options)
    assert 0 <= found["eval_accuracy"] <= 1
    # Without mechanisms it is the stock model that was trained.
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert type(model).__name__ == "Wav2Vec2ForSequenceClassification"
