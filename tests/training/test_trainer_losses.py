"""Losses that are no numbers, losses of stock and of converted models, and the lengths of what is missing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import BertForMaskedLM, BertForSequenceClassification, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers.hosts import make_model
from hf_lam import LamConfig, convert
from hf_lam.training import HfLamTrainer
from hf_lam.training.lengths import Lengths


def samples(count: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(1, 20, (6,), generator=generator), "labels": index % 2} for index in range(count)
    ]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    return TrainingArguments(str(folder), **{**defaults, **options})


def classifier() -> Any:
    torch.manual_seed(0)
    model = make_model(BertForSequenceClassification, "bert")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize(
    ("bad", "filters", "steps"), [(float("nan"), True, 1), (float("inf"), True, 2), (float("nan"), False, 2)]
)
def test_a_loss_that_is_no_number_ends_the_training(bad: float, filters: bool, steps: int, tmp_path: Path) -> None:
    class Broken(HfLamTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss * bad if self.state.global_step == 1 else loss

    options = arguments(
        tmp_path, max_steps=4, logging_nan_inf_filter=filters, gradient_accumulation_steps=steps, logging_steps=100
    )
    trainer = Broken(classifier(), options, train_dataset=samples())
    with pytest.raises(RuntimeError, match=r"training loss of step 2 is (nan|inf)"):
        trainer.train()


@pytest.mark.parametrize("name", ["loss", "train_loss"])
def test_a_logged_loss_that_is_no_number_ends_the_training(name: str, tmp_path: Path) -> None:
    trainer = HfLamTrainer(classifier(), arguments(tmp_path), train_dataset=samples())
    with pytest.raises(RuntimeError, match="one of the steps up to 0 is nan"):
        trainer.log({name: float("nan")})
    trainer.log({"eval_loss": float("nan"), "grad_norm": float("nan")})


@pytest.mark.parametrize(
    "kind", ["single", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("multi", "regression"))]
)
def test_stock_and_converted_models_take_the_same_steps(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hf_lam"), "propagate", True)
    data = samples()
    if kind != "single":
        data = [
            {**sample, "labels": [float(sample["labels"]), 0.5 if kind == "regression" else 1.0]} for sample in data
        ]
    problem = {"single": None, "multi": "multi_label_classification", "regression": "regression"}[kind]
    moved, losses = [], []
    for is_converted, size, steps in ((False, 8, 1), (False, 2, 4), (True, 2, 4)):
        model = classifier()
        model.config.problem_type = problem
        model = convert(model, LamConfig(rank=2)) if is_converted else model
        before = model.classifier.weight.detach().clone()
        options = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
        )
        trainer = HfLamTrainer(model, options, train_dataset=data)
        trainer.take_loss_for_a_mean()
        losses.append(trainer.train().training_loss)
        moved.append(model.classifier.weight.detach() - before)
    for loss, step in zip(losses[1:], moved[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-4)
        torch.testing.assert_close(step, moved[0], rtol=1e-3, atol=1e-6)
    said = [record.getMessage() for record in caplog.records if "accumulation steps" in record.getMessage()]
    assert len(said) == 1 and "multiply the gradients by 4" in said[0]


def test_models_that_say_how_their_loss_is_made_are_left_alone(tmp_path: Path) -> None:
    model = make_model(BertForMaskedLM, "bert")
    model.accepts_loss_kwargs = True
    trainer = HfLamTrainer(model, arguments(tmp_path))
    trainer.take_loss_for_a_mean()
    assert trainer.model_accepts_loss_kwargs
    # What is not asked for stays as Trainer has it.
    assert HfLamTrainer(classifier(), arguments(tmp_path)).model_accepts_loss_kwargs


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_what_is_missing_has_no_length(missing: Any, tmp_path: Path) -> None:
    data = [{"input_ids": missing if index % 3 == 0 else np.arange(index), "labels": 0} for index in range(1, 9)]
    trainer = HfLamTrainer(
        classifier(), arguments(tmp_path, train_sampling_strategy="group_by_length"), train_dataset=data
    )
    for sampler in (trainer._get_train_sampler(), trainer._get_eval_sampler(data)):
        assert isinstance(sampler, LengthGroupedSampler)
        assert list(sampler.lengths) == [1, 2, 0, 4, 5, 0, 7, 8]
        assert sorted(sampler) == list(range(8))


def test_lengths_that_were_counted_before() -> None:
    data = Dataset.from_dict({"input_ids": [[1, 2], None], "length": [7, None]})
    assert Lengths(data, "input_ids", "length").lengths == [7, 0]
    assert Lengths(data, "input_ids", "other").lengths == [2, 0]
    assert Lengths([{"pixel_values": 1}, {"input_ids": [1]}], "input_ids", "length").lengths == [0, 1]
    with pytest.raises(ValueError, match="none is a dictionary with 'input_ids'"):
        Lengths([{"pixel_values": 1}, [1]], "input_ids", "length")
