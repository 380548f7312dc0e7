"""Pushing: one commit with everything, whatever it is pushed from, and nothing that does not belong there."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import EvalResult, HfApi
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
    ViTForImageClassification,
    ViTImageProcessor,
)

import hf_lam
from helpers.captioners import make_captioner
from helpers.card_metadata import read_metadata
from helpers.fusion_decoders import family_config
from helpers.fusion_models import fusion_config, make_fusion
from helpers.hosts import CONVERTIBLE, SIZES, make_inputs
from helpers.hub_server import GITATTRIBUTES, TOKEN, HubServer
from helpers.lam_models import make_lam, make_trainer
from helpers.pushing import PICTURE, metadata_of, repository, results_of
from hf_lam.modeling.license_hf_lam import LICENSE_FILE
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

MODELS = [
    name
    for name in hf_lam.__all__
    if isinstance(found := getattr(hf_lam, name), type) and issubclass(found, PreTrainedModel)
]
# Two are tried with the quick tests.
QUICK = ["HfLamBertForSequenceClassification", "HfLamFusionModel"]
OTHERS = [name for name in MODELS if name not in QUICK]
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    return BertTokenizerFast(str(vocabulary), model_max_length=16)


def make_any(name: str) -> Any:
    """A tiny model of an `HfLam…` class."""
    if name == "HfLamVisionEncoderDecoderModel":
        return hf_lam.convert(make_captioner("lam", "bert"))
    if name.startswith("HfLamFusion"):
        written = {"decoder": family_config("gpt2")} if name.endswith("ForConditionalGeneration") else {}
        return getattr(hf_lam, name)(fusion_config(("text", "image"), hf_lam="lam", **written))
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
    assert expected | {LICENSE_FILE} | set(TRAVELLING_FILES) == set(report.files)
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
    monkeypatch.setattr("helpers.hub_server.TOKEN", "short-secret")
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
