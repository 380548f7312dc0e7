"""Folders that earlier versions saved load, and give what they gave; `tests/fixtures/make_saved_folders.py` made them.

A folder whose test fails after a change must not be made anew: there are others like it that people have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hf_lam

FIXTURES = Path(__file__).parent.parent / "fixtures"
SAVED = FIXTURES / "saved_by_0.1.0.dev"
MODELS = (
    "bert_lam",
    "bert_shared_lam_views",
    "bert_views_spans",
    "bert_views_annealing",
    "bert_bottleneck",
    "bert_stt_mixture_trained",
    "vit_stt_mixture",
    "vit_stt_dense",
    "vit_views_quadrants",
    "videomae_lam_views",
    "videomae_stt_factorized_random",
    "fusion_lam_views",
    "fusion_bottleneck",
)
# The folder that kept the code which was saved with it.
WITH_CODE = SAVED / "bert_lam"
MECHANISM = SAVED / "vit_mechanism"

# Weights and inputs are those of the file, but another processor, or kernels that sum in another order, round
# otherwise: by up to 2.3e-6 · (1 + |output|) where it was tried (AVX-512, AVX2, none of them, and fp64). Losing any
# tensor of a mechanism would show: to change it by 0.1 changes the outputs by 8e-3 or more.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def expected_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """`inputs`, `outputs` and, of some, `attentions`, by name."""
    groups: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / "expected.safetensors").items():
        group, _, key = name.partition(".")
        groups[group][key] = tensor
    return groups


def outputs_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs = model(**inputs)
    return {name: value for name, value in outputs.items() if torch.is_tensor(value)}


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def auto_class_of(folder: Path) -> Any:
    """The Auto class of the model that was saved."""
    config = config_in(folder)
    (architecture,) = config["architectures"]
    return next(
        getattr(transformers, auto)
        for auto, target in config["auto_map"].items()
        if target.endswith(f".{architecture}")
    )


def without_version(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != "version"}


def load(folder: Path) -> Any:
    model, info = auto_class_of(folder).from_pretrained(folder, output_loading_info=True)
    assert {key: names for key, names in info.items() if names} == {}
    assert type(model) is getattr(hf_lam, config_in(folder)["architectures"][0])
    return model


def test_every_folder_has_a_test() -> None:
    assert {folder.name for folder in SAVED.iterdir()} == {*MODELS, MECHANISM.name}


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_gives_what_it_gave(kind: str) -> None:
    expected = expected_of(SAVED / kind)
    torch.testing.assert_close(
        outputs_of(load(SAVED / kind), expected["inputs"]), dict(expected["outputs"]), **TOLERANCE
    )


@pytest.mark.parametrize("kind", [kind for kind in MODELS if expected_of(SAVED / kind)["attentions"]])
def test_a_saved_model_has_the_attention_it_had(kind: str) -> None:
    expected = expected_of(SAVED / kind)
    with torch.no_grad():
        maps = load(SAVED / kind)(**expected["inputs"], output_attentions=True).attentions
    found = {str(layer): weights for layer, weights in enumerate(maps)}
    torch.testing.assert_close(found, dict(expected["attentions"]), **TOLERANCE)


@pytest.mark.parametrize("kind", MODELS)
def test_the_mechanisms_in_a_saved_configuration_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    written = without_version(config_in(SAVED / kind)["hf_lam"])
    assert without_version(transformers.AutoConfig.from_pretrained(SAVED / kind).hf_lam) == written
    model = load(SAVED / kind)
    assert without_version(model.config.hf_lam) == written
    model.save_pretrained(tmp_path)
    assert without_version(config_in(tmp_path)["hf_lam"]) == written


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_is_the_same_when_it_is_saved_again(kind: str, tmp_path: Path) -> None:
    inputs = expected_of(SAVED / kind)["inputs"]
    model = load(SAVED / kind)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs_of(load(tmp_path), inputs), outputs_of(model, inputs), atol=0, rtol=0)


def test_saved_mechanisms_load_into_their_host(tmp_path: Path) -> None:
    expected = expected_of(MECHANISM)
    inputs, outputs = expected["inputs"], dict(expected["outputs"])
    model = hf_lam.load_mechanism(transformers.AutoModel.from_pretrained(MECHANISM / "host"), MECHANISM / "mechanism")
    torch.testing.assert_close(outputs_of(model, inputs), outputs, **TOLERANCE)

    hf_lam.save_mechanism(model, tmp_path)
    written, again = (
        json.loads((folder / "mechanism_config.json").read_text(encoding="utf-8"))
        for folder in (MECHANISM / "mechanism", tmp_path)
    )
    assert without_version(again["hf_lam"]) == without_version(written["hf_lam"])
    assert again["host_model_type"] == written["host_model_type"]
    loaded = hf_lam.load_mechanism(transformers.AutoModel.from_pretrained(MECHANISM / "host"), tmp_path)
    torch.testing.assert_close(outputs_of(loaded, inputs), outputs_of(model, inputs), atol=0, rtol=0)


# --- the code in the folder ------------------------------------------------------------------------------------------

READ_EXPECTED = """
import sys
import torch
import transformers
from safetensors.torch import load_file

folder, again = sys.argv[1:]
expected = load_file(f"{folder}/expected.safetensors")
inputs = {name.partition(".")[2]: tensor for name, tensor in expected.items() if name.startswith("inputs.")}


def check(model):
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected["outputs.logits"], atol=1e-5, rtol=1e-5)
    return logits
"""


def run_with_code(code: str, tmp_path: Path) -> str:
    """Run `code`, after `READ_EXPECTED`, in a fresh process with a cache of its own for the code in folders."""
    done = subprocess.run(
        [sys.executable, "-c", READ_EXPECTED + code, str(WITH_CODE), str(tmp_path / "again")],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_code_in_a_folder_works_without_hf_lam(tmp_path: Path) -> None:
    code = """
sys.modules["hf_lam"] = None  # every import of it is an error
auto = transformers.AutoModelForSequenceClassification
for path in (folder, again):
    model = auto.from_pretrained(path, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    check(model)
    model.save_pretrained(again)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
print("loaded")
"""
    assert "loaded" in run_with_code(code, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["installed", "in_folder"])
def test_the_code_in_a_folder_works_beside_the_installed_package(first: str, tmp_path: Path) -> None:
    # What both register with transformers and torch under one name must serve both, whichever came last.
    code = f"""
def installed():
    import hf_lam
    return hf_lam.HfLamBertForSequenceClassification.from_pretrained(folder)

def in_folder():
    # Of an Auto class, the installed class would come first.
    name = "modeling_hf_lam.HfLamBertForSequenceClassification"
    return transformers.dynamic_module_utils.get_class_from_dynamic_module(name, folder).from_pretrained(folder)

loaders = [installed, in_folder]
models = [load() for load in (loaders if {first!r} == "installed" else loaders[::-1])]
assert len({{type(model) for model in models}}) == 2
for model in (*models, *models[::-1]):
    check(model)
    assert len(model(**inputs, output_attentions=True).attentions) == 2
    model.train()(**inputs).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
print("side by side")
"""
    assert "side by side" in run_with_code(code, tmp_path)
