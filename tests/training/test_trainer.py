"""HfLam models under transformers' `Trainer`, on the CPU in fp32 unless a test says otherwise."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    TrainerCallback,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

import hf_lam
from helpers.checkpointing import checkpointing_arguments
from helpers.hosts import first_output, make_inputs, mechanisms
from helpers.lam_models import (
    assert_same_weights,
    changed_names,
    make_lam,
    make_samples,
    make_trainer,
    stacked,
    weights_of,
)
from helpers.processes import run_code
from hf_lam import LamConfig

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
SHARED = LamConfig(scope="shared")
SHARED_LOW_RANK = LamConfig(scope="shared", rank=2, per_head=True)
# Stock class, host, mechanisms, changes to the host's configuration.
CASES: dict[str, tuple[type, str, Any, dict[str, Any]]] = {
    "bert": (BertForSequenceClassification, "bert", LamConfig(), DROPOUT),
    "bert_masked_lm": (BertForMaskedLM, "bert", SHARED_LOW_RANK, DROPOUT),
    "bert_tokens": (BertForTokenClassification, "bert", LamConfig(source="embeddings"), {"num_labels": 3}),
    "vit": (ViTForImageClassification, "vit", LamConfig(), {"num_labels": 3}),
    "videomae": (VideoMAEForVideoClassification, "videomae", SHARED, {"num_labels": 3}),
    "bert_views": (BertForSequenceClassification, "bert", mechanisms("lam", "bert"), DROPOUT),
    "bert_mixture": (BertForSequenceClassification, "bert", mechanisms("mixture_trained", "bert"), DROPOUT),
    "vit_dense": (ViTForImageClassification, "vit", mechanisms("dense", "vit"), {"num_labels": 3}),
    "videomae_random": (VideoMAEForVideoClassification, "videomae", mechanisms("random", "videomae"), {}),
    "vit_bottleneck": (ViTForImageClassification, "vit", mechanisms("bottleneck", "vit"), {"num_labels": 3}),
}


def quick_or_slow(cases: Iterable[str]) -> list[Any]:
    """All cases; of those that share their mechanism or their host with others, most are slow."""
    quick = ("bert", "vit")
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def make_case(name: str, seed: int = 0, **config: Any) -> Any:
    stock_class, host, lam, changes = CASES[name]
    return make_lam(stock_class, host, lam, seed=seed, **{**changes, **config})


class Recorder(TrainerCallback):
    """The weights when training begins, after whatever was restored, and at the end of each step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights_of(kwargs["model"])

    on_step_end = on_train_begin


class Killer(TrainerCallback):
    def __init__(self, step: int, really: bool = False) -> None:
        self.step, self.really = step, really

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("killed")


def train_and_kill(case: str, folder: str, really: bool = False) -> None:
    make_trainer(make_case(case), Path(folder), Killer(5, really), save_strategy="steps", save_steps=3).train()


def assert_resumed_equals_uninterrupted(case: str, folder: Path) -> None:
    """The run in `folder` was killed after its checkpoint of step 3; the resumed model starts with other weights."""
    uninterrupted = Recorder()
    make_trainer(make_case(case), folder.parent / "uninterrupted", uninterrupted).train()
    resumed = Recorder()
    trainer = make_trainer(make_case(case, seed=1), folder, resumed)
    trainer.train(resume_from_checkpoint=True)
    assert sorted(resumed.weights) == [3, 4, 5, 6]
    assert_same_weights(resumed.weights[3], uninterrupted.weights[3])
    assert_same_weights(weights_of(trainer.model), uninterrupted.weights[6])


@pytest.mark.slow
@pytest.mark.parametrize("case", quick_or_slow(CASES))
def test_killed_and_resumed_equals_uninterrupted(case: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train_and_kill(case, str(tmp_path / "run"))
    assert_resumed_equals_uninterrupted(case, tmp_path / "run")


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path: Path) -> None:
    case = "vit"
    code = "import sys, training.test_trainer as tests; tests.train_and_kill(sys.argv[1], sys.argv[2], really=True)"
    run_code(code, case, tmp_path / "run", expect=-signal.SIGKILL)
    assert_resumed_equals_uninterrupted(case, tmp_path / "run")


@pytest.mark.parametrize("case", quick_or_slow(CASES))
def test_the_best_model_is_restored_at_the_end(case: str, tmp_path: Path) -> None:
    scores = iter([0.2, 0.9, 0.5, 0.1])
    recorder = Recorder()
    model = make_case(case)
    trainer = make_trainer(
        model,
        tmp_path,
        recorder,
        more={
            "compute_metrics": lambda _: {"score": next(scores)},
            "eval_dataset": make_samples(model, CASES[case][1], 2),
        },
        max_steps=4,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert changed_names(recorder.weights[2], recorder.weights[4]) == set(recorder.weights[2])
    assert_same_weights(weights_of(model), recorder.weights[2])


LOAD_CHECKPOINTS = """
import json, sys
import torch, transformers
from safetensors.torch import load_file

results = {}
for name, (folder, auto_class) in json.loads(sys.argv[1]).items():
    tensors = load_file(f"{folder}/expected.safetensors")
    expected = tensors.pop("expected")
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        gap = (model(**tensors)[0] - expected).abs().max().item()
    results[name] = [gap, type(model).__name__, type(base).__name__, type(config).__name__]
print(json.dumps(results))
"""


@pytest.mark.slow
def test_checkpoints_carry_the_code_of_the_whole_family(tmp_path: Path) -> None:
    heads = {
        "bert_tokens": "AutoModelForTokenClassification",
        "vit": "AutoModelForImageClassification",
        "videomae": "AutoModelForVideoClassification",
    }
    folders = {}
    for case, auto_class in heads.items():
        model = make_case(case)
        make_trainer(model, tmp_path / case, max_steps=1, save_strategy="steps", save_steps=1).train()
        checkpoint = tmp_path / case / "checkpoint-1"
        auto_map = json.loads((checkpoint / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", *type(model.config).auto_classes}
        assert all((checkpoint / f"{value.split('.')[0]}.py").is_file() for value in auto_map.values())
        inputs = make_inputs(CASES[case][1])
        with torch.no_grad():
            expected = first_output(model.eval(), inputs)
        save_file({**inputs, "expected": expected}, checkpoint / "expected.safetensors")
        folders[case] = (str(checkpoint), auto_class)
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    printed = run_code(LOAD_CHECKPOINTS, json.dumps(folders), hf_lam=False, environment=environment)
    assert json.loads(printed.splitlines()[-1]) == {
        "bert_tokens": [0.0, "HfLamBertForTokenClassification", "HfLamBertModel", "HfLamBertConfig"],
        "vit": [0.0, "HfLamViTForImageClassification", "HfLamViTModel", "HfLamViTConfig"],
        "videomae": [0.0, "HfLamVideoMAEForVideoClassification", "HfLamVideoMAEModel", "HfLamVideoMAEConfig"],
    }


def trained_weights(model: Any, folder: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    # SGD without clipping: the change of the weights is the gradient, which Adam's scaling would hide.
    options = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 2}
    trainer = make_trainer(model, folder, **{**options, "learning_rate": 0.1, **arguments})
    trainer.train()
    losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    return {**weights_of(model), "reported losses": losses}


ACCUMULATION_CASES = {
    **{name: (*case[:3], {**case[3], **dict.fromkeys(DROPOUT, 0.0)}) for name, case in CASES.items()},
    "bert_answers": (BertForQuestionAnswering, "bert", LamConfig(), {}),
}


@pytest.mark.parametrize("case", quick_or_slow(ACCUMULATION_CASES))
def test_a_batch_of_eight_equals_two_accumulated_of_four(case: str, tmp_path: Path) -> None:
    stock_class, host, lam, config = ACCUMULATION_CASES[case]
    make = lambda: make_lam(stock_class, host, lam, **config)  # noqa: E731
    before = weights_of(make())
    whole = trained_weights(make(), tmp_path, per_device_train_batch_size=8)
    split = trained_weights(make(), tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert {name for name in before if ".hf_lam." in name} <= changed_names(before, whole)
    assert len(whole["reported losses"]) == 2
    assert_same_weights(split, whole, tolerance=1e-5)


@pytest.mark.parametrize("case", ["bert_masked_lm", "bert_tokens"])
def test_a_part_of_a_batch_may_have_no_labelled_token(case: str, tmp_path: Path) -> None:
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        stock_class, host, lam, config = ACCUMULATION_CASES[case]
        model = make_lam(stock_class, host, lam, **config)
        samples = make_samples(model, host, 8)
        for sample in samples[:-1]:
            sample["labels"] = torch.full_like(sample["labels"], -100)
        # The filter would hide a loss that is not a number.
        arguments["logging_nan_inf_filter"] = False
        return trained_weights(model, tmp_path, samples=samples, max_steps=1, **arguments)

    whole = run(per_device_train_batch_size=8)
    split = run(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same_weights(split, whole, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize(
    ("case", "lam"),
    [("bert", SHARED), ("bert", LamConfig(source="embeddings")), ("vit", SHARED), ("videomae", SHARED)],
    ids=["bert-shared", "bert-embeddings", "vit-shared", "videomae-shared"],
)
def test_gradient_checkpointing_changes_nothing(
    case: str, lam: LamConfig, use_reentrant: bool, tmp_path: Path
) -> None:
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        stock_class, host, _, config = CASES[case]
        return trained_weights(make_lam(stock_class, host, lam, **config), tmp_path, **arguments)

    checkpointed = run(**checkpointing_arguments(use_reentrant))
    assert_same_weights(checkpointed, run(), tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lam", [LamConfig(), SHARED], ids=["per_layer", "shared"])
def test_reentrant_checkpointing_with_a_frozen_host(lam: LamConfig, tmp_path: Path) -> None:
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        model = hf_lam.freeze_host(make_lam(BertForSequenceClassification, "bert", lam), train_head=True)
        return trained_weights(model, tmp_path, **arguments)

    checkpointed = run(**checkpointing_arguments(True))
    assert_same_weights(checkpointed, run(), tolerance=1e-6)


@pytest.mark.parametrize("case", ["bert", "bert_masked_lm", "vit", "videomae"])
def test_bf16_autocast_learns(case: str, tmp_path: Path) -> None:
    model = make_case(case, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    samples = make_samples(model, CASES[case][1], 9)[5:]
    trainer = make_trainer(model, tmp_path, samples=samples, bf16=True, max_steps=15, learning_rate=3e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 15
    assert losses[-1] < 0.5 * losses[0]
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_frozen_host_does_not_move(case: str, tmp_path: Path) -> None:
    model = hf_lam.freeze_host(make_case(case))
    before = weights_of(model)
    make_trainer(model, tmp_path, weight_decay=0.1, max_steps=2).train()
    assert changed_names(before, weights_of(model)) == {name for name in before if ".hf_lam." in name}


def test_a_frozen_host_with_a_trained_head(tmp_path: Path) -> None:
    model = hf_lam.freeze_host(make_case("vit"), train_head=True)
    before = weights_of(model)
    make_trainer(model, tmp_path, max_steps=2).train()
    expected = {name for name in before if ".hf_lam." in name or name.startswith("classifier.")}
    assert changed_names(before, weights_of(model)) == expected


def test_evaluation_loss_is_the_mean_over_labelled_tokens(tmp_path: Path) -> None:
    model = make_case("bert_tokens")
    samples = make_samples(model, "bert", 4)
    trainer = make_trainer(model, tmp_path, per_device_eval_batch_size=4)
    logits = model(**stacked(samples)).logits.detach()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), stacked(samples)["labels"].flatten())
    assert trainer.evaluate(samples)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("host", "name"), [("bert", "half"), ("videomae", "annealing"), ("videomae", "frozen")])
def test_mechanisms_without_parameters_of_their_own(host: str, name: str, tmp_path: Path) -> None:
    stock_class = BertForSequenceClassification if host == "bert" else VideoMAEForVideoClassification
    model = make_lam(stock_class, host, mechanisms(name, host))
    trainer = make_trainer(model, tmp_path, max_steps=15, learning_rate=3e-3, save_strategy="steps", save_steps=15)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    inputs = make_inputs(host, token_types=True)
    expected = first_output(model.eval(), inputs)
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-15")
    assert torch.equal(first_output(loaded, inputs), expected)
    assert loaded.config.hf_lam == model.config.hf_lam
