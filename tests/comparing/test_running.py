"""All runs of a plan: in which order, what is done again, what is kept, and what comes out of it all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.comparing import fake_plan, traced, write_fake_script
from helpers.processes import fresh_environment
from hf_lam.comparing import plots, running
from hf_lam.comparing.output_folder import holding
from hf_lam.comparing.plan import read_plan
from hf_lam.comparing.running import run_plan

ROWS = {"full": {"value": 0.5}, "late": {"value": 0.6}}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "write_plots", lambda results, times, folder: None)


def run(plan: Any, folder: Path, **options: Any) -> dict[str, Any]:
    return run_plan(plan, folder / "out", timing=False, **options)


def errors_of(results: dict[str, Any]) -> dict[str, list[str | None]]:
    return {row["name"]: [run["error"] for run in row["runs"]] for row in results["rows"]}


def metric_of(results: dict[str, Any], row: str, name: str = "eval_accuracy") -> list[float | None]:
    found = next(each for each in results["rows"] if each["name"] == row)
    return [run["metrics"].get(name) for run in found["runs"]]


def test_every_row_is_run_with_every_seed_after_the_rows_it_uses(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, {"calibrated": {"value": 0.7, "uses": "{row:full}"}, **ROWS})
    results = run(plan, tmp_path)
    once = ["full", "calibrated", "late"]
    assert traced(tmp_path) == [f"{row}/seed-{seed}" for seed in (0, 1) for row in once]
    assert [row["name"] for row in results["rows"]] == ["calibrated", "full", "late"]
    assert metric_of(results, "late") == [0.6, 0.61]
    assert metric_of(results, "calibrated", "eval_of_used") == [0.5, 0.5]
    full = results["rows"][1]
    assert (full["parameters"], full["flops"]) == (10, 100.5)  # the same for all seeds, or their mean
    assert full["runs"][0]["curve"] == [
        {"step": 1, "epoch": 0.5, "loss": 0.7},
        {"step": 2, "epoch": 1.0, "loss": 0.6, "eval_accuracy": 0.5},
    ]
    assert set(full["runs"][0]["metrics"]) == {"eval_accuracy", "eval_loss", "epoch"}  # nothing of a clock
    assert full["runs"][0]["metrics"]["eval_loss"] is None  # NaN is no JSON
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert str(tmp_path / "out") not in (tmp_path / "out" / "results.json").read_text()
    seconds = json.loads((tmp_path / "out" / "times.json").read_text())["rows"]["late"]["train_seconds"]
    assert seconds.keys() == {"0", "1"}
    assert {"results.md", "results.tex"} <= set(os.listdir(tmp_path / "out"))


ENDS = {
    "raise": "RuntimeError: it broke in OUTPUT_DIR/runs/raise/seed-1",
    "memory": "MemoryError",
    "message": "no luck",
    "status": "the data are bad\n  in line 3",
    "kill": "the process was ended by SIGKILL; is there enough memory?",
    "leave": "the process ended with exit status 7 in the middle of the run",
    "silent": "the script ended without writing all_results.json to its --output_dir",
    "no_metric": "the script gave no eval_accuracy, only eval_f1, eval_loss",
}


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    until = tmp_path / "mended"
    rows = {name: {"value": 0.1, "end": name, "end_seed": 1, "until": str(until)} for name in ENDS}
    rows["user"] = {"uses": "{row:raise}"}
    plan = fake_plan(tmp_path, {"full": {"value": 0.5}, **rows})
    results = run(plan, tmp_path)
    of_user = f"raise, seed 1, which it uses, failed: {ENDS['raise']}"
    expected = {name: [None, error] for name, error in {"full": None, **ENDS, "user": of_user}.items()}
    assert errors_of(results) == expected
    said = capsys.readouterr().err
    assert "9 of 20 runs failed" in said and "raise RuntimeError(" in said  # the end of its log
    assert os.listdir(tmp_path / "out" / "runs" / "raise" / "seed-1") == ["log.txt"]
    traced(tmp_path)
    until.touch()
    results = run(plan, tmp_path)
    assert not any(any(errors) for errors in errors_of(results).values() if errors != [None, of_user])
    assert traced(tmp_path) == [f"{name}/seed-1" for name in [*ENDS, "user"]]


def test_a_second_start_takes_what_is_finished(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, ROWS)
    run(plan, tmp_path)
    first = (tmp_path / "out" / "results.json").read_bytes()
    times = (tmp_path / "out" / "times.json").read_bytes()
    traced(tmp_path)
    run(plan, tmp_path)
    assert traced(tmp_path) == []
    assert (tmp_path / "out" / "results.json").read_bytes() == first
    assert (tmp_path / "out" / "times.json").read_bytes() == times
    # More seeds and rows are only what is missing.
    run(fake_plan(tmp_path, {**ROWS, "new": {"value": 0.2}}, seeds=3), tmp_path)
    assert traced(tmp_path) == ["new/seed-0", "new/seed-1", "full/seed-2", "late/seed-2", "new/seed-2"]


def test_runs_with_other_settings_are_refused(tmp_path: Path) -> None:
    run(fake_plan(tmp_path, {**ROWS, "user": {"uses": "{row:full}"}}), tmp_path)
    traced(tmp_path)
    with pytest.raises(
        ValueError, match=r"late, seed 0; late, seed 1: value 0.6, now 0.7\. Choose another --output_dir"
    ):
        run(fake_plan(tmp_path, {**ROWS, "late": {"value": 0.7}}), tmp_path)
    changed = {"full": {"value": 0.4}, "user": {"uses": "{row:full}"}}
    with pytest.raises(
        ValueError, match=r"user, seed 0; user, seed 1: options of rows that it uses.full.value 0.5, now 0.4"
    ):
        run(fake_plan(tmp_path, changed), tmp_path)
    with pytest.raises(ValueError, match=r"metric.*no eval_bleu"):
        run(fake_plan(tmp_path, ROWS, metric="bleu"), tmp_path)
    assert traced(tmp_path) == []


@pytest.mark.slow
def test_several_workers_give_what_one_gives(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    rows = {**ROWS, "calibrated": {"value": 0.7, "uses": "{row:late}"}}
    arguments = {"sleep": 0.05, "trace": None}
    written = [
        run(fake_plan(tmp_path, rows, arguments=arguments), tmp_path / name, jobs=jobs)
        and (tmp_path / name / "out" / "results.json").read_bytes()
        for name, jobs in (("one", 1), ("two", 2))
    ]
    assert written[0] == written[1]


def test_several_workers_work_at_once(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, ROWS, arguments={"sleep": 0.2})
    run(plan, tmp_path, jobs=2)
    processes = [line.split()[1] for line in (tmp_path / "trace.txt").read_text().splitlines()]
    assert len(processes) == 4 and len(set(processes)) == 2


# --- who works in a folder -------------------------------------------------------------------------------------------


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with holding(tmp_path / "out"), pytest.raises(ValueError, match="another process is comparing in"):
        run(fake_plan(tmp_path, ROWS), tmp_path)
    run(fake_plan(tmp_path, ROWS), tmp_path)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"no comparison was begun in .*thesis\.tex"):
        run(fake_plan(tmp_path, ROWS), tmp_path)
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


DRIVER = """
import signal, sys
from pathlib import Path
from types import SimpleNamespace
from helpers.comparing import fake_plan
from hf_lam.comparing.plan import read_plan
from hf_lam.comparing.running import run_plan

sys.modules["hf_lam.comparing.plots"] = SimpleNamespace(write_plots=lambda *arguments: None)
# A shell that starts tests in the background makes them deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
rows = {name: {"value": 0.5, "sleep": 0.3} for name in ("full", "late", "half")}
launch = [sys.executable] if sys.argv[2] == "launch" else []
try:
    run_plan(fake_plan(folder, rows, launch=launch), folder / "out", timing=False, check=False)
except KeyboardInterrupt as stop:
    sys.exit(f"KeyboardInterrupt: {stop}")
"""


def start_driver(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), how],
        env=fresh_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def begun_runs(folder: Path, count: int) -> list[str]:
    """The processes of the runs that have begun, once there are `count`."""
    trace = folder / "trace.txt"
    lines = trace.read_text().splitlines() if trace.is_file() else []
    return [line.split()[1] for line in lines] if len(lines) >= count else []


def is_gone(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["worker", "launch"])
def test_killed_and_started_again_it_gives_the_same(tmp_path: Path, how: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    driver = start_driver(tmp_path / "killed", how)
    process = wait_for(lambda: begun_runs(tmp_path / "killed", 2))[-1]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    # What it has left behind ends, and until then keeps others out.
    for folder in ("killed", "whole"):
        driver = start_driver(tmp_path / folder, how)
        assert driver.communicate()[1] and driver.returncode == 0
    assert is_gone(process)
    # The second run was in its middle.
    assert traced(tmp_path / "killed")[:3] == ["full/seed-0", "late/seed-0", "late/seed-0"]
    killed, whole = ((tmp_path / name / "out" / "results.json").read_text() for name in ("killed", "whole"))
    assert killed.replace(str(tmp_path / "killed"), "") == whole.replace(str(tmp_path / "whole"), "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
def test_an_interrupt_ends_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, "worker")
    process = wait_for(lambda: begun_runs(tmp_path, 2))[-1]
    driver.send_signal(signal.SIGINT)
    said = driver.communicate()[1]
    assert driver.returncode == 1
    assert "stopped with 1 of 6 runs finished; the same command" in said and "Traceback" not in said
    assert is_gone(process)


def test_a_command_runs_the_script(tmp_path: Path) -> None:
    rows = {"full": {"value": 0.5}, "bad": {"end": "status"}, "killed": {"end": "kill"}}
    plan = fake_plan(tmp_path, rows, launch=[Path(sys.executable).name], seeds=1)
    results = run(plan, tmp_path)
    assert metric_of(results, "full") == [0.5]
    assert errors_of(results)["bad"] == ["the data are bad\n  in line 3"]
    assert errors_of(results)["killed"] == [ENDS["kill"]]
    with pytest.raises(ValueError, match="launch: there is no command 'acelerate'"):
        run(fake_plan(tmp_path, rows, launch=["acelerate", "launch"]), tmp_path)


# --- what is checked before ------------------------------------------------------------------------------------------


def test_all_rows_that_cannot_work_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, {"full": {}, "one": {"value": -1}, "two": {"value": -2}, "three": {"valeu": 1}})
    with pytest.raises(ValueError) as caught:
        run(plan, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "the plan, row 'one': --value must not be negative, got -1.0",
        "the plan, row 'two': --value must not be negative, got -2.0",
    ]
    assert lines[2].startswith("the plan, row 'three': unrecognized arguments: --valeu=1")
    assert traced(tmp_path) == [] and os.listdir(tmp_path / "out") == ["runs"]


def test_a_line_of_the_plan_is_named(tmp_path: Path) -> None:
    write_fake_script(tmp_path)
    text = "script: fake_script.py\nmetric: accuracy\nseeds: 1\nrows:\n  full: {}\n  late:\n    value: -1\n"
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    with pytest.raises(ValueError, match=r"plan\.yaml, line 7, row 'late', value: --value must not be negative"):
        run(read_plan(plan), tmp_path)
    plan.write_text(text.replace("-1", "1").replace("accuracy", "acuracy"))
    with pytest.raises(ValueError, match=r"plan\.yaml, line 2, metric: .*'acuracy', only loss, accuracy.*accuracy"):
        run(read_plan(plan), tmp_path)
    assert traced(tmp_path) == []


def test_a_script_without_a_main_is_refused(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, ROWS)
    (tmp_path / "fake_script.py").write_text("import json\n")
    with pytest.raises(ValueError, match=r"\(and 1 more\): TypeError: .*fake_script\.py has no function main\(arg"):
        run(plan, tmp_path)


def test_a_script_that_cannot_be_checked_is_run_without(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, ROWS, seeds=1)
    script = tmp_path / "fake_script.py"
    script.write_text(script.read_text().replace('"check_only", ', "").replace("given.check_only", "False"))
    with pytest.raises(ValueError, match=r"unrecognized arguments: --check_only=true.*--no_check"):
        run(plan, tmp_path)
    assert errors_of(run(plan, tmp_path, check=False)) == {"full": [None], "late": [None]}


# --- models and test data --------------------------------------------------------------------------------------------


def models_in(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder / "out")) for path in folder.rglob("model.safetensors"))


def test_models_stay_on_request(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, ROWS, seeds=1)
    run(plan, tmp_path)
    kept = ["all_results.json", "log.txt", "result.json", "run.json", "trainer_state.json"]
    assert sorted(os.listdir(tmp_path / "out" / "runs" / "full" / "seed-0")) == kept
    run(fake_plan(tmp_path, ROWS, seeds=2), tmp_path, keep_models=True)
    assert models_in(tmp_path) == ["runs/full/seed-1", "runs/late/seed-1"]


def test_a_run_is_done_again_for_one_that_uses_its_model(tmp_path: Path) -> None:
    run(fake_plan(tmp_path, ROWS, seeds=1), tmp_path)
    traced(tmp_path)
    results = run(fake_plan(tmp_path, {**ROWS, "user": {"uses": "{row:late}"}}, seeds=1), tmp_path)
    assert traced(tmp_path) == ["late/seed-0", "user/seed-0"]
    assert errors_of(results) == {"full": [None], "late": [None], "user": [None]}
    assert models_in(tmp_path) == []


def test_test_data_are_used_once_at_the_end(tmp_path: Path) -> None:
    until = tmp_path / "mended"
    bad = {"value": 0.2, "end": "bad_test", "until": str(until)}
    # Runs of a search are never tested.
    search = {"sleep": [0.0], "seeds": [7]}
    rows = {**ROWS, "user": {"value": 0.3, "uses": "{row:full}"}, "bad": bad}
    plan = fake_plan(tmp_path, rows, seeds=[3], search=search)
    results = run(plan, tmp_path, test=True)
    runs = [f"{name}/seed-3" for name in ("full", "late", "user", "bad")]
    done = traced(tmp_path)
    assert len(done) == 12 and done[4:] == [*runs, *(f"{line} test" for line in runs)]
    assert results["plan"]["tested"] is True and results["plan"]["tested_runs"] == 3
    assert metric_of(results, "late", "predict_accuracy") == [0.3]
    assert metric_of(results, "late") == [0.6 + 0.03]
    assert "predict_runtime" not in results["rows"][0]["runs"][0]["metrics"]
    assert errors_of(results)["bad"] == ["the test failed: the script gave no predict_accuracy, only other numbers"]
    # Only that one is tried again, and so its model stayed.
    assert models_in(tmp_path) == ["runs/bad/seed-3"]
    until.touch()
    results = run(plan, tmp_path, test=True)
    assert traced(tmp_path) == ["bad/seed-3 test"]
    assert errors_of(results)["bad"] == [None] and models_in(tmp_path) == []
    # All are tested, so that the results are those of the test.
    assert run(plan, tmp_path) == results


def test_a_test_without_the_models_is_refused_before_anything_runs(tmp_path: Path) -> None:
    run(fake_plan(tmp_path, ROWS, seeds=1), tmp_path)
    traced(tmp_path)
    with pytest.raises(ValueError, match=r"those of full, seed 0; late, seed 0 were removed.*--keep_models"):
        run(fake_plan(tmp_path, ROWS, seeds=2), tmp_path, test=True)
    assert traced(tmp_path) == []


def test_metrics_of_a_test_that_was_not_finished_are_none_of_the_results(tmp_path: Path) -> None:
    run(fake_plan(tmp_path, {"full": {"value": 0.5}}, seeds=1), tmp_path, test=True)
    results = run(fake_plan(tmp_path, ROWS, seeds=1), tmp_path)
    assert results["plan"]["tested"] is False
    assert metric_of(results, "full", "predict_accuracy") == [None]
    # It is not said that nobody has seen them.
    assert "the test data were used for 1 of 2 runs" in (tmp_path / "out" / "results.md").read_text()


# --- times -----------------------------------------------------------------------------------------------------------

TIMING = """
import json, pathlib, sys

request, answer = map(pathlib.Path, sys.argv[1:])
folders = json.loads(request.read_text())["folders"]
assert all(pathlib.Path(folder, "model.safetensors").is_file() for folder in folders.values())
rows = {name: {"inference_ms": dict.fromkeys(("median", "low", "high"), len(folders))} for name in folders}
answer.write_text(json.dumps({"processor": "fast", "threads": 2, "rows": rows}))
"""


def test_models_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timing.py").write_text(TIMING)
    monkeypatch.setattr(running, "_TIMING", (sys.executable, str(tmp_path / "timing.py")))

    def medians(rows: dict[str, Any]) -> dict[str, int]:
        run_plan(fake_plan(tmp_path, rows), tmp_path / "out")
        times = json.loads((tmp_path / "out" / "times.json").read_text())
        assert (times["processor"], times["threads"]) == ("fast", 2)
        assert all(set(row["train_seconds"]) == {"0", "1"} for row in times["rows"].values())
        return {name: row["inference_ms"]["median"] for name, row in times["rows"].items()}

    assert medians(ROWS) == {"full": 2, "late": 2}
    # The models of these are gone.
    more = {**ROWS, "new": {"value": 0.1}}
    assert medians(more) == {"full": 2, "late": 2, "new": 1}
    (tmp_path / "timing.py").unlink()
    assert medians(ROWS) == {"full": 2, "late": 2}
    assert medians(more) == {"full": 2, "late": 2, "new": 1}
    assert sorted(os.listdir(tmp_path / "out")) == ["results.json", "results.md", "results.tex", "runs", "times.json"]


def test_results_are_written_without_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "_TIMING", (sys.executable, "-c", "raise SystemExit('error: no clock')"))
    results = run_plan(fake_plan(tmp_path, ROWS), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert "timing failed: no clock" in capsys.readouterr().err


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_value_is_chosen_for_every_row(tmp_path: Path) -> None:
    rows = {"full": {}, "user": {"uses": "{row:full}"}, "fixed": {"end": "raise", "end_seed": 9}}
    plan = fake_plan(tmp_path, rows, seeds=1, search={"value": [0.1, 0.4, 0.2], "seeds": [8, 9]})
    results = run(plan, tmp_path)
    assert [row["found"] for row in results["rows"]] == [{"value": 0.4}, {"value": 0.4}, {}]
    assert metric_of(results, "full") == [0.4]
    assert errors_of(results)["fixed"][0].startswith("no value worked: RuntimeError: it broke in OUTPUT_DIR/search/")
    means = {(entry["row"], entry["value"]): entry["mean"] for entry in results["search"]}
    assert means["full", 0.4] == pytest.approx(0.485) and means["fixed", 0.4] is None and len(means) == 9
    trace = traced(tmp_path)
    assert len(trace) == 3 * 6 + 2 and trace[-2:] == ["full/seed-0", "user/seed-0"]
    assert models_in(tmp_path) == []
    again = run(plan, tmp_path)
    assert again == results
    # Of a row without a value, the failed runs are tried again; all others stay.
    assert traced(tmp_path) == ["0/seed-9", "1/seed-9", "2/seed-9"]
    with pytest.raises(ValueError, match=r"search\.values \[0\.1, 0\.4, 0\.2\], now \[0\.1\]"):
        run(fake_plan(tmp_path, rows, seeds=1, search={"value": [0.1], "seeds": [8, 9]}), tmp_path)


def test_the_smallest_error_is_chosen(tmp_path: Path) -> None:
    search = {"value": [0.3, 0.1, 0.2], "seeds": [9]}
    plan = fake_plan(tmp_path, {"full": {}}, seeds=1, search=search, greater_is_better=False)
    assert run(plan, tmp_path)["rows"][0]["found"] == {"value": 0.1}


def test_jobs_are_a_number(tmp_path: Path) -> None:
    for jobs in (0, True, "2"):
        with pytest.raises(ValueError, match="jobs must be 1 or more"):
            run(fake_plan(tmp_path, ROWS), tmp_path, jobs=jobs)
