"""Predictions that know which sample they are of, and what regression is measured by."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_lam.training.finetuning import _check_metric
from hf_lam.training.goals import Classes, write_classes
from hf_lam.training.label_lists import read_list
from hf_lam.training.labels import Labels
from hf_lam.training.metrics import regression_metrics
from hf_lam.training.predictions import CollatorWithSources, logits_and_sources
from hf_lam.training.sources import SOURCE, Place
from hf_lam.training.trainer import HfLamTrainingArguments


def written(path: Path, logits: Any, labels: Labels, places: list[Place] | None = None) -> list[dict[str, str]]:
    rows = range(len(logits)) if places is None else [place.row for place in places]
    write_classes(path / "p.csv", np.asarray(logits, dtype=np.float32), rows, labels, places)
    with (path / "p.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classes_of_a_sample_can_be_told_apart(tmp_path: Path) -> None:
    names = ("New", "New York", "York", 'with "marks", and more', "ü\n")
    logits = np.where(np.array([[1, 0, 1, 0, 0], [0, 1, 1, 1, 1], [0] * 5]), 1.0, -1.0)
    lines = written(tmp_path, logits, Labels(names, is_multi_label=True))
    found = [json.loads(line["prediction"]) for line in lines]
    assert found == [["New", "York"], list(names[1:]), []]
    # What is predicted can be learnt from.
    assert [read_list(line["prediction"]) for line in lines] == found


def test_predictions_name_row_and_file(tmp_path: Path) -> None:
    places = [Place(4, "a.csv", 4), Place(5, "b.csv", 0), Place(6, None, None)]
    lines = written(tmp_path, [[0, 1], [1, 0], [0, 1]], Labels(("no", "yes")), places)
    assert [tuple(line.values()) for line in lines] == [
        ("4", "yes", "a.csv", "4"),
        ("5", "no", "b.csv", "0"),
        ("6", "yes", "", ""),
    ]


def test_predicted_numbers(tmp_path: Path) -> None:
    one, two = Labels(("x",), is_regression=True), Labels(("x", "y"), is_regression=True)
    assert [line["prediction"] for line in written(tmp_path, [[0.1], [-2.0]], one)] == ["0.1", "-2.0"]
    assert [json.loads(line["prediction"]) for line in written(tmp_path, [[0.1, 3.0]], two)] == [[0.1, 3.0]]


def test_predictions_come_in_the_order_of_the_data() -> None:
    # Of a stream that two workers read, and with a sample that two processes had.
    logits, sources = logits_and_sources((np.array([[2.0], [0.0], [1.0], [0.0]]), np.array([2, 0, 1, 0])))
    assert sources is not None and sources.tolist() == [0, 1, 2] and logits.tolist() == [[0.0], [1.0], [2.0]]
    logits, sources = logits_and_sources(np.array([[2.0], [0.0]]))
    assert sources is None and logits.tolist() == [[2.0], [0.0]]


def test_collators_do_not_see_where_samples_come_from() -> None:
    seen: list[Any] = []
    collator = CollatorWithSources(lambda samples: seen.append(samples) or {"x": torch.zeros(len(samples))})
    assert collator([{"x": 0, SOURCE: 5}, {"x": 1, SOURCE: 2**40}])[SOURCE].tolist() == [5, 2**40]
    assert SOURCE not in collator([{"x": 0}]) and seen == [[{"x": 0}, {"x": 1}], [{"x": 0}]]


@pytest.mark.parametrize("as_tuple", [False, True])
def test_metrics_of_regression(as_tuple: bool) -> None:
    predicted, true = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 3.5])
    predictions: Any = (predicted, None) if as_tuple else predicted
    metrics = regression_metrics(EvalPrediction(predictions=predictions, label_ids=true))
    assert metrics["mse"] == pytest.approx((0 + 1 + 0.25) / 3) and metrics["mae"] == pytest.approx(0.5)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(predicted[:, 0], true)[0, 1])
    assert metrics["spearman"] == pytest.approx(1.0)


def test_metrics_of_several_targets_are_means() -> None:
    predicted = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    true = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    metrics = regression_metrics(EvalPrediction(predictions=predicted, label_ids=true))
    assert metrics["mse"] == pytest.approx(4 / 3) and metrics["mae"] == pytest.approx(2 / 3)
    assert metrics["pearson"] == pytest.approx(0) and metrics["spearman"] == pytest.approx(0)


def test_what_is_not_defined_is_left_out() -> None:
    for predicted, true in (([[1.0], [1.0]], [0.0, 1.0]), ([[1.0], [2.0]], [1.0, 1.0]), ([[1.0]], [2.0])):
        metrics = regression_metrics(EvalPrediction(predictions=np.array(predicted), label_ids=np.array(true)))
        assert set(metrics) == {"mse", "mae"}
    with pytest.raises(ValueError, match=r"one shape .*\(3, 2\) and \(3, 1\)"):
        regression_metrics(EvalPrediction(predictions=np.zeros((3, 2)), label_ids=np.zeros(3)))


@pytest.mark.parametrize(
    ("metric", "is_greater_better"), [("mse", False), ("eval_mae", False), ("pearson", True), ("loss", False)]
)
def test_the_best_of_errors_is_the_smallest(metric: str, is_greater_better: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "metric_for_best_model": metric}
    training = HfLamTrainingArguments(
        **options, load_best_model_at_end=True, save_strategy="epoch", eval_strategy="epoch"
    )
    _check_metric(training, Classes(Labels(("x",), is_regression=True)))
    assert training.greater_is_better is is_greater_better
    with pytest.raises(ValueError, match="choose one of loss, accuracy, f1"):
        _check_metric(
            HfLamTrainingArguments(**{**options, "metric_for_best_model": "mse"}), Classes(Labels(("a", "b")))
        )
