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
from hf_lam.hub.code_checks import released_code

FIXTURES = Path(__file__).parent.parent / "fixtures"
FOLDERS = sorted(folder for folder in FIXTURES.glob("saved_by_*/*") if folder.is_dir())
MODELS = [folder for folder in FOLDERS if (folder / "config.json").is_file()]
MECHANISMS = [folder for folder in FOLDERS if (folder / "mechanism").is_dir()]
# Those that kept the code which was saved with them.
WITH_CODE = [folder for folder in MODELS if list(folder.glob("*.py"))]


def release_of(folder: Path) -> str:
    return folder.parent.name.removeprefix("saved_by_")


def each(folders: list[Path]) -> Any:
    return pytest.mark.parametrize("folder", folders, ids=[f"{x.name}-{release_of(x)}" for x in folders])


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


def mechanisms_in(config: dict[str, Any]) -> list[Any]:
    """Of the model, of its encoder where it is made of two, and of its decoder."""
    block = config.get("encoder", config)["hf_lam"]
    return [without_version(block), config.get("decoder_lam")]


def load(folder: Path) -> Any:
    model, info = auto_class_of(folder).from_pretrained(folder, output_loading_info=True)
    assert {key: names for key, names in info.items() if names} == {}
    assert type(model) is getattr(hf_lam, config_in(folder)["architectures"][0])
    return model


def test_every_folder_has_a_test() -> None:
    releases = {release_of(folder) for folder in FOLDERS}
    assert releases >= {"0.1.0.dev", "0.1.0"}
    assert {*MODELS, *MECHANISMS} == {*FOLDERS}
    # Of every release: models, a mechanism alone, and the code.
    assert [{release_of(folder) for folder in kind} for kind in (MODELS, MECHANISMS, WITH_CODE)] == [releases] * 3


@each(MODELS)
def test_a_saved_model_gives_what_it_gave(folder: Path) -> None:
    expected = expected_of(folder)
    torch.testing.assert_close(outputs_of(load(folder), expected["inputs"]), dict(expected["outputs"]), **TOLERANCE)


@each([folder for folder in MODELS if expected_of(folder)["attentions"]])
def test_a_saved_model_has_the_attention_it_had(folder: Path) -> None:
    expected = expected_of(folder)
    with torch.no_grad():
        maps = load(folder)(**expected["inputs"], output_attentions=True).attentions
    found = {str(layer): weights for layer, weights in enumerate(maps)}
    torch.testing.assert_close(found, dict(expected["attentions"]), **TOLERANCE)


@each(MODELS)
def test_the_mechanisms_in_a_saved_configuration_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    written = mechanisms_in(config_in(folder))
    assert mechanisms_in(transformers.AutoConfig.from_pretrained(folder).to_dict()) == written
    model = load(folder)
    assert mechanisms_in(model.config.to_dict()) == written
    model.save_pretrained(tmp_path)
    assert mechanisms_in(config_in(tmp_path)) == written


@each(MODELS)
def test_a_saved_model_is_the_same_when_it_is_saved_again(folder: Path, tmp_path: Path) -> None:
    inputs = expected_of(folder)["inputs"]
    model = load(folder)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs_of(load(tmp_path), inputs), outputs_of(model, inputs), atol=0, rtol=0)


@each(MECHANISMS)
def test_saved_mechanisms_load_into_their_host(folder: Path, tmp_path: Path) -> None:
    expected = expected_of(folder)
    inputs, outputs = expected["inputs"], dict(expected["outputs"])
    model = hf_lam.load_mechanism(transformers.AutoModel.from_pretrained(folder / "host"), folder / "mechanism")
    torch.testing.assert_close(outputs_of(model, inputs), outputs, **TOLERANCE)

    hf_lam.save_mechanism(model, tmp_path)
    written, again = (
        json.loads((place / "mechanism_config.json").read_text(encoding="utf-8"))
        for place in (folder / "mechanism", tmp_path)
    )
    assert without_version(again["hf_lam"]) == without_version(written["hf_lam"])
    assert again["host_model_type"] == written["host_model_type"]
    loaded = hf_lam.load_mechanism(transformers.AutoModel.from_pretrained(folder / "host"), tmp_path)
    torch.testing.assert_close(outputs_of(loaded, inputs), outputs_of(model, inputs), atol=0, rtol=0)


# --- the code in the folder ------------------------------------------------------------------------------------------


@each(WITH_CODE)
def test_the_code_of_a_release_is_known_for_good(folder: Path) -> None:
    """Its entry in the manifest is what `verify` knows it by, and is never written anew."""
    release = release_of(folder)
    assert hf_lam.verify(folder).version == (release if release in released_code() else None)


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


def run_with_code(code: str, folder: Path, tmp_path: Path) -> str:
    """Run `code`, after `READ_EXPECTED`, in a fresh process with a cache of its own for the code in folders."""
    done = subprocess.run(
        [sys.executable, "-c", READ_EXPECTED + code, str(folder), str(tmp_path / "again")],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.slow
@each(WITH_CODE)
def test_the_code_in_a_folder_works_without_hf_lam(folder: Path, tmp_path: Path) -> None:
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
    assert "loaded" in run_with_code(code, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["installed", "in_folder"])
@each(WITH_CODE)
def test_the_code_in_a_folder_works_beside_the_installed_package(folder: Path, first: str, tmp_path: Path) -> None:
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
    assert "side by side" in run_with_code(code, folder, tmp_path)
