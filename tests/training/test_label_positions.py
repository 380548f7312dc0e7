"""Lists of labels: those of the positions of a sample, told from those of the sample."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedConfig

from hf_lam.training.arguments import DataArguments
from hf_lam.training.labels import Labels, find_labels
from hf_lam.training.vectors import count_vectors

ONE, TWO, THREE = [[0.0]], [[0.0], [1.0]], [[0.0], [1.0], [2.0]]


def count(row: Mapping[str, Any]) -> int | None:
    return count_vectors(row["clips"])


def found(clips: list[Any], labels: list[Any], feature: Any = None, checkpoint: Any = None, **options: Any) -> Labels:
    features = feature and Features({"clips": List(List(Value("float64"))), "label": feature})
    rows = Dataset.from_dict({"clips": clips, "label": labels}, features=features)
    data = DataArguments(dataset_name="D", **options)
    return find_labels({"train": rows}, data, checkpoint, is_trained=True, count_positions=count)


@pytest.mark.parametrize(
    ("clips", "labels", "names"),
    [
        ([THREE, TWO], [[0, 1, 1], [1, 0]], ("0", "1")),
        ([THREE, TWO], [["b", "a", "b"], ["a", "b"]], ("a", "b")),
        ([THREE, TWO, ONE], [[0, None, 1], [1, 1], [-100]], ("0", "1")),
        ([THREE, TWO, None], ["[0, 1, 1]", "[1, 0]", "[1]"], ("0", "1")),
    ],
)
def test_a_label_for_each_vector(clips: Any, labels: Any, names: tuple[str, ...]) -> None:
    assert found(clips, labels) == Labels(names, is_per_position=True)


def test_classes_of_the_column_name_positions() -> None:
    feature = List(ClassLabel(names=["no", "yes"]))
    assert found([THREE, TWO], [[0, 1, 1], [1, 0]], feature) == Labels(("no", "yes"), is_per_position=True)


def test_several_classes_at_a_position() -> None:
    read = found([TWO, ONE], [[["a", "b"], []], [["b"]]])
    assert read == Labels(("a", "b"), is_multi_label=True, is_per_position=True)
    assert read.encode([["a"], None, []])[::2] == [[1.0, 0.0], [0.0, 0.0]]
    assert all(map(math.isnan, read.encode([["a"], None])[1]))
    hot = found([TWO, ONE], [[[1, 0, 1], [0, 0, 0]], [[1, 1, 0]]])
    assert hot == Labels(("0", "1", "2"), is_multi_label=True, is_multi_hot=True, is_per_position=True)


def test_numbers_at_positions() -> None:
    read = found([THREE, TWO], [[0.5, 1.0, 2.0], [3.0, -1.0]], do_regression=True)
    assert read == Labels(("label",), is_regression=True, is_per_position=True)
    assert read.encode([0.5, -1.0]) == [0.5, -1.0]
    assert math.isnan(read.encode([None])[0])


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([[0, 1], [1, 0]], {}),
        ([["a", "b"], ["b", "c"]], {}),
        ([[0.5, 1.0], [2.0, 3.0]], {"do_regression": True}),
    ],
)
def test_two_readings_are_refused(labels: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape("can be read in two ways")) as raised:
        found([TWO, TWO], labels, **options)
    assert "--per_position true" in str(raised.value)
    assert found([TWO, TWO], labels, per_position=True, **options).is_per_position
    whole = {} if labels[0] != [0, 1] else {"multi_hot": True}
    assert not found([TWO, TWO], labels, per_position=False, **options, **whole).is_per_position


def test_lists_of_another_length_are_labels_of_samples() -> None:
    assert found([THREE, THREE], [["a"], ["a", "b"]]) == Labels(("a", "b"), is_multi_label=True)
    assert not found([None, None], [["a"], ["a", "b"]]).is_per_position


def test_a_token_classifier_says_it() -> None:
    checkpoint = PreTrainedConfig(architectures=["HfLamFusionForTokenClassification"], id2label={0: "a", 1: "b"})
    assert found([TWO, TWO], [["a", "b"], ["b", "a"]], checkpoint=checkpoint).is_per_position


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([[0, 1, 1], [1, "x"]], {}, "must hold names or whole numbers"),
        ([[0, 1, 1], [1, 7]], {"class_names": ["a", "b"]}, "row 1: position 1: 7 is outside of the 2 classes"),
        ([[0, 1, 1], None], {"per_position": True}, "row 1: None is no list with a label for each position"),
        ([0, 1], {"per_position": True}, "labels of positions are lists, which the column 'label' does not hold"),
        ([[0.5, 1.0, math.inf], [3.0, 1.0]], {"do_regression": True}, "row 0: position 2: inf is no number"),
    ],
)
def test_wrong_labels_are_named_with_their_positions(labels: Any, options: dict[str, Any], message: str) -> None:
    if "x" in json.dumps(labels):
        labels = [str(entries) for entries in labels]
    with pytest.raises(ValueError, match=re.escape(message)):
        found([THREE, TWO], labels, **options)
