"""A batch that a run has recorded beside its model is not taken for weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_lam.hub.earlier_cards import weights_of
from hf_lam.hub.folders import copy_results


@pytest.mark.parametrize("weights", ["model", "model-00001-of-00002", "adapter_model"])
def test_only_weights_are_weights(tmp_path: Path, weights: str) -> None:
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    target.mkdir()
    save_file({"x": torch.zeros(2)}, run / f"{weights}.safetensors")
    (run / "eval_results.json").write_text('{"eval_accuracy": 0.5}')
    before = weights_of(run)
    save_file({"labels": torch.ones(2)}, run / "batch.safetensors")
    os.utime(run / "batch.safetensors", (4e9, 4e9))
    assert weights_of(run) == before
    measured, notes = copy_results(run, target, is_described=False)
    assert [(each.metric, each.value) for each in measured] == [("accuracy", 0.5)] and not notes
    # Weights that are newer than what was measured are others.
    os.utime(run / f"{weights}.safetensors", (4e9, 4e9))
    measured, notes = copy_results(run, target, is_described=False)
    assert not measured and len(notes) == 1
    save_file({"x": torch.ones(2)}, run / f"{weights}.safetensors")
    assert weights_of(run) != before
