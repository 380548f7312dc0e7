"""What a run leaves behind in its process is put back, and what cannot be is said."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import TrainingArguments

from helpers.comparing import fake_plan
from hf_lam.comparing.process_state import ProcessState, seed_all
from hf_lam.comparing.running import run_plan
from hf_lam.modeling import mechanism_registry_hf_lam as registry

LOGGER = logging.getLogger("transformers")

CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "variable": (lambda: dict(os.environ), lambda: os.environ.update(ACCELERATE_MIXED_PRECISION="bf16")),
    "variable gone": (lambda: dict(os.environ), lambda: os.environ.pop("PATH")),
    "folder": (os.getcwd, lambda: os.chdir("/")),
    "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/somewhere")),
    "arguments": (lambda: list(sys.argv), lambda: sys.argv.append("--x")),
    "warnings": (lambda: list(warnings.filters), lambda: warnings.simplefilter("error")),
    "level": (lambda: LOGGER.level, lambda: LOGGER.setLevel(logging.CRITICAL)),
    "handlers": (lambda: list(LOGGER.handlers), lambda: LOGGER.addHandler(logging.NullHandler())),
    "signal": (lambda: signal.getsignal(signal.SIGTERM), lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "anomalies": (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(True)),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ),
    "matmul": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "attention": (torch.backends.cuda.math_sdp_enabled, lambda: torch.backends.cuda.enable_math_sdp(False)),
    "cudnn": (lambda: torch.backends.cudnn.benchmark, lambda: setattr(torch.backends.cudnn, "benchmark", True)),
    "numpy": (numpy.geterr, lambda: numpy.seterr(all="raise")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_is_put_back(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_lam.comparing.process_state.gc.collect", lambda: 0)
    look, change = CHANGES[what]
    state, before = ProcessState(), look()
    change()
    try:
        assert look() != before
    finally:
        is_whole = state.put_back()
    assert look() == before and is_whole


def test_the_state_of_accelerate_is_put_back(tmp_path: Path) -> None:
    state = ProcessState()
    assert TrainingArguments(output_dir=str(tmp_path), use_cpu=True).device.type == "cpu"
    assert PartialState._shared_state
    state.put_back()
    assert not PartialState._shared_state and not AcceleratorState._shared_state


def test_a_mechanism_that_was_registered_stays_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ProcessState()
    known = registry.mechanism_names()
    monkeypatch.setattr(registry, "mechanism_names", lambda: [*known, "mine"])
    assert not state.put_back()
    assert ProcessState().put_back()  # one that was there before is no change


def test_a_process_group_stays_and_is_said(tmp_path: Path) -> None:
    state = ProcessState()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert not state.put_back()
    finally:
        torch.distributed.destroy_process_group()
    assert state.put_back()


def test_everything_is_seeded() -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    seed_all(3)
    first = draw()
    assert draw() != first
    seed_all(3)
    assert draw() == first


SCRIPT = """
def main(arguments):
    import numpy, os, pathlib, json, sys
    output = pathlib.Path(arguments[[x.startswith("--output_dir") for x in arguments].index(True)].partition("=")[2])
    output.mkdir(parents=True)
    with open(output.parents[1] / "processes.txt", "a") as file:
        file.write(f"{os.getpid()} {os.environ.get('LEFT', '')} {numpy.get_printoptions()['precision']}\\n")
    os.environ["LEFT"] = "something"
    numpy.set_printoptions(precision=3)
    (output / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.5}))
"""


@pytest.mark.slow
def test_a_library_that_a_run_loads_first_costs_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_lam.comparing.plots.write_plots", lambda results, times, folder: None)
    plan = fake_plan(tmp_path, {"full": {}}, seeds=3)
    (tmp_path / "fake_script.py").write_text(SCRIPT)
    run_plan(plan, tmp_path / "out", timing=False, check=False)
    processes = (tmp_path / "out" / "runs" / "processes.txt").read_text().splitlines()
    assert len({line.split()[0] for line in processes}) == 3  # nobody has seen numpy as it was before
    assert all(line.split()[1:] == ["8"] for line in processes)
    (tmp_path / "fake_script.py").write_text("import numpy\n" + SCRIPT)
    run_plan(plan, tmp_path / "again", timing=False, check=False)
    processes = (tmp_path / "again" / "runs" / "processes.txt").read_text().splitlines()
    assert len({line.split()[0] for line in processes}) == 1
    assert all("something" not in line for line in processes)
