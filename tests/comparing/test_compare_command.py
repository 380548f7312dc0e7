"""The two doors to a comparison: `hf-lam compare` and `hf_lam.compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hf_lam
from helpers.command_line import error_line, run_main
from helpers.comparing import write_fake_script
from helpers.processes import run_code
from hf_lam.cli.compare import read_seeds

PLAN = """script: fake_script.py
metric: accuracy
seeds: 2
rows:
  plain: {value: 0.5}
  better: {value: 0.75}
"""


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take longer than the runs, and are another test's."""
    monkeypatch.setattr("hf_lam.comparing.plots.write_plots", lambda *_: [])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_fake_script(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def test_the_command_and_the_function_give_the_same(plan: Path, tmp_path: Path) -> None:
    code, out, err = run_main("compare", plan, "--output_dir", tmp_path / "out", "--no_timing")
    assert code == 0, err
    assert out == (tmp_path / "out" / "results.md").read_text() + "\n"
    assert "better" in out and "+25.00" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["plan"]["seeds"] == [0, 1] and results["plan"]["tested"] is False
    again = hf_lam.compare(plan, tmp_path / "other", timing=False)
    assert again == results
    mapping = {
        "script": str(tmp_path / "fake_script.py"),
        "metric": "accuracy",
        "seeds": 2,
        "rows": {"plain": {"value": 0.5}, "better": {"value": 0.75}},
    }
    assert hf_lam.compare(mapping, tmp_path / "out", timing=False) == results


def test_some_rows_and_seeds_and_the_test_data(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan.write_text(PLAN + "  third: {value: 0.1}\n")
    arguments = ("--no_timing", "--keep_models", "--no_check", "--jobs", "2")
    code, _, err = run_main("compare", plan, "--output_dir", out, "--rows", "third", "--seeds", "3-4,9", *arguments)
    assert code == 0, err
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["plain", "third"]
    assert results["plan"]["seeds"] == [3, 4, 9]
    assert (out / "runs" / "third" / "seed-9" / "model.safetensors").is_file()
    code, table, err = run_main("compare", plan, "--output_dir", out, "--seeds", "3,", "--test", *arguments)
    assert code == 2 and "--seeds 3,:" in error_line(err)
    code, table, err = run_main("compare", plan, "--output_dir", out, "--seeds", "3,4", "--test", *arguments)
    assert code == 0 and "test accuracy" in table, err


def test_a_failed_run_is_an_exit_code(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plan.write_text(PLAN + "  broken: {end: message, end_seed: 1}\n")
    code, out, err = run_main("compare", plan, "--output_dir=~/out", "--no_timing")
    assert code == 1
    assert "1 of 6 runs failed" in out and "no luck" in err
    assert {row["name"]: len(row["runs"]) for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]}


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ("  a: {as: bettr}\n", ["plan.yaml, line 7, rows.a.as: there is no row 'bettr'"]),
        ("metrics: f1\n", ["plan.yaml, line 7, metrics: a plan has no key 'metrics'"]),
        (
            "  a: {value: -1}\n  b:\n    valve: 1\n",
            [
                "plan.yaml, line 7, row 'a', value: --value must not be negative",
                "plan.yaml, line 9, row 'b', valve: ",
            ],
        ),
    ],
)
def test_a_bad_plan_is_refused(plan: Path, tmp_path: Path, more: str, messages: list[str]) -> None:
    """All bad rows at once, each in a line of its own; no run has begun."""
    plan.write_text(PLAN + more)
    code, out, err = run_main("compare", plan, "--output_dir", tmp_path / "out")
    assert code == 2 and not out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(messages)
    for line, message in zip(errors, messages, strict=True):
        assert line.startswith(f"error: {message}")
    assert not list(tmp_path.glob("out/runs/*"))


def test_a_metric_that_no_run_gives(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN.replace("metric: accuracy", "metric: acuracy"))
    code, _, err = run_main("compare", plan, "--output_dir", tmp_path / "out")
    assert code == 2
    message = err.splitlines()[-1]
    assert message.startswith("error: plan.yaml, line 2, metric: ") and "Did you mean 'accuracy'?" in message


def test_an_interruption_says_how_to_go_on(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("stopped with 1 of 4 runs finished")

    monkeypatch.setattr("hf_lam.comparing.running.run_plan", interrupted)
    code, _, err = run_main("compare", plan, "--output_dir", tmp_path / "out")
    assert code == 130 and err.strip() == "interrupted: stopped with 1 of 4 runs finished"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("5", 5), ("0,3", [0, 3]), ("10-12", [10, 11, 12]), ("0-1, 7", [0, 1, 7])],
)
def test_seeds_on_the_command_line(text: str, seeds: object) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1,", "1;2", "1.5", "5-"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(ValueError, match="say how many, such as 5, or which"):
        read_seeds(text)


@pytest.mark.slow
def test_a_bad_plan_is_told_without_torch(plan: Path) -> None:
    plan.write_text(PLAN + "metrics: f1\n")
    code = f"""
import sys
from hf_lam.comparing import compare
try:
    compare({str(plan)!r}, "out")
except ValueError:
    print(sorted({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
"""
    assert run_code(code).strip() == "[]"
