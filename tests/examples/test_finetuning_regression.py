"""Regression with the four scripts, and folders as they are shipped."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from scipy.io import wavfile
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoModelForSequenceClassification,
    BertTokenizer,
)

from helpers.finetuning import IMAGE, TEXT, VIDEO, main, make_bert, make_videomae, make_vit, results_in
from helpers.hosts import SIZES

FUSION = "run_multimodal_classification"
ONE_LAYER = '{"num_hidden_layers": 1}'


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hosts")
    disable_progress_bars()
    torch.manual_seed(0)
    sound = {"max_length": 32, "num_mel_bins": 32, "patch_size": 16, "time_stride": 16, "frequency_stride": 16}
    ASTModel(ASTConfig(**{**SIZES, **sound})).save_pretrained(folder / "ast")
    ASTFeatureExtractor(max_length=32, num_mel_bins=32).save_pretrained(folder / "ast")
    return {
        "bert": make_bert(folder / "bert"),
        "vit": make_vit(folder / "vit"),
        "videomae": make_videomae(folder / "videomae"),
        "ast": str(folder / "ast"),
    }


def lines_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def table_of(kind: str, folder: Path, targets: int) -> str:
    """Samples whose brightness, loudness or words say the number, or two of them; of one row in three, twice."""
    rows = []
    for index in range(12):
        level = index % 3
        value: Any = ["bad bad bad", "the film", "good good good"][level]
        if kind == "image":
            value = str(folder / f"{index}.png")
            Image.fromarray(np.full((8, 8, 3), 20 + 100 * level, np.uint8)).save(value)
        elif kind == "video":
            value = np.full((8, 16, 16, 3), 20 + 100 * level, np.uint8).tolist()
        elif kind == "audio":
            value = str(folder / f"{index}.wav")
            noise = np.random.default_rng(index).normal(size=8000) * 10.0 ** (level + 1)
            wavfile.write(value, 16000, noise.astype(np.int16))
        rows.append({kind: value, "stars": level - 0.5 if targets == 1 else [level - 0.5, 1.0 - level]})
    path = folder / "samples.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("kind", ["text", "image", "video", "audio"])
def test_numbers_are_predicted(kind: str, targets: int, hosts: dict[str, str], tmp_path: Path) -> None:
    file = table_of(kind, tmp_path, targets)
    script = {"text": TEXT, "image": IMAGE, "video": VIDEO, "audio": FUSION}[kind]
    model = {"text": "bert", "image": "vit", "video": "videomae", "audio": "ast"}[kind]
    named = (
        {"audio_model": hosts[model], "fusion_config": ONE_LAYER, "mechanism": "lam"}
        if kind == "audio"
        else {"model_name_or_path": hosts[model], "ignore_mismatched_sizes": True, "mechanism": "lam"}
    )
    options = {
        "train_file": file,
        "validation_file": file,
        "test_file": file,
        "label_column_name": "stars",
        "do_regression": True,
        "do_eval": True,
        "do_predict": True,
        "max_steps": 40,
        "per_device_train_batch_size": 6,
        "learning_rate": 5e-3,
        "metric_for_best_model": "mse",
    }
    metrics = main(script, **named, **options, save_strategy="no", output_dir=tmp_path / "out")
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_mse"], rel=1e-3)
    # The variance of the numbers is 2 / 3: it has learnt something.
    assert metrics["eval_mse"] < 0.3 and metrics["eval_pearson"] > 0.8
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    names = ["stars"] if targets == 1 else ["stars_0", "stars_1"]
    assert config["problem_type"] == "regression" and list(config["id2label"].values()) == names
    predicted = np.array([np.atleast_1d(json.loads(line["prediction"])) for line in lines_of(tmp_path / "out")])
    true = np.array([np.atleast_1d(row["stars"]) for row in Dataset.from_parquet(file)])
    assert np.mean((predicted - true) ** 2) == pytest.approx(metrics["eval_mse"], rel=1e-3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(regression)" in card and "Mean squared error" in card
    # The saved model is evaluated as what it is, and loads without hf_lam's scripts.
    evaluation = {"train_file": None, "test_file": None, "do_train": None, "do_predict": None, "max_steps": None}
    again = main(
        script,
        **{**options, **evaluation, "do_regression": None, "metric_for_best_model": None, "learning_rate": None},
        model_name_or_path=tmp_path / "out",
        output_dir=tmp_path / "again",
    )
    assert again["eval_mse"] == pytest.approx(metrics["eval_mse"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_folder_as_kaggle_ships_it(kind: str, streaming: bool, hosts: dict[str, str], tmp_path: Path) -> None:
    names = []
    for folder, level in [("train/a", 0), ("train/b", 1), ("test", 1)]:
        (tmp_path / "d" / folder).mkdir(parents=True)
        for index in range(6):
            path = tmp_path / "d" / folder / f"{index}.{'png' if kind == 'image' else 'wav'}"
            names.append(f"test/{path.name}")
            if kind == "image":
                Image.fromarray(np.full((8, 8, 3), 20 + 200 * level, np.uint8)).save(path)
            else:
                noise = np.random.default_rng(index).normal(size=8000) * (10.0 + 5000 * level)
                wavfile.write(path, 16000, noise.astype(np.int16))
    (tmp_path / "d" / "train" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "d" / "train" / "README.txt").write_text("x")
    model = (
        {"model_name_or_path": hosts["vit"], "ignore_mismatched_sizes": True}
        if kind == "image"
        else {"audio_model": hosts["ast"], "fusion_config": ONE_LAYER}
    )
    options = {"data_dir": tmp_path / "d", "do_predict": True, "learning_rate": 5e-3, "save_strategy": "no"}
    script = IMAGE if kind == "image" else FUSION
    stream = {"streaming": True} if streaming else {}
    main(script, **model, **options, **stream, max_steps=30, output_dir=tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert [line["file"] for line in lines] == names[-6:]
    assert {line["prediction"] for line in lines} == {"b"}
    assert "predict_accuracy" not in results_in(tmp_path / "out")


def test_regression_with_transformers_alone(hosts: dict[str, str], tmp_path: Path) -> None:
    """A stock model that the text script trained is one for regression to transformers too."""
    file = table_of("text", tmp_path, 1)
    main(
        TEXT,
        model_name_or_path=hosts["bert"],
        train_file=file,
        label_column_name="stars",
        do_regression=True,
        max_steps=2,
        save_strategy="no",
        output_dir=tmp_path / "out",
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    inputs = BertTokenizer.from_pretrained(tmp_path / "out")(["good"], return_tensors="pt")
    output = model(**inputs, labels=torch.tensor([0.5]))
    assert output.logits.shape == (1, 1)
    assert output.loss.item() == pytest.approx((output.logits.item() - 0.5) ** 2)
