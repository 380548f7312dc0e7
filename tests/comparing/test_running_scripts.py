"""Plans of a script that trains: runs of one process are what runs of processes of their own are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.finetuning import make_bert, saved, write_sentences
from helpers.processes import TESTS
from helpers.scripts import EXAMPLES
from hf_lam.comparing.plan import Plan, read_plan
from hf_lam.comparing.running import run_plan

ROWS = {
    "stock": {},
    "half": {"bf16": True},  # leaves a variable of the environment
    "exact": {"full_determinism": True},  # switches of torch, and more variables
    "foreign": {"mechanism": str(TESTS / "helpers" / "foreign_mechanism.py")},
    "lam": {"mechanism": "lam", "mechanism_config": {"rank": 2}, "log_level": "debug"},
    "self": {
        "mechanism": "locomt",
        "mechanism_config": {"segments": [["a", 3], ["b", 37]], "views": "full"},
        "dataloader_num_workers": 1,
    },
    "calibrated": {
        "mechanism": "locomt",
        "mechanism_config": {"segments": [["a", 3], ["b", 37]]},
        "calibrate_views_on": "{row:self}",
    },
    "last": {},
}
# Those that come after others, in processes of their own.
ALONE = ("lam", "last")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("texts")
    files = {"train": 24, "validation": 12, "test": 9}
    return {
        "model_name_or_path": make_bert(folder / "bert"),
        **{f"{split}_file": write_sentences(folder / f"{split}.csv", n, n) for split, n in files.items()},
        "max_seq_length": 40,
        "pad_to_max_length": True,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
    }


def plan_of(arguments: dict[str, Any], rows: dict[str, Any], **others: Any) -> Plan:
    script = str(EXAMPLES / "run_text_classification.py")
    return read_plan(
        {"script": script, "metric": "accuracy", "seeds": [5], "arguments": arguments, "rows": rows, **others}
    )


@pytest.mark.slow
def test_a_run_is_the_same_after_others_and_in_a_process_of_its_own(arguments: dict[str, Any], tmp_path: Path) -> None:
    together = run_plan(plan_of(arguments, ROWS), tmp_path / "together", keep_models=True, test=True, timing=False)
    assert [row["runs"][0]["error"] for row in together["rows"]] == [None] * len(ROWS)
    alone = run_plan(
        plan_of(arguments, {name: ROWS[name] for name in ALONE}, launch=["python"]),
        tmp_path / "alone",
        keep_models=True,
        check=False,
        timing=False,
    )
    of_name = {row["name"]: row for row in together["rows"]}
    for theirs in alone["rows"]:
        ours = of_name[theirs["name"]]
        its = {name: value for name, value in ours["runs"][0]["metrics"].items() if not name.startswith("predict_")}
        assert its == theirs["runs"][0]["metrics"], ours["name"]
        models = [saved(tmp_path / how / "runs" / ours["name"] / "seed-5") for how in ("together", "alone")]
        assert models[0].keys() == models[1].keys(), ours["name"]
        assert all(models[0][name].equal(models[1][name]) for name in models[0]), ours["name"]
    stock, last = together["rows"][0], together["rows"][-1]
    assert {**stock, "name": "last", "group": "last"} == last
    assert 0 <= stock["runs"][0]["metrics"]["predict_accuracy"] <= 1


@pytest.mark.slow
def test_several_processes_run_a_plan(arguments: dict[str, Any], tmp_path: Path) -> None:
    rows = {"stock": {}, "bad": {"learning_rate": "fast"}}
    launch = ["torchrun", "--nproc_per_node", "2"]
    results = run_plan(
        plan_of({**arguments, "ddp_backend": "gloo"}, rows, launch=launch), tmp_path / "out", check=False, timing=False
    )
    stock, bad = (row["runs"][0] for row in results["rows"])
    assert stock["error"] is None and stock["steps"] == 4
    assert "learning_rate" in bad["error"] and "ChildFailedError" not in bad["error"]
