"""How long a comparison still takes, and how that is said."""

from __future__ import annotations

import pytest

from hf_lam.comparing.progress import Reporter, duration, time_left


def test_the_time_left_is_that_of_runs_of_the_same_row() -> None:
    assert time_left([], ["full"], 1) is None
    assert time_left([("full", 10), ("full", 20)], ["full", "full"], 1) == 30
    assert time_left([("full", 10), ("late", 2)], ["late", "late", "full"], 1) == 14
    assert time_left([("full", 10), ("late", 2)], ["new"], 1) == 6  # the mean of the rows
    assert time_left([("full", 10)], ["full"] * 6, 3) == 20
    assert time_left([("full", 10)], ["full"], 3) == 10  # one run is not divided
    assert time_left([("full", 10)], [], 3) == 0


def test_durations() -> None:
    texts = ["0.4 s", "45 s", "2 min", "12 min", "3 h 20 min"]
    assert [duration(seconds) for seconds in (0.42, 45.2, 95, 12 * 60 + 3, 12_000)] == texts


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(jobs=1) as reporter:
        reporter.phase("runs", ["[full]", "late"], done=1)
        reporter.started("[full], seed 0")
        reporter.ended("[full], seed 0", "[full]", 70.0, None)
        reporter.ended("late, seed 0", "late", 1.0, "it broke [in two]")
    assert capsys.readouterr().err.splitlines() == [
        "runs: 2, 1 done before",
        "[2/3] [full], seed 0: 70 s, about 70 s left",
        "[3/3] late, seed 0 failed: it broke [in two]",
    ]
