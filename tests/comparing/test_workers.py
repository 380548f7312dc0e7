"""What workers share, and what is said of those that failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_lam.comparing import workers
from hf_lam.comparing.results import unequal_runs
from hf_lam.comparing.workers import error_in, find_command, worker_environments

# Of two processes, as torchrun leaves it.
FROM_TORCHRUN = """\
error: --views_budget must be above 0, got -1.0.
{rank}RuntimeError: too small
W1130 09:24:27.600000 12345 torch/distributed/elastic/multiprocessing/api.py:1010] Sending process 12345 SIGTERM
Traceback (most recent call last):
  File "/bin/torchrun", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
examples/run_text_classification.py FAILED
"""
LOGS = {
    "argparse": ("usage: x\nx.py: error: unrecognized arguments: --y=1\n", "unrecognized arguments: --y=1"),
    "script": ("loading\nerror: the data are bad\n  in line 3\n", "the data are bad\n  in line 3"),
    "last error": ("error: first\nerror: second", "second"),
    "exception": ("Traceback (most recent call last):\n  x\nValueError: it broke\n", "ValueError: it broke"),
    "exception of a package": ("a.b.MyError: it broke\n", "a.b.MyError: it broke"),
    "torchrun": (FROM_TORCHRUN.format(rank=""), "--views_budget must be above 0, got -1.0.\nRuntimeError: too small"),
    "rank": (FROM_TORCHRUN.format(rank="[rank1]: ").partition("\n")[2], "RuntimeError: too small"),
    "words": ("hello\nworld\n", "it ended with exit status 3: world"),
    "nothing": ("", "it ended with exit status 3, and said nothing"),
}


@pytest.mark.parametrize("what", LOGS)
def test_an_error_is_found_in_the_log(what: str, tmp_path: Path) -> None:
    text, expected = LOGS[what]
    (tmp_path / "log.txt").write_text(text)
    assert error_in(tmp_path / "log.txt", 3) == expected.strip()


def test_a_signal_says_more_than_the_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("error: something before")
    assert error_in(tmp_path / "log.txt", -9) == "the process was ended by SIGKILL; is there enough memory?"
    assert error_in(tmp_path / "log.txt", -11) == "the process was ended by SIGSEGV"


def test_workers_share_cores_and_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(workers, "_DEVICES", tmp_path)

    def look(jobs: int, name: str) -> list[str | None]:
        return [environment.get(name) for environment in worker_environments(jobs)]

    assert look(1, "OMP_NUM_THREADS") == look(1, "CUDA_VISIBLE_DEVICES") == [None]
    assert look(3, "OMP_NUM_THREADS") == ["2"] * 3 and look(3, "CUDA_VISIBLE_DEVICES") == [None] * 3
    assert look(16, "OMP_NUM_THREADS") == ["1"] * 16
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert look(1, "CUDA_VISIBLE_DEVICES") == [None]  # as the script has it by itself
    assert look(3, "CUDA_VISIBLE_DEVICES") == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert look(2, "CUDA_VISIBLE_DEVICES") == ["5", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert look(2, "CUDA_VISIBLE_DEVICES") == [""] * 2 and look(2, "OMP_NUM_THREADS") == ["3"] * 2


def test_a_command_is_that_of_this_environment() -> None:
    assert Path(find_command("python")).parent == Path(workers.sys.executable).parent
    assert Path(find_command("ls")).is_file()


def test_runs_that_saw_other_samples_are_named() -> None:
    def row(name: str, *runs: dict[str, object], point: int = 1) -> dict[str, object]:
        common = {"error": None, "steps": 5, "orders": {"labels": "a", "ids": "b"}}
        return {
            "name": name,
            "group": name,
            "point": {"n": point},
            "runs": [{"seed": seed, **common, **run} for seed, run in enumerate(runs)],
        }

    rows = [
        row("full", {}, {}),
        row("same", {}, {"orders": {"labels": "a", "ids": "cut"}}),  # inputs cut otherwise, in the same order
        row("unlabelled", {"orders": {"ids": "b"}}, {"orders": {"ids": "c"}}),
        row("steps", {"steps": 6}, {}),
        row("order", {"orders": {"labels": "c"}}, {"orders": {"labels": "c"}}),
        row("failed", {"error": "x", "orders": {}, "steps": None}, {"orders": {}}),
        row("elsewhere", {"steps": 9}, {}, point=2),
    ]
    named = list(unequal_runs({"plan": {"baseline": "full"}, "rows": rows}))
    assert named == ["unlabelled (seed 1)", "steps (seed 0)", "order (seed 0, 1)"]
