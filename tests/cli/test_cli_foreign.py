"""`hf-lam` with a mechanism from a file that is not hf_lam's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import ViTForImageClassification

from helpers.command_line import cells, error_line, run_main
from helpers.door import TEMPERATURE, open_door
from helpers.hosts import make_model
from hf_lam import cli

OTHER = ["--mechanism", TEMPERATURE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT that `hf-lam convert` gave a mask and temperatures."""
    root = tmp_path_factory.mktemp("models")
    make_model(ViTForImageClassification, "vit").save_pretrained(root / "stock")
    with open_door():
        arguments = ["convert", root / "stock", root / "converted", "--mechanism", "lam", *OTHER, "--json"]
        code, out, _ = run_main(*arguments, "--mechanism-config", '{"head_temperature": {"shared": true}}')
    sys.modules.pop(TEMPERATURE.stem)
    done = json.loads(out)
    assert code == 0
    assert done["mechanisms"]["head_temperature"] == {"shared": True}
    assert done["largest_difference"] <= 1e-5
    assert TEMPERATURE.name in done["files"]
    return root / "converted"


@pytest.fixture(autouse=True)
def door() -> Iterator[None]:
    with open_door():
        yield
    sys.modules.pop(TEMPERATURE.stem, None)


def test_inspect_shows_its_facts(folder: Path) -> None:
    code, out, _ = run_main("inspect", folder, *OTHER)
    assert code == 0
    header, *layers = [cells(line) for line in out.splitlines() if line.startswith(("┃", "│"))]
    assert header == ["layer", "mask parameters", "mean |M − 1|", "inverse temperature"]
    assert [layer[3] for layer in layers] == ["1", "1", "1"]
    assert "head_temperature: shared True" in out
    code, out, _ = run_main("inspect", folder, *OTHER, "--json", "--layer", "1")
    (layer,) = json.loads(out)["layers"]
    assert layer["inverse_temperature"] == [1.0] and layer["views"] is None


@pytest.mark.parametrize("command", ["inspect", "cost"])
def test_its_code_is_not_run_unless_it_is_named(folder: Path, command: str) -> None:
    code, _, err = run_main(command, folder)
    assert code == cli.WRONG_USE
    assert "head_temperature" in error_line(err) and "--mechanism FILE.py" in error_line(err)
    assert TEMPERATURE.stem not in sys.modules


def test_a_dry_run_of_push(folder: Path) -> None:
    code, out, _ = run_main("push", folder, "me/vit", "--dry-run", *OTHER, "--json")
    assert code == 0
    assert TEMPERATURE.name in json.loads(out)["files"]
