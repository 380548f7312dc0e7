"""Tools that load a saved folder by themselves: transformers' pipelines and sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

from helpers.hosts import mechanisms
from helpers.lam_models import make_lam
from hf_lam import LamConfig, LocomtConfig

try:
    from transformers import ViTImageProcessorPil as ImageProcessor  # needs no torchvision
except ImportError:
    from transformers import ViTImageProcessor as ImageProcessor

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] the a film is was not very good bad long short and but wonderful dull"
SENTENCES = ["The film is good", "a very long and dull film but not bad", "wonderful"]


def save_with_tokenizer(model: Any, folder: Path) -> BertTokenizerFast:
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(VOCABULARY.replace(" ", "\n") + "\n")
    tokenizer = BertTokenizerFast(str(vocabulary), model_max_length=40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BertTokenizerFast.from_pretrained(folder)


def one_by_one(model: Any, tokenizer: Any) -> list[Any]:
    with torch.no_grad():
        return [(model(**inputs), inputs) for inputs in (tokenizer(s, return_tensors="pt") for s in SENTENCES)]


@pytest.mark.parametrize("name", ["per_layer", "dense", "mixture"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification(batch_size: int, name: str, tmp_path: Path) -> None:
    names = {0: "negative", 1: "positive", 2: "neutral"}
    model = make_lam(BertForSequenceClassification, "bert", mechanisms(name, "bert"), id2label=names, num_labels=3)
    tokenizer = save_with_tokenizer(model, tmp_path / "model")
    classify = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None, batch_size=batch_size)
    assert type(classify.model) is type(model)
    for found, (outputs, _) in zip(classify(SENTENCES), one_by_one(model, tokenizer), strict=True):
        expected = outputs.logits.softmax(-1)[0]
        assert {row["label"] for row in found} == set(names.values())
        for row in found:
            index = next(i for i, name in names.items() if name == row["label"])
            assert row["score"] == pytest.approx(expected[index].item(), abs=1e-5)


def test_pairs_of_texts_bring_their_token_types(tmp_path: Path) -> None:
    model = make_lam(BertForSequenceClassification, "bert", (LocomtConfig(views="half"),))
    tokenizer = save_with_tokenizer(model, tmp_path / "model")
    classify = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None, batch_size=2)
    pairs = [("the film is long", "but good"), ("dull", "a very wonderful film but not short")]
    found = classify([{"text": text, "text_pair": other} for text, other in pairs])
    for rows, (text, other) in zip(found, pairs, strict=True):
        inputs = tokenizer(text, other, return_tensors="pt")
        assert inputs["token_type_ids"].unique().tolist() == [0, 1]
        expected = model(**inputs).logits.softmax(-1)[0].sort(descending=True).values
        assert [row["score"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)


def test_token_classification_and_fill_mask(tmp_path: Path) -> None:
    tagger = make_lam(BertForTokenClassification, "bert", LamConfig(scope="shared"), num_labels=3)
    tokenizer = save_with_tokenizer(tagger, tmp_path / "tagger")
    tags = pipeline("token-classification", model=str(tmp_path / "tagger"))(SENTENCES[1])
    expected = tagger(**tokenizer(SENTENCES[1], return_tensors="pt")).logits[0].softmax(-1).max(-1).values[1:-1]
    assert [row["score"] for row in tags] == pytest.approx(expected.tolist(), abs=1e-5)

    filler = make_lam(BertForMaskedLM, "bert", LamConfig(rank=3), vocab_size=len(tokenizer))
    save_with_tokenizer(filler, tmp_path / "filler")
    best = pipeline("fill-mask", model=str(tmp_path / "filler"))("the [MASK] is good")[0]
    logits = filler(**tokenizer("the [MASK] is good", return_tensors="pt")).logits[0, 2]
    assert best["token"] == logits.argmax().item()
    assert best["score"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("name", ["per_layer", "random", "mixture"])
def test_image_classification(name: str, tmp_path: Path) -> None:
    model = make_lam(ViTForImageClassification, "vit", mechanisms(name, "vit"), num_labels=4)
    processor = ImageProcessor(size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), top_k=4, batch_size=2)
    assert type(classify.model) is type(model)
    expected = model(**processor(images(), return_tensors="pt")).logits.softmax(-1)
    for found, scores in zip(classify(images()), expected, strict=True):
        assert [row["score"] for row in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
        assert found[0]["label"] == model.config.id2label[scores.argmax().item()]


def test_image_features(tmp_path: Path) -> None:
    model = make_lam(ViTModel, "vit", LamConfig(per_head=True))
    processor = ImageProcessor(size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = pipeline("image-feature-extraction", model=str(tmp_path), return_tensors=True)(images()[0])
    with torch.no_grad():
        expected = model(**processor(images()[0], return_tensors="pt"))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "configs",
    [(LamConfig(),), (LamConfig(scope="shared", rank=2),), (LocomtConfig(views="half"),)],
    ids=["per_layer", "shared_rank", "views"],
)
def test_sentence_transformers_gives_the_models_own_embeddings(configs: tuple[Any, ...], tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = make_lam(BertModel, "bert", configs)
    tokenizer = save_with_tokenizer(model, tmp_path / "model")
    # A folder without sentence-transformers' own files gets a mean over the tokens.
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    expected = torch.cat([outputs[0].mean(1) for outputs, _ in one_by_one(model, tokenizer)])
    found = embedder.encode(SENTENCES, convert_to_tensor=True, batch_size=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    embedder.save(str(tmp_path / "embedder"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "embedder"), device="cpu")
    assert type(again[0].auto_model) is type(model)
    torch.testing.assert_close(again.encode(SENTENCES, convert_to_tensor=True), found, rtol=0, atol=1e-6)
