"""The source of every sample: its file, and its row there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np
from datasets import Audio, Dataset, Features, IterableDataset, Value

# The column that says it, as one number: which part of the split, and which row of that part.
SOURCE = "hf_lam_source"
_ROWS = 2**40

# What an image, video or audio holds that is not decoded.
ENCODED_FILE = {"bytes": Value("binary"), "path": Value("string")}


@dataclass(frozen=True)
class Place:
    """The place of a sample. All rows count from 0, in tables without the header.

    row: row in the split, whose files come one after the other.
    file: file of the sample; None where the data do not say.
    file_row: row in this file; None where every file is one sample.
    """

    row: int
    file: str | None
    file_row: int | None


@dataclass(frozen=True)
class Sources:
    """The files of a split, in order.

    files: their names; None for one that has none.
    sizes: number of rows of each file; None for a stream, where only reading tells.
    count: function that counts the rows of a stream's file by its index.
    is_sample_a_file: whether every file is one sample.
    """

    files: Sequence[str | None]
    sizes: Sequence[int] | None = None
    count: Callable[[int], int] | None = None
    is_sample_a_file: bool = False

    def name(self, source: int) -> str:
        """Name a sample in a message."""
        part, row = divmod(source, _ROWS)
        if self.is_sample_a_file:
            return f"file {self.files[part]!r}"
        return f"row {row}" + (f" of {self.files[part]!r}" if len(self.files) > 1 and self.files[part] else "")

    def places(self, sources: Iterable[int], is_complete: bool = False) -> list[Place]:
        """Find the places of samples.

        Args:
            sources: column `SOURCE` of the samples.
            is_complete: whether they are all samples of the split; files of a stream need not be counted then.
        """
        found = [divmod(int(source), _ROWS) for source in sources]
        first = self._first_rows(found, is_complete)
        return [
            Place(first[part] + row, self.files[part], None if self.is_sample_a_file else row) for part, row in found
        ]

    def _first_rows(self, found: Sequence[tuple[int, int]], is_complete: bool) -> list[int]:
        """The row in the split that every file begins with."""
        if self.is_sample_a_file:
            return list(range(len(self.files)))
        sizes = self.sizes
        if sizes is None:
            # Of the files after the last one that is needed, no size is.
            last = max((part for part, _ in found), default=0)
            if is_complete:
                counted = np.zeros(last + 1, dtype=np.int64)
                for part, row in found:
                    counted[part] = max(counted[part], row + 1)
                sizes = counted.tolist()
            else:
                assert self.count is not None
                sizes = [self.count(part) for part in range(last)]
        return [0, *accumulate(sizes)]


def with_sources(parts: Sequence[Dataset], dataset: Dataset) -> Dataset:
    """The data set that `parts` were put together to, with the column `SOURCE`."""
    numbers = [part * _ROWS + np.arange(len(rows)) for part, rows in enumerate(parts)]
    return dataset.add_column(SOURCE, np.concatenate(numbers or [np.zeros(0, dtype=np.int64)]))


def file_sources(files: int) -> np.ndarray:
    """The column `SOURCE` where every file is one sample."""
    return np.arange(files) * _ROWS


class _Numbered:
    """Reads streams one after the other, and numbers their rows. It is pickled for the workers that read."""

    def __init__(self, streams: Sequence[IterableDataset]) -> None:
        self.streams = streams

    def __call__(self, parts: Iterable[int]) -> Iterator[dict[str, Any]]:
        for part in parts:
            for row, sample in enumerate(_rows_of(self.streams[part])):
                yield {**sample, SOURCE: part * _ROWS + row}


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    # By batches: as an iterator, a stream would divide its files among the workers once more.
    for batch in stream.iter(batch_size=16):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def numbered_stream(streams: Sequence[IterableDataset]) -> IterableDataset:
    """One stream of several, with the column `SOURCE`. Workers read different ones of them."""
    features = _plain_features(streams[0])
    if features is not None:
        features = Features({**features, SOURCE: Value("int64")})
    return IterableDataset.from_generator(
        _Numbered(streams), features=features, gen_kwargs={"parts": list(range(len(streams)))}
    )


def _plain_features(stream: IterableDataset) -> Features | None:
    # `datasets` cannot make rows with an `Audio` without torchcodec, not even of files that are not decoded.
    kinds = stream.features
    return kinds and Features({name: ENCODED_FILE if isinstance(x, Audio) else x for name, x in kinds.items()})


class _First:
    """Reads the first samples of a stream. It is pickled for the worker that reads."""

    def __init__(self, stream: IterableDataset, number: int) -> None:
        self.stream = stream
        self.number = number

    def __call__(self) -> Iterator[dict[str, Any]]:
        yield from islice(_rows_of(self.stream), self.number)


def first_of(stream: IterableDataset, number: int) -> IterableDataset:
    """The first samples of a stream, however many workers there are.

    One of them reads; `IterableDataset.take` would have each read some of its own files.
    """
    return IterableDataset.from_generator(_First(stream, number), features=_plain_features(stream))


def shards_of(stream: IterableDataset) -> list[IterableDataset]:
    """A stream as one for each of its files."""
    number = stream.num_shards
    return [stream] if number <= 1 else [stream.shard(number, index) for index in range(number)]


def rows_in(stream: IterableDataset) -> int:
    """Count the rows of a stream, by reading it."""
    return sum(1 for _ in _rows_of(stream))
