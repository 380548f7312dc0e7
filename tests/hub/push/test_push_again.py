"""Pushing to a repository that has a model already: what goes, what stays, and what is kept of the older card."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import EvalResult, get_session
from transformers import (
    BertForSequenceClassification,
)

import hf_lam
from helpers.card_metadata import read_metadata
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import make_lam
from helpers.pushing import metadata_of, repository, results_of
from hf_lam.hub import cards, folders, pushing, remote
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES


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


@pytest.mark.slow
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


@pytest.mark.slow
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
