"""A Hub to push to, and what is pushed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import (
    BertForSequenceClassification,
)

from helpers.hub_server import HubServer
from helpers.lam_models import make_lam
from helpers.pushing import PICTURE
from hf_lam.hub import cards, pushing


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    def draw(model: Any, inputs: Any, folder: Path, *more: Any) -> dict[str, str]:
        Image.new("RGB", (2, 2)).save(Path(folder, PICTURE))
        return {PICTURE: "What the masks do."}

    # Drawing and counting take most of the time of a push, and have tests of their own.
    monkeypatch.setattr(pushing, "draw_pictures", draw)
    monkeypatch.setattr(cards, "_sizes", lambda model: None)
    # A release that had another file.
    monkeypatch.setattr(pushing, "released_code", lambda path: {"0.0.1": {"stale_hf_lam.py": "0" * 64}})
    with HubServer() as server:
        server.serve(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def lam_bert() -> Any:
    return make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1)
