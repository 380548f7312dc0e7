"""The command line of the fine-tuning scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_lam.training.arguments import DataArguments, ModelArguments
from hf_lam.training.parsing import parse_arguments


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv", "a.tsv", "a.json", "a.txt"):
        Path(name).write_text("text,label\na,0\nb,1\n")
    return ["--model_name_or_path", "M", "--train_file", "a.csv", "--do_train", "--output_dir", "o"]


def parse(*arguments: str) -> tuple[ModelArguments, DataArguments, Any]:
    return parse_arguments(ModelArguments, DataArguments, "A script.\n\nMore.", list(arguments))


@pytest.mark.parametrize("given", [["lam", "--mechanism", "locomt"], ["lam", "locomt"]])
def test_mechanisms_are_repeatable(base: list[str], given: list[str]) -> None:
    for _ in range(2):  # no list is shared between parsers
        assert parse(*base, "--mechanism", *given)[0].mechanism == ["lam", "locomt"]
    assert parse(*base)[0].mechanism == []


@pytest.mark.parametrize("text", ['{"rank": 4}', '{"lam": {"rank": 4}}', '{"version": 1, "lam": {"rank": 4}}'])
@pytest.mark.parametrize("as_file", [False, True])
def test_mechanism_config(base: list[str], text: str, as_file: bool) -> None:
    Path("mechanism.json").write_text(text)
    given = "mechanism.json" if as_file else text
    (config,) = parse(*base, "--mechanism", "lam", "--mechanism_config", given)[0].mechanisms()
    assert config.rank == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mechanism", "lam", "--mechanism", "lam"], "one of each"),
        (["--mechanism", "nothing"], "choose from lam, locomt, stt"),
        (["--mechanism", "lam", "locomt", "--mechanism_config", '{"rank": 4}'], "give them by name"),
        (["--mechanism_config", '{"rank": 4}'], "need one --mechanism"),
        (["--mechanism", "lam", "--mechanism_config", '{"locomt": {}}'], "options for ['locomt']"),
        (["--mechanism", "lam", "--mechanism_config", '{"rnk": 4}'], "no option ['rnk']"),
        (["--mechanism", "lam", "--mechanism_config", "{rank"], "not valid JSON"),
        (["--mechanism", "lam", "--mechanism_config", "no.json"], "or a file with one, got 'no.json'"),
        (["--mechanism", "lam", "--mechanism_config", "x" * 5000], "or a file with one"),
        (["--config_overrides", "[1]"], "--config_overrides must be a JSON object"),
        (["--model_name_or_path", ""], "give --model_name_or_path"),
        (["--lora_rank", "0"], "at least 1"),
        (["--lora_rank", "2", "--freeze_host"], "use one of them"),
        (["--annealing_end", "1.5"], "(0, 1]"),
        (
            ["--harden", "--load_best_model_at_end", "--save_strategy", "no"],
            "--harden is for the end of the annealing",
        ),
        (["--from_scratch", "--freeze_host"], "--freeze_host would keep the random weights"),
        (["--config_overrides", '{"num_labels": 3, "id2label": {}}'], "id2label, num_labels is what the data decide"),
        (["--distillation_weight", "0.7"], "--distillation_weight is for learning from a --teacher_model"),
        (["--distillation_temperature", "1"], "--distillation_temperature is for learning from a --teacher_model"),
        (["--model_name_or_path", "./no"], "--model_name_or_path: there is no folder './no'"),
        (["--model_name_or_path", "~/no"], "--model_name_or_path: there is no folder '~/no'"),
        (["--teacher_model", "/no"], "--teacher_model: there is no folder '/no'"),
        (["--processor_name_or_path", "../no"], "--processor_name_or_path: there is no folder '../no'"),
        (["--dataset_config_name", "c"], "--dataset_config_name is for --dataset_name"),
        (["--dataset_revision", "v1"], "--dataset_revision is for --dataset_name"),
        (["--shuffle_buffer_size", "10"], "--shuffle_buffer_size is for --streaming"),
        (["--streaming", "--max_steps", "1", "--preprocessing_num_workers", "2"], "not for --streaming"),
        (["--do_train", "false", "--do_eval", "--push_to_hub"], "--push_to_hub pushes what was trained"),
        (["--skip_unreadable"], "--skip_unreadable"),
        (["--data_dir", "."], "data come from one of"),
        (["--train_file", "no.csv"], "no file 'no.csv'"),
        (["--delimiter", "ab"], "--delimiter must be one character, got 'ab'"),
        (["--delimiter", '"'], "--delimiter must be one character"),
        (["--encoding", "latin-99"], "there is no such encoding"),
        (["--train_file", "a.json", "--delimiter", ";"], "--delimiter is for csv, tsv files"),
        (["--train_dir", "."], "data come from one of"),
        (["--train_dir", "nowhere", "--train_file", "a.csv"], "data come from one of"),
        (["--train_file", "a.txt"], "must end in one of csv"),
        (["--validation_file", "a.json"], "of one kind"),
        (["--validation_file", "a.tsv"], "of one kind"),
        (["--train_val_split", "1"], "between 0 and 1"),
        (["--max_train_samples", "0"], "--max_train_samples must be at least 1"),
        (["--preprocessing_num_workers", "0"], "--preprocessing_num_workers must be at least 1"),
        (["--streaming"], "--max_steps"),
        (["--do_predict"], "needs --test_file"),
        (["--do_train", "false"], "nothing to do"),
        (["--do_train", "false", "--do_eval", "--teacher_model", "T"], "give --do_train"),
        (["--do_train", "false", "--do_eval", "--from_scratch"], "--from_scratch is for training"),
        (["--nothing", "1"], "--nothing"),
    ],
)
def test_what_cannot_work(base: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(*base, *arguments)
    assert message in str(error.value)
    assert not Path("o").exists()


def test_what_goes_together(base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("m").mkdir()
    model, _, _ = parse(*base, "--model_name_or_path", "~/m", "--teacher_model", "./m", "--distillation_weight", "1")
    assert (model.model_name_or_path, model.teacher_model) == (str(Path.cwd() / "m"), "./m")
    # Tried before there is the teacher.
    assert parse(*base, "--hidden_distillation_weight", "1", "--check_only")[2].hidden_distillation_weight == 1
    # A saved mixture is hardened without naming the mechanism again.
    assert parse(*base, "--harden")[0].harden
    parse(*base, "--streaming", "--max_steps", "1", "--shuffle_buffer_size", "10")


def test_a_source_is_needed(base: list[str]) -> None:
    for given, message in [([], "Given: none"), (["--data_dir", "no"], "'no' is not a folder")]:
        with pytest.raises(ValueError, match=message):
            parse("--model_name_or_path", "M", "--do_train", "--output_dir", "o", *given)


OPTIONS = {
    "model_name_or_path": "M",
    "train_file": "a.csv",
    "do_train": True,
    "freeze_host": False,
    "output_dir": "o",
    "mechanism": ["lam"],
    "mechanism_config": {"lam": {"rank": 4}},
    "class_names": ["x y", "z"],
    "max_eval_samples": None,
}


def test_a_json_file_as_the_command_line(base: list[str]) -> None:
    Path("all.json").write_text(json.dumps({**OPTIONS, "mechanism_learning_rate": "1e-3", "max_train_samples": 2}))
    model, data, training = parse("all.json")
    assert (model.mechanism, model.mechanisms()[0].rank, model.freeze_host) == (["lam"], 4, False)
    assert (data.class_names, data.max_train_samples, data.max_eval_samples) == (["x y", "z"], 2, None)
    assert (training.do_train, training.mechanism_learning_rate) == (True, 1e-3)


def test_a_yaml_file_as_the_command_line(base: list[str]) -> None:
    Path("all.yaml").write_text(
        "model_name_or_path: M\ntrain_file: a.csv\ndo_train: true\noutput_dir: o\nmechanism: [lam, locomt]\n"
        # Which YAML 1.1 takes for a string.
        "mechanism_learning_rate: 1e-3\n"
    )
    model, _, training = parse("all.yaml")
    assert model.mechanism == ["lam", "locomt"]
    assert training.mechanism_learning_rate == 1e-3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no.json", None, "cannot be read"),
        ("bad.json", "{bad", "cannot be read"),
        ("bad.yaml", ": : bad\n\t", "cannot be read"),
        ("list.json", "[1]", "must hold an object"),
        ("unknown.json", json.dumps({**OPTIONS, "nothing": 1}), "--nothing"),
    ],
)
def test_a_file_that_cannot_work(base: list[str], name: str, text: str | None, message: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    assert "--mechanism_learning_rate" in capsys.readouterr().out
