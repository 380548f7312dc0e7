"""The model card that a fine-tuning run writes, and what of a run goes to the Hub."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import BertForSequenceClassification, BertModel, BertTokenizerFast

from helpers.hosts import CONFIGS, make_model, mechanisms
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import make_lam
from helpers.processes import ROOT, run_code, run_process
from hf_lam import LamConfig
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES
from hf_lam.training import HfLamTrainer, HfLamTrainingArguments
from hf_lam.training.arguments import DataArguments, ModelArguments
from hf_lam.training.finetuning import Task
from hf_lam.training.goals import Classes
from hf_lam.training.labels import Labels
from hf_lam.training.model_card import write_model_card

RESULTS = {
    "train_loss": 0.7131,
    "train_runtime": 12.34,
    "train_samples": 1234,
    "eval_accuracy": 0.8765432109,
    "eval_f1": 0.7654321098,
    "eval_loss": 0.3344,
    "eval_runtime": 5.678,
    "eval_samples": 55,
    "predict_accuracy": 0.6543210987,
    "predict_samples": 44,
    "epoch": 1.0,
}
# A path from the root, and not a part of an address or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.:/])/\w|[A-Z]:\\")


def card_of(
    folder: Path,
    model: Any,
    arguments: dict[str, Any],
    data: dict[str, Any],
    results: dict[str, float] | None = None,
    task_name: str = "text-classification",
    splits: Any = None,
    labels: Labels | None = None,
    is_held_out: bool = False,
    **training: Any,
) -> ModelCard:
    """The card of a run that was not made."""
    options = {"output_dir": str(folder / "out"), "use_cpu": True, "report_to": "none", **training}
    given = HfLamTrainingArguments(**options)
    trainer = HfLamTrainer(model=model, args=given)
    goal = Classes(labels or Labels(("bad", "good")))
    task = Task(
        ModelArguments(**arguments), DataArguments(**data), given, splits or {}, goal, None, is_held_out=is_held_out
    )
    write_model_card(folder, trainer, task, task_name, RESULTS if results is None else results)
    return ModelCard.load(folder / "README.md")


@pytest.fixture(scope="module")
def lam_bert() -> Any:
    return make_lam(BertForSequenceClassification, "bert", LamConfig(rank=2))


def test_the_metadata_are_read_back_with_the_metrics_of_the_run(lam_bert: Any, tmp_path: Path) -> None:
    arguments = {"model_name_or_path": "user/some-bert", "mechanism": ["lam"], "freeze_host": True}
    data = {"dataset_name": "user/reviews", "dataset_config_name": "short", "validation_split_name": "dev"}
    card = card_of(
        tmp_path, lam_bert, arguments, data, hub_model_id="user/mine", mechanism_learning_rate=3e-3, seed=77
    )
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert metadata["base_model"] == "user/some-bert"
    assert metadata["datasets"] == ["user/reviews"]
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["tags"] == ["hf_lam", "lam"]
    assert metadata["metrics"] == ["accuracy", "f1"]
    name, measured = model_index_to_eval_results(metadata["model-index"])
    assert name == "mine"
    found = {(x.dataset_split, x.metric_type): x.metric_value for x in measured}
    assert found == {
        ("dev", "accuracy"): RESULTS["eval_accuracy"],
        ("dev", "f1"): RESULTS["eval_f1"],
        ("test", "accuracy"): RESULTS["predict_accuracy"],
    }
    assert {(x.dataset_type, x.dataset_config, x.task_type) for x in measured} == {
        ("user/reviews", "short", "text-classification")
    }
    for text in (
        "[user/some-bert](https://hf.co/user/some-bert)",
        "| Accuracy | user/reviews | dev | 0.8765 |",
        "| Loss | user/reviews | dev | 0.3344 |",
        "| Learning rate of the mechanisms | 0.003 |",
        "| Seed | 77 |",
        "| Frozen | all but ",
        "`rank=2`",
        "1,234 samples for training",
        'name = "user/mine"',
        "trust_remote_code=True",
        "2406.02761",
    ):
        assert text in card.text, text
    # What is measured of the machine says nothing about the model; what was not asked for is not mentioned.
    for text in ("12.34", "5.678", "LoRA", "Distillation", "2402.15096", "held out", "None"):
        assert text not in card.text, text


def test_paths_of_this_machine_stay_here(lam_bert: Any, tmp_path: Path) -> None:
    for name in ("checkpoint", "teacher"):
        (tmp_path / name).mkdir()
    for name in ("some.csv", "other.csv"):
        (tmp_path / name).write_text("text,label\n")
    files = {"train_file": str(tmp_path / "some.csv"), "validation_file": str(tmp_path / "other.csv")}
    arguments = {
        "model_name_or_path": str(tmp_path / "checkpoint"),
        "teacher_model": str(tmp_path / "teacher"),
        "lora_rank": 4,
    }
    card = card_of(tmp_path, lam_bert, arguments, files)
    metadata = card.data.to_dict()
    assert not {"base_model", "datasets"} & set(metadata)
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "other.csv"
    assert str(tmp_path) not in card.content
    assert not ABSOLUTE.search(card.content)
    assert "Distillation | from a local folder (`teacher`), weight 0.5" in card.text
    assert "rank 4" in card.text
    assert "peft " in card.text
    folder = card_of(tmp_path, lam_bert, arguments, {"data_dir": str(tmp_path)})
    assert f"A local folder, `{tmp_path.name}`" in folder.text
    assert not ABSOLUTE.search(folder.content)


def test_nothing_is_said_that_was_not_measured(tmp_path: Path, lam_bert: Any) -> None:
    arguments = {"model_name_or_path": "user/some-bert", "from_scratch": True}
    card = card_of(tmp_path, lam_bert, arguments, {"dataset_name": "user/reviews"}, results={})
    assert not {"base_model", "model-index", "metrics"} & set(card.data.to_dict())
    assert "## Results" not in card.text
    assert "samples for" not in card.text
    assert "trained from random weights, with the configuration of [user/some-bert]" in card.text


def test_a_held_out_part_of_the_training_data_is_not_called_their_validation_split(
    tmp_path: Path, lam_bert: Any
) -> None:
    card = card_of(
        tmp_path, lam_bert, {"model_name_or_path": "user/b"}, {"dataset_name": "user/reviews"}, is_held_out=True
    )
    found = model_index_to_eval_results(card.data.to_dict()["model-index"])[1]
    assert {x.dataset_split for x in found} == {None, "test"}
    assert "held out of the training data" in card.text


def test_numbers_that_are_predicted_are_no_classes(tmp_path: Path, lam_bert: Any) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    sources = {"model_name_or_path": "user/b"}, {"train_dir": str(tmp_path / "one"), "test_dir": str(tmp_path / "two")}
    results = {"train_samples": 10, "eval_loss": 0.5, "eval_mse": 0.5, "eval_pearson": 0.25}
    labels = Labels(("stars",), is_regression=True)
    card = card_of(tmp_path, lam_bert, *sources, results, labels=labels)
    assert "Local folders: `one`, `two`" in card.text
    assert "One number per sample (regression): `stars`" in card.text
    found = model_index_to_eval_results(card.data.to_dict()["model-index"])[1]
    assert {x.metric_name: x.metric_value for x in found if x.metric_type != "loss"} == {
        "Mean squared error": 0.5,
        "Pearson correlation": 0.25,
    }


def test_mechanisms_are_those_of_the_model(tmp_path: Path) -> None:
    both = make_lam(BertForSequenceClassification, "bert", mechanisms("lam", "bert"))
    assert set(both.config.hf_lam) >= {"lam", "locomt"}
    card = card_of(tmp_path, both, {"model_name_or_path": "user/b"}, {"dataset_name": "user/r"})
    assert card.data.tags == ["hf_lam", "lam", "locomt"]
    assert "2402.15096" in card.text
    stock = make_model(BertForSequenceClassification, "bert")
    card = card_of(tmp_path, stock, {"model_name_or_path": "user/b"}, {"dataset_name": "user/r"})
    assert card.data.tags == ["hf_lam"]
    assert "## Citation" not in card.text
    assert "trust_remote_code" not in card.text


# --- A run ends on the Hub -------------------------------------------------------------------------------------------

LOAD = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps([type(model).__name__, model(**tokenizer("good", return_tensors="pt")).logits.shape[-1]]))
"""


@pytest.mark.slow
def test_a_pushed_run_has_its_metrics_code_and_tokenizer_and_no_pickle(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(CONFIGS["bert"](**sizes, vocab_size=len(words))).save_pretrained(tmp_path / "bert")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=16).save_pretrained(tmp_path / "bert")
    rows = [{"text": word, "label": int(word == "good")} for word in ("good", "bad") * 8]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with HubServer() as hub:
        command = [sys.executable, str(ROOT / "examples" / "run_text_classification.py")]
        options = {
            "model_name_or_path": tmp_path / "bert",
            "train_file": tmp_path / "rows.jsonl",
            "mechanism": "lam",
            "output_dir": tmp_path / "out",
            "max_steps": 4,
            "save_steps": 2,
            "hub_model_id": "user/tiny",
            "hub_token": TOKEN,
            "report_to": "none",
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        run_process(
            [*command, *given, "--do_train", "--do_eval", "--push_to_hub", "--use_cpu"],
            environment=hub.environment(tmp_path / "cache"),
        )
        files = hub.repos["user/tiny"].files()
        commits = hub.repos["user/tiny"].commits.values()
        loaded = run_code(LOAD, "user/tiny", hf_lam=False, environment=hub.environment(tmp_path / "other", token=None))
    assert json.loads(loaded.splitlines()[-1]) == ["HfLamBertForSequenceClassification", 2]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", *TRAVELLING_FILES} <= set(files)
    for commit in commits:
        assert not [name for name in commit if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        # What has weights can be loaded, also while the training goes on.
        assert "model.safetensors" not in commit or set(TRAVELLING_FILES) <= set(commit)
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    card = files["README.md"].decode()
    assert not ABSOLUTE.search(card)
    (tmp_path / "README.md").write_text(card)
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    measured = model_index_to_eval_results(metadata["model-index"])[1]
    assert {x.metric_type: x.metric_value for x in measured} == {
        name: results[f"eval_{name}"] for name in ("accuracy", "f1")
    }
