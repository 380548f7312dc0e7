"""Short runs of HfLamTrainer on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertForSequenceClassification,
    ViTForImageClassification,
)

from helpers.hosts import make_model
from helpers.lam_models import (
    SHORT_RUN,
    make_lam,
    make_samples,
)
from hf_lam.training.trainer import HfLamTrainer, HfLamTrainingArguments

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "learning_rate": 0.1}


def make_arguments(folder: Path, arguments_class: type = HfLamTrainingArguments, **arguments: Any) -> Any:
    changes = {"output_dir": str(folder), "max_steps": 2, "learning_rate": 1e-3}
    return arguments_class(**{**SHORT_RUN, **changes, **arguments})


def trainer_of(model: Any, folder: Path, samples: Any = None, more: Any = None, **arguments: Any) -> HfLamTrainer:
    """A short run on the CPU; `arguments` go to `HfLamTrainingArguments`, `more` to `HfLamTrainer`."""
    host = "vit" if "ViT" in type(model).__name__ else "bert"
    return HfLamTrainer(
        model=model,
        args=make_arguments(folder, **arguments),
        train_dataset=samples or make_samples(model, host, 16),
        **(more or {}),
    )


def make_bert(seed: int = 0, lam: Any = None, **config: Any) -> Any:
    return make_lam(BertForSequenceClassification, "bert", lam, seed=seed, **{"num_labels": 3, **config})


def make_teacher(host: str = "bert", **config: Any) -> Any:
    """With sharp probabilities, so that it matters."""
    stock_class = BertForSequenceClassification if host == "bert" else ViTForImageClassification
    return make_model(stock_class, host, seed=7, **{"num_labels": 3, "initializer_range": 0.5, **config})


def slow(case: str) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)
