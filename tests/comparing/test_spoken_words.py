"""A plan on real words, pictures and sounds: whole, and killed in the middle and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ASTFeatureExtractor, ASTModel, ViTImageProcessor, ViTModel

from helpers.command_line import run_main
from helpers.hosts import CONFIGS, data_folder
from helpers.processes import fresh_environment, run_process
from helpers.scripts import EXAMPLES

PLAN = f"""
script: {EXAMPLES}/run_multimodal_classification.py
metric: accuracy
seeds: 2
arguments:
  image_model: "{{plan}}/encoders/image"
  audio_model: "{{plan}}/encoders/audio"
  data_dir: ${{HF_LAM_DATA}}/spoken_words
  label_column_name: chapter
  fusion_config: {{num_hidden_layers: 1}}
  max_train_samples: 24
  max_eval_samples: 12
  max_predict_samples: 12
  num_train_epochs: 2
  per_device_train_batch_size: 4
  learning_rate: 1e-3
rows:
  full: {{}}
  lam: {{mechanism: lam, mechanism_config: {{rank: 4}}}}
  calibrated: {{mechanism: locomt, calibrate_views_on: "{{row:full}}", views_budget: 0.5}}
"""
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    data_folder("spoken_words")
    torch.manual_seed(0)
    image, audio = tmp_path / "encoders" / "image", tmp_path / "encoders" / "audio"
    ViTModel(CONFIGS["vit"](**SMALL, image_size=32, patch_size=8)).save_pretrained(image)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(image)
    sound = {"max_length": 64, "num_mel_bins": 64, "patch_size": 16, "time_stride": 16, "frequency_stride": 16}
    ASTModel(CONFIGS["ast"](**SMALL, **sound)).save_pretrained(audio)
    ASTFeatureExtractor(num_mel_bins=64, max_length=64).save_pretrained(audio)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def command(plan: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "hf_lam.cli", "compare", str(plan), "--output_dir", str(output), *more]


def results_in(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def kill_after(runs: int, command: list[str], output: Path) -> None:
    """Start a command in a process group of its own, and kill the group once so many runs are finished."""
    process = subprocess.Popen(
        command,
        env=fresh_environment({"HF_HUB_OFFLINE": "1"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(output.glob("runs/*/*/result.json"))) < runs:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_plan_that_is_killed_gives_the_same_to_the_byte(plan: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {"HF_HUB_OFFLINE": "1"}
    run_process(command(plan, whole, "--no_timing", "--test"), environment)

    # The baseline's model of the second seed is what the last run needs.
    kill_after(4, command(plan, killed, "--no_timing"), killed)
    assert not (killed / "results.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*/run.json")}
    assert 4 <= len(finished) < 6
    run_process(command(plan, killed, "--no_timing", "--test", "--keep_models"), environment)
    assert (killed / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    # What was finished was not done again.
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list(whole.rglob("*.safetensors"))
    # The model of a row goes to the Hub as that of any run.
    code, listed, err = run_main("push", killed / "runs" / "lam" / "seed-0", "me/words", "--dry-run")
    assert code == 0 and {"model.safetensors", "eval_results.json"} <= set(listed.split()), err
    assert "batch.safetensors" not in listed and "log.txt" not in listed

    results = results_in(whole)
    runs = {(row["name"], run["seed"]): run for row in results["rows"] for run in row["runs"]}
    assert len(runs) == 6 and not any(run["error"] for run in runs.values())
    for seed in (0, 1):
        # The same samples in the same order, and as many steps.
        of_seed = [runs[name, seed] for name in ("full", "lam", "calibrated")]
        assert all(run["orders"] == of_seed[0]["orders"] and run["orders"]["labels"] for run in of_seed)
        assert all(run["starts"]["head"] == of_seed[0]["starts"]["head"] for run in of_seed)
        assert {run["steps"] for run in of_seed} == {12}
    assert all("predict_accuracy" in run["metrics"] for run in runs.values())
    assert runs["full", 0]["orders"]["labels"] != runs["full", 1]["orders"]["labels"]
    costs = {row["name"]: row["attention_flops"] for row in results["rows"]}
    assert costs["calibrated"] < costs["full"]
    assert str(tmp_path) not in json.dumps(results)


@pytest.mark.slow
def test_rows_that_do_not_fit_are_named_before_anything_is_trained(plan: Path, tmp_path: Path) -> None:
    """What only the script, the data and the model can tell, of all rows at once."""
    plan.write_text(
        PLAN
        + """  misspelled:
    learning_rte: 1e-3
  unknown: {mechanism: lma}
  option:
    mechanism: lam
    mechanism_config:
      rnk: 4
  views:
    mechanism: locomt
    mechanism_config: {views: "cross:nothing-image"}
  kind: {num_train_epochs: many}
  control: {mechanism: locomt, control: true}
"""
    )
    first = len(PLAN.splitlines()) + 1
    process = subprocess.run(
        command(plan, tmp_path / "out"), env=fresh_environment({"HF_HUB_OFFLINE": "1"}), capture_output=True, text=True
    )
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 6, process.stderr
    for line, (number, words) in zip(
        errors,
        [
            (first + 1, "Did you mean --learning_rate?"),
            (first + 2, "lma"),
            (first + 6, "rnk"),
            (first + 9, "nothing"),
            (first + 10, "num_train_epochs"),
            (first + 11, "control"),
        ],
        strict=True,
    ):
        assert line.startswith(f"error: plan.yaml, line {number}, row '") and words in line
    assert not list(tmp_path.glob("out/runs/*"))
