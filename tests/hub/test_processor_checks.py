"""Tokenizers and processors are whole, work, and fit their model, before they are saved or sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ASTFeatureExtractor,
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_lam import HfLamFusionConfig, HfLamFusionModel, HfLamFusionProcessor
from hf_lam.hub.folders import load_processor
from hf_lam.hub.processor_checks import check_processor_files, try_processor
from hf_lam.hub.processors import copy_processor

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
WORDS = SPECIAL | {"hi": 5, "cat": 6}
BERT = BertConfig(vocab_size=7)
with torch.device("meta"):
    MODEL = BertModel(BERT)
    IMAGE_MODEL = ViTModel(ViTConfig(num_hidden_layers=1))


def fast(model: Any, **options: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), ("<mask>", 0.0), ("▁hi", -1.0), ("h", -2.0)]
BYTES = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "h", "i", "hi", "Ġ"])}
WHOLE = {
    "words": lambda: BertTokenizer(vocab=WORDS),
    "pieces": lambda: transformers.T5Tokenizer(vocab=PIECES, extra_ids=0),
    "bytes": lambda: transformers.RobertaTokenizer(vocab=BYTES, merges=[("h", "i")]),
    "whole words": lambda: fast(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), unk_token="[UNK]"),
    "no special tokens": lambda: fast(models.WordLevel({"a": 0, "b": 1}, unk_token="a")),
    "pictures": ViTImageProcessor,
    "grey pictures": lambda: ViTImageProcessor(image_mean=[0.5], image_std=[0.5]),
    "videos": transformers.VideoMAEImageProcessor,
    "sounds": ASTFeatureExtractor,
    "several": lambda: HfLamFusionProcessor(
        tokenizer=BertTokenizer(vocab=WORDS),
        image_processor=ViTImageProcessor(),
        feature_extractor=ASTFeatureExtractor(),
    ),
    "patches": transformers.Siglip2ImageProcessor,
    "waves": transformers.Wav2Vec2FeatureExtractor,
    "sounds of a window": transformers.WhisperFeatureExtractor,
    "frames of sounds": transformers.SeamlessM4TFeatureExtractor,
    "vectors": lambda: HfLamFusionProcessor(features={"clips": 4}),
    "words and vectors": lambda: HfLamFusionProcessor(tokenizer=BertTokenizer(vocab=WORDS), features={"clips": 4}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_those_that_work_pass(name: str, tmp_path: Path) -> None:
    processor = WHOLE[name]()
    try_processor(processor, None, "here")
    processor.save_pretrained(tmp_path)
    check_processor_files(tmp_path, None)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (BertTokenizer(), "no vocabulary but its special tokens"),
        (BertTokenizer(vocab=WORDS | {"dog": 7}), "'dog' has the id 7, but the model's embedding has 7 rows"),
        (
            fast(models.WordLevel({"hi there": 0, "[UNK]": 1}, unk_token="[UNK]"), unk_token="[UNK]"),
            "every word of its vocabulary as unknown",
        ),
        (ViTImageProcessor(image_mean=[0.5]), r"ViTImageProcessor\w* fails on a small input"),
        (ViTImageProcessor(image_std=[0.0, 0.0, 0.0]), "makes NaN or infinity"),
        (ViTImageProcessor(rescale_factor=float("nan")), "makes NaN or infinity"),
        (ASTFeatureExtractor(num_mel_bins=0), "makes nothing of a small input"),
        (
            HfLamFusionProcessor(tokenizer=BertTokenizer(), image_processor=ViTImageProcessor()),
            "no vocabulary but its special tokens",
        ),
    ],
)
def test_those_that_do_not_are_refused(processor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^here: .*{message}"):
        try_processor(processor, BERT, "here")


def test_the_rows_of_a_fusion_model_are_those_of_its_text_encoder() -> None:
    processor = HfLamFusionProcessor(tokenizer=BertTokenizer(vocab=WORDS))
    config = HfLamFusionConfig(text_config=BertConfig(vocab_size=7), video_config=transformers.VideoMAEConfig())
    try_processor(processor, config, "here")
    config.text_config.vocab_size = 6
    with pytest.raises(ValueError, match="6 rows"):
        try_processor(processor, config, "here")
    try_processor(processor, transformers.ViTConfig(), "here")


def test_vectors_are_those_of_the_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = HfLamFusionModel(HfLamFusionConfig(features={"clips": 4, "faces": 2}, **options))
    HfLamFusionProcessor(features={"clips": 4}).save_pretrained(tmp_path)
    assert load_processor(tmp_path, model).modalities == ["clips"]
    (tmp_path / "copy").mkdir()
    copy_processor(tmp_path, tmp_path / "copy", load_processor(tmp_path, model))
    assert load_processor(tmp_path / "copy", model).modalities == ["clips"]
    for features, message in (
        ({"clips": 3}, "features 'clips' of size 3, and the model takes 4"),
        ({"hands": 4}, "features 'hands', and the model has only clips, faces"),
    ):
        HfLamFusionProcessor(features=features).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"processor_config.json: the processor has {message}"):
            load_processor(tmp_path, model)
    with pytest.raises(ValueError, match="and the model has none"):
        try_processor(HfLamFusionProcessor(features={"clips": 4}), BERT, "here")


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("tokenizer.json", b"", "tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "Wo', "tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe\x00", "tokenizer.json"),
        ("tokenizer.json", None, "tokenizer_config.json"),
        ("tokenizer_config.json", b"", "tokenizer_config.json"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json"),
        ("added_tokens.json", b'{"<x>": 12}', "added_tokens.json"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes | None, named: str) -> None:
    BertTokenizer(vocab=WORDS).save_pretrained(tmp_path)
    assert isinstance(load_processor(tmp_path, MODEL), BertTokenizer)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(repr(str(tmp_path / named)))} "):
        load_processor(tmp_path, MODEL)


def test_damaged_files_of_other_processors_are_named(tmp_path: Path) -> None:
    assert load_processor(tmp_path, IMAGE_MODEL) is None
    ViTImageProcessor().save_pretrained(tmp_path)
    assert isinstance(load_processor(tmp_path, IMAGE_MODEL), ViTImageProcessor)
    (tmp_path / "preprocessor_config.json").write_text('{"size"')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json' is not JSON"):
        load_processor(tmp_path, IMAGE_MODEL)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Nothing"}')
    with pytest.raises(ValueError, match=f"in {re.escape(repr(str(tmp_path)))} cannot be loaded"):
        load_processor(tmp_path, IMAGE_MODEL)


def test_files_in_folders_are_of_something_else(tmp_path: Path) -> None:
    BertTokenizer(vocab=WORDS).save_pretrained(tmp_path)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "tokenizer.json").write_bytes(b"")
    check_processor_files(tmp_path, BERT)
