"""The reference conversions: their commands can be run, and what a run writes makes the card."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from helpers.hosts import data_folder
from helpers.scripts import script_module
from hf_lam.training.parsing import parse_arguments


@pytest.fixture(scope="module")
def reference_models() -> Iterator[Any]:
    with script_module("reference_models") as module:
        yield module


NAMES = ["minilm-lam-sst2", "vit-stt-mnist", "videomae-locomt-directions", "fusion-locomt-av-mnist"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_those_of_the_scripts(
    reference_models: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(reference_models.REFERENCES) == NAMES
    monkeypatch.setattr(reference_models, "packaged_checkpoint", lambda: str(tmp_path))
    reference = reference_models.REFERENCES[name]
    (tmp_path / reference.data).mkdir()
    command = reference.command(tmp_path, tmp_path / "out")
    kinds = {
        "text": ("ModelArguments", "TextArguments"),
        "image": ("ModelArguments", "ImageArguments"),
        "video": ("ModelArguments", "VideoArguments"),
        "multimodal": ("FusionArguments", "MultimodalArguments"),
    }
    script = reference.train
    model_class, data_class = kinds[script.__name__.split("_")[1]]
    model, data, training = parse_arguments(
        getattr(script, model_class), getattr(script, data_class), "A script.", command
    )
    assert training.do_train and training.do_eval and training.do_predict
    assert model.mechanisms()
    assert Path(data.data_dir) == tmp_path / reference.data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--models", "none"], "unknown ['none']"), (["--data_dir", "nowhere"], "no folder")],
)
def test_wrong_use_ends_before_anything_is_done(
    reference_models: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference_models.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_makes_the_card_and_is_not_made_again(
    reference_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vit-stt-mnist"
    data = data_folder("mnist").parent
    reference = reference_models.REFERENCES[name]
    few = {"max_train_samples": 64, "max_eval_samples": 32, "max_predict_samples": 32, "num_train_epochs": 1}
    short: Any = dataclasses.replace(reference, options={**reference.options, **few})
    monkeypatch.setattr(reference_models, "REFERENCES", {name: short})
    arguments = ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), "--models", name]
    arguments += ["--cards_dir", str(tmp_path / "cards")]
    assert reference_models.main(arguments) == 0
    card = (tmp_path / "cards" / name / "README.md").read_text()
    metadata = ModelCard(card).data
    assert metadata.model_name == name
    assert {(x.dataset_split, x.metric_type) for x in metadata.eval_results} == {
        (split, metric) for split in ("validation", "test") for metric in ("accuracy", "f1")
    }
    assert "64 samples for training" in card
    assert "](synthetic_maps.png)" in card
    weights = tmp_path / "out" / name / "model.safetensors"
    before = os.stat(weights).st_mtime_ns
    assert reference_models.main(arguments) == 0
    assert os.stat(weights).st_mtime_ns == before
    assert (tmp_path / "cards" / name / "README.md").read_text() == card
