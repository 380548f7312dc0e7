"""`verify` for every family of encoders: what it passes, and what it says of what does not fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers.families import FAMILIES
from helpers.verification import WEIGHTS, edit, only
from hf_lam import LamConfig, convert
from hf_lam.hub import buildable, weight_checks
from hf_lam.hub.tokenizer_files import embedding_rows
from hf_lam.hub.verification import verify


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a converted model of a family, made once."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str, head: str | None = None) -> Path:
        folder = root / f"{name}-{head}"
        if not folder.is_dir():
            convert(FAMILIES[name].make(head), LamConfig(rank=2)).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    "name",
    [name if index % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for index, name in enumerate(FAMILIES)],
)
def test_converted_models_pass(folders: Any, name: str) -> None:
    assert verify(folders(name), weights=True).findings == ()


# Names of older releases, weights that are stored in one piece, towers, and several classes of one Auto class.
HEADS = [("gte", "MaskedLM"), ("clip_vision", "ImageClassification"), ("whisper", "AudioClassification")]
HEADS += [("wav2vec2", "CTC"), ("beit", "SemanticSegmentation"), ("roberta", "MaskedLM")]


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_heads_pass_and_what_does_not_fit_is_found(folders: Any, name: str, head: str, tmp_path: Path) -> None:
    assert verify(folders(name, head)).findings == ()
    folder = Path(shutil.copytree(folders(name, head), tmp_path / "model"))
    tensors = load_file(folder / WEIGHTS)
    taken = next(key for key in sorted(tensors) if ".layer" in key and key.endswith("weight"))
    save_file({key: tensor for key, tensor in tensors.items() if key != taken}, folder / WEIGHTS, {"format": "pt"})
    assert {finding.kind for finding in verify(folder).findings} == {"weights"}
    assert "is missing" in verify(folder).findings[0].message
    save_file({**tensors, taken: torch.zeros(3, 5), "extra": torch.zeros(2)}, folder / WEIGHTS, {"format": "pt"})
    messages = " ".join(finding.message for finding in verify(folder).findings)
    assert "extra with shape [2] is no tensor" in messages and ("[3, 5]" in messages or "converted" in messages)


def test_another_class_of_an_auto_class_passes(tmp_path: Path) -> None:
    stock = transformers.DeiTForImageClassificationWithTeacher(FAMILIES["deit"].make_config("ImageClassification"))
    convert(stock, LamConfig(rank=2)).save_pretrained(tmp_path)
    assert verify(tmp_path).findings == ()


# Types that are none, that load something while a model is made, or that are no name at all.
STRANGE = ["hf_lam_auto", "hf_lam_timm_wrapper", "hf_lam_timm_backbone", "hf_lam_dpt", "hf_lam_llava"]
STRANGE += [
    "hf_lam_../x",
    "hf_lam_os.system",
    "hf_lam_",
    "hf_lam_hf_lam_bert",
    "vision-encoder-decoder",
    "bert",
]


@pytest.mark.parametrize("kind", STRANGE)
def test_no_other_type_is_imported_or_built(
    folders: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folders("bert"), tmp_path / "model"))
    edit(folder / "config.json", model_type=kind, architecture="hf-hub:evil/x", backbone="evil/x")
    imported = set(sys.modules)
    monkeypatch.setattr(weight_checks, "_build", lambda *_: pytest.fail("it was built"))
    findings = verify(folder).findings
    assert any(f"is of model type {kind!r}" in finding.message for finding in findings)
    new = set(sys.modules) - imported
    assert not any(".modeling_" in name or name.partition(".")[0] == "timm" for name in new)
    assert any(finding.kind == "auto_map" for finding in findings)


@pytest.mark.parametrize("reference", ["HfLamTimmWrapperModel", "HfLamRobertaModel", "HfLamNothing", "nn"])
def test_a_class_of_another_family(folders: Any, reference: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("bert"), tmp_path / "model"))
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    edit(folder / "config.json", auto_map={**auto_map, "AutoModel": f"modeling_hf_lam.{reference}"})
    assert only(verify(folder)).kind == "auto_map"
    edit(folder / "config.json", architectures=[reference], auto_map=auto_map)
    assert "architectures is" in only(verify(folder)).message


def test_a_configuration_that_would_make_too_many_modules(folders: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("wav2vec2"), tmp_path / "model"))
    edit(folder / "config.json", num_adapter_layers=65_000, add_adapter=True)
    assert not verify(folder).passed
    edit(folder / "config.json", num_adapter_layers=3, add_adapter=False, conv_dim=[16] * 9_000)
    edit(folder / "config.json", conv_stride=[1] * 9_000, conv_kernel=[1] * 9_000, num_feat_extract_layers=9_000)
    assert not verify(folder).passed


def test_types_are_safe_by_what_their_code_names() -> None:
    native = ("bert", "whisper", "wav2vec2", "siglip", "internvl_vision", "esm", "vjepa2")
    assert all(map(buildable.is_self_contained, native))
    loading = ("timm_wrapper", "dpt", "llava", "vision-encoder-decoder", "no_such_type", "hf_lam_bert")
    assert not any(map(buildable.is_self_contained, loading))


def test_tokens_of_sounds_need_no_rows() -> None:
    assert embedding_rows({"model_type": "hf_lam_wav2vec2", "vocab_size": 32}) is None
    assert embedding_rows({"model_type": "hf_lam_roberta", "vocab_size": 32}) == 32
    assert embedding_rows({"model_type": "clip", "text_config": {"vocab_size": 9}}) == 9
