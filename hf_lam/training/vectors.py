"""Modalities that are columns of vectors: what a command line says of them, and what the rows hold."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset

from ..modeling.fusion_features_hf_lam import FeatureOptions, read_features
from ..modeling.samples_hf_lam import is_missing
from ..modeling.vectors_hf_lam import as_numbers
from .arguments import DataArguments
from .columns import AnyDataset, check_column
from .media import UnreadableError, naming, opened, raw_array
from .media_data import root_of

# How many samples are looked at for vectors.
_LOOKED_AT = 100

_ARRAY_FILES = (".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class VectorColumn:
    """The column with the vectors of one modality.

    column: lists of vectors, arrays, raw bytes with a column NAME_shape beside them, or paths of .npy and .npz files.
    positions_column: column with the place of each vector, such as the second at which its clip begins; None for 0, 1,
        2, …
    options: options of `FeatureOptions` that were given.
    """

    column: str
    positions_column: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_vector_columns(given: Mapping[str, Any]) -> dict[str, VectorColumn]:
    """Read `--features`, by modality.

    Args:
        given: column of each modality, or an object with `column`, `positions_column` and options of `FeatureOptions`;
            without `column`, that is the name of the modality.

    Raises:
        ValueError: for a name, an option or a value that is not one.
    """
    found = {}
    known = [x.name for x in dataclasses.fields(FeatureOptions)]
    for name, said in given.items():
        options = {"column": said} if isinstance(said, str) else said
        if not isinstance(options, Mapping):
            raise ValueError(f"--features: {name!r} must have its column or an object with options, got {said!r}.")
        unknown = sorted(set(options) - {"column", "positions_column", *known})
        if unknown:
            raise ValueError(
                f"--features: {name!r} has no option {', '.join(unknown)}, only column, positions_column, "
                f"{', '.join(known)}."
            )
        column, positions = options.get("column", name), options.get("positions_column")
        for key, value in (("column", column), ("positions_column", positions)):
            if not (isinstance(value, str) or (key == "positions_column" and value is None)):
                raise ValueError(f"--features: {key} of {name!r} must be the name of a column, got {value!r}.")
        if positions is not None and options.get("positions", "") is None:
            raise ValueError(f"--features: {name!r} has a positions_column and positions=None; give one of them.")
        rest = {key: value for key, value in options.items() if key in known}
        try:
            # The size is known from the data, if it is not given.
            read_features({name: {"size": 1, **rest}})
        except ValueError as error:
            raise ValueError(f"--features: {str(error).removeprefix('HfLamFusionConfig: ')}") from error
        found[name] = VectorColumn(column, positions, rest)
    return found


def read_vectors(
    name: str, value: Any, size: int | None = None, shape: Any = None, root: str | None = None
) -> np.ndarray | None:
    """The vectors of one sample, `(L, size)` in single precision, or None if it has none.

    Args:
        name: name of the modality, for messages.
        value: a list of vectors, an array `(L, size)`, one vector, their raw bytes together with `shape`, a text with
            such lists, or the path of a .npy file or of a .npz file with one array.
        size: number of entries that a vector must have; any number unless given.
        shape: shape of the array, if `value` is its raw bytes.
        root: the folder that relative paths start from.

    Raises:
        UnreadableError: naming the modality and the reason.
    """
    if is_missing(value):
        return None
    with naming(value, name):
        given = _array_of(value, shape, root)
        try:
            array = as_numbers(given).astype(np.float32, copy=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"its vectors must be numbers, all of one length{_lengths_in(given)}") from error
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"it must be vectors (vectors, numbers), got shape {array.shape}")
        if size is not None and array.shape[1] != size:
            raise ValueError(f"its vectors have {array.shape[1]} numbers, those of the model {size}")
        if not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            raise ValueError(f"{len(bad)} of its numbers are NaN or infinite, the first in vector {bad[0][0]}")
        return array


def _array_of(value: Any, shape: Any, root: str | None) -> Any:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return json.loads(text)
        if not text.lower().endswith(_ARRAY_FILES):
            raise ValueError(f"expected lists of numbers, or a file that ends in {' or '.join(_ARRAY_FILES)}")
        with opened(value, root) as file:
            # Never an array of objects, which is a pickle.
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if len(loaded.files) != 1:
                raise ValueError(
                    f"it holds {len(loaded.files)} arrays, {', '.join(loaded.files[:5])}; one is expected"
                )
            return loaded[loaded.files[0]]
    if isinstance(value, (bytes, bytearray)) and shape is None:
        raise ValueError("raw bytes need a column with their shape beside them")
    raw = raw_array(value, shape) if isinstance(value, (bytes, bytearray)) else None
    return value if raw is None else raw


def _lengths_in(value: Any) -> str:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return ""
    lengths = sorted({len(vector) for vector in value if hasattr(vector, "__len__")})
    return f", and have {', '.join(map(str, lengths[:5]))} numbers" if len(lengths) > 1 else ""


def count_vectors(value: Any, shape: Any = None) -> int | None:
    """Count the vectors in a value of a column, without reading them; None if that cannot be seen."""
    if is_missing(value):
        return None
    if isinstance(value, (bytes, bytearray)):
        return None if shape is None else int(shape[0]) if len(shape) > 1 else 1
    if not isinstance(value, (list, tuple, np.ndarray)):
        return None
    if len(value) and np.ndim(value[0]) == 0:
        return 1
    return len(value) or None


def find_sizes(
    splits: Mapping[str, AnyDataset], columns: Mapping[str, VectorColumn], data: DataArguments
) -> dict[str, int]:
    """Find the size of the vectors of every modality: the one that was given, or that of the first rows.

    Raises:
        ValueError: for a column that is not there, or without vectors in the first rows.
    """
    split, dataset = next(iter(splits.items()))
    for source in columns.values():
        check_column(dataset, source.column, "features")
    sizes = {name: source.options["size"] for name, source in columns.items() if "size" in source.options}
    problems: dict[str, str] = {}
    for row in islice(dataset, _LOOKED_AT):
        for name in columns.keys() - sizes.keys():
            try:
                vectors = _vectors_of(name, row, columns[name], None, root_of(data, split))
            except UnreadableError as error:
                problems.setdefault(name, str(error))
                continue
            if vectors is not None:
                sizes[name] = int(vectors.shape[1])
        if len(sizes) == len(columns):
            return {name: sizes[name] for name in columns}
    name = next(name for name in columns if name not in sizes)
    problem = f": {problems[name]}" if name in problems else ""
    raise ValueError(
        f"none of the first {_LOOKED_AT} samples of the split {split!r} has vectors in the column "
        f"{columns[name].column!r} of the {name}{problem}."
    )


def _vectors_of(
    name: str, row: Mapping[str, Any], source: VectorColumn, size: int | None, root: str | None
) -> np.ndarray | None:
    return read_vectors(name, row[source.column], size, row.get(f"{source.column}_shape"), root)


def find_scales(
    dataset: AnyDataset, columns: Mapping[str, VectorColumn], sizes: Mapping[str, int], root: str | None
) -> dict[str, dict[str, list[float]]]:
    """`mean` and `std` of the vectors of every modality, over a data set that is read once.

    Values that cannot be read are left out; they are named where samples are made ready.

    Raises:
        ValueError: for a modality that no sample has.
    """
    moments = {name: Moments(size) for name, size in sizes.items()}
    for row in dataset:
        for name, found in moments.items():
            with suppress(UnreadableError):
                vectors = _vectors_of(name, row, columns[name], sizes[name], root)
                if vectors is not None:
                    found.add(vectors)
    for name, found in moments.items():
        if not found.count:
            raise ValueError(f"no sample of the training data has vectors in {columns[name].column!r} of the {name}.")
    return {name: {"mean": found.mean.tolist(), "std": found.deviation().tolist()} for name, found in moments.items()}


class Moments:
    """Mean and standard deviation of each number of vectors, one sample after the other."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self._squares = np.zeros(size)

    def add(self, vectors: np.ndarray) -> None:
        """Count vectors `(L, size)` in."""
        values = vectors.astype(np.float64)
        # As the pieces of a parallel pass are put together (Chan, Golub & LeVeque, 1979): sums of squares would lose
        # what differs where a mean is large.
        own, number = values.mean(0), len(values)
        shift, total = own - self.mean, self.count + number
        self._squares += ((values - own) ** 2).sum(0) + shift**2 * (self.count * number / total)
        self.mean += shift * (number / total)
        self.count = total

    def deviation(self) -> np.ndarray:
        """The standard deviation; 1 where all numbers are equal, and nothing is to be divided by."""
        deviation = np.sqrt(self._squares / self.count)
        return np.where(deviation > 1e-6 * np.abs(self.mean), deviation, 1.0)


def as_arrays(dataset: AnyDataset, columns: Iterable[VectorColumn]) -> AnyDataset:
    """The data set, whose rows have arrays in these columns; lists of lists take many times as long."""
    names = [source.column for source in columns]
    if not isinstance(dataset, Dataset) or not names:
        return dataset
    return dataset.with_format("numpy", columns=names, output_all_columns=True)
