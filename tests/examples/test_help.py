"""The `--help` of the fine-tuning scripts: our options first, in groups, each in full sentences."""

from __future__ import annotations

import re

import pytest

from helpers.scripts import EXAMPLES, script_module
from hf_lam.training.parsing import GROUPS

SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("run_*.py"))


def read_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The groups of a script's `--help` in their order, each with its options as lines of `--names  help`."""
    monkeypatch.setenv("COLUMNS", "9999")  # an option and its help take one line each, however long
    with script_module(name) as script, pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    groups: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if re.match(r"\S.*:$", line):
            groups[line[:-1]] = options = []
        elif line.startswith("  -"):
            options.append(line.strip())
        elif groups and line.strip():
            options[-1] += f"  {line.strip()}"
    return groups


def test_all_scripts_are_looked_at() -> None:
    assert len(SCRIPTS) == 7


@pytest.mark.parametrize("name", SCRIPTS)
def test_our_options_come_first_and_in_full_sentences(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = read_help(name, monkeypatch, capsys)
    assert list(groups) == ["options", *GROUPS]
    *ours, transformers = (groups[group] for group in GROUPS)
    assert {line.split()[0] for line in transformers} >= {"--output_dir", "--learning_rate", "--do_train"}
    for line in (line for options in ours for line in options):
        text = re.sub(r" \(default: .*?\)$", "", line.partition("  ")[2].strip())
        assert re.fullmatch(r"[A-Z].*\.", text), line


def test_the_group_of_an_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    groups = read_help("run_captioning", monkeypatch, capsys)
    group_of = {line.split()[0].rstrip(","): group for group, options in groups.items() for line in options}
    wanted = {
        "--model_name_or_path": "model",
        "--decoder_model": "model",
        "--mechanism": "mechanisms",
        "--train_file": "data",
        "--caption_column_name": "data",
        "--freeze_host": "fine-tuning",
        "--distillation_weight": "fine-tuning",
        "--check_only": "run",
        # Options of transformers whose help is ours.
        "--generation_num_beams": "run",
        "--hub_strategy": "run",
        "--seed": GROUPS[-1],
    }
    assert {option: group_of[option] for option in wanted} == wanted
