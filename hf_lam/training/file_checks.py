"""Reads files before training, so that a damaged one is known then, and keeps what was read."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Value
from datasets.fingerprint import generate_fingerprint
from datasets.utils import tqdm

from .media import UnreadableError
from .media_ends import looks_whole

Row = dict[str, Any]

# Of every split, so many samples are read at least, if nothing else was said.
_LEAST = 64
# Rows that are read from a table together.
_TOGETHER = 16


class Checked(NamedTuple):
    """The result of a check.

    problems: what is wrong, by row; in the order of the rows.
    kept: values that were read, by row.
    size: size in bytes of the values that were kept.
    """

    problems: dict[int, str]
    kept: dict[int, Row]
    size: int


def check_rows(
    dataset: Dataset,
    make: Callable[[Row], Row],
    looks_fine: Callable[[Row], bool],
    *,
    number: int | None = None,
    is_whole: bool = False,
    workers: int | None = None,
    budget: int = 0,
    split: str = "data",
) -> Checked:
    """Find the rows that cannot be made into samples.

    As many rows as `budget` has room for are made now and not again, evenly spread, and all others looked at; those
    that do not look fine are made, too.

    Args:
        dataset: the rows.
        make: makes a sample of a row, or raises an `UnreadableError`.
        looks_fine: says of a row, without reading its files, whether they look as if they could be read.
        number: make so many rows and no others, evenly spread.
        is_whole: make all rows.
        workers: make all rows, or `number`, in so many processes, which keep nothing.
        budget: bytes of samples that may be kept.
        split: its name, for the progress bar.
    """
    total = len(dataset)
    description = f"Reading the {split} files"
    if workers is not None:
        rows = range(total) if number is None else spread(total)[:number]
        return Checked(_problems_by_processes(dataset, make, sorted(rows), workers, description), {}, 0)
    order = range(total) if is_whole else spread(total)[:number]
    problems: dict[int, str] = {}
    kept: dict[int, Row] = {}
    size = done = 0
    with tqdm(total=len(order), desc=description) as progress:

        def try_row(place: int, row: Row) -> Row | None:
            try:
                return make(row)
            except UnreadableError as error:
                problems[place] = str(error)
                return None

        for places, together in read_together(dataset, order):
            for place, row in zip(places, together, strict=True):
                sample = try_row(place, row)
                if sample is not None and size < budget:
                    kept[place] = sample
                    size += size_of(sample)
            done += len(places)
            progress.update(len(places))
            if number is None and not is_whole and size >= budget and done >= _LEAST:
                break
        if number is None:
            for places, together in read_together(dataset, order[done:]):
                for place, row in zip(places, together, strict=True):
                    if not looks_fine(row):
                        try_row(place, row)
                progress.update(len(places))
    return Checked(dict(sorted(problems.items())), kept, size)


def spread(total: int) -> list[int]:
    """The numbers below `total`, in an order (van der Corput's) of which every beginning is evenly spread."""
    bits = max(1, (total - 1).bit_length())
    numbers, found = np.arange(1 << bits), np.zeros(1 << bits, int)
    for bit in range(bits):
        found |= (numbers >> bit & 1) << bits - 1 - bit
    return found[found < total].tolist()


def read_together(dataset: Dataset, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Row]]]:
    """Some rows at a time, with their numbers: they take as long as one of them alone."""
    for start in range(0, len(rows), _TOGETHER):
        numbers = rows[start : start + _TOGETHER]
        yield numbers, rows_of(dataset[list(numbers)])


def rows_of(batch: Mapping[str, list[Any]]) -> list[Row]:
    """The rows of a table that has its columns by name."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def size_of(value: Any) -> int:
    """About how many bytes of memory a sample takes, or anything in it."""
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sys.getsizeof(value) + sum(map(size_of, value))
    return getattr(value, "nbytes", None) or sys.getsizeof(value)


def _problems_by_processes(
    dataset: Dataset, make: Callable[[Row], Row], rows: Sequence[int], workers: int, description: str
) -> dict[int, str]:
    def problem_of(number: dict[str, int]) -> dict[str, str | None]:
        (row,) = rows_of(dataset[[number["row"]]])
        try:
            make(row)
        except UnreadableError as error:
            return {"problem": str(error)}
        return {"problem": None}

    # Not `dataset.map`: of a data set with some columns in a format, it would make that of all of them.
    problems = Dataset.from_dict({"row": list(rows)}).map(
        problem_of,
        remove_columns="row",
        num_proc=workers,
        # Files may have changed since an earlier run, which no fingerprint of the data set tells.
        load_from_cache_file=False,
        keep_in_memory=True,
        # Otherwise `make` is pickled for one, which takes long.
        new_fingerprint=generate_fingerprint(dataset),
        features=Features({"problem": Value("string")}),
        desc=description,
    )["problem"]
    return {row: problem for row, problem in zip(rows, problems, strict=True) if problem}


def may_be_readable(value: Any, shape: Any, root: str | None) -> bool:
    """Whether the file, or files, that a row has in a column look readable.

    Values that are no files are not looked at, and files elsewhere (`https://…`) are not fetched.

    Args:
        value: a path, the bytes of a file, or the value of an undecoded image, video or sound of `datasets`.
        shape: shape of the array, if `value` is its raw bytes.
        root: the folder that relative paths start from.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (str, bytes, Mapping)):
        return all(may_be_readable(entry, None, root) for entry in value)
    if isinstance(value, bytes):
        return shape is not None or looks_whole(value)
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or "://" in path or path.lstrip().startswith("["):
        return True
    try:
        with (
            open(os.path.join(root or "", path), "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return looks_whole(content)
    except (OSError, ValueError):  # missing, or empty
        return False
