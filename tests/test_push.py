"""Pushing: one commit with everything, whatever it is pushed from, and nothing that does not belong there."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from fusion_models import make_fusion
from hosts import CONVERTIBLE, SIZES, make_inputs
from hub_server import GITATTRIBUTES, TOKEN, HubServer, read_metadata
from huggingface_hub import EvalResult, HfApi, get_session
from huggingface_hub.repocard_data import model_index_to_eval_results
from lam_models import make_lam, make_trainer
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
    ViTForImageClassification,
    ViTImageProcessor,
)

import hf_lam
from hf_lam.hub import cards, folders, pushing, remote
from hf_lam.modeling.configuration_hf_lam import TRAVELLING_FILES

MODELS = [
    name
    for name in hf_lam.__all__
    if isinstance(found := getattr(hf_lam, name), type) and issubclass(found, PreTrainedModel)
]
# Two are tried with the quick tests.
QUICK = ["HfLamBertForSequenceClassification", "HfLamFusionModel"]
OTHERS = [name for name in MODELS if name not in QUICK]
PICTURE = "masks.png"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    def draw(model: Any, inputs: Any, folder: Path, *more: Any) -> dict[str, str]:
        Image.new("RGB", (2, 2)).save(Path(folder, PICTURE))
        return {PICTURE: "What the masks do."}

    # Drawing and counting take most of the time of a push, and have tests of their own.
    monkeypatch.setattr(pushing, "draw_pictures", draw)
    monkeypatch.setattr(cards, "_sizes", lambda model: None)
    # A release that had another file.
    monkeypatch.setattr(pushing, "released_code", lambda path: {"0.0.1": {"stale_hf_lam.py": "0" * 64}})
    with HubServer() as server:
        server.serve(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def lam_bert() -> Any:
    return make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    return BertTokenizerFast(str(vocabulary), model_max_length=16)


def make_any(name: str) -> Any:
    """A tiny model of an `HfLam…` class."""
    if name.startswith("HfLamFusion"):
        return make_fusion(("text", "image"), head="For" in name, hf_lam="lam")
    stock = getattr(transformers, name.removeprefix("HfLam"))
    return make_lam(stock, CONVERTIBLE[stock], num_hidden_layers=1)


def pushed(hub: HubServer, push: Callable[[], Any], repo_id: str = "user/one") -> dict[str, bytes]:
    """The files of a repository that one push made, in one commit."""
    hub.repos.clear()
    push()
    repo = hub.repos.pop(repo_id)
    assert len(repo.log) == 2, repo.log
    files = dict(repo.files())
    assert files.pop(".gitattributes") == GITATTRIBUTES
    return files


def metadata_of(hub: HubServer, repo_id: str = "user/one", revision: str = "main") -> dict[str, Any]:
    return read_metadata(hub.repos[repo_id].files(revision)["README.md"].decode())


def results_of(metadata: dict[str, Any]) -> dict[str, float]:
    return {
        result.metric_type: result.metric_value for result in model_index_to_eval_results(metadata["model-index"])[1]
    }


# --- What is pushed --------------------------------------------------------------------------------------------------


def test_model_code_processor_card_and_pictures_are_one_commit(hub: HubServer, lam_bert: Any, tokenizer: Any) -> None:
    report = hf_lam.push(
        lam_bert,
        "user/one",
        processor=tokenizer,
        metrics={"eval_accuracy": 0.75, "eval_loss": 0.5},
        dataset="user/reviews",
        tags=["mine"],
        commit_message="The first",
        commit_description="of all",
        token=TOKEN,
    )
    repo = hub.repos["user/one"]
    assert [(one.title, one.description) for one in repo.log[1:]] == [("The first", "of all")]
    files = repo.files()
    assert report.files == {path: len(data) for path, data in files.items() if path != ".gitattributes"}
    expected = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", PICTURE}
    assert expected | set(TRAVELLING_FILES) == set(report.files)
    assert (report.repo_id, report.revision, report.deleted) == ("user/one", "main", ())
    assert report.commit is not None
    assert report.commit.oid == repo.branches["main"]
    assert json.loads(json.dumps(report.to_dict()))["commit"]["oid"] == report.commit.oid
    info = HfApi(token=False).model_info("user/one")
    assert not info.private
    assert {"hf_lam", "lam", "mine"} <= set(info.tags or [])
    assert info.pipeline_tag == "text-classification"
    assert results_of(metadata_of(hub)) == {"accuracy": 0.75}
    card = files["README.md"].decode()
    for text in (f"({PICTURE})", "hf-lam verify user/one", "What the masks do.", hf_lam.__version__):
        assert text in card, text
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"} <= set(auto_map)
    assert not [value for value in auto_map.values() if "--" in value]


def test_a_name_alone_is_in_the_namespace_of_the_token(hub: HubServer, lam_bert: Any) -> None:
    hub.repos["user/one"] = repository(hub)
    report = hf_lam.push(lam_bert, "one", token=TOKEN)
    assert (report.repo_id, report.deleted) == ("user/one", ("stale_hf_lam.py",))
    card = hub.repos["user/one"].files()["README.md"].decode()
    assert "hf-lam verify user/one" in card
    assert "Only I can say this." in card


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_way_to_push_makes_the_same_repository(hub: HubServer, tmp_path: Path, name: str) -> None:
    make_any(name).save_pretrained(tmp_path / "plain")
    model = getattr(hf_lam, name).from_pretrained(tmp_path / "plain")
    expected = pushed(hub, lambda: hf_lam.push(model, "user/one", token=TOKEN))
    assert {"README.md", "config.json", "model.safetensors", PICTURE, *TRAVELLING_FILES} <= set(expected)
    ways = {
        "push_to_hub": lambda: model.push_to_hub("user/one", token=TOKEN),
        "save_pretrained": lambda: model.save_pretrained(
            tmp_path / "saved", push_to_hub=True, repo_id="user/one", token=TOKEN
        ),
        "folder": lambda: hf_lam.push(tmp_path / "plain", "user/one", token=TOKEN),
    }
    for way, push in ways.items():
        files = pushed(hub, push)
        assert set(files) == set(expected), way
        assert [path for path in files if files[path] != expected[path]] == [], way


def test_a_processor_is_pushed_before_and_after_its_model(hub: HubServer, lam_bert: Any, tokenizer: Any) -> None:
    tokenizer.push_to_hub("user/one", token=TOKEN)
    hf_lam.push(lam_bert, "user/one", token=TOKEN)
    first = hub.repos.pop("user/one").files()
    hf_lam.push(lam_bert, "user/one", token=TOKEN)
    tokenizer.push_to_hub("user/one", token=TOKEN)
    second = hub.repos["user/one"].files()
    assert set(first) == set(second)
    assert [path for path in first if path != "README.md" and first[path] != second[path]] == []
    for files in (first, second):
        assert read_metadata(files["README.md"].decode())["tags"] == ["hf_lam", "lam"]


def test_fusion_code_of_model_and_processor_is_complete(hub: HubServer, tokenizer: Any) -> None:
    model = make_fusion(("text", "image"), hf_lam="lam")
    images = ViTImageProcessor(size={"height": 16, "width": 16})
    processor = hf_lam.HfLamFusionProcessor(tokenizer=tokenizer, image_processor=images)
    hf_lam.push(model, "user/one", processor=processor, token=TOKEN)
    files = hub.repos["user/one"].files()
    assert set(TRAVELLING_FILES) <= set(files)
    assert json.loads(files["processor_config.json"])["auto_map"]["AutoProcessor"].startswith("processing_hf_lam.")
    assert "AutoModel" in json.loads(files["config.json"])["auto_map"]


def test_a_run_of_trainer_is_pushed_without_its_pickles(hub: HubServer, tmp_path: Path, tokenizer: Any) -> None:
    model = make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1)
    run = tmp_path / "run"
    samples = {"eval_dataset": [{"input_ids": [1, 2, 3], "labels": 1}] * 4, "processing_class": tokenizer}
    trainer = make_trainer(model, run, max_steps=2, save_steps=1, save_strategy="steps", more=samples)
    trainer.compute_metrics = lambda predicted: {"accuracy": 0.625}
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    measured = trainer.evaluate()
    trainer.save_metrics("eval", measured)
    trainer.create_model_card(dataset="Some reviews")
    (run / "runs").mkdir()
    (run / "runs" / "events.out.tfevents").write_bytes(b"events")
    (run / "pytorch_model.bin").write_bytes(b"\x80\x04a pickle")
    assert {"README.md", "all_results.json", "training_args.bin", "checkpoint-1"} <= {
        path.name for path in run.iterdir()
    }
    report = hf_lam.push(run, "user/one", token=TOKEN)
    assert not [path for path in report.files if path.endswith(PICKLES) or "/" in path or "events" in path]
    assert {"tokenizer.json", "config.json", "model.safetensors", *TRAVELLING_FILES} <= set(report.files)
    assert hub.repos["user/one"].files()["model.safetensors"] == (run / "model.safetensors").read_bytes()
    metadata = metadata_of(hub)
    assert results_of(metadata) == {"accuracy": 0.625}
    card = hub.repos["user/one"].files()["README.md"].decode()
    assert f"{measured['eval_loss']:.4f}" in card
    assert not re.search(r"more information needed|0\.0004|model_preparation_time|_per_second", card, re.IGNORECASE)
    assert str(tmp_path) not in card
    hf_lam.push(run / "checkpoint-1", "user/two", token=TOKEN)
    files = hub.repos["user/two"].files()
    assert not [path for path in files if path.endswith(PICKLES)]
    assert files["model.safetensors"] == (run / "checkpoint-1" / "model.safetensors").read_bytes()
    # Nothing measured the checkpoint.
    assert "model-index" not in metadata_of(hub, "user/two")


@pytest.mark.parametrize("given", ["numbers", "results"])
def test_metrics_are_those_that_were_given(hub: HubServer, lam_bert: Any, given: str) -> None:
    result = EvalResult(
        task_type="text-classification",
        dataset_type="user/reviews",
        dataset_name="Reviews",
        metric_type="f1",
        metric_value=0.123456789,
    )
    options: dict[str, Any] = {"metrics": [result]}
    if given == "numbers":
        options = {"metrics": {"eval_f1": 0.123456789, "eval_runtime": 12.5, "epoch": 3.0}, "dataset": "user/reviews"}
    hf_lam.push(lam_bert, "user/one", **options, token=TOKEN)
    metadata = metadata_of(hub)
    assert results_of(metadata) == {"f1": 0.123456789}
    assert "0.1235" in hub.repos["user/one"].files()["README.md"].decode()
    assert model_index_to_eval_results(metadata["model-index"])[1][0].dataset_type == "user/reviews"


# --- Where it is pushed ----------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_push_does_and_changes_nothing(hub: HubServer, lam_bert: Any, tmp_path: Path) -> None:
    lam_bert.save_pretrained(tmp_path / "saved")
    hub.repos["user/old"] = repository(hub)
    for repo_id in ("user/one", "user/old"):
        before = len(hub.requests)
        dry = hf_lam.push(tmp_path / "saved", repo_id, dry_run=True, token=TOKEN)
        assert not [str(request) for request in hub.requests[before:] if request.changes_something]
        assert dry.commit is None
        report = hf_lam.push(tmp_path / "saved", repo_id, token=TOKEN)
        assert (dry.files, dry.deleted, dry.repo_id) == (report.files, report.deleted, report.repo_id)
    assert dry.deleted == ("stale_hf_lam.py",)


def test_a_dry_run_needs_no_token_and_no_hub(hub: HubServer, lam_bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = hf_lam.push(lam_bert, "user/one", dry_run=True)
    assert "model.safetensors" in report.files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert hf_lam.push(lam_bert, "user/one", dry_run=True).files.keys() == report.files.keys()
    assert len(hub.requests) == asked


def test_private(hub: HubServer, lam_bert: Any) -> None:
    hf_lam.push(lam_bert, "user/one", private=True, token=TOKEN)
    assert hub.repos["user/one"].private
    assert len(hub.repos["user/one"].log) == 2


def test_a_branch_is_made_and_used_again(hub: HubServer, lam_bert: Any) -> None:
    report = hf_lam.push(lam_bert, "user/one", revision="try/this", token=TOKEN)
    repo = hub.repos["user/one"]
    assert report.revision == "try/this"
    assert set(repo.files()) == {".gitattributes"}
    assert set(repo.files("try/this")) == {".gitattributes", *report.files}
    again = hf_lam.push(lam_bert, "user/one", revision="try/this", tags=["again"], token=TOKEN)
    assert "again" in metadata_of(hub, revision="try/this")["tags"]
    assert again.commit is not None
    assert [one.branch for one in repo.log] == ["main", "try/this", "try/this"]
    assert set(repo.files()) == {".gitattributes"}


def test_a_pull_request_leaves_main_alone(hub: HubServer, lam_bert: Any) -> None:
    hub.repos["user/one"] = repository(hub)
    before = dict(hub.repos["user/one"].files())
    report = hf_lam.push(lam_bert, "user/one", create_pr=True, token=TOKEN)
    repo = hub.repos["user/one"]
    assert repo.files() == before
    assert report.commit is not None
    assert report.commit.pr_url == f"{hub.url}/user/one/discussions/1"
    assert set(report.files) <= set(repo.files("refs/pr/1"))
    assert "stale_hf_lam.py" not in repo.files("refs/pr/1")
    assert [one.branch for one in repo.log[-1:]] == ["refs/pr/1"]


def repository(hub: HubServer) -> Any:
    """One with something in it: code of another version, a file of its owner's, and a card that was written."""
    HfApi(token=TOKEN).create_repo("user/before")
    repo = hub.repos.pop("user/before")
    card = b"---\nlicense: mit\n---\n# My model\n\n## My own words\n\nOnly I can say this.\n"
    foreign = {"notes/mine.txt": b"mine", "demo.py": b"print()", "README.md": card}
    repo.commit("main", {**repo.files(), **foreign, "stale_hf_lam.py": b"import os"}, "by hand")
    return repo


def test_old_weights_and_code_go_and_what_is_foreign_stays(hub: HubServer, lam_bert: Any) -> None:
    hub.repos["user/one"] = repo = repository(hub)
    first = hf_lam.push(lam_bert, "user/one", max_shard_size="20KB", token=TOKEN)
    shards = {path for path in first.files if path.endswith(".safetensors")}
    assert len(shards) > 2
    assert first.deleted == ("stale_hf_lam.py",)
    second = hf_lam.push(lam_bert, "user/one", token=TOKEN)
    assert set(second.deleted) == shards | {"model.safetensors.index.json"}
    files = repo.files()
    assert set(files) == {".gitattributes", "notes/mine.txt", "demo.py", *second.files}
    assert [one.branch for one in repo.log] == ["main"] * 4
    card = files["README.md"].decode()
    assert card.count("Only I can say this.") == 1
    assert read_metadata(card)["license"] == "mit"
    third = hf_lam.push(lam_bert, "user/one", max_shard_size="20KB", token=TOKEN)
    assert third.deleted == ("model.safetensors",)


def test_pushing_the_same_again_is_no_commit(hub: HubServer, lam_bert: Any) -> None:
    first = hf_lam.push(lam_bert, "user/one", token=TOKEN)
    second = hf_lam.push(lam_bert, "user/one", token=TOKEN)
    assert first.commit is not None
    assert second.commit is not None
    assert second.commit.oid == first.commit.oid


def test_the_licence_is_that_of_the_base(hub: HubServer, lam_bert: Any) -> None:
    hub.repos["user/base"] = repository(hub)
    hf_lam.push(lam_bert, "user/one", base_model="user/base", token=TOKEN)
    metadata = metadata_of(hub)
    assert (metadata["license"], metadata["base_model"], metadata["base_model_relation"]) == (
        "mit",
        "user/base",
        "finetune",
    )
    hf_lam.push(lam_bert, "user/two", base_model="user/base", license="apache-2.0", token=TOKEN)
    assert metadata_of(hub, "user/two")["license"] == "apache-2.0"
    report = hf_lam.push(lam_bert, "user/three", base_model="user/missing", token=TOKEN)
    assert "license" not in metadata_of(hub, "user/three")
    assert [note for note in report.notes if "licen" in note]


# --- The token -------------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_alone(
    hub: HubServer, lam_bert: Any, tokenizer: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records = Records()
    loggers = [
        logging.getLogger(name) for name in ("huggingface_hub", "transformers", "hf_lam", "httpx2", "httpcore2")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(records)
        logger.setLevel(logging.DEBUG)
    try:
        report = hf_lam.push(lam_bert, "user/one", processor=tokenizer, private=True, token=TOKEN)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(records)
            logger.setLevel(level)
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err + "".join(records.texts) + repr(report)
    repo = hub.repos["user/one"]
    assert not [path for files in repo.commits.values() for path, data in files.items() if TOKEN.encode() in data]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    sent = {str(request).partition("/lfs/")[0]: request.headers.get("authorization") for request in hub.requests}
    assert sent.pop("PUT ") is None
    assert set(sent.values()) == {f"Bearer {TOKEN}"}
    assert not [str(request) for request in hub.requests if TOKEN in request.path + str(request.query)]
    assert not [str(request) for request in hub.requests if TOKEN.encode() in request.sent]


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


@pytest.mark.parametrize("secret", [TOKEN, "hf_" + "SomebodyElses" * 3])
def test_a_file_with_a_token_is_refused(
    hub: HubServer, lam_bert: Any, tmp_path: Path, tokenizer: Any, secret: str
) -> None:
    folder = tmp_path / "saved"
    lam_bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "token": secret}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json") as caught:
        hf_lam.push(folder, "user/one", token=TOKEN)
    assert secret not in str(caught.value)
    assert not [str(request) for request in hub.requests if request.changes_something]


def test_the_stored_token_is_used_and_refused_in_files_too(
    hub: HubServer, lam_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server.TOKEN", "short-secret")
    monkeypatch.setenv("HF_TOKEN", "short-secret")
    hf_lam.push(lam_bert, "user/one")
    assert len(hub.repos["user/one"].log) == 2
    model = make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1)
    model.config.note = "a short-secret inside"
    with pytest.raises(ValueError, match=r"config\.json"):
        hf_lam.push(model, "user/two")


# --- Arguments -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    hub: HubServer, lam_bert: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    stock = BertForSequenceClassification(BertConfig(**SIZES))
    attempts: list[tuple[Any, dict[str, Any]]] = [
        (object(), {}),
        (stock, {}),
        (BertForSequenceClassification(lam_bert.config), {}),
        (tmp_path / "missing", {}),
        (tmp_path / "empty", {}),
        (lam_bert, {"repo_id": "not an id"}),
        (lam_bert, {"repo_id": "a/b/c"}),
        (lam_bert, {"processor": "a name"}),
        (lam_bert, {"metrics": ["accuracy"]}),
        (lam_bert, {"metrics": {"f1": float("nan")}}),
    ]
    for model, options in attempts:
        with pytest.raises((TypeError, ValueError)):
            hf_lam.push(model, **{"repo_id": "user/one", "token": TOKEN, **options})
    assert [str(request) for request in hub.requests if request.changes_something] == []


@pytest.mark.slow
def test_pictures_of_a_push_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = make_lam(ViTForImageClassification, "vit")
    with HubServer() as hub:
        hub.serve(monkeypatch, tmp_path)
        report = hf_lam.push(model, "user/one", inputs=make_inputs("vit"), token=TOKEN)
        pictures = [path for path in report.files if path.endswith(".png")]
        assert pictures
        files = hub.repos["user/one"].files()
    card = files["README.md"].decode()
    for picture in pictures:
        assert f"]({picture})" in card
        assert files[picture].startswith(b"\x89PNG")


# --- What an earlier model has left ----------------------------------------------------------------------------------


def test_what_a_run_measured_wins_over_an_older_card(hub: HubServer, lam_bert: Any, tmp_path: Path) -> None:
    lam_bert.save_pretrained(tmp_path)
    old = EvalResult("text-classification", "user/old", "Old", "accuracy", 0.95, dataset_split="validation")
    cards.write_card(lam_bert, tmp_path, results=[old])
    hf_lam.push(tmp_path, "user/one", token=TOKEN)
    assert results_of(metadata_of(hub)) == {"accuracy": 0.95}
    (tmp_path / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.55, "eval_samples": 9}))
    hf_lam.push(tmp_path, "user/one", token=TOKEN)
    assert results_of(metadata_of(hub)) == {"accuracy": 0.55}
    # Trained on, and saved beside the card of what it was; nothing was measured.
    (tmp_path / "eval_results.json").unlink()
    make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1, seed=7).save_pretrained(tmp_path)
    hf_lam.push(tmp_path, "user/one", token=TOKEN)
    assert "model-index" not in metadata_of(hub)
    lam_bert.save_pretrained(tmp_path, push_to_hub=True, repo_id="user/two", token=TOKEN, max_shard_size="20KB")
    assert "model-index" not in metadata_of(hub, "user/two")
    assert "model.safetensors.index.json" in hub.repos["user/two"].files()
    with pytest.raises(ValueError, match="variant"):
        lam_bert.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="user/two", variant="fp16")


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        ("adapter_config.json", True),
        ("adapter_model.safetensors", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("model.safetensors.index.json", True),
        ("modeling_hf_lam.py", True),
        ("my_hf_lam_tools.py", False),
        ("notes/model.safetensors", False),
        ("config.json", False),
    ],
)
def test_what_would_be_loaded_instead_is_deleted(path: str, goes: bool) -> None:
    assert pushing._is_own(path, TRAVELLING_FILES) is goes


def test_terms_of_a_licence_with_a_name(hub: HubServer, lam_bert: Any) -> None:
    hub.repos["user/base"] = base = repository(hub)
    terms = "license: other\nlicense_name: llama3\nlicense_link: LICENSE"
    card = base.files()["README.md"].replace(b"license: mit", terms.encode())
    base.commit("main", {**base.files(), "README.md": card}, "terms")
    hub.repos["user/one"] = repository(hub)
    hf_lam.push(lam_bert, "user/one", base_model="user/base", token=TOKEN)
    metadata = metadata_of(hub)
    assert (metadata["license"], metadata["license_name"]) == ("other", "llama3")
    assert metadata["license_link"] == f"{hub.url}/user/base/blob/main/LICENSE"


def test_a_public_repository_that_stays_so_is_said(hub: HubServer, lam_bert: Any) -> None:
    hf_lam.push(lam_bert, "user/one", private=False, token=TOKEN)
    report = hf_lam.push(lam_bert, "user/one", private=True, token=TOKEN)
    assert [note for note in report.notes if "stays public" in note]
    assert [note for note in report.notes if "no base model" in note]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"eval_accuracy": 0.5, "eval_loss": 1.0, "eval_runtime": 3.0}, {"accuracy", "loss"}),
        (
            {"eval_matched_accuracy": 0.5, "eval_matched_runtime": 1.0, "eval_matched_samples_per_second": 3.0},
            {"matched_accuracy"},
        ),
        ({"train_loss": 1.0, "epoch": 3.0, "f1": 0.5, "step": 7}, {"f1"}),
    ],
)
def test_runtimes_are_no_metrics(metrics: dict[str, float], expected: set[str]) -> None:
    assert {row.metric for row in folders.measured(metrics)} == expected


def test_a_sharded_model_is_known_by_the_class_below(lam_bert: Any) -> None:
    sharded = copy.copy(lam_bert)
    sharded.__class__ = type("FSDPHfLamBertForSequenceClassification", (type(lam_bert),), {})
    assert cards.saved_class(sharded) is type(lam_bert)
    text = cards.model_card(sharded, name="some").text
    assert "FSDP" not in text
    assert "AutoModelForSequenceClassification" in text


def test_the_last_push_gives_the_session_its_limit_back() -> None:
    session = get_session()
    before = session.timeout
    first, second = remote.limited_waiting(), remote.limited_waiting()
    first.__enter__()
    session.timeout = remote.TIMEOUT
    second.__enter__()
    first.__exit__(None, None, None)
    assert get_session().timeout != before
    second.__exit__(None, None, None)
    assert get_session().timeout == before


def test_results_that_are_older_than_the_weights_are_left_out(
    hub: HubServer, lam_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lam_bert.save_pretrained(tmp_path)
    results = tmp_path / "eval_results.json"
    results.write_text(json.dumps({"eval_accuracy": 0.9}))
    os.utime(results, (1, 1))
    report = hf_lam.push(tmp_path, "user/one", token=TOKEN)
    assert "model-index" not in metadata_of(hub)
    assert "eval_results.json" not in report.files
    assert [note for note in report.notes if "older than the weights" in note]
    # The card is known to be that of the weights, which a run may have saved once more.
    cards.write_card(lam_bert, tmp_path)
    hf_lam.push(tmp_path, "user/one", token=TOKEN)
    assert results_of(metadata_of(hub)) == {"accuracy": 0.9}
    checkpoint = tmp_path / "checkpoint-3"
    lam_bert.save_pretrained(checkpoint)
    state = {"global_step": 3, "log_history": [{"step": 3, "eval_f1": 0.75}, {"step": 2, "eval_f1": 0.5}]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    monkeypatch.chdir(checkpoint)
    hf_lam.push(".", "user/two", token=TOKEN)
    assert results_of(metadata_of(hub, "user/two")) == {"f1": 0.75}
    (checkpoint / "trainer_state.json").write_text("{}")
    hf_lam.push(".", "user/two", token=TOKEN)
    assert "model-index" not in metadata_of(hub, "user/two")


def test_trained_on_and_pushed_back_the_base_stays(hub: HubServer, lam_bert: Any) -> None:
    model = copy.copy(lam_bert)
    model.config = copy.deepcopy(lam_bert.config)
    hf_lam.push(model, "user/one", base_model="user/base", tags=["image", "mine"], token=TOKEN)
    model.config._name_or_path = "user/one"
    hf_lam.push(model, "user/one", token=TOKEN)
    metadata = metadata_of(hub)
    assert metadata["base_model"] == "user/base"
    assert "mine" in metadata["tags"]
    assert "image" not in metadata["tags"]


def test_what_was_measured_of_another_model_is_not_kept(hub: HubServer, lam_bert: Any) -> None:
    hub.repos["user/one"] = repo = repository(hub)
    card = b"---\nco2_eq_emissions: 1.5\nextra_gated_prompt: Be good.\n---\n# Old\n\nIntro.\n\n# Appendix\n\nKept.\n"
    repo.commit("main", {**repo.files(), "README.md": card}, "by hand")
    hf_lam.push(lam_bert, "user/one", token=TOKEN)
    metadata = metadata_of(hub)
    assert "co2_eq_emissions" not in metadata
    assert metadata["extra_gated_prompt"] == "Be good."
    assert "## Appendix\n\nKept." in repo.files()["README.md"].decode()


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), 0.5])
def test_numbers_of_numpy_are_numbers(hub: HubServer, lam_bert: Any, value: Any) -> None:
    result = EvalResult("text-classification", "user/reviews", "Reviews", "f1", value)
    hf_lam.push(lam_bert, "user/one", metrics=[result], token=TOKEN)
    assert results_of(metadata_of(hub)) == {"f1": 0.5}


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": [1]},
        {"tags": 5},
        {"dataset": 3},
        {"base_model": 3},
        {"license": 3},
        {"license": "MIT License"},
        {"revision": ""},
        {"metrics": [EvalResult("t", "d", "d", "f1", float("inf"))]},
        {"metrics": [EvalResult("t", "d", "d", "f1", True)]},
        {"metrics": {1: 0.5}},
    ],
)
def test_other_wrong_arguments(hub: HubServer, lam_bert: Any, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        hf_lam.push(lam_bert, "user/one", **options, token=TOKEN)
    assert hub.requests == []
