"""A push looks before it sends: at weights, tokenizers and processors, and at what sentence-transformers has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, BertTokenizer, ViTImageProcessor

import hf_lam
from helpers.families import FAMILIES
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import make_lam
from hf_lam.training import HfLamTrainer, HfLamTrainingArguments

WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "hi": 5, "good": 6}


def changes_of(hub: HubServer) -> list[Any]:
    return [request for request in hub.asked(r"^(POST|PUT|DELETE)") if "/api/validate" not in request.path]


@pytest.fixture
def saved_bert(lam_bert: Any, tmp_path: Path) -> Path:
    lam_bert.save_pretrained(tmp_path / "bert")
    BertTokenizer(vocab=WORDS).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize(("name", "head"), [("roberta", "SequenceClassification"), ("whisper", "AudioClassification")])
def test_what_was_injected_goes_as_its_class(hub: HubServer, tmp_path: Path, name: str, head: str) -> None:
    model = hf_lam.inject(FAMILIES[name].make(head), hf_lam.LamConfig(rank=2))
    hf_lam.push(model, "user/one", token=TOKEN)
    files = hub.repos["user/one"].files("main")
    config = json.loads(files["config.json"])
    assert config["architectures"] == [f"HfLam{type(model).__name__.removeprefix('HfLam')}"]
    assert {"modeling_hf_lam.py", "README.md", "model.safetensors"} <= set(files)
    assert f"`{config['architectures'][0]}`" in files["README.md"].decode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dry_run", [True, False])
def test_weights_that_are_no_numbers_are_not_sent(hub: HubServer, tmp_path: Path, value: float, dry_run: bool) -> None:
    model = make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1)
    with torch.no_grad():
        model.classifier.weight[1, 3] = value
    model.save_pretrained(tmp_path / "model")
    for source in (model, tmp_path / "model"):
        with pytest.raises(ValueError, match=r"classifier\.weight holds a value that is NaN or infinite"):
            hf_lam.push(source, "user/one", token=TOKEN, dry_run=dry_run)
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        model.push_to_hub("user/one", token=TOKEN)
    trainer = HfLamTrainer(model, HfLamTrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none"))
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        trainer.push_to_hub()
    assert not changes_of(hub)


@pytest.mark.parametrize("content", [b"", b'{"model"', b"\xff\xfe\x00", None])
def test_a_damaged_tokenizer_is_not_sent(hub: HubServer, saved_bert: Path, content: bytes | None) -> None:
    file = saved_bert / "tokenizer.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer(_config)?\.json' is"):
        hf_lam.push(saved_bert, "user/one", token=TOKEN)
    assert not changes_of(hub)


def test_a_tokenizer_that_does_not_fit_is_not_sent(hub: HubServer, lam_bert: Any, saved_bert: Path) -> None:
    for processor, message in (
        (BertTokenizer(), "processor: the BertTokenizer has no vocabulary"),
        (BertTokenizer(vocab=WORDS | {f"w{index}": index for index in range(7, 5000)}), "has the id 4999"),
        (ViTImageProcessor(image_std=[0, 0, 0]), "makes NaN or infinity"),
    ):
        for source in (lam_bert, saved_bert):
            with pytest.raises(ValueError, match=message):
                hf_lam.push(source, "user/one", processor=processor, token=TOKEN)
    assert not changes_of(hub)


def test_what_sentence_transformers_has_goes_along(hub: HubServer, saved_bert: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (saved_bert / "modules.json").write_text(json.dumps(modules))
    (saved_bert / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    (saved_bert / "1_Pooling").mkdir()
    (saved_bert / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    (saved_bert / "1_Pooling" / "pytorch_model.bin").write_bytes(b"")
    report = hf_lam.push(saved_bert, "user/one", token=TOKEN)
    sent = hub.repos["user/one"].files()
    assert {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"} <= set(sent)
    assert "1_Pooling/pytorch_model.bin" not in sent
    assert any(note.startswith("1_Pooling/pytorch_model.bin was left out") for note in report.notes)
