"""Fusion models with each of the heads in Trainer: columns, steps, evaluation, distillation."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Trainer

from helpers.fusion_head_training import KINDS, arguments, labels_for, pad, samples, train_head, without_dropout
from helpers.fusion_heads import head_inputs, make_head
from helpers.processes import TESTS, run_process
from hf_lam import HfLamFusionModel
from hf_lam.training import HfLamTrainer, classification_metrics, regression_metrics, retrieval_metrics


@pytest.mark.parametrize("kind", ["sequence", "token", "token numbers"])
def test_accumulated_steps_are_those_of_one_batch(kind: str, tmp_path: Path) -> None:
    """With samples that have many labels and few."""
    at_once, in_steps = train_head(kind, tmp_path, 8), train_head(kind, tmp_path, 2, steps=4)
    for name, moved in at_once.items():
        torch.testing.assert_close(in_steps[name], moved, rtol=1e-3, atol=1e-6)
    assert at_once["classifier.weight"].abs().max() > 1e-3


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """The embedding model compares the samples of each process apart, as those of batches that are accumulated."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, str(TESTS / "helpers" / "fusion_head_training.py"), str(tmp_path)])
    for kind in KINDS:
        expected = train_head(kind, tmp_path, 4, steps=2)
        for name, moved in load_file(tmp_path / f"{kind}.safetensors").items():
            torch.testing.assert_close(moved, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation(kind: str, tmp_path: Path) -> None:
    """The metrics are those of all samples at once, with batches of other lengths."""
    head, options = KINDS[kind]
    model = make_head(head, "lam", **options)
    rows = samples(labels_for(kind))
    metrics: Any = {"embedding": retrieval_metrics, "token numbers": regression_metrics}.get(
        kind, classification_metrics(is_multi_label=False)
    )
    trainer = HfLamTrainer(model, arguments(tmp_path), eval_dataset=rows, data_collator=pad, compute_metrics=metrics)
    found = trainer.evaluate()
    batch = pad(rows)
    with torch.no_grad():
        outputs = model(**batch)
    if kind == "embedding":
        similarities = outputs.first_embeds @ outputs.second_embeds.T
        ranks = (similarities >= similarities.diagonal()[:, None]).sum(1)
        assert found["eval_first_to_second_r@1"] == pytest.approx(float((ranks == 1).float().mean()))
        assert found["eval_first_to_second_median_rank"] == np.median(ranks.numpy())
        assert found["eval_loss"] > 0
        return
    labels = batch["labels"]
    known = ~labels.isnan() if labels.is_floating_point() else labels != -100
    logits, labels = outputs.logits[known], labels[known]
    if kind == "token numbers":
        assert found["eval_mse"] == pytest.approx(float((logits[:, 0] - labels).square().mean()), rel=1e-5)
        return
    assert found["eval_accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))


@pytest.mark.parametrize("trainer_class", [Trainer, HfLamTrainer])
def test_a_loss_without_labels_is_evaluated(trainer_class: Any, tmp_path: Path) -> None:
    trainer = trainer_class(
        make_head("embedding"),
        arguments(tmp_path, remove_unused_columns=False),
        train_dataset=samples(None),
        eval_dataset=samples(None),
        data_collator=pad,
    )
    assert trainer.label_names == []
    assert trainer.train().training_loss > 0
    predicted = trainer.predict(samples(None))
    assert math.isfinite(predicted.metrics["test_loss"])
    assert [side.shape for side in predicted.predictions] == [(8, 8), (8, 8)]


@pytest.mark.parametrize("is_peft", [False, True])
def test_the_columns_of_features_are_kept(is_peft: bool, tmp_path: Path) -> None:
    model = make_head("sequence")
    if is_peft:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    rows = [{key: value.tolist() for key, value in row.items()} for row in samples(labels_for("sequence"))]
    data = Dataset.from_list([row | {"name": "a", "has_clips": True} for row in rows])
    trainer = HfLamTrainer(
        model,
        arguments(tmp_path),
        train_dataset=data,
        data_collator=lambda rows: pad([{k: torch.as_tensor(v) for k, v in row.items()} for row in rows]),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {*data.column_names} - {"name"}
    trainer.train()
    # Features are counted like other inputs.
    assert trainer.state.total_flos > 0
    assert trainer._inputs_of(model.base_model.model if is_peft else model, batch).keys() == batch.keys() - {"labels"}


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_distillation(kind: str, tmp_path: Path) -> None:
    """At the labelled tokens alone; a teacher that is the model adds nothing."""
    rows = samples(labels_for(kind))
    moved = []
    for has_teacher in (False, True):
        model = without_dropout(make_head(kind))
        before = model.classifier.weight.detach().clone()
        options = arguments(tmp_path, per_device_train_batch_size=8)
        teacher = without_dropout(make_head(kind)) if has_teacher else None
        trainer = HfLamTrainer(model, options, train_dataset=rows, data_collator=pad, teacher=teacher)
        trainer.train()
        moved.append(model.classifier.weight.detach() - before)
    torch.testing.assert_close(moved[1], 0.5 * moved[0], rtol=1e-3, atol=1e-6)
    other = HfLamTrainer(
        make_head(kind), arguments(tmp_path), train_dataset=rows, data_collator=pad, teacher=make_head(kind, seed=9)
    )
    assert other.train().training_loss > 0


def test_models_without_classes_have_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HfLamFusionForEmbedding has no labels"):
        HfLamTrainer(make_head("embedding"), arguments(tmp_path), teacher=make_head("embedding", seed=2))
    base = HfLamFusionModel(make_head("sequence").config)
    with pytest.raises(ValueError, match="HfLamFusionModel has no labels"):
        HfLamTrainer(base, arguments(tmp_path), teacher=make_head("sequence"))


@pytest.mark.slow
def test_the_heads_learn(tmp_path: Path) -> None:
    """What can be told from the vectors of one place, from all of a sample, and which text belongs to which."""
    torch.manual_seed(0)
    count = 64
    inputs = head_inputs(count)
    places = (inputs["clips_features"][..., 0] > 0).long()
    whole = (inputs["sound_features"][..., 1].mean(1) > 0).long()
    inputs["input_ids"] = inputs["input_ids"][torch.arange(count)]
    metric = {"token": "accuracy", "sequence": "accuracy", "embedding": "first_to_second_r@1"}
    for head in metric:
        model = make_head(head, "lam", num_labels=2)
        rows = [{key: value[index] for key, value in inputs.items()} for index in range(count)]
        if head != "embedding":
            labels = places if head == "token" else whole
            rows = [row | {"labels": label} for row, label in zip(rows, labels, strict=True)]
        options = arguments(
            tmp_path, max_steps=150, learning_rate=1e-3, optim="adamw_torch", per_device_train_batch_size=32
        )
        metrics = retrieval_metrics if head == "embedding" else classification_metrics(is_multi_label=False)
        trainer = HfLamTrainer(
            model, options, train_dataset=rows, eval_dataset=rows, data_collator=pad, compute_metrics=metrics
        )
        trainer.train()
        assert trainer.evaluate()[f"eval_{metric[head]}"] > 0.9, head
