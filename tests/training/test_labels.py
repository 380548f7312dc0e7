"""Labels mean what their values say; what can be read in two ways is refused with both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from transformers import ViTConfig

from hf_lam.training import labels as labels_module
from hf_lam.training.arguments import DataArguments
from hf_lam.training.labels import Labels, find_labels


def found(values: list[Any], validation: list[Any] | None = None, feature: Any = None, **options: Any) -> Labels:
    """How the labels of a split train are read; `is_held_out` says that those of validation are of the same data."""
    streams, keywords = options.pop("streaming", False), {}
    for name in ("checkpoint", "is_held_out"):
        if name in options:
            keywords[name] = options.pop(name)
    features = None if feature is None else Features({"label": feature})
    splits: dict[str, Any] = {"train": Dataset.from_dict({"label": values}, features=features)}
    if validation is not None:
        splits["validation"] = Dataset.from_dict({"label": validation}, features=features)
    if streams:
        rows = [{"label": value} for value in values]
        splits = {"train": IterableDataset.from_generator(lambda: iter(rows))}
    return find_labels(splits, DataArguments(dataset_name="D", **options), is_trained=True, **keywords)


HOT = [[1, 0, 1], [0, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        HOT,
        [[float(x) for x in row] for row in HOT],
        [[bool(x) for x in row] for row in HOT],
        [str(row) for row in HOT],
        [str(np.array(row)) for row in HOT],
        [str(np.array(row, dtype=float)) for row in HOT],
    ],
    ids=["int", "float", "bool", "text", "printed", "printed_float"],
)
def test_multi_hot_vectors(values: list[Any], streaming: bool) -> None:
    labels = found(values, streaming=streaming, class_names=["cat", "dog", "bird"])
    assert labels == Labels(("cat", "dog", "bird"), is_multi_label=True, is_multi_hot=True)
    assert [labels.encode(value) for value in values] == HOT
    if not streaming:
        assert found(values).names == ("0", "1", "2")
    with pytest.raises(ValueError, match=r"3 entries, one for each class, and there are 2|is outside|are wrong"):
        found(values, streaming=streaming, class_names=["cat", "dog"])


def test_arrays_and_tensors_are_encoded_like_lists() -> None:
    hot = Labels(("a", "b", "c"), is_multi_label=True, is_multi_hot=True)
    numbers = Labels(("a", "b", "c"), is_multi_label=True)
    for kind in (np.array, torch.tensor):
        assert hot.encode(kind([0, 1, 1])) == [0.0, 1.0, 1.0]
        assert numbers.encode(kind([2, 0])) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([[0, 2], [1], []], {}, Labels(("0", "1", "2"), True)),
        ([[0], [1]], {}, Labels(("0", "1"), True)),
        ([[0, 1], [1, 0]], {"class_names": list("abcde")}, Labels(tuple("abcde"), True)),
        ([[0, 1], [1, 0]], {"multi_hot": False}, Labels(("0", "1"), True)),
        ([[0, 1], [1, 0]], {"multi_hot": True}, Labels(("0", "1"), True, True)),
        ([[0, 1], [0, 0]], {}, Labels(("0", "1"), True, True)),
        ([[0.0], [1.0]], {}, Labels(("0",), True, True)),
        ([[0], [1]], {"class_names": ["spam"]}, Labels(("spam",), True, True)),
        ([[1, 3], [2]], {"class_names": ["1", "2", "3"]}, Labels(("1", "2", "3"), True, False, True)),
    ],
)
def test_lists_of_numbers(values: list[Any], options: dict[str, Any], expected: Labels) -> None:
    assert found(values, **options) == expected


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[0, 1], [1, 0]], {}, r"two ways: \[0, 1\] is the classes 0 and 1.*multi-hot.*--multi_hot"),
        ([[0, 1], [1, 0]], {"class_names": ["a", "b"]}, "two ways"),
        ([[0, 1], [1, 0]], {"class_names": ["a", "b"], "streaming": True}, "two ways"),
        ([[1, 1, 0], [0, 1]], {}, r"in no way: \[1, 1, 0\] has a number twice"),
        ([[0, 2], [1, 0]], {"multi_hot": True}, "are no vectors of 0 and 1"),
        ([[1, 1, 0], [0, 0, 1]], {"multi_hot": False}, "are no lists of class numbers"),
        ([0, 1], {"multi_hot": True}, "--multi_hot is for lists"),
        ([[0.3, 0.7], [0.1, 0.9]], {}, "--do_regression"),
    ],
)
def test_lists_that_are_not_clear(values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(values, **options)


def test_a_stream_that_turns_out_otherwise() -> None:
    numbers = Labels(("a", "b", "c"), is_multi_label=True)
    with pytest.raises(ValueError, match="class number twice"):
        numbers.encode([1, 1, 0])
    hot = Labels(("a", "b", "c"), is_multi_label=True, is_multi_hot=True)
    for value in ([1, 0], [0, 2, 1], [0, 1, None]):
        with pytest.raises(ValueError, match="no vector of 0 and 1"):
            hot.encode(value)


@pytest.mark.parametrize(
    "values",
    [
        ['["a b", "c"]', '["c"]', "[]"],
        ["['a b', 'c']", "['c']", "[]"],
        [str(np.array(["a b", "c"])), "['c']", "[]"],
        [" ['a b' , \"c\"]", "['c']\n", "[ ]"],
        ["('a b', 'c')", "('c',)", "()"],
        ["{'c', 'a b'}", " {'c'}", "[]"],
    ],
)
def test_lists_written_as_text(values: list[str]) -> None:
    labels = found(values)
    assert labels == Labels(("a b", "c"), is_multi_label=True)
    assert [labels.encode(value) for value in values] == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]


def test_names_that_look_a_little_like_lists() -> None:
    assert found(["a,b", "c"]).names == ("a,b", "c")
    assert found(["[POS]", "[NEG]"]).names == ("[NEG]", "[POS]")
    assert found(["(a)", "{b}", "(1)"]).names == ("(1)", "(a)", "{b}")
    assert found(["New York", "York", "New"]).names == ("New", "New York", "York")
    with pytest.raises(ValueError, match=r"two ways: 1 labels are written like lists.*'\[1, 2\]'.* 'a'"):
        found(["[1, 2]", "a"])


@pytest.mark.parametrize("values", [["[['a'], ['b']]"], ["[{'a': 1}]", "[{'b': 1}]"]])
def test_lists_of_lists_are_no_labels(values: list[str]) -> None:
    with pytest.raises(ValueError, match="must hold names or whole numbers, or lists of them"):
        found(values)


@pytest.mark.parametrize(
    ("values", "shown"),
    [(["a", "b", "a,b"], "a,b"), (["a", "a | b", "b"], r"a \| b"), (["0 2", "0", "1", "2"], "0 2")],
)
def test_several_names_in_one(values: list[str], shown: str) -> None:
    with pytest.raises(ValueError, match=rf"two ways: '{shown}' is a class, or it is several.* --class_names"):
        found(values)
    assert found(values, class_names=sorted(values)).names == tuple(sorted(values))


@pytest.mark.parametrize("values", [["1 0 1", "0 1 0"], ["1,0", "0,1"]])
def test_vectors_without_brackets(values: list[str]) -> None:
    with pytest.raises(ValueError, match=r"two ways: .* are names, or vectors of 0 and 1"):
        found(values)


def test_numbers_that_may_count_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(labels_module.logger, "warning", said.append)
    assert found([1, 2, 1], class_names=["a", "b", "c", "d"]).encode(1) == 1
    assert len(said) == 1 and "from 1 to 2, and count from 0" in said[0] and "--class_names 1 … 4" in said[0]
    found([0, 2, 1], class_names=["a", "b", "c", "d"])
    found([1, 2], class_names=["1", "2"])
    assert len(said) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_that_count_from_one(streaming: bool) -> None:
    words = ["bad", "poor", "fair", "good", "great"]
    for values in ([1, 2, 3, 4, 5], [2, 5, 3], [1.0, 2.0, 5.0]):
        with pytest.raises(ValueError, match=r"to 5, and can be read in two ways.*--class_names 1 … 5"):
            found(values, class_names=words, streaming=streaming)
    labels = found([1, 2, 5, 3], class_names=["1", "2", "3", "4", "5"], streaming=streaming)
    assert [labels.encode(value) for value in (1, 5, 3.0, "4")] == [0, 4, 2, 3]
    with pytest.raises(ValueError, match="0 is none of the 5 classes '1', '2'"):
        found([0, 1, 2], class_names=["1", "2", "3", "4", "5"], streaming=streaming)
    # Nothing speaks against counting from 0.
    assert found([1, 2, 4], class_names=words, streaming=streaming).encode(4) == 4
    assert [found([0, 1, 2], class_names=["0", "1", "2"], streaming=streaming).encode(x) for x in (0, 2)] == [0, 2]
    with pytest.raises(ValueError, match=r"row 1: 5 is outside of the 5 classes"):
        found([0, 5], class_names=words, streaming=streaming)


def test_numbers_without_names_that_count_from_one() -> None:
    with pytest.raises(ValueError, match=r"without a gap.*--class_names 1 2 3\)"):
        found([1, 2, 3])


def test_numbers_of_a_class_label_are_places() -> None:
    # As of folders with the names 1, 2 and 10.
    labels = found([0, 1, 2], feature=ClassLabel(names=["1", "10", "2"]))
    assert [labels.encode(value) for value in (0, 1, 2, "10")] == [0, 1, 2, 1]


@pytest.mark.parametrize("values", [[-1, 1], [1.0, -1.0], [-1, 0, 1]])
def test_minus_one(values: list[Any]) -> None:
    with pytest.raises(ValueError, match="-1, which can be read in two ways: as a class of its own, or as no label"):
        found(values)
    names = [str(int(value)) for value in sorted(values)]
    labels = found(values, class_names=names)
    assert [labels.encode(value) for value in sorted(values)] == list(range(len(values)))
    assert found(values, class_names=names, streaming=True) == labels
    with pytest.raises(ValueError, match=r"there is no label.*if it is a class"):
        found(values, class_names=["down", "none", "up"])
    # Of a `ClassLabel`, -1 is nothing but a label that is missing.
    with pytest.raises(ValueError, match="row 1: there is no label"):
        found([0, -1], feature=ClassLabel(names=["a", "b"]))


def test_a_test_split_of_minus_one_alone_has_labels_if_that_is_a_class() -> None:
    splits = {"test": Dataset.from_dict({"label": [-1, -1]})}
    model = ViTConfig(id2label={0: "-1", 1: "1"})
    assert labels_module.has_labels("test", splits["test"], DataArguments(dataset_name="D", class_names=["-1", "1"]))
    assert not labels_module.has_labels("test", splits["test"], DataArguments(dataset_name="D"))
    labels = find_labels(splits, DataArguments(dataset_name="D", class_names=["-1", "1"]), model)
    assert labels.encode(-1) == 0


def test_a_rare_class_in_one_part_of_the_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(labels_module.logger, "warning", said.append)
    for train, validation, names in (
        (["a", "b"], ["a", "z"], ("a", "b", "z")),
        ([0, 1], [2], ("0", "1", "2")),
        ([["a"], []], [["b"]], ("a", "b")),
        (["['a']", "[]"], ["['b']"], ("a", "b")),
    ):
        assert found(train, validation, is_held_out=True).names == names
    assert len(said) == 4 and "held out for evaluation have classes that no other sample has: 'z'" in said[0]
    # In a file of its own, it may be a slip.
    with pytest.raises(ValueError, match="split 'validation' are wrong: row 1: 'z' is none of the 2 classes"):
        found(["a", "b"], ["a", "z"])
    assert found(["a", "b"], ["a", "z"], class_names=["a", "b", "z"]).names == ("a", "b", "z")


def test_truth_values_and_digits() -> None:
    assert found([True, False]).names == ("False", "True")
    assert found([True, False]).encode(True) == 1
    assert found([True, False], class_names=["no", "yes"]).encode(True) == 1
    assert found(["10", "2", "1"]).names == ("1", "2", "10")
    assert found(["10", "2", "1"]).encode("10") == 2
    own = ViTConfig(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    assert found([True, False], checkpoint=own).names == ("no", "yes")


def test_names_that_differ_in_blanks_or_case(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(labels_module.logger, "warning", said.append)
    assert found(["pos", "Pos", "neg", "neg "]).names == ("Pos", "neg", "neg ", "pos")
    assert found(["pos", "neg"]).names == ("neg", "pos")
    assert len(said) == 1 and "'Pos', 'pos'" in said[0] and "'neg', 'neg '" in said[0]


def test_wrong_labels_of_all_splits_are_named() -> None:
    message = r"'train' are wrong: row 1: .*'validation' are wrong: row 0: "
    with pytest.raises(ValueError, match=message):
        found(["a", None, "b"], [None, "a"])


# --- regression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names", "encoded"),
    [
        ([0.5, 2.0, -1.0], ("label",), [0.5, 2.0, -1.0]),
        ([1, 5, -1], ("label",), [1.0, 5.0, -1.0]),
        (["1.5", "2"], ("label",), [1.5, 2.0]),
        ([[0.5], [1.0]], ("label",), [0.5, 1.0]),
        ([[0.5, 1.0], [2.0, 3.0]], ("label_0", "label_1"), [[0.5, 1.0], [2.0, 3.0]]),
        (["[0.5, 1]", "[2, 3]"], ("label_0", "label_1"), [[0.5, 1.0], [2.0, 3.0]]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_to_predict(values: list[Any], names: tuple[str, ...], encoded: list[Any], streaming: bool) -> None:
    labels = found(values, do_regression=True, streaming=streaming)
    assert labels == Labels(names, is_regression=True)
    assert [labels.encode(value) for value in values] == encoded
    assert labels.config_options["problem_type"] == "regression"


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.5, None, float("nan"), float("inf")], {}, r"3 labels .* row 1: None is no number .* row 3: inf"),
        (["1.5", "many"], {}, "row 1: 'many' is no number"),
        ([[0.5, 1.0], [2.0]], {}, r"row 1: \[2.0\] is no list of 2 numbers"),
        ([None, None], {"feature": Value("float32")}, "has no numbers"),
        ([0, 1], {"feature": ClassLabel(names=["a", "b"])}, "holds classes"),
        ([0.5], {"class_names": ["a", "b"]}, "--class_names is for classes"),
    ],
)
def test_what_cannot_be_predicted(values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(values, do_regression=True, **options)


def test_a_model_of_regression_is_evaluated_as_one() -> None:
    splits = {"validation": Dataset.from_dict({"label": [0.5, 1.5]})}
    data = DataArguments(dataset_name="D")
    for config in (ViTConfig(num_labels=1), ViTConfig(num_labels=1, problem_type="regression")):
        assert find_labels(splits, data, config) == Labels(("LABEL_0",), is_regression=True)
    with pytest.raises(ValueError, match="predicts 2 numbers, the column 'label' has 1"):
        find_labels(splits, data, ViTConfig(num_labels=2, problem_type="regression"))
    classes = ViTConfig(num_labels=2, problem_type="single_label_classification")
    with pytest.raises(ValueError, match=r"no class|regression"):
        find_labels(splits, data, classes)
