"""Runs of the scripts that are compared: the same data in the same order, the same starts, whatever the model has."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ConvNextConfig,
    ConvNextForImageClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

import hf_lam
from helpers.finetuning import (
    IMAGE,
    TEXT,
    command_line,
    main,
    make_bert,
    make_vit,
    results_in,
    saved,
    write_digits,
    write_sentences,
)
from helpers.hub_server import TOKEN, HubServer
from helpers.processes import ROOT, run_code, run_process
from helpers.scripts import script_module
from hf_lam.training.labels import Labels

MULTIMODAL = "run_multimodal_classification"
RUN: dict[str, Any] = {
    "do_eval": True,
    "record_run": True,
    "max_steps": None,
    "num_train_epochs": 3,
    "save_strategy": "no",
    "log_level": "error",
    "seed": 3,
    "data_seed": 3,
}
SEGMENTS = '{"segments": [["a", 3], ["b", 37]], "views": "%s"}'
# What changes how many random numbers a model draws: at its start, and in every step.
ROWS: dict[str, dict[str, Any]] = {
    "stock": {},
    "lam": {"mechanism": "lam", "mechanism_config": '{"rank": 2}'},
    "stt": {"mechanism": "stt"},
    "self": {"mechanism": "locomt"},
    "control": {"mechanism": "lam", "mechanism_config": '{"rank": 2}', "control": True},
}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def assert_comparable(records: dict[str, dict[str, Any]]) -> None:
    """One order of the data, one start of what they share, as many steps."""
    stock = records["stock"]
    assert len(stock["orders"]["labels"]) == 64
    for name, its in records.items():
        assert its["orders"] == stock["orders"], name
        assert its["starts"]["head"] == stock["starts"]["head"], name
        assert its["steps"] == stock["steps"] > 0, name
        if name in ("lam", "self"):
            assert its["starts"]["host"] == stock["starts"]["host"], name
    assert (
        abs(records["control"]["parameters"] - records["lam"]["parameters"]) <= 3 * 65 / 2
    )  # half a unit in every layer
    assert records["lam"]["mechanism_parameters"] > 0 == records["control"]["mechanism_parameters"]
    assert records["stock"]["flops"] > records["stock"]["attention_flops"] > records["self"]["attention_flops"] > 0
    assert records["control"]["flops"] > records["stock"]["flops"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    files = {"train": 18, "validation": 6, "test": 7}
    return {
        "model_name_or_path": make_bert(folder / "bert"),
        **{f"{split}_file": write_sentences(folder / f"{split}.csv", n, n) for split, n in files.items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pytest.param("random", marks=pytest.mark.slow), "group_by_length"])
def test_rows_of_texts(strategy: str, texts: dict[str, str], tmp_path: Path) -> None:
    records = {}
    for name, options in ROWS.items():
        if name == "self":
            options = {**options, "mechanism_config": SEGMENTS % "self"}
        fixed = {"max_seq_length": 40, "pad_to_max_length": strategy == "random" or None}
        if name == "self" and strategy == "group_by_length":
            options = {**options, "mechanism_config": '{"segments": "token_type_ids", "views": "self"}'}
        run = {**RUN, **texts, **fixed, **options, "train_sampling_strategy": strategy}
        main(TEXT, **run, output_dir=str(tmp_path / name))
        records[name] = record(tmp_path / name)
    if strategy == "group_by_length":
        # One token type: full views, which cost what the stock model does.
        assert records["self"]["orders"] == records["stock"]["orders"]
        records["self"] = {**records["self"], "attention_flops": 1}
    assert_comparable(records)
    assert records["stock"]["metrics"] == ["loss", "accuracy", "f1"]


@pytest.mark.slow
def test_rows_of_a_stream(texts: dict[str, str], tmp_path: Path) -> None:
    run = {**RUN, **texts, "streaming": True, "class_names": ["0", "1"], "num_train_epochs": None, "max_steps": 12}
    records = {}
    for name in ("stock", "lam", "stt"):
        main(TEXT, **run, **ROWS[name], shuffle_buffer_size=8, output_dir=str(tmp_path / name))
        records[name] = record(tmp_path / name)
        assert records[name]["orders"] == records["stock"]["orders"]
        assert records[name]["starts"]["head"] == records["stock"]["starts"]["head"]
    main(TEXT, **{**run, **ROWS["stt"]}, shuffle_buffer_size=8, do_predict=True, output_dir=str(tmp_path / "stt"))
    assert results_in(tmp_path / "stt")["predict_samples_per_second"] > 0


@pytest.mark.slow
def test_a_model_without_attention_is_recorded(tmp_path: Path) -> None:
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "image_size": 8, "patch_size": 2}
    ConvNextForImageClassification(ConvNextConfig(**sizes)).save_pretrained(tmp_path / "convnext")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "convnext")
    run = {**RUN, "data_dir": write_digits(tmp_path / "digits", 16, 6)}
    run |= {"model_name_or_path": str(tmp_path / "convnext"), "ignore_mismatched_sizes": True}
    main(IMAGE, **run, output_dir=str(tmp_path / "out"))
    found = record(tmp_path / "out")
    assert found["flops"] is None and found["parameters"] > 0
    assert found["starts"]["head"] != found["starts"]["host"]


@pytest.mark.slow
def test_rows_of_images(tmp_path: Path) -> None:
    data = {"data_dir": write_digits(tmp_path / "digits", 16, 6), "model_name_or_path": make_vit(tmp_path / "vit")}
    records = {}
    for name, options in ROWS.items():
        views = {"mechanism_config": '{"views": "self"}'} if name == "self" else {}
        main(IMAGE, **{**RUN, **data, **options, **views}, output_dir=str(tmp_path / name))
        records[name] = record(tmp_path / name)
    assert_comparable(records)
    batch = load_file(tmp_path / "lam" / "batch.safetensors")
    assert {name: len(value) for name, value in batch.items()} == {"pixel_values": 6, "labels": 6}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sentences with digits, and encoders of both."""
    folder = tmp_path_factory.mktemp("pairs")
    digits = sorted(Path(write_digits(folder / "digits", 31, 0)).rglob("*.png"))
    numbers = {"train": range(18), "validation": range(18, 24), "test": range(24, 31)}
    for split, places in numbers.items():
        write_sentences(folder / "words.csv", 31)
        with (folder / "words.csv").open() as file:
            rows = list(csv.DictReader(file))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["sentence", "label", "image"])
            writer.writeheader()
            writer.writerows({**rows[place], "image": str(digits[place])} for place in places)
    fusion = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return {
        "text_model": make_bert(folder / "bert"),
        "image_model": make_vit(folder / "vit"),
        "fusion_config": json.dumps(fusion),
        "data_dir": str(folder),
        **{f"{split}_file": str(folder / f"{split}.csv") for split in numbers},
    }


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_rows_of_a_fusion_model(cached: bool, pairs: dict[str, Any], tmp_path: Path) -> None:
    cache = str(tmp_path / "cache") if cached else None
    run = {**RUN, **pairs, "data_dir": None, "cache_features": cache, "train_sampling_strategy": "group_by_length"}
    run |= {"freeze_host": None if cached else True}
    rows = {**ROWS, "self": {"mechanism": "locomt", "mechanism_config": '{"views": "self"}'}}
    del rows["stt"]  # it has no one grid
    rows["mbt"] = {"mechanism": "locomt", "mechanism_config": '{"views": "self", "bottleneck_tokens": 2}'}
    # The last norms of the encoders are their own there, so that they give something else, in a folder of their own.
    rows["late"] = {"fusion_config": json.dumps({**json.loads(pairs["fusion_config"]), "baseline": "late"})}
    rows["wide"] = {"fusion_config": json.dumps({**json.loads(pairs["fusion_config"]), "num_hidden_layers": 3})}
    rows["calibrated"] = {"mechanism": "locomt", "calibrate_views_on": str(tmp_path / "stock"), "views_budget": 0.6}
    records = {}
    for name, options in rows.items():
        main(MULTIMODAL, **{**run, **options}, output_dir=str(tmp_path / name))
        records[name] = record(tmp_path / name)
        # By the names of the whole model: the encoders are as they were.
        trained, names = set(records[name]["trained"]), set(saved(tmp_path / name))
        assert (
            trained and trained <= names and not any(".encoders." in x or x.startswith("encoders.") for x in trained)
        )
    assert not cached or len([x for x in (tmp_path / "cache").iterdir() if x.is_dir()]) == 2
    late = records.pop("late")
    assert late["starts"]["head"] == records["stock"]["starts"]["head"]
    assert late["orders"]["labels"] == records["stock"]["orders"]["labels"]
    assert_comparable(records)
    fraction = records["calibrated"]["attention_flops"] / records["stock"]["attention_flops"]
    assert 0.3 < fraction <= 0.65
    # One modality alone: its samples in the same order, and the same first weights.
    if not cached:
        one = {**run, "image_model": None, "train_sampling_strategy": None}
        both = {**run, "train_sampling_strategy": None}
        main(MULTIMODAL, **one, output_dir=str(tmp_path / "text"))
        main(MULTIMODAL, **both, output_dir=str(tmp_path / "both"))
        text, full = record(tmp_path / "text"), record(tmp_path / "both")
        assert text["starts"]["head"] == full["starts"]["head"]
        assert set(text["orders"]) < set(full["orders"])
        assert all(full["orders"][name] == digest for name, digest in text["orders"].items())
    # The whole model is recorded, and its test data are predicted after the fact.
    for name in ("stock", "mbt", "control", "calibrated"):
        run_again = {**run, **rows[name], "do_predict": True}
        main(MULTIMODAL, **run_again, output_dir=str(tmp_path / name))
        assert results_in(tmp_path / name)["predict_samples"] == 7


@pytest.mark.parametrize("other", ["one", "more_layers", "mechanism", "late", "control"])
def test_vectors_start_from_the_same_weights(other: str) -> None:
    sizes = {"text": 6, "audio": 4, "visual": 3}
    fusion = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 20}
    options = {"positions": "learned", "max_length": 9, "norm": True}
    columns = {name: {"column": name, **options} for name in sizes}
    changes: dict[str, Any] = {
        "one": {"features": json.dumps({"audio": columns["audio"]})},
        "more_layers": {"fusion_config": json.dumps({**fusion, "num_hidden_layers": 3})},
        "mechanism": {"mechanism": ["lam"]},
        "late": {"fusion_config": json.dumps({**fusion, "baseline": "late"})},
        "control": {"mechanism": ["lam"], "mechanism_config": '{"rank": 2}', "control": True},
    }[other]
    whole = {"features": json.dumps(columns), "fusion_config": json.dumps(fusion)}
    with script_module(MULTIMODAL) as script:

        def start(**arguments: Any) -> dict[str, torch.Tensor]:
            torch.manual_seed(5)
            arguments = {**whole, **arguments}
            read = script.FusionArguments(**arguments)
            made = {name: sizes[name] for name in read.vector_columns()}
            model, _ = script.load_fusion(read, Labels(("a", "b", "c")), made, True)
            return model.state_dict()

        ours, its = start(), start(**changes)
    shared = ours.keys() & its.keys()
    assert {"classifier.weight", "fusion.audio_projection.weight"} < shared
    assert any("positions" in name for name in shared)
    for name in shared:
        weights = [x[name] for x in (ours, its)]
        corner = tuple(slice(0, min(sizes)) for sizes in zip(*(x.shape for x in weights), strict=True))
        if other != "control":
            assert weights[0].shape == weights[1].shape
        torch.testing.assert_close(weights[0][corner], weights[1][corner], rtol=0, atol=0)
    assert ours["classifier.weight"].std() > 0


def test_the_stock_row_is_a_run_of_trainer(texts: dict[str, str], tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    main(TEXT, **RUN, **texts, output_dir=str(ours))
    set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(texts["model_name_or_path"])
    with Path(texts["train_file"]).open() as file:
        rows = list(csv.DictReader(file))
    samples = [{**tokenizer(row["sentence"]), "labels": int(row["label"])} for row in rows]
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(texts["model_name_or_path"], num_labels=2),
        args=TrainingArguments(
            output_dir=str(tmp_path / "plain"),
            num_train_epochs=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=3,
            data_seed=3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=samples,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    expected = trainer.model.state_dict()
    assert saved(ours).keys() == expected.keys()
    assert all(torch.equal(weights, expected[name]) for name, weights in saved(ours).items())


@pytest.mark.slow
def test_a_resumed_run_has_the_order_of_one_that_was_not(texts: dict[str, str], tmp_path: Path) -> None:
    run = {**RUN, **texts, "mechanism": "stt", "save_strategy": "steps", "save_steps": 7}
    main(TEXT, **run, train_sampling_strategy="group_by_length", output_dir=str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", tmp_path / "resumed" / "checkpoint-7")
    main(TEXT, **run, train_sampling_strategy="group_by_length", output_dir=str(tmp_path / "resumed"))
    whole, resumed = record(tmp_path / "whole"), record(tmp_path / "resumed")
    assert whole == resumed
    for name, weights in saved(tmp_path / "whole").items():
        assert torch.equal(weights, saved(tmp_path / "resumed")[name])


FINISHED: dict[str, dict[str, Any]] = {
    "lam": ROWS["lam"],
    "hardened": {"mechanism": "stt", "harden": True},
    "annealed": {
        "mechanism": "locomt",
        "mechanism_config": '{"segments": [["a", 3], ["b", 37]], "views": "half", "annealing": true}',
        "max_seq_length": 40,
        "pad_to_max_length": True,
    },
    "lora": {**ROWS["lam"], "lora_rank": 2},
    "control": ROWS["control"],
    "regression": {"do_regression": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x == "lam" else pytest.mark.slow) for x in FINISHED])
def test_a_finished_run_predicts_its_test_data(case: str, texts: dict[str, str], tmp_path: Path) -> None:
    run = {**RUN, **texts, **FINISHED[case], "eval_strategy": "epoch"}
    main(TEXT, **run, do_predict=True, output_dir=str(tmp_path / "at_once"))
    folder = tmp_path / "later"
    main(TEXT, **run, output_dir=str(folder))
    assert not any(name.startswith("predict") for name in results_in(folder))
    # Merged weights are not those that were trained.
    trained = set(record(folder)["trained"])
    assert not trained if case == "lora" else trained & set(saved(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    # What a runner puts beside it is in nobody's way.
    (folder / "log.txt").touch()
    assert main(TEXT, **run, do_predict=True, output_dir=str(folder)) == {}
    changed = {path.name for path in folder.iterdir() if path.is_file() and before.get(path.name) != path.read_bytes()}
    assert changed == {"log.txt", "all_results.json", "predict_results.json", "predictions.csv"}
    at_once, later = results_in(tmp_path / "at_once"), results_in(folder)
    measured = [name for name in at_once if not name.endswith(("runtime", "_per_second", "_time"))]
    assert {name: later[name] for name in measured} == pytest.approx({name: at_once[name] for name in measured})
    assert (folder / "predictions.csv").read_text() == (tmp_path / "at_once" / "predictions.csv").read_text()


def test_a_folder_of_another_run_is_not_predicted(
    texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    main(TEXT, **RUN, **texts, output_dir=str(folder))

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(SystemExit) as ended:
            main(TEXT, **{**RUN, **texts, "output_dir": str(folder), **changes})
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    refused(
        "has a finished run with learning_rate=0.001, where this one has 0.01", do_predict=True, learning_rate=0.01
    )
    refused("has a finished run with mechanism=[], where this one has ['lam']", do_predict=True, mechanism="lam")
    refused("is not empty, and has no checkpoint to go on from")
    (folder / "model.safetensors").unlink()
    refused("its model is not there any more", do_predict=True)


def test_a_check_trains_nothing(
    texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {**RUN, **texts, "output_dir": str(tmp_path / "run")}
    assert main(TEXT, **run, **ROWS["lam"], check_only=True) == {}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["check.json"]
    found = json.loads((tmp_path / "run" / "check.json").read_text())
    assert found["metrics"] == ["loss", "accuracy", "f1"]
    assert found["trainable_parameters"] == found["parameters"] > found["mechanism_parameters"] > 0
    # Views over 40 tokens, and texts of fewer, which only a forward pass shows.
    for config, message in ((SEGMENTS % "self", "add up to 40 tokens"), ('{"rank": 0}', "rank"), ("{", "JSON")):
        options = {"mechanism": "lam" if "rank" in config else "locomt", "mechanism_config": config}
        with pytest.raises(SystemExit) as ended:
            main(TEXT, **{**run, **options, "output_dir": str(tmp_path / "bad")}, check_only=True)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("bad/*"))
    # The folder of a check is as good as new.
    main(TEXT, **{**run, "num_train_epochs": 1}, **ROWS["lam"])
    assert record(tmp_path / "run")["steps"] == 5
    assert record(tmp_path / "run")["parameters"] == found["parameters"]


@pytest.mark.slow
def test_a_check_runs_no_encoders_over_the_data(pairs: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run = {**RUN, **pairs, "data_dir": None, "cache_features": str(cache), **ROWS["lam"]}
    main(MULTIMODAL, **run, check_only=True, output_dir=str(tmp_path / "run"))
    assert not cache.exists()
    assert json.loads((tmp_path / "run" / "check.json").read_text())["mechanism_parameters"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": True}, "--control adds as many parameters as mechanisms would"),
        ({**ROWS["control"], "lora_rank": 2}, "--control has no use for --lora_rank"),
        ({**ROWS["control"], "freeze_host": True}, "--control has no use for --freeze_host"),
        ({"mechanism": "locomt", "control": True}, "has no parameters with it. The original model is its control"),
        ({"calibrate_views_on": "/nonexistent"}, "--calibrate_views_on: there is no folder"),
        ({"calibrate_views_on": "."}, "is for a model with attention views"),
        ({"mechanism": "locomt", "mechanism_config": SEGMENTS % "self", "calibrate_views_on": "."}, "leave one out"),
        ({"views_budget": 0}, "--views_budget is a fraction"),
        ({"learning_rte": 1}, "there is no option --learning_rte. Did you mean --learning_rate?"),
        ({"do_train": None, "do_eval": True, "record_run": True}, "--record_run is for training"),
    ],
)
def test_options_that_do_not_fit(
    options: dict[str, Any],
    message: str,
    texts: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(TEXT, **{**RUN, **texts, "output_dir": str(tmp_path / "run"), **options})
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_views_are_those_of_a_trained_model(texts: dict[str, str], tmp_path: Path) -> None:
    fixed = {**RUN, **texts, "num_train_epochs": 1, "max_seq_length": 40, "pad_to_max_length": True}
    main(TEXT, **fixed, output_dir=str(tmp_path / "stock"))
    views = {
        "mechanism": "locomt",
        "mechanism_config": '{"segments": [["a", 3], ["b", 37]], "annealing": true}',
        "calibrate_views_on": str(tmp_path / "stock"),
        "views_budget": 0.9,
    }
    main(TEXT, **fixed, **views, output_dir=str(tmp_path / "calibrated"))
    config = json.loads((tmp_path / "calibrated" / "config.json").read_text())["hf_lam"]["locomt"]
    kinds = {view for layer in config["views"] for view in layer}
    assert len(config["views"]) == 3 and kinds - {"full"} and "full" in kinds
    share = record(tmp_path / "calibrated")["attention_flops"] / record(tmp_path / "stock")["attention_flops"]
    assert 0.8 < share <= 0.9
    # Chosen on what the trained model sees, by the tool that does it for everybody.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock")
    hf_lam.inject(model, hf_lam.LocomtConfig(segments=[["a", 3], ["b", 37]]))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "stock")
    with Path(texts["train_file"]).open() as file:
        sentences = [row["sentence"] for row in csv.DictReader(file)]
    batch = tokenizer(sentences, padding="max_length", max_length=40, return_tensors="pt")
    expected, _ = hf_lam.calibrate_views(model, [dict(batch)], 0.9)
    assert config["views"] == expected.views


LOAD = """
import sys
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, sorted(model.config.modalities), model.config.features)
"""


@pytest.mark.slow
def test_a_run_on_cached_features_is_pushed_whole_and_without_samples(pairs: dict[str, Any], tmp_path: Path) -> None:
    run = {**RUN, **pairs, "data_dir": None, "cache_features": str(tmp_path / "cache"), **ROWS["lam"]}
    run |= {"push_to_hub": True, "hub_model_id": "user/pair", "hub_token": TOKEN, "output_dir": str(tmp_path / "out")}
    script = ROOT / "examples" / f"{MULTIMODAL}.py"
    with HubServer() as hub:
        run_process([sys.executable, str(script), *command_line(**run)], environment=hub.environment(tmp_path / "hub"))
        files = hub.repos["user/pair"].files()
        environment = hub.environment(tmp_path / "other", token=None)
        loaded = run_code(LOAD, "user/pair", hf_lam=False, environment=environment)
    assert loaded.splitlines()[-1] == "HfLamFusionForSequenceClassification ['image', 'text'] None"
    assert not {"batch.safetensors", "run.json"} & files.keys()
    assert {"batch.safetensors", "run.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert len(files["model.safetensors"]) == (tmp_path / "out" / "model.safetensors").stat().st_size
    # Predicted later, it is not pushed again.
    main(MULTIMODAL, **{**run, "do_predict": True})
    assert results_in(tmp_path / "out")["predict_samples"] == 7
