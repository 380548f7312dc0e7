"""Small classifiers of texts, images and sounds, for the server and the demo app among the examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from helpers.hosts import perturb_mechanisms
from hf_lam import convert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "long"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def text_host() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, id2label={0: "bad", 1: "good", 2: "none"})
    config.update({**SMALL, "initializer_range": 0.5})
    return BertForSequenceClassification(config)


def text_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def sound_host() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **SMALL, vocab_size=8, conv_dim=[8], conv_kernel=[8], conv_stride=[8], num_feat_extract_layers=1
    )
    config.update({"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_labels": 3})
    return Wav2Vec2ForSequenceClassification(config)


def save_text(folder: Path, *mechanisms: Any) -> Path:
    model = text_host()
    if mechanisms:
        model = convert(model, *mechanisms)
        perturb_mechanisms(model)
    model.save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    return folder


def save_image(folder: Path, *mechanisms: Any) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=3, initializer_range=0.5)
    model = convert(ViTForImageClassification(config), *mechanisms)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_sound(folder: Path) -> Path:
    sound_host().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=100).save_pretrained(folder)
    return folder


def save_with_code(folder: Path, marker: Path) -> Path:
    """A model with a class of its own, whose code leaves a file behind when it runs."""
    save_text(folder)
    code = (
        "from transformers import BertConfig, BertForSequenceClassification\n"
        f"open({str(marker)!r}, 'w').close()\n"
        "class MarkedConfig(BertConfig):\n    model_type = 'marked'\n"
        "class MarkedModel(BertForSequenceClassification):\n    config_class = MarkedConfig\n"
    )
    (folder / "marked.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "marked.MarkedConfig", "AutoModelForSequenceClassification": "marked.MarkedModel"}
    config |= {"model_type": "marked", "architectures": ["MarkedModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
