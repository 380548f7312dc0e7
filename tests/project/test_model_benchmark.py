"""benchmarks/models.py, on tiny models: that it runs, and which models it has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_mechanism_is_timed_beside_the_stock_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: bool
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import models

    options = ["--quick", "--rounds", "2", "--warmup", "0", "--threads", "1", "--json", str(tmp_path / "out.json")]
    options += ["--compile", "--dtypes", "float32"] if compiled else []
    monkeypatch.setattr(sys, "argv", ["models.py", *options])
    models.main()
    cases = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["cases"]
    assert {case["shape"].split()[0] for case in cases} == {"BERT", "ViT"}
    for case in cases:
        stt = {"stt"} if case["shape"].startswith("ViT") else set()
        assert set(case["ratio"]) == {"stock", "lam", "lam, rank 8", "locomt", *stt}
        assert case["ratio"]["stock"] == 1 and min(case["ratio"].values()) > 0
