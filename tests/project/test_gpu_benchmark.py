"""benchmarks/gpu.py, on a CPU: that it runs to its last line, and that its checks find what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# A busy machine must not leave rows out.
QUICK = ["--device", "cpu", "--quick", "--minutes", "600"]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def run(gpu: ModuleType, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "results.json"
    status = gpu.main([*QUICK, *arguments, "--json", str(path)])
    return status, json.loads(path.read_text())


def few_checks(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, check: Any = None) -> None:
    monkeypatch.setattr(gpu, "CHECKS", dict.fromkeys(gpu.CHECKS, lambda device: [] if check is None else [check]))


def test_attention_is_checked_and_timed(gpu, tmp_path, capsys):
    status, results = run(gpu, tmp_path, "--only", "lam,locomt,stt")
    assert status == 0 and not results["failed"] and not results["left_out"]
    assert all(check["passed"] for check in results["checks"])
    assert {check["dtype"] for check in results["checks"]} == {"float32", "bfloat16", "float16"}
    contenders = {"lam": {"sdpa", "chunked", "eager"}, "memory": set(), "stt": {"sdpa", "two linears", "dense"}}
    contenders["locomt"] = {"full", "flash", "locomt", "per-head mask", "bottleneck"}
    kinds = [row["kind"] for row in results["rows"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"lam": 6, "memory": 2, "locomt": 4, "stt": 5}
    for row in results["rows"]:
        assert contenders[row["kind"]] <= set(row["figures"])
        assert set(row["ratio"]) == set(row["figures"])
        for figure in row["figures"].values():
            assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    skipped = {row["kind"]: row["skipped"] for row in results["rows"]}
    assert "CUDA" in skipped["lam"]["flex"] and "CUDA" in skipped["memory"]["all"]
    assert "gradients" in skipped["locomt"]["flex blocks"]
    printed = capsys.readouterr().out
    assert "– flex: it needs CUDA tensors, these are on cpu" in printed
    assert printed.splitlines()[-1].startswith("seconds: lam checks ")


@pytest.mark.slow
def test_models_are_timed_compiled_too(gpu, tmp_path):
    status, results = run(gpu, tmp_path, "--only", "models")
    assert status == 0 and not results["failed"]
    assert results["checks"] and all(check["passed"] for check in results["checks"])
    rows = {tuple(row["case"].values()): set(row["figures"]) for row in results["rows"]}
    assert len(rows) == 8
    for (model, *_), names in rows.items():
        assert names == {"stock", "lam", "locomt"} | ({"stt"} if model.startswith("ViT") else set())


def test_a_failed_check_ends_it_before_any_time(gpu, tmp_path, monkeypatch, capsys):
    check = gpu.Check("lam chunked", "7 tokens", "float32", 0.5, 1e-5, "gradient of mask")
    few_checks(gpu, monkeypatch, check)
    status, results = run(gpu, tmp_path, "--only", "lam")
    message = "lam chunked, 7 tokens, float32: gradient of mask off by 5.0e-01 > 1e-05"
    assert status == 1 and results["failed"] == [message] and not results["rows"]
    assert message in capsys.readouterr().err


def test_a_contender_that_fails_is_named_and_the_others_are_timed(gpu, tmp_path, monkeypatch):
    def fail(*inputs: Any) -> None:
        raise RuntimeError("no kernel\nand why")

    few_checks(gpu, monkeypatch)
    monkeypatch.setitem(gpu.LAM, "chunked", fail)
    status, results = run(gpu, tmp_path, "--only", "lam")
    assert status == 1 and results["failed"][0] == "lam 17 bfloat16 forward, chunked: RuntimeError: no kernel"
    assert all(set(row["figures"]) == {"sdpa", "eager"} for row in results["rows"] if row["kind"] == "lam")


def test_rows_without_time_left_are_named(gpu, tmp_path, monkeypatch):
    few_checks(gpu, monkeypatch)
    status, results = run(gpu, tmp_path, "--only", "locomt", "--minutes", "0")
    assert status == 0 and not results["rows"] and len(results["left_out"]) == 4
    assert results["left_out"][0] == "locomt 6+5 0.50 bfloat16 forward"


@pytest.mark.parametrize("wrong", ["output", "gradient", "nan"])
def test_what_is_wrong_fails(gpu, wrong):
    from gpu_checks import compare, failures

    def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y

    def path(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if wrong == "output":
            return x * y * 1.1
        return x * y.detach() if wrong == "gradient" else x * y * float("nan")

    inputs = {"x": torch.randn(5, dtype=torch.bfloat16), "y": torch.randn(5, dtype=torch.bfloat16)}
    assert compare("a", "b", reference, reference, inputs).passed
    check = compare("a", "b", path, reference, inputs)
    assert not check.passed and len(failures([check])) == 1
    assert check.where == {"gradient": "gradient of y"}.get(wrong, check.where)


def test_errors_of_the_command_line(gpu, capsys):
    for arguments, message in ((["--only", "lam,mask"], "got mask"), ([], "there is no CUDA device")):
        if not arguments and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit):
            gpu.parse(arguments)
        assert message in capsys.readouterr().err
