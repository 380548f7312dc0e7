"""`verify`: tokenizers are whole, have a vocabulary, and no more tokens than the model; and weights are numbers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from helpers.verification import INDEX, MODELS, WEIGHTS, Files, edit, only, told
from hf_lam.hub import finite_weights
from hf_lam.hub.finite_weights import check_finite, count_infinite, refuse_infinite
from hf_lam.hub.repository_files import LocalFiles
from hf_lam.hub.tokenizer_files import check_tokenizers
from hf_lam.hub.verification import verify

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "cat"]
IDS = {word: index for index, word in enumerate(WORDS)}
LINES = "\n".join(WORDS).encode()


def tokenizer_json(**model: Any) -> bytes:
    return json.dumps({"model": {"type": "WordPiece", "vocab": IDS, **model}, "added_tokens": []}).encode()


def with_parts(**parts: Any) -> bytes:
    return json.dumps(json.loads(tokenizer_json()) | parts).encode()


def added(*words: str) -> list[dict[str, Any]]:
    return [{"id": IDS[word], "content": word, "special": True} for word in words]


def template(*ids: int) -> dict[str, Any]:
    """A post-processor that puts tokens with these ids before a text."""
    return {
        "type": "TemplateProcessing",
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"]}},
    }


def sentencepiece(*pieces: str) -> bytes:
    """A model of sentencepiece: its pieces, each with a text and a score, and its options."""
    made = b""
    for piece in pieces:
        text = piece.encode()
        entry = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x80\xbf"
        made += b"\x0a" + bytes([len(entry)]) + entry
    return made + b"\x12\x02\x18\x02"


def findings_of(contents: dict[str, Any], rows: int | None = 99) -> list[tuple[str, str]]:
    files = Files({name: x if isinstance(x, bytes) else json.dumps(x).encode() for name, x in contents.items()})
    configs = {name: x for name, x in contents.items() if not isinstance(x, bytes)}
    return [(finding.file, finding.message) for finding in check_tokenizers(files, configs, {"vocab_size": rows})]


FUSION = {"processor_class": "HfLamFusionProcessor"}
WHOLE: dict[str, dict[str, Any]] = {
    "one file": {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
    "lines": {"vocab.txt": LINES + b"\n", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
    "lines of Windows": {
        "vocab.txt": LINES.replace(b"\n", b"\r\n"),
        "tokenizer_config.json": {"mask_token": "[MASK]"},
    },
    "merges": {"vocab.json": IDS, "merges.txt": b"#version: 0.2\nh i\nc at\n", "tokenizer_config.json": {}},
    "byte-pairs": {"tokenizer.json": tokenizer_json(type="BPE", merges=["h i"]), "tokenizer_config.json": {}},
    "all its parts": {
        "tokenizer.json": with_parts(
            normalizer={"type": "BertNormalizer"},
            pre_tokenizer=None,
            post_processor={"type": "Sequence", "processors": [template(2), {"type": "ByteLevel"}]},
            padding={"pad_id": 0},
            added_tokens=added("[PAD]", "[CLS]"),
        )
    },
    "scores": {"tokenizer.json": tokenizer_json(type="Unigram", vocab=[["a", -1.0], ["b", -2.5]])},
    "sentencepiece": {"spiece.model": sentencepiece("<unk>", "▁hi"), "tokenizer_config.json": {}},
    "tiktoken": {"tokenizer.model": b"aGk= 0\nY2F0 1\n", "tokenizer_config.json": {}},
    "a file of another name": {"words.txt": LINES, "tokenizer_config.json": {"vocab_file": "words.txt"}},
    "added": {
        "vocab.txt": LINES,
        "added_tokens.json": {"<x>": 7},
        "tokenizer_config.json": {"pad_token": "<x>", "bos_token": None},
        "special_tokens_map.json": {"cls_token": {"content": "[CLS]"}},
    },
    "a processor": {"processor_config.json": FUSION, "tokenizer.json": tokenizer_json()},
    "one without": {"processor_config.json": {**FUSION, "tokenizer": None}},
    "no tokenizer": {"config.json": {"vocab_size": 99}},
}


@pytest.mark.parametrize("name", WHOLE)
def test_tokenizers_that_are_whole(name: str) -> None:
    assert findings_of(WHOLE[name]) == []


CONFIG = {"tokenizer_class": "BertTokenizer"}


@pytest.mark.parametrize(
    ("contents", "file", "message"),
    [
        ({"tokenizer.json": tokenizer_json()[:50]}, "tokenizer.json", "is not JSON"),
        ({"tokenizer.json": b""}, "tokenizer.json", "is empty"),
        ({"tokenizer.json": b"  \n"}, "tokenizer.json", "is empty"),
        ({"tokenizer.json": b"\xff\xfe\x00"}, "tokenizer.json", "not text in UTF-8"),
        ({"tokenizer.json": b"[" * 100_000}, "tokenizer.json", "nested"),
        ({"tokenizer.json": b"[]"}, "tokenizer.json", "is a list"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json", "no model"),
        ({"tokenizer.json": tokenizer_json(type="Magic")}, "tokenizer.json", "no model"),
        ({"tokenizer.json": tokenizer_json(vocab={})}, "tokenizer.json", "empty vocabulary"),
        ({"tokenizer.json": tokenizer_json(vocab=[])}, "tokenizer.json", "empty vocabulary"),
        ({"tokenizer.json": tokenizer_json(vocab=[["a"]])}, "tokenizer.json", "tokens and their scores"),
        ({"tokenizer.json": tokenizer_json(vocab={"a": "0"})}, "tokenizer.json", "'a' the id 0"),
        ({"tokenizer.json": tokenizer_json(vocab={"a": -1})}, "tokenizer.json", "'a' the id -1"),
        ({"tokenizer.json": tokenizer_json(vocab={"a": 10**300})}, "tokenizer.json", "'a' the id 1"),
        ({"tokenizer.json": tokenizer_json(type="BPE")}, "tokenizer.json", "no merges"),
        ({"tokenizer.json": tokenizer_json(vocab={"a": 99})}, "tokenizer.json", "ids up to 99, but .* 99 rows"),
        ({"tokenizer.json": with_parts(normalizer=3)}, "tokenizer.json", "normalizer without a type"),
        ({"tokenizer.json": with_parts(pre_tokenizer={})}, "tokenizer.json", "pre_tokenizer without a type"),
        ({"tokenizer.json": with_parts(decoder=["x"])}, "tokenizer.json", "decoder without a type"),
        ({"tokenizer.json": with_parts(added_tokens=added(*WORDS))}, "tokenizer.json", "no tokens but special ones"),
        ({"tokenizer.json": with_parts(post_processor=template(2, 500))}, "tokenizer.json", "ids up to 500"),
        (
            {"tokenizer.json": with_parts(post_processor={"type": "Sequence", "processors": [template(500)]})},
            "tokenizer.json",
            "ids up to 500",
        ),
        (
            {"tokenizer.json": with_parts(post_processor={"type": "BertProcessing", "sep": ["[SEP]", 99]})},
            "tokenizer.json",
            "ids up to 99",
        ),
        ({"tokenizer.json": with_parts(padding={"pad_id": 120})}, "tokenizer.json", "ids up to 120"),
        ({"vocab.txt": b""}, "vocab.txt", "is empty"),
        ({"vocab.txt": b"\x00\x01\x02"}, "vocab.txt", "zero bytes"),
        ({"vocab.txt": b"\n".join([b"a"] * 100)}, "vocab.txt", "ids up to 99"),
        (
            {"vocab.txt": LINES[:20], "tokenizer_config.json": {"mask_token": "[MASK]"}},
            "vocab.txt",
            r"lacks '\[MASK\]'",
        ),
        ({"vocab.json": b"{", "merges.txt": b"h i"}, "vocab.json", "is not JSON"),
        ({"vocab.json": {}, "merges.txt": b"h i"}, "vocab.json", "no tokens"),
        ({"vocab.json": IDS, "tokenizer_config.json": {}}, "vocab.json", "no merges.txt"),
        ({"vocab.json": IDS, "merges.txt": b"#version: 0.2\nh i\nh"}, "merges.txt", "line 'h'"),
        ({"added_tokens.json": {"<x>": 500}}, "added_tokens.json", "ids up to 500"),
        ({"spiece.model": b""}, "spiece.model", "is empty"),
        ({"spiece.model": sentencepiece("<unk>", "hi")[:-1]}, "spiece.model", "whole model of sentencepiece"),
        ({"spiece.model": sentencepiece("<unk>", "hi")[:9]}, "spiece.model", "whole model of sentencepiece"),
        ({"spiece.model": b"not a model"}, "spiece.model", "whole model of sentencepiece"),
        ({"tokenizer.model": b"aGk= 0\nY2F"}, "tokenizer.model", "whole vocabulary of tiktoken"),
        ({"tokenizer_config.json": CONFIG}, "tokenizer_config.json", "of a BertTokenizer, but no vocabulary"),
        (
            {"processor_config.json": FUSION},
            "processor_config.json",
            "a tokenizer, of which no file",
        ),
        ({"tokenizer_config.json": {}}, "tokenizer_config.json", "of a tokenizer, but no vocabulary"),
        ({"tokenizer_config.json": CONFIG, "merges.txt": b"h i"}, "tokenizer_config.json", "no vocabulary"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}, "vocab.txt": LINES},
            "tokenizer_config.json",
            "no tokenizer.json",
        ),
    ],
)
def test_tokenizers_that_are_damaged(contents: dict[str, Any], file: str, message: str) -> None:
    ((name, reason),) = findings_of(contents)
    assert name == file
    assert re.search(message, reason)


def test_tokenizers_of_modules_are_looked_at_too() -> None:
    """Their embeddings are others, of which the configuration of the model says nothing."""
    assert [name for name, _ in findings_of({"0_Static/tokenizer.json": b"{"})] == ["0_Static/tokenizer.json"]
    assert findings_of({"0_Static/tokenizer.json": tokenizer_json(vocab={"a": 500})}) == []


@pytest.mark.parametrize("name", ["bert", "fusion", "vit"])
def test_the_rows_are_those_of_the_model(saved: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    target = Path(shutil.copytree(saved(name), tmp_path / "model"))
    config = json.loads((target / "config.json").read_text())
    rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    for count in (rows or 99, (rows or 99) + 1):
        words = IDS | {f"w{index}": index for index in range(len(IDS), count)}
        backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(target)
        assert verify(target).passed is (rows is None or count <= rows)


# --- Weights ---------------------------------------------------------------------------------------------------------

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    largest = torch.finfo(dtype).max
    fine = torch.tensor([largest, -largest, 0.0, 1.0] * 50, dtype=torch.float64).to(dtype)
    assert count_infinite(fine) == 0
    bad = fine.clone()
    bad[117] = torch.tensor(value, dtype=torch.float64).to(
        dtype
    )  # in a kind without infinity, this is NaN or the largest
    is_bad = not bool(torch.isfinite(bad.double()).all())
    assert count_infinite(bad) == is_bad
    save_file({"fine": fine, "bad": bad, "none": fine[:0]}, tmp_path / "a.safetensors")
    found = check_finite(LocalFiles(tmp_path), ["a.safetensors"])
    assert [finding.message for finding in found] == ["bad holds a value that is NaN or infinite"] * is_bad
    if is_bad:
        with pytest.raises(ValueError, match="bad holds a value that is NaN or infinite"):
            refuse_infinite({"fine": fine, "bad": bad})
    refuse_infinite({"fine": fine, "there": torch.empty(2, device="meta"), "ids": torch.arange(3)})


def test_complex_and_whole_numbers(tmp_path: Path) -> None:
    assert count_infinite(torch.tensor([1 + 1j, complex(0, float("nan"))])) == 1
    save_file({"c": torch.tensor([complex(float("inf"), 0)]), "i": torch.tensor([2**62])}, tmp_path / "a.safetensors")
    (finding,) = check_finite(LocalFiles(tmp_path), ["a.safetensors"])
    assert finding.message.startswith("c holds")


def test_weights_are_read_in_slices_and_only_if_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name][-1, -3:] = float("nan")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    asked: list[int] = []
    part = LocalFiles.part

    def counted(self: Any, file: str, start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return part(self, file, start, stop)

    monkeypatch.setattr(LocalFiles, "part", counted)
    monkeypatch.setattr(finite_weights, "_SLICE_BYTES", 1024)
    assert verify(folder).passed
    assert len(asked) < 3  # the header
    finding = only(verify(folder, weights=True))
    assert (finding.kind, finding.file) == ("weights", WEIGHTS)
    assert finding.message == f"{name} holds 3 values that are NaN or infinite"
    assert max(asked[2:]) <= 1024
    (folder / WEIGHTS).write_bytes(b"")
    assert told(verify(folder, weights=True)) == [("weights", WEIGHTS)]


def test_every_shard_is_read(saved: Callable[[str], Path], tmp_path: Path) -> None:
    MODELS["bert"]().save_pretrained(tmp_path / "model", max_shard_size="40KB")
    weight_map = json.loads((tmp_path / "model" / INDEX).read_text())["weight_map"]
    shards = sorted(set(weight_map.values()))
    assert len(shards) > 2
    for shard in (shards[0], shards[-1]):
        tensors = load_file(tmp_path / "model" / shard)
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel())
        tensors[name].flatten()[0] = float("inf")
        save_file(tensors, tmp_path / "model" / shard, metadata={"format": "pt"})
    assert told(verify(tmp_path / "model", weights=True)) == [("weights", shards[0]), ("weights", shards[-1])]


@pytest.mark.parametrize("name", ["bert", "vit_base", "pure_stt", "videomae", "fusion"])
def test_no_mechanism_has_such_values(saved: Callable[[str], Path], name: str) -> None:
    assert verify(saved(name), weights=True).findings == ()


def test_configurations_of_processors_that_are_damaged(folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json", "special_tokens_map.json"):
        for content in ("", "{", "[1]", '"x"', "\ufeff{}"):
            (folder / name).write_text(content, encoding="utf-8")
            assert {file for _, file in told(verify(folder))} == {name}
        (folder / name).unlink()
    edit(folder / "preprocessor_config.json", image_mean=[0.5, "x"])
    assert told(verify(folder)) == [("key", "preprocessor_config.json")]
