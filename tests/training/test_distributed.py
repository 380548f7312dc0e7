"""Two processes give what one gives: DDP, FSDP2 and `Trainer`, with gloo on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_lam
from helpers.distributed_worker import (
    BATCH,
    FUSION_CASES,
    HEAD_CASES,
    LOOP_CASES,
    TRAINER_CASES,
    make_fusion_loop_model,
    make_head_loop_model,
    make_loop_model,
    train_fusion,
    train_head,
    train_loop,
    train_with_trainer,
)
from helpers.lam_models import assert_same_weights, changed_names, weights_of
from helpers.processes import TESTS, run_process

pytestmark = pytest.mark.slow


def run_in_two_processes(mode: str, folder: Path) -> Path:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, str(TESTS / "helpers" / "distributed_worker.py"), mode, str(folder)])
    return folder


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in_two_processes("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in_two_processes("fsdp", tmp_path_factory.mktemp("fsdp"))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in_two_processes("trainer", tmp_path_factory.mktemp("trainer"))


def one_process(name: str) -> dict[str, torch.Tensor]:
    model = make_loop_model(name)
    before = weights_of(model)
    losses = train_loop(model, LOOP_CASES[name][1])
    trained = {key for key, _ in model.named_parameters() if ".hf_lam." in key}
    if name.endswith("mixture_at_zero"):
        trained = {key for key in trained if ".stt." not in key}
    assert trained <= changed_names(before, weights_of(model))
    return {**weights_of(model), "losses": losses}


@pytest.mark.parametrize("name", LOOP_CASES)
def test_ddp_equals_one_process(name: str, ddp: Path) -> None:
    assert_same_weights(load_file(ddp / f"{name}.safetensors"), one_process(name), tolerance=1e-10)


@pytest.mark.parametrize("groups", ["together", "apart"])
@pytest.mark.parametrize("name", LOOP_CASES)
def test_fsdp2_equals_one_process_and_its_gathered_weights_load(name: str, groups: str, fsdp: Path) -> None:
    expected = one_process(name)
    folder = fsdp / f"{name}-{groups}"
    losses = load_file(folder / "losses.safetensors")
    assert_same_weights(losses, {"losses": expected.pop("losses")}, tolerance=1e-10)
    loaded = getattr(hf_lam, type(make_loop_model(name)).__name__).from_pretrained(folder, dtype=torch.float64)
    assert_same_weights(weights_of(loaded), expected, tolerance=1e-10)


def one_process_of_both(name: str) -> dict[str, torch.Tensor]:
    model = make_fusion_loop_model(name)
    before = weights_of(model)
    losses = train_fusion(model)
    # The processes have other modalities, and nobody has a video; every other part learns from one of them.
    changed = changed_names(before, weights_of(model))
    for part in ("text_model", "image_model", "audio_model", "fusion.encoder", "classifier"):
        assert any(part in key for key in changed), part
    assert not [key for key in changed if "video" in key]
    return {**weights_of(model), "losses": losses}


@pytest.mark.parametrize("name", FUSION_CASES)
def test_ddp_with_different_modalities_equals_one_process(name: str, ddp: Path) -> None:
    assert_same_weights(load_file(ddp / f"{name}.safetensors"), one_process_of_both(name), tolerance=1e-10)


@pytest.mark.parametrize("name", FUSION_CASES)
def test_fsdp2_with_different_modalities_equals_one_process(name: str, fsdp: Path) -> None:
    expected = one_process_of_both(name)
    losses = load_file(fsdp / name / "losses.safetensors")
    assert_same_weights(losses, {"losses": expected.pop("losses")}, tolerance=1e-10)
    loaded = hf_lam.HfLamFusionForSequenceClassification.from_pretrained(fsdp / name, dtype=torch.float64)
    assert_same_weights(weights_of(loaded), expected, tolerance=1e-10)


@pytest.mark.parametrize("head", HEAD_CASES)
def test_fsdp2_with_a_process_that_lacks_a_side_or_all_labels(head: str, fsdp: Path) -> None:
    model = make_head_loop_model(head)
    losses = train_head(model, head)
    assert_same_weights(load_file(fsdp / head / "losses.safetensors"), {"losses": losses}, tolerance=1e-10)
    loaded = type(model).from_pretrained(fsdp / head, dtype=torch.float64)
    assert_same_weights(weights_of(loaded), weights_of(model), tolerance=1e-10)


@pytest.mark.parametrize("name", TRAINER_CASES)
def test_trainer_with_two_processes_of_four_equals_one_of_eight(name: str, trainer: Path, tmp_path: Path) -> None:
    expected = train_with_trainer(name, tmp_path, per_device_train_batch_size=BATCH)
    found = load_file(trainer / f"{name}.safetensors")
    assert_same_weights(found, expected, tolerance=1e-5)
