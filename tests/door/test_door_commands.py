"""Mechanisms from elsewhere on the command line, from a stock checkpoint to a checked repository."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertForSequenceClassification, ViTForImageClassification

import hf_lam
from helpers.command_line import run_main
from helpers.door import AVERAGE, DISTANCE, TEMPERATURE, WINDOW
from helpers.hosts import first_output, make_inputs, make_model
from helpers.processes import run_process

BOTH = ("--mechanism", TEMPERATURE, "--mechanism", DISTANCE)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Modules that a command imported."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").stem in ("head_temperature", "distance_bias"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stock")
    make_model(ViTForImageClassification, "vit").save_pretrained(root / "vit")
    make_model(BertForSequenceClassification, "bert").save_pretrained(root / "bert")
    return root


@pytest.mark.parametrize("host", ["vit", "bert"])
def test_from_a_checkpoint_to_a_repository(host: str, stock: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, err = run_main("convert", stock / host, output, *BOTH, "--mechanism", "lam", "--json")
    assert code == 0, err
    done = json.loads(out)
    assert set(done["mechanisms"]) == {"lam", "head_temperature", "distance_bias"}
    assert done["changes"] == [] and done["largest_difference"] <= 1e-5
    written = {path.name for path in output.iterdir()}
    assert {"head_temperature.py", "distance_bias.py", "head_temperature.png", "distance_bias.png"} <= written

    code, out, err = run_main("inspect", output, *BOTH, "--json")
    assert code == 0, err
    assert json.loads(out)["layers"][0]["inverse_temperature"] == [1.0] * 4

    code, out, err = run_main("cost", output, *BOTH, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["agrees"] is True

    card = (output / "README.md").read_text()
    for said in (
        "Learned temperature",
        "Learned distance bias",
        "head_temperature.py",
        "By what every head multiplies",
    ):
        assert said in card

    code, out, _ = run_main("verify", output, "--json")
    findings = json.dumps(json.loads(out))
    assert code == 1 and "head_temperature.py" in findings and "distance_bias.py" in findings


@pytest.mark.slow
def test_a_downloaded_folder_is_looked_at_with_the_file_that_came_with_it(stock: Path, tmp_path: Path) -> None:
    """Whoever downloads a model has the copy of the file whose imports are those of siblings, and no other."""
    output = tmp_path / "out"
    assert run_main("convert", stock / "vit", output, "--mechanism", TEMPERATURE)[0] == 0
    for command in ("inspect", "cost"):
        file = output / "head_temperature.py"
        said = run_process(
            [sys.executable, "-m", "hf_lam.cli", command, str(output), "--mechanism", str(file), "--json"]
        )
        assert "temperature" in said


@pytest.mark.parametrize(("path", "name"), [(WINDOW, "local_window"), (AVERAGE, "uniform_average")])
def test_a_pattern_and_a_replacement_of_ones_own(path: Path, name: str, stock: Path, tmp_path: Path) -> None:
    output, options = tmp_path / "out", {"local_window": '{"reach": 2}', "uniform_average": "{}"}[name]
    code, out, err = run_main(
        "convert", stock / "vit", output, "--mechanism", path, "--mechanism-config", options, "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["changes"]) == 1
    for command in ("inspect", "cost"):
        code, out, err = run_main(command, output, "--mechanism", path, "--json")
        assert code == 0, err
    assert json.loads(out)["agrees"] is True


def test_the_same_as_in_python(stock: Path, tmp_path: Path) -> None:
    assert run_main("convert", stock / "vit", tmp_path / "out", *BOTH)[0] == 0
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    expected = hf_lam.HfLamViTModel.from_pretrained(stock / "vit")
    assert type(loaded) is hf_lam.HfLamViTModel
    torch.testing.assert_close(
        first_output(loaded, make_inputs("vit")), first_output(expected, make_inputs("vit")), rtol=0, atol=1e-5
    )
