"""What the plan of moments compares models with: what is found without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.moments import write_moments
from helpers.scripts import script_module


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with script_module("plans/moments/moments") as module:
        yield module


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_moments(tmp_path_factory.mktemp("moments"))
    given = ["--clips_dir", "none", "--dino", "none", "--text", "none", "--moments_dir", str(folder)]
    given += ["--video_features", "clip", "slow", "--query_features", "text", "--report_to", "none", "--use_cpu"]
    return [*given, "--do_train", "--do_eval", "--do_predict"]


@pytest.mark.parametrize(
    ("name", "at_least", "at_most"),
    [("chance", 0, 70), ("query_free", 50, 100), ("similarity", 80, 100), ("linear", 100, 100)],
)
def test_what_is_found_without_a_model(
    script: Any, options: list[str], name: str, at_least: float, at_most: float, tmp_path: Path
) -> None:
    """Of a video's two halves the query means one, and its words have the vector of the clips there.

    All of a video shares half with either.
    """
    found = script.main([*options, "--baseline", name, "--output_dir", str(tmp_path / "out")])
    assert at_least <= found["eval_MR-full-R1@0.5"] <= at_most
    assert json.loads((tmp_path / "out" / "all_results.json").read_text()) == found
    assert {"predict_MR-full-mAP", "predict_HL-min-Good-Hit1"} <= found.keys()
    again = script.main([*options, "--baseline", name, "--output_dir", str(tmp_path / "again")])
    assert again == found
    if name != "chance":
        assert script.main([*options, "--baseline", name, "--output_dir", str(tmp_path), "--seed", "7"]) == found


def test_a_baseline_can_be_checked(script: Any, options: list[str], tmp_path: Path) -> None:
    script.main([*options, "--baseline", "chance", "--output_dir", str(tmp_path), "--check_only"])
    assert "MR-full-R1@0.5" in json.loads((tmp_path / "check.json").read_text())["metrics"]
    assert not (tmp_path / "all_results.json").exists()
    with pytest.raises(ValueError, match="--baseline 'middle' is unknown"):
        script.main([*options, "--baseline", "middle", "--output_dir", str(tmp_path)])


def test_windows_are_clips_in_a_row(script: Any) -> None:
    found = script.runs_above(np.array([0.9, 0.1, 0.6, 0.7, 0.1, 0.5]), 0.4, 2.0)
    assert [tuple(moment[:2]) for moment in found] == [(0, 2), (4, 8), (10, 12)]
    assert script.runs_above(np.zeros(3), 0.4, 2.0) == []
    shared = script.overlaps(np.array([[0.0, 4.0], [6.0, 8.0]]), [[2.0, 6.0]])
    np.testing.assert_allclose(shared, [[1 / 3], [0]])
