"""The columns of a data set, or of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeAlias

from datasets import Audio, Dataset, Image, IterableDataset, LargeList, List, Video

from .sources import SOURCE, Sources

AnyDataset: TypeAlias = "Dataset | IterableDataset"
LISTS = (List, LargeList)
_MEDIA = (Image, Video, Audio)

# How many offending rows or files a message names.
MOST_SHOWN = 5


def stored_columns(dataset: AnyDataset) -> list[str]:
    """The names of all columns, of a stream those of its first row."""
    return list(dataset.column_names or first_row(dataset))


def columns_of(dataset: AnyDataset) -> list[str]:
    """The names of the columns that the data have, without what says where a sample comes from."""
    return [name for name in stored_columns(dataset) if name != SOURCE]


def without_decoding(dataset: Any) -> Any:
    """The data set, whose images, videos and audio are files or bytes as they are stored."""
    for name, feature in (dataset.features or {}).items():
        entry = feature.feature if isinstance(feature, LISTS) else feature
        if isinstance(entry, _MEDIA):
            undecoded = type(entry)(decode=False)
            dataset = dataset.cast_column(name, type(feature)(undecoded) if isinstance(feature, LISTS) else undecoded)
    return dataset


def first_row(dataset: AnyDataset) -> dict[str, Any]:
    """The first row; a `ValueError` if there is none."""
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError("the data have no samples.")
    return row


def values_of(dataset: Dataset, column: str) -> list[Any]:
    """A column as a whole: row by row, a million values take minutes."""
    return dataset[column][:]


def check_column(dataset: AnyDataset, column: str, option: str) -> None:
    """Raises a `ValueError` that lists the columns if there is none of that name."""
    columns = columns_of(dataset)
    if column not in columns:
        looks_split = len(columns) == 1 and any(mark in columns[0] for mark in ";|\t,")
        raise ValueError(
            f"--{option} {column!r}: the data have no such column, only {', '.join(columns)}."
            + " Is that several of them? See --delimiter." * looks_split
        )


def names_of_rows(dataset: AnyDataset, rows: Sequence[int], sources: Sources | None) -> list[str]:
    """Name rows of a data set in a message, by where they are in the data as they were loaded."""
    if sources is None or SOURCE not in stored_columns(dataset):
        return [f"row {row}" for row in rows]
    if isinstance(dataset, Dataset):
        return [sources.name(source) for source in dataset.select(rows)[SOURCE]]
    first = list(islice(dataset, max(rows) + 1))
    return [sources.name(first[row][SOURCE]) for row in rows]


def name_of_sample(sample: dict[str, Any], sources: Sources | None) -> str:
    """Name a sample of a stream in a message."""
    return "a sample" if sources is None or SOURCE not in sample else sources.name(sample[SOURCE])


def list_first(shown: Sequence[str], number: int) -> str:
    """The first few of so many findings, and how many more there are."""
    return "; ".join(shown) + (f"; and {number - MOST_SHOWN} more" if number > MOST_SHOWN else "")
