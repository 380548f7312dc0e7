"""Saved models for `verify`, and the code of today as a release."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.verification import (
    HASHES,
    MODELS,
)
from hf_lam import __version__
from hf_lam.hub import verification
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES


@pytest.fixture(autouse=True)
def _released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of today is a release, and so is an older one, of which only one file is the same."""
    older = {name: "0" * 64 for name in TRAVELLING_FILES} | {
        "locomt_views_hf_lam.py": HASHES["locomt_views_hf_lam.py"]
    }
    monkeypatch.setattr(verification, "released_code", lambda: {"0.0.1": older, __version__: HASHES})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `MODELS`, saved once. It must not be changed."""
    root = tmp_path_factory.mktemp("saved")

    def folder_of(name: str) -> Path:
        if not (root / name).is_dir():
            MODELS[name]().save_pretrained(root / name)
        return root / name

    return folder_of


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a saved BERT classifier."""
    return Path(shutil.copytree(saved("bert"), tmp_path / "model"))
