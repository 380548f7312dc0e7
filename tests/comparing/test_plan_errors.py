"""Plans that cannot work: each is refused before anything runs, with its line, its key, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lam.comparing.plan import command_of, read_plan

# Each with the line and the key that are named, and words of the message. Lines 1 to 3 are script, metric and seeds.
BEGIN = "script: run.py\nmetric: accuracy\nseeds: 2\n"
IN_ROWS = [
    ("rows:\n  a: {}\n  a: {}", 6, "rows.a", "'a' is there already, in line 5"),
    ("rows:\n  a:\n    x: {b: 1,\n      b: 2}", 7, "rows.a.x.b", "'b' is there already, in line 6"),
    ("rows:\n  a: [x]", 5, "rows.a", "expected a map, such as {mechanism: lam}, got a list: ['x']"),
    ("rows:\n  a: x", 5, "rows.a", "expected a map"),
    ("rows:\n  - a", 4, "rows", "expected a map, such as {full: {}}, got a list"),
    ("rows: {}", 4, "rows", "no rows"),
    ("rows:", 4, "rows", "no rows"),
    ("rows:\n  1: {}", 5, "rows.", "a key must be text; write '1' in quotes"),
    ("rows:\n  true: {}", 5, "rows.", "write 'true' in quotes"),
    ("rows:\n  [a]: {}", 5, "rows.", "a key must be text, not a list"),
    ("rows:\n  ' a': {}", 5, "rows. a", "cannot name a row"),
    ("rows:\n  '': {}", 5, "rows.", "cannot name a row"),
    ("rows:\n  'a{b}': {}", 5, "rows.a{b}", "cannot name a row"),
    ("rows:\n  a: {rate: .nan}", 5, "rows.a.rate", "nan is no number"),
    ("rows:\n  a: {rate: nan}", 5, "rows.a.rate", "text goes in quotes"),
    ("rows:\n  a: {c: {d: [1, -.inf]}}", 5, "rows.a.c.d[1]", "-inf is no number"),
    ("rows:\n  a: {--rate: 1}", 5, "rows.a.--rate", "write 'rate'"),
    ("rows:\n  a: {learning rate: 1}", 5, "rows.a.learning rate", "cannot be the name of an option"),
    ("rows:\n  a: {x=1: 1}", 5, "rows.a.x=1", "cannot be the name of an option"),
    ("rows:\n  a: {output_dir: x}", 5, "rows.a.output_dir", "given for the whole comparison"),
    ("rows:\n  a: {seed: 1}", 5, "rows.a.seed", "give seeds, for all rows"),
    ("rows:\n  a: {do-predict: true}", 5, "rows.a.do-predict", "test data are for the end"),
    ("rows:\n  a: {record_run: false}", 5, "rows.a.record_run", "every run is recorded"),
    ("rows:\n  a: {check_only: true}", 5, "rows.a.check_only", "checked before the first run"),
    ("rows:\n  a: {lr: 1}\narguments: {l-r: 1, l_r: 2}", 6, "arguments.l_r", "'l-r' too, which is the same option"),
    ("rows:\n  a: {as: b}", 5, "rows.a.as", "no row 'b'; the rows are 'a'."),
    ("rows:\n  full: {}\n  a: {as: ful}", 6, "rows.a.as", "Did you mean 'full'?"),
    ("rows:\n  a: {as: a}", 5, "rows.a.as", "begin with each other: a -> a"),
    ("rows:\n  a: {as: b}\n  b: {as: c}\n  c: {as: b}", 7, "rows.c.as", "b -> c -> b"),
    ("rows:\n  a: {as: [b]}", 5, "rows.a.as", "expected text, such as 'a', got a list"),
    ("rows:\n  a: {x: 1, vary: {x.y: [1]}}", 5, "rows.a.vary.x.y", "'x' is no map here but 1"),
    (
        "rows:\n  a:\n    config: {}\n    vary:\n      confg.rank: [1]",
        8,
        "rows.a.vary.confg.rank",
        "the row 'a' has no 'confg'. Did you mean 'config'?",
    ),
    ("rows:\n  a: {vary: [1]}", 5, "rows.a.vary", "expected a map"),
    ("rows:\n  a: {vary: {x: 1}}", 5, "rows.a.vary.x", "expected a list, such as [1, 2], got a number: 1"),
    ("rows:\n  a: {vary: {x: []}}", 5, "rows.a.vary.x", "the list is empty"),
    ("rows:\n  a: {vary: {x: [1, 2, 1]}}", 5, "rows.a.vary.x[2]", "1 is there twice"),
    ("rows:\n  a: {vary: {seed: [1]}}", 5, "rows.a.vary.seed", "give seeds"),
    ("rows:\n  a: {vary: {as: [b]}}", 5, "rows.a.vary.as", "no option of the script"),
    ("rows:\n  a: {vary: {x: [1]}}\n  'a, x=1': {}", 6, "rows.a, x=1", "two rows would be called 'a, x=1'"),
    ("rows:\n  a: {x: 2}\nvary: {x: [1, 2]}", 5, "rows.a.x", "the plan varies 'x' of every row"),
    ("rows:\n  a: {c: {x: 2}}\nvary: {c.x: [1]}", 5, "rows.a.c.x", "the plan varies 'c.x' of every row"),
    ("rows:\n  a: {vary: {x: [1]}}\nvary: {x: [1, 2]}", 5, "rows.a.vary.x", "varies 'x' of every row already"),
    ("rows:\n  a: {on: '{row:b}'}", 5, "rows.a.on", "no row 'b'; the rows are 'a'."),
    ("rows:\n  a: {on: '{row:a}'}", 5, "rows.a", "a row cannot need its own run: a -> a"),
    ("rows:\n  a: {}\narguments: {on: '{row:a}'}", 5, "rows.a", "cannot need its own run"),
    ("rows:\n  a: {on: '{row:b}'}\n  b: {on: '{row:a}'}", 6, "rows.b", "need each other's runs: a -> b -> a"),
    ("rows:\n  a: {vary: {x: [1, 2]}}\n  b: {on: '{row:a}'}", 6, "rows.b.on", "say which of 'a, x=1', 'a, x=2'"),
    ("rows:\n  a: {x: ['{rows:a}']}", 5, "rows.a.x", "no placeholder '{rows:a}'"),
    ("rows:\n  a: {x: ['{rows:a}']}", 5, "rows.a.x", "Did you mean 'row'?"),
    ("rows:\n  a: {x: '{plan:a}'}", 5, "rows.a.x", "no placeholder '{plan:a}', only {plan}"),
    ("rows:\n  a: {x: {plan}}", 5, "rows.a.x", 'in quotes: "{plan}"'),
    ("rows:\n  a: {x: {views: cross(a, b)}}", 5, "rows.a.x", "a text with a comma goes in quotes, or 'b)' is a key"),
    ("rows:\n  a: {x: {row:b}}", 5, "rows.a.x", 'in quotes: "{row:b}"'),
    ("rows:\n  a: {x: {y: '{package:no_such_thing}'}}", 5, "rows.a.x.y", "no package 'no_such_thing'"),
    ("rows:\n  a: {x: '{package:json.decoder}'}", 5, "rows.a.x", "no package 'json.decoder'"),
    ("rows:\n  a: {x: $NOT_THERE_AT_ALL/y}", 5, "rows.a.x", "NOT_THERE_AT_ALL is not set"),
    ("rows:\n  a: {}\narguments:\n  x: ${NOT_THERE_AT_ALL}", 7, "arguments.x", "NOT_THERE_AT_ALL is not set"),
    ("rows:\n  a: {vary: {x: [1, $NOT_THERE]}}", 5, "rows.a.vary.x", "NOT_THERE is not set"),
    ("rows:\n  a: &x {b: [*x]}", 5, "rows.a.b[0]", "within what it stands for"),
    ("rows:\n  a: {x: !!binary aGk=}", 5, "rows.a.x", "is a bytes"),
]
WHOLE = [
    ("rows: {a: {}}\nseed: 3", 5, "seed", "no key 'seed', only script, metric"),
    ("rows: {a: {}}\nseed: 3", 5, "seed", "Did you mean 'seeds'?"),
    ("rows: {a: {}}\nmax_train_samples: 3", 5, "max_train_samples", "belong under arguments"),
    ("rows: {a: {}}\nmetric: f1", 5, "metric", "'metric' is there already, in line 2"),
    ("rows: {a: {}}\nbaseline: b", 5, "baseline", "no row 'b'; the rows are 'a'"),
    ("rows: {lam: {vary: {x: [1]}}}\nbaseline: lam", 5, "baseline", "the rows are 'lam, x=1'."),
    ("rows: {a: {}}\nchance: high", 5, "chance", "expected a number"),
    ("rows: {a: {}}\nchance: .inf", 5, "chance", "inf is no number"),
    ("rows: {a: {}}\ngreater_is_better: no", 5, "greater_is_better", "expected true or false, such as true, got text"),
    ("rows: {a: {}}\ntitle: [x]", 5, "title", "expected text"),
    ("rows: {a: {}}\narguments: [x]", 5, "arguments", "expected a map"),
    ("rows: {a: {}}\narguments: {seed: 1}", 5, "arguments.seed", "give seeds"),
    ("rows: {a: {}}\narguments: {vary: {x: [1]}}", 5, "arguments.vary", "said of a row"),
    ("rows: {a: {}}\nvary: {output_dir: [x]}", 5, "vary.output_dir", "given for the whole comparison"),
    ("rows: {a: {}}\nsearch: {x: [1], y: [2]}", 5, "search", "over one option"),
    ("rows: {a: {}}\nsearch: {seeds: [1]}", 5, "search", "over one option"),
    ("rows: {a: {}}\nsearch: {x: 1}", 5, "search.x", "expected a list"),
    ("rows: {a: {}}\nsearch: {seed: [1]}", 5, "search.seed", "give seeds"),
    ("rows: {a: {}}\nsearch: {x: [1], seeds: [-1]}", 5, "search.seeds[0]", "from 0 to"),
    ("rows: {a: {}}\nsearch: {x: [1]}\nvary: {x: [1]}", 5, "search.x", "varies 'x' of every row already"),
    ("rows: {a: {}}\nlaunch: accelerate launch", 5, "launch", "expected a list"),
    ("rows: {a: {}}\nlaunch: [torchrun, [x]]", 5, "launch[1]", "a word of a command line"),
    ("rows: {a: {}}\nlaunch: ['{row:a}']", 5, "launch[0]", "'{row:a}' is for options of rows"),
]
OTHER_BEGINNING = [
    ("metric: m\nseeds: 1\nrows: {a: }", None, None, "the plan says no script"),
    ("script: run.py\nseeds: 1\nrows: {a: }", None, None, "the plan says no metric"),
    ("script: run.py\nmetric:\nseeds: 1\nrows: {a: }", 2, "metric", "the plan says no metric"),
    ("script: run.py\nmetric: eval_\nseeds: 1\nrows: {a: }", 2, "metric", "name the metric"),
    ("script: run.py\nmetric: m\nrows: {a: }", None, None, "the plan says no seeds; such as `seeds: 5`"),
    ("script: rum.py\nmetric: m\nseeds: 1\nrows: {a: }", 1, "script", "no file"),
    ("script: rum.py\nmetric: m\nseeds: 1\nrows: {a: }", 1, "script", "Did you mean 'run.py'?"),
    ("script: plan.yaml\nmetric: m\nseeds: 1\nrows: {a: }", 1, "script", "no Python file"),
    ("script: '{row:a}.py'\nmetric: m\nseeds: 1\nrows: {a: }", 1, "script", "for options of rows"),
    ("script: 1\nmetric: m\nseeds: 1\nrows: {a: }", 1, "script", "expected text"),
    ("script: run.py\nmetric: m\nseeds: 0\nrows: {a: }", 3, "seeds", "at least one seed is needed, got 0"),
    ("script: run.py\nmetric: m\nseeds: -2\nrows: {a: }", 3, "seeds", "at least one seed"),
    ("script: run.py\nmetric: m\nseeds: []\nrows: {a: }", 3, "seeds", "the list is empty"),
    ("script: run.py\nmetric: m\nseeds: [1, -1]\nrows: {a: }", 3, "seeds[1]", "from 0 to 4294967295, got -1"),
    ("script: run.py\nmetric: m\nseeds: [1, 1]\nrows: {a: }", 3, "seeds[1]", "1 is there twice"),
    ("script: run.py\nmetric: m\nseeds: [1.5]\nrows: {a: }", 3, "seeds[0]", "whole number"),
    ("script: run.py\nmetric: m\nseeds: true\nrows: {a: }", 3, "seeds", "how many seeds"),
    ("script: run.py\nmetric: m\nseeds: many\nrows: {a: }", 3, "seeds", "how many seeds"),
    ("script: run.py\nmetric: m\nseeds: {a: 1}\nrows: {a: }", 3, "seeds", "how many seeds"),
    ("script: run.py\nmetric: m\n\tseeds: 1\nrows: {a: }", 3, None, "never with tabs"),
    ("script: run.py\nmetric: m\nseeds: [1\nrows: {a: }", 4, None, "not valid YAML"),
    ("script: {plan}/run.py\nmetric: m", 1, None, "begins with a brace goes in quotes"),
    ("script: !!python/object/apply:os.system [exit]\nmetric: m", 1, None, "not valid YAML"),
    ("", None, None, "the file is empty"),
    ("# only a remark\n", None, None, "the file is empty"),
    ("- script: run.py", None, None, "a plan is a map"),
    ("run.py", None, None, "a plan is a map"),
    ("a: 1\n---\nb: 2", 2, None, "not valid YAML"),
]


@pytest.fixture(autouse=True)
def _script(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("def main(arguments=None): ...\n")


@pytest.fixture
def message_of(tmp_path: Path) -> Callable[..., str]:
    def read(text: str, **options: Any) -> str:
        (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError) as caught:
            read_plan(tmp_path / "plan.yaml", **options)
        return str(caught.value)

    return read


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [(BEGIN + text, line, key, words) for text, line, key, words in [*IN_ROWS, *WHOLE]] + OTHER_BEGINNING,
)
def test_a_bad_plan_is_refused(
    message_of: Callable[..., str], text: str, line: int | None, key: str | None, words: str
) -> None:
    message = message_of(text)
    begin = ", ".join(["plan.yaml", *([f"line {line}"] if line else []), *([key] if key else [])])
    assert message.startswith(f"{begin}: ") and words in message
    assert "\n" not in message


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "other.yaml"):
        with pytest.raises(ValueError, match=r"there is no plan '.*': it must be a YAML file"):
            read_plan(path)
    (tmp_path / "latin.yaml").write_bytes("title: Größe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml: the file is not text in UTF-8"):
        read_plan(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "seeds: at least one seed"),
        ({"seeds": [1, 1]}, "seeds, [1]: 1 is there twice"),
        ({"seeds": "3"}, "seeds: expected how many seeds"),
        ({"rows": ["fulll"]}, "plan.yaml has no row 'fulll'; its rows are 'full', 'lam'. Did you mean 'full'?"),
    ],
)
def test_what_is_asked_of_a_plan(message_of: Callable[..., str], options: dict[str, Any], words: str) -> None:
    assert words in message_of(BEGIN + "rows: {full: , lam: }", **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": {"a": {"x": {1: 2}}}}, "the plan, rows.a.x.1: a key must be text, got 1"),
        ({"rows": {"a": {"x": float("nan")}}}, "the plan, rows.a.x: nan is no number"),
        ({"rows": {"a": {"x": {3}}}}, "the plan, rows.a.x: {3} is a set; possible are"),
        ({"rows": {"a": {"x": b"3"}}}, "is a bytes"),
        ({"rows": ["a"]}, "the plan, rows: expected a map"),
        ({"metrics": "x"}, "the plan, metrics: a plan has no key 'metrics'"),
    ],
)
def test_a_bad_mapping_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    plan = {"script": tmp_path / "run.py", "metric": "accuracy", "seeds": 1, "rows": {"a": {}}}
    with pytest.raises(ValueError) as caught:
        read_plan({**plan, **change})
    assert words in str(caught.value)


def test_a_variable_that_is_gone_when_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE_NOW", "x")
    rows = {"a": {"x": "$HERE_NOW"}}
    plan = read_plan({"script": tmp_path / "run.py", "metric": "m", "seeds": 1, "rows": rows})
    monkeypatch.delenv("HERE_NOW")
    with pytest.raises(ValueError, match="HERE_NOW is not set"):
        command_of(plan, plan.rows[0], 0, tmp_path, None, {})
