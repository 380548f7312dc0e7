"""`verify` of models with a mechanism from elsewhere: its code is named, and not passed off as released."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from helpers.lam_models import make_lam
from helpers.verification import WEIGHTS, edit, only, told
from hf_lam import LamConfig, __version__
from hf_lam.hub.code_checks import UNRELEASED, split_list
from hf_lam.hub.verification import verify
from hf_lam.modeling import mechanism_registry_hf_lam as registry
from hf_lam.modeling.license_hf_lam import LICENSE_FILE
from hf_lam.modeling.travelling_hf_lam import LIST_FILE, list_mechanisms
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

FILE = "foreign_mechanism.py"
READ_IT = (
    "is code from elsewhere (mechanism 'head_factor'), not released by hf_lam: read it before you load the repository "
    "with trust_remote_code=True"
)


@pytest.fixture
def foreign(foreign_mechanism: Any, tmp_path: Path) -> Path:
    """A saved BERT classifier with masks and head factors."""
    configs = (LamConfig(), foreign_mechanism.HeadFactorConfig())
    make_lam(BertForSequenceClassification, "bert", configs).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def unknown(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, on a machine where nobody has registered the mechanism."""
    known = {name: entry for name, entry in registry._REGISTRY.items() if name != "head_factor"}
    monkeypatch.setattr(registry, "_REGISTRY", known)
    return foreign


def test_its_code_is_a_finding_that_says_where_it_is(foreign: Path) -> None:
    result = verify(foreign)
    finding = only(result)
    assert (finding.kind, finding.file, finding.message) == ("foreign", FILE, READ_IT)
    assert result.version is None
    assert result.code[FILE] == hashlib.sha256((foreign / FILE).read_bytes()).hexdigest()
    assert result.code[LIST_FILE] == hashlib.sha256((foreign / LIST_FILE).read_bytes()).hexdigest()
    assert FILE in result.reads
    assert set(result.code) == {*TRAVELLING_FILES, FILE}


def test_where_it_is_unknown_the_configuration_names_it_too(unknown: Path) -> None:
    findings = verify(unknown).findings
    assert [(finding.kind, finding.file) for finding in findings] == [("foreign", FILE), ("foreign", "config.json")]
    assert "'head_factor'" in findings[1].message and FILE in findings[1].message


@pytest.mark.parametrize("place", ["foreign", "unknown"])
def test_other_weights_are_looked_at(place: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(place)
    before = told(verify(folder))
    tensors = load_file(folder / WEIGHTS)
    assert "bert.hf_lam.head_factor.factors" in tensors
    tensors["classifier.weight"] = torch.zeros(7, 5)
    tensors["bert.hf_lam.lam.9.in_bias"] = torch.zeros(3)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    found = verify(folder).findings
    assert [(x.kind, x.file) for x in found] == [*before, ("weights", WEIGHTS), ("weights", WEIGHTS)]
    assert {x.message.partition(" ")[0] for x in found[-2:]} == {"classifier.weight", "bert.hf_lam.lam.9.in_bias"}
    edit(folder / "config.json", num_hidden_layers="many")
    assert ("config", "config.json") in told(verify(folder))


def test_what_its_code_does_is_listed(foreign: Path) -> None:
    with (foreign / FILE).open("a") as file:
        file.write("import subprocess\nsubprocess.run('https://evil.example/x')\n")
    result = verify(foreign)
    assert told(result)[0] == ("foreign", FILE)
    assert {finding.kind for finding in result.findings[1:]} == {"call"}
    assert result.hosts == ("evil.example",)
    (foreign / FILE).write_text("def broken(:\n")
    assert {("foreign", FILE), ("code", FILE)} <= set(told(verify(foreign)))
    (foreign / FILE).unlink()
    assert any(f"imports {FILE}, which is not here" in finding.message for finding in verify(foreign).findings)


def test_a_file_that_nothing_lists_is_unknown_code(foreign: Path) -> None:
    (foreign / "another.py").write_bytes((foreign / FILE).read_bytes())
    assert told(verify(foreign)) == [("code", "another.py"), ("foreign", FILE)]
    text = (foreign / LIST_FILE).read_text()
    (foreign / LIST_FILE).write_text(split_list(text)[0])
    assert told(verify(foreign)) == [("code", "another.py"), ("code", FILE)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "import os\n",
        lambda text: text + "from .extra import x\n",
        lambda text: text.replace("import __name__ as", "import Evil as"),
        lambda text: "import os\n" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "# \N{SNOWMAN}\n",
    ],
)
def test_a_list_with_anything_else_is_changed_code(foreign: Path, change: Any) -> None:
    text = (foreign / LIST_FILE).read_text()
    (foreign / LIST_FILE).write_bytes(change(text).encode())
    assert {("code", LIST_FILE), ("code", FILE)} <= set(told(verify(foreign)))


def test_a_changed_file_of_hf_lam_does_not_become_one_from_elsewhere(foreign: Path) -> None:
    name = "modeling_hf_lam.py"
    own, _ = split_list((foreign / LIST_FILE).read_text())
    (foreign / LIST_FILE).write_text(list_mechanisms(own, [Path(FILE), Path(name)]))
    (foreign / name).write_bytes((foreign / name).read_bytes() + b"\n")
    assert {("code", name), ("code", LIST_FILE)} <= set(told(verify(foreign)))


def test_older_code_beside_it_is_a_finding(foreign: Path) -> None:
    edit(
        foreign / "config.json", hf_lam={**json.loads((foreign / "config.json").read_text())["hf_lam"], "version": "7"}
    )
    assert told(verify(foreign)) == [("foreign", FILE), ("config", "config.json")]


def test_files_from_before_the_first_release_are_findings(folder: Path) -> None:
    for name in UNRELEASED:
        (folder / name).write_text("x = 1\n")
    result = verify(folder)
    assert told(result) == [("code", name) for name in sorted(UNRELEASED)]
    assert all("before the first release" in finding.message for finding in result.findings)
    assert result.version is None


def test_the_licence_is_the_one_that_hf_lam_comes_with(folder: Path) -> None:
    assert (folder / LICENSE_FILE).is_file()
    with (folder / LICENSE_FILE).open("ab") as file:
        file.write(b"You must pay.\n")
    assert told(verify(folder)) == [("file", LICENSE_FILE)]
    (folder / LICENSE_FILE).unlink()
    assert verify(folder).version == __version__
