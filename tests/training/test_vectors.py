"""Columns of vectors: how they are named, what a row may hold, and their mean and deviation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from hf_lam.training.arguments import DataArguments
from hf_lam.training.media import UnreadableError
from hf_lam.training.vectors import (
    VectorColumn,
    as_arrays,
    count_vectors,
    find_scales,
    find_sizes,
    read_vector_columns,
    read_vectors,
)

TWO = [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "two.npy", np.asarray(TWO, np.float16))
    np.savez(tmp_path / "two.npz", features=np.asarray(TWO))
    np.savez(tmp_path / "both.npz", first=np.asarray(TWO), second=np.asarray(TWO))
    np.save(tmp_path / "objects.npy", np.asarray([{}], dtype=object), allow_pickle=True)
    return tmp_path


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (TWO, None),
        (np.asarray(TWO, np.float64), None),
        (np.asarray([np.asarray(TWO[0]), np.asarray(TWO[1])], dtype=object), None),
        (np.asarray(TWO, "<f2").tobytes(), [2, 2]),
        ("[[1, 2], [3, 4]]", None),
        ("two.npy", None),
        ("two.npz", None),
        (Path("two.npy"), None),
        ([[1, 2], [3, 4]], None),
    ],
)
def test_what_vectors_are_read_from(value: Any, shape: Any, folder: Path) -> None:
    read = read_vectors("clips", value, 2, shape, str(folder))
    assert read is not None and read.dtype == np.float32
    np.testing.assert_array_equal(read, TWO)


def test_one_vector_is_a_sequence_of_one() -> None:
    read = read_vectors("clips", [1.0, 2.0], 2)
    assert read is not None and read.shape == (1, 2)


@pytest.mark.parametrize("value", [None, float("nan"), "", [], np.zeros((0, 2))])
def test_nothing_is_missing(value: Any) -> None:
    assert read_vectors("clips", value, 2) is None
    assert count_vectors(value) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, 2.0, 3.0]], "clips: its vectors have 3 numbers, those of the model 2"),
        ([[1.0, 2.0], [3.0]], "its vectors must be numbers, all of one length, and have 1, 2 numbers"),
        ([["a", "b"]], "its vectors must be numbers"),
        ([[1.0, 2.0], [np.nan, 2.0], [1.0, np.inf]], "2 of its numbers are NaN or infinite, the first in vector 1"),
        (np.zeros((1, 2, 2)), "it must be vectors (vectors, numbers), got shape (1, 2, 2)"),
        ("words", "expected lists of numbers, or a file that ends in .npy or .npz"),
        ("nowhere.npy", "clips 'nowhere.npy'"),
        ("both.npz", "it holds 2 arrays, first, second; one is expected"),
        ("objects.npy", "Object arrays cannot be loaded when allow_pickle=False"),
        (b"12345678", "raw bytes need a column with their shape beside them"),
        (3.0, "it must be vectors"),
    ],
)
def test_what_is_no_vectors(value: Any, message: str, folder: Path) -> None:
    with pytest.raises(UnreadableError, match=re.escape(message)):
        read_vectors("clips", value, 2, None, str(folder))


def test_the_option() -> None:
    read = read_vector_columns({"text": "words", "clips": {"positions_column": "seconds", "max_length": 75}})
    assert read["text"] == VectorColumn("words")
    assert read["clips"] == VectorColumn("clips", "seconds", {"max_length": 75})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clips": 512}, "'clips' must have its column or an object with options, got 512"),
        ({"clips": {"width": 3}}, "'clips' has no option width, only column, positions_column, size"),
        ({"clips": {"column": 3}}, "column of 'clips' must be the name of a column, got 3"),
        ({"clips": {"positions": "rotary"}}, "--features: features['clips']: positions must be one of"),
        ({"clips": {"positions": "learned"}}, "learned positions need max_length"),
        ({"Clips": "clips"}, "features cannot be called 'Clips'"),
        ({"clips": {"positions": None, "positions_column": "s"}}, "'clips' has a positions_column and positions=None"),
    ],
)
def test_wrong_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_vector_columns(given)


def test_the_size_is_that_of_the_first_vectors() -> None:
    rows = Dataset.from_dict({"a": [None, TWO, TWO], "b": [[], [1.0], [1.0]], "c": [None, None, None]})
    columns = {"a": VectorColumn("a"), "b": VectorColumn("b"), "c": VectorColumn("c", options={"size": 7})}
    data = DataArguments(dataset_name="D")
    assert find_sizes({"train": rows}, columns, data) == {"a": 2, "b": 1, "c": 7}
    assert find_sizes({"train": rows.to_iterable_dataset()}, columns, data) == {"a": 2, "b": 1, "c": 7}
    with pytest.raises(ValueError, match="none of the first 100 samples of the split 'train' has vectors in the colu"):
        find_sizes({"train": rows}, {"c": VectorColumn("c")}, data)
    with pytest.raises(ValueError, match="--features 'nowhere': the data have no such column"):
        find_sizes({"train": rows}, {"c": VectorColumn("nowhere")}, data)


@pytest.mark.parametrize("is_stream", [False, True])
def test_mean_and_deviation_are_those_of_all_vectors(is_stream: bool) -> None:
    generator = np.random.default_rng(0)
    samples = [generator.normal(size=(length, 3)) * [1, 10, 0] + [1000, -2, 5] for length in (1, 4, 2, 7)]
    rows: Any = Dataset.from_dict({"clips": [*(sample.tolist() for sample in samples), None, [[1.0, 2.0]]]})
    rows = rows.to_iterable_dataset() if is_stream else rows
    assert is_stream == isinstance(rows, IterableDataset)
    columns = {"clips": VectorColumn("clips")}
    scales = find_scales(as_arrays(rows, columns.values()), columns, {"clips": 3}, None)["clips"]
    whole = np.concatenate(samples)
    np.testing.assert_allclose(scales["mean"], whole.mean(0), rtol=1e-6)
    # Nothing is divided by what is constant.
    np.testing.assert_allclose(scales["std"], [*whole.std(0)[:2], 1], rtol=1e-3)


def test_arrays_hold_what_lists_do() -> None:
    values = [TWO, None, [], [[1.0, 2.0], [3.0]], [[5.0, 6.0]]]
    rows = Dataset.from_dict({"clips": values, "other": ["a", "b", "c", "d", "e"]})
    arrays = as_arrays(rows, [VectorColumn("clips")])
    assert isinstance(arrays[0]["clips"], np.ndarray)
    assert [row["other"] for row in arrays] == ["a", "b", "c", "d", "e"]
    assert read_vectors("clips", arrays[1]["clips"]) is None and read_vectors("clips", arrays[2]["clips"]) is None
    with pytest.raises(UnreadableError, match="all of one length"):
        read_vectors("clips", arrays[3]["clips"])
