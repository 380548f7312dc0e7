"""Pushing a model with a mechanism from elsewhere: its code goes along, and goes when it is not needed any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers import BertForSequenceClassification

import hf_lam
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import make_lam
from hf_lam.hub.code_checks import UNRELEASED
from hf_lam.modeling.license_hf_lam import LICENSE_FILE
from hf_lam.modeling.travelling_hf_lam import LIST_FILE
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

FILE = "foreign_mechanism.py"


@pytest.fixture
def model(foreign_mechanism: Any) -> Any:
    configs = (hf_lam.LamConfig(), foreign_mechanism.HeadFactorConfig())
    return make_lam(BertForSequenceClassification, "bert", configs, num_hidden_layers=1)


def test_its_code_and_the_licence_go_along(hub: HubServer, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    report = hf_lam.push(model, "user/one", token=TOKEN)
    files = hub.repos["user/one"].files()
    assert {FILE, LICENSE_FILE, *TRAVELLING_FILES} <= set(report.files)
    assert files[FILE] == (tmp_path / FILE).read_bytes()
    assert files[LIST_FILE] == (tmp_path / LIST_FILE).read_bytes()
    assert [note for note in report.notes if FILE in note and "is code from elsewhere" in note]
    again = hf_lam.push(tmp_path, "user/one", token=TOKEN)
    assert again.deleted == ()
    assert FILE in again.files


def test_it_goes_with_the_mechanism(hub: HubServer, model: Any, lam_bert: Any) -> None:
    hf_lam.push(model, "user/one", token=TOKEN)
    report = hf_lam.push(lam_bert, "user/one", token=TOKEN)
    assert report.deleted == (FILE,)
    assert set(hub.repos["user/one"].files()) == {".gitattributes", *report.files}


def test_code_from_before_the_first_release_goes(hub: HubServer, lam_bert: Any) -> None:
    HfApi(token=TOKEN).create_repo("user/one")
    repo = hub.repos["user/one"]
    repo.commit("main", {**repo.files(), **dict.fromkeys(UNRELEASED, b"x = 1\n"), FILE: b"mine = 1\n"}, "by hand")
    report = hf_lam.push(lam_bert, "user/one", token=TOKEN)
    assert report.deleted == tuple(sorted(UNRELEASED))
    assert FILE in repo.files()
