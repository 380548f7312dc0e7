"""HfLamTrainer with a teacher: the loss, and that the teacher is left as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy, cross_entropy, softmax
from transformers import (
    BertForSequenceClassification,
)

import hf_lam
from helpers.hf_lam_trainer import DROPOUT, SGD, make_bert, make_teacher, slow, trainer_of
from helpers.hosts import make_model, mechanisms
from helpers.lam_models import (
    assert_same_weights,
    make_lam,
    make_samples,
    stacked,
    weights_of,
)
from hf_lam import LamConfig
from hf_lam.training.distillation import distillation_loss


def test_distillation_loss_is_hintons() -> None:
    student, teacher = torch.randn(5, 3, requires_grad=True), 3 * torch.randn(5, 3)
    p, q = softmax(teacher / 2, -1), softmax(student / 2, -1)
    expected = 4 * (p * (p.log() - q.log())).sum(-1).mean()
    loss = distillation_loss(student, teacher, 2.0)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, 2 * (q - p).detach() / 5)
    assert distillation_loss(teacher.bfloat16(), teacher.bfloat16(), 2.0).item() == 0.0
    assert distillation_loss(teacher.bfloat16(), student.bfloat16(), 2.0).dtype == torch.float32


def test_distillation_loss_of_several_labels() -> None:
    student, teacher = torch.randn(5, 3), 3 * torch.randn(5, 3)
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    expected = 4 * (binary_cross_entropy(q, p) - binary_cross_entropy(p, p))
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0, is_multi_label=True), expected)
    assert distillation_loss(teacher, teacher, 2.0, is_multi_label=True).item() == 0.0
    large = distillation_loss(torch.tensor([[-500.0]]), torch.tensor([[500.0]]), 1.0, is_multi_label=True)
    assert large.item() == 500.0


def test_distillation_loss_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) from the model and \(2, 4\) from the teacher"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"got \(2, 5, 3\) from the model"):
        distillation_loss(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3))


@pytest.mark.parametrize("case", ["classes", "smoothed", "several_labels", "own_loss"])
def test_the_loss_with_a_teacher(case: str, tmp_path: Path) -> None:
    model, teacher = make_bert(), make_teacher()
    samples = make_samples(model, "bert", 4)
    if case == "several_labels":
        for sample in samples:
            sample["labels"] = torch.randint(0, 2, (3,)).float()
    batch = stacked(samples)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, teacher_logits = model(**inputs).logits, teacher(**inputs).logits
    more: dict[str, Any] = {"teacher": teacher, "eval_dataset": samples}
    if case == "several_labels":
        task = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
    elif case == "own_loss":
        more["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: (
            2 * cross_entropy(outputs.logits, labels, reduction="sum") / (num_items_in_batch or len(labels))
        )
        task = 2 * cross_entropy(logits, batch["labels"])
    else:
        task = cross_entropy(logits, batch["labels"], label_smoothing=0.1 if case == "smoothed" else 0.0)
    term = distillation_loss(logits, teacher_logits, 3.0, case == "several_labels")
    assert term.item() > 0.05
    trainer = trainer_of(
        model,
        tmp_path,
        samples,
        more,
        max_steps=1,
        per_device_eval_batch_size=4,
        label_smoothing_factor=0.1 if case == "smoothed" else 0.0,
        distillation_weight=0.3,
        distillation_temperature=3.0,
    )
    evaluated = trainer.evaluate()["eval_loss"]
    assert evaluated == pytest.approx(task.item(), rel=1e-5)
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx((0.7 * task + 0.3 * term).item(), rel=1e-4)


def test_outputs_are_returned_with_the_loss(tmp_path: Path) -> None:
    model = make_bert()
    trainer = trainer_of(model, tmp_path, more={"teacher": make_teacher()})
    batch = stacked(make_samples(model, "bert", 4))
    loss, outputs = trainer.compute_loss(model.train(), dict(batch), return_outputs=True)
    assert torch.equal(loss, trainer.compute_loss(model, dict(batch)))
    assert outputs.logits.shape == (4, 3)
    assert not torch.equal(loss, outputs.loss)


def test_the_teacher_is_left_as_it_is(tmp_path: Path) -> None:
    teacher = make_teacher(**DROPOUT).train()
    before = weights_of(teacher)
    model = make_bert()
    trainer = trainer_of(model, tmp_path, more={"teacher": teacher})
    trainer.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert_same_weights(weights_of(teacher), before)
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("case", [slow("lam"), "stock", slow("own_loss")])
def test_eight_with_a_teacher_equal_two_accumulated_of_four(case: str, tmp_path: Path) -> None:
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        model = make_bert() if case != "stock" else make_model(BertForSequenceClassification, "bert", num_labels=3)
        more: dict[str, Any] = {"teacher": make_teacher()}
        if case == "own_loss":
            more["compute_loss_func"] = lambda outputs, labels, num_items_in_batch: (
                cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
            )
        trainer = trainer_of(model, tmp_path, make_samples(model, "bert", 16), more, **SGD, **arguments)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {**weights_of(model), "losses": torch.tensor(losses)}

    whole = run(per_device_train_batch_size=8)
    split = run(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_same_weights(split, whole, tolerance=1e-5)


@pytest.mark.slow
def test_a_teacher_of_another_kind_under_autocast(tmp_path: Path) -> None:
    # It takes no token types, and its own sizes differ.
    model = make_lam(
        BertForSequenceClassification, "bert", mechanisms("half", "bert"), num_labels=3, initializer_range=0.1
    )
    samples = make_samples(model, "bert", 8)
    assert "token_type_ids" in samples[0]
    teacher = make_teacher(hidden_size=16, num_hidden_layers=1)

    class WithoutTypes(BertForSequenceClassification):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return super().forward(input_ids, attention_mask)

    teacher.__class__ = WithoutTypes
    trainer = trainer_of(
        model, tmp_path, samples, {"teacher": teacher}, bf16=True, distillation_weight=1.0, max_steps=20
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]


def test_a_teacher_that_shares_parameters(tmp_path: Path) -> None:
    stock = make_teacher()
    model = hf_lam.convert(stock, LamConfig())
    for teacher in (stock, model):
        with pytest.raises(ValueError, match="shares parameters with the model"):
            trainer_of(model, tmp_path, more={"teacher": teacher})
    assert all(parameter.requires_grad for parameter in model.parameters())
    trainer_of(hf_lam.convert(copy.deepcopy(stock), LamConfig()), tmp_path, more={"teacher": stock})


def test_teachers_with_other_labels(tmp_path: Path) -> None:
    def refused(message: str, teacher: Any, **config: Any) -> None:
        with pytest.raises(ValueError, match=message):
            trainer_of(make_bert(**config), tmp_path, more={"teacher": teacher})

    def named(*names: str) -> dict[str, Any]:
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    refused("teacher has 4 labels and the model 3", make_teacher(num_labels=4))
    cats = named("cat", "dog", "cow")
    refused(
        "label 1 is 'dog' for the teacher and 'cow' for the model", make_teacher(**cats), **named("cat", "cow", "dog")
    )
    refused("1 label and problem_type=None, which is regression", make_teacher(num_labels=1), num_labels=1)
    refused("problem_type='regression'", make_teacher(), problem_type="regression")
    for names in (named("Cat", "DOG", "cow"), named("LABEL_0", "LABEL_1", "LABEL_2")):
        trainer_of(make_bert(**names), tmp_path, more={"teacher": make_teacher(**cats)})
    with pytest.raises(TypeError, match=r"must be a transformers model .* got Linear"):
        trainer_of(make_bert(), tmp_path, more={"teacher": torch.nn.Linear(2, 3)})


def test_saved_without_the_teacher_and_best_model(tmp_path: Path) -> None:
    model = make_bert()
    scores = iter([0.9, 0.1])
    trainer = trainer_of(
        model,
        tmp_path,
        more={
            "teacher": make_teacher(),
            "eval_dataset": make_samples(model, "bert", 4),
            "compute_metrics": lambda _: {"score": next(scores)},
        },
        mechanism_learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert trainer.state.best_global_step == 1
    trainer.save_model()
    trainer.create_model_card(model_name="tiny")
    assert "tiny" in (tmp_path / "README.md").read_text()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        loaded = type(model).from_pretrained(folder)
        assert_same_weights(weights_of(loaded), weights_of(model))
