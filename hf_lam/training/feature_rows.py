"""The rows of a data set, made ready for the encoders whose outputs are cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..modeling.configuration_hf_lam_fusion import ModalityArguments, feature_arguments
from .collators import FusionCollator, has_modality
from .feature_shards import FeatureFolder

# So many rows of a stream are looked at where there is nothing left to do.
_OF_A_STREAM = 4


class Batch(NamedTuple):
    """Rows that are ready for the encoders.

    number: number of the first row.
    size: number of rows.
    inputs: the rows that have each modality, and the arguments of its encoder: once for all of them, or where images
        or videos differ in size, once for each size.
    kept: further values to write for every row.
    hashes: hashes of the rows by which the data set is known again, by their numbers in the shard.
    """

    number: int
    size: int
    inputs: dict[str, list[tuple[list[int], dict[str, torch.Tensor]]]]
    kept: list[dict[str, Any]]
    hashes: dict[int, str]


class RowReader:
    """Makes batches for the encoders out of rows; workers get a copy."""

    def __init__(
        self,
        transform: Callable[[Any], Mapping[str, Any]] | None,
        collator: FusionCollator,
        cached: Mapping[str, ModalityArguments],
        others: Mapping[str, ModalityArguments],
        keep: list[str] | None,
        shard_size: int,
    ) -> None:
        self.transform = transform
        self.collator = collator
        self.cached = cached
        self.others = others
        self.keep = keep
        self.shard_size = shard_size

    def __call__(self, numbered: Sequence[tuple[int, Any]]) -> Batch:
        number = numbered[0][0]
        samples = [self._sample(row, index) for index, row in numbered]
        if number == 0:
            self._check_first(samples)
        inputs = {}
        for name, arguments in self.cached.items():
            rows = [index for index, sample in enumerate(samples) if has_modality(sample, name, arguments)]
            inputs[name] = [
                (alike, dict(self.collator([_of_modality(samples[row], arguments) for row in alike])))
                for alike in _alike(name, [(row, samples[row][arguments.values]) for row in rows])
            ]
        kept = [{key: value for key, value in sample.items() if self._is_kept(key)} for sample in samples]
        hashes = {
            index % self.shard_size: self._hash(sample)
            for index, sample in enumerate(samples, number)
            if _is_known_by(index, self.shard_size)
        }
        return Batch(number, len(samples), inputs, kept, hashes)

    def hash_row(self, row: Any, index: int) -> str:
        """The hash of what is read of a row."""
        return self._hash(self._sample(row, index))

    def _sample(self, row: Any, index: int) -> Mapping[str, Any]:
        sample = row if self.transform is None else self.transform(row)
        if not isinstance(sample, Mapping):
            by = "" if self.transform is None else "what transform makes of "
            raise TypeError(f"{by}row {index} of the data set must be a mapping, got {type(sample).__name__}.")
        return sample

    def _names(self, modalities: Mapping[str, ModalityArguments]) -> set[str]:
        return {key for name, arguments in modalities.items() for key in (*arguments.names, f"has_{name}")}

    def _is_kept(self, key: str) -> bool:
        if key in self._names(self.cached):
            return False
        return self.keep is None or key in self.keep or key in self._names(self.others)

    def _hash(self, sample: Mapping[str, Any]) -> str:
        digest = hashlib.sha256()
        for key in sorted(sample):
            if self._is_kept(key) or key in self._names(self.cached):
                digest.update(key.encode())
                _hash_value(digest, sample[key])
        return digest.hexdigest()

    def _check_first(self, samples: Sequence[Mapping[str, Any]]) -> None:
        found = {key for sample in samples for key in sample}
        inputs = [arguments.values for arguments in (*self.cached.values(), *self.others.values())]
        if found.isdisjoint(inputs):
            raise ValueError(
                f"the rows have {', '.join(sorted(found))}, and nothing that the model takes ({', '.join(inputs)}). "
                "Give transform=, which makes that out of a row, with the model's processor for example."
            )
        made = {feature_arguments(name).values for name in self.cached}
        taken = sorted(key for key in found & made if self._is_kept(key))
        if taken:
            raise ValueError(f"the rows have {', '.join(taken)} already; rename it, or leave it out of keep_columns.")
        cached = sorted(self._names(self.cached) & set(self.keep or ()))
        if cached:
            raise ValueError(f"keep_columns has {', '.join(cached)}, in whose place there will be features.")
        lacking = sorted(set(self.keep or ()) - found)
        if lacking:
            raise ValueError(f"keep_columns has {', '.join(lacking)}; the rows have {', '.join(sorted(found))}.")


def _of_modality(sample: Mapping[str, Any], arguments: ModalityArguments) -> dict[str, Any]:
    return {key: sample[key] for key in arguments.names if key in sample}


def _alike(name: str, values: Sequence[tuple[int, Any]]) -> list[list[int]]:
    """Rows that can be in one tensor: all of them, but for images and videos of several sizes, which nobody pads."""
    groups: dict[tuple[int, ...] | None, list[int]] = {}
    for row, value in values:
        shape = _shape_of(value) if name in ("image", "video") else ()
        groups.setdefault(shape if len(shape) > 2 else None, []).append(row)
    return list(groups.values())


def _shape_of(value: Any) -> tuple[int, ...]:
    if hasattr(value, "shape"):
        return tuple(value.shape)
    return (len(value), *_shape_of(value[0])) if isinstance(value, (list, tuple)) and value else ()


def _is_known_by(number: int, shard_size: int) -> bool:
    """Whether a data set is known again by this row.

    That is the first row of every shard and, in the first shard, the rows 1, 2, 3, 4, 6, 8, 12, 16, 24, and so on.
    """
    rest = max(number.bit_length() - 2, 0)
    return number % shard_size == 0 or (number < shard_size and number >> rest << rest == number)


class _Rows(torch.utils.data.Dataset):
    """A data set whose rows come with their numbers."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.rows[index]


def has_index(rows: Any) -> bool:
    # Streams of torch inherit an index that they do not have, and may say how long they are.
    return (
        not isinstance(rows, torch.utils.data.IterableDataset)
        and hasattr(rows, "__getitem__")
        and hasattr(rows, "__len__")
    )


def length_of(rows: Any) -> int | None:
    try:
        return len(rows)
    except TypeError:  # a stream
        return None


def read_batches(
    folder: FeatureFolder, rows: Any, reader: RowReader, batch_size: int, num_workers: int
) -> Iterator[Batch]:
    """The batches that are not yet in the folder. None has rows of two shards."""
    done, shard_size, hashes = folder.rows, reader.shard_size, folder.hashes
    if has_index(rows):
        for index, expected in hashes.items():
            folder.check_row(index, expected, reader.hash_row(rows[index], index))
        numbers = (
            list(range(start, min(start + batch_size, first + shard_size, len(rows))))
            for first in range(done, len(rows), shard_size)
            for start in range(first, min(first + shard_size, len(rows)), batch_size)
        )
        loader: Any = DataLoader(
            _Rows(rows),
            batch_sampler=numbers,
            collate_fn=reader,
            num_workers=num_workers,
        )
        yield from loader
        return
    ready: list[tuple[int, Any]] = []
    for index, row in enumerate(rows):
        if index in hashes:
            folder.check_row(index, hashes[index], reader.hash_row(row, index))
        if folder.is_complete and index + 1 >= _OF_A_STREAM:
            return
        if index < done:
            continue
        ready.append((index, row))
        if len(ready) == batch_size or (index + 1) % shard_size == 0:
            yield reader(ready)
            ready = []
    if ready:
        yield reader(ready)


def _hash_value(digest: Any, value: Any) -> None:
    """Add a value to a hash: the same for a list, an array and a tensor of the same numbers."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _hash_value(digest, value[key])
        return
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind in "fiub":
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype="f8" if array.dtype.kind == "f" else "i8"))
    elif isinstance(value, (list, tuple)) and array.dtype.kind == "O":
        digest.update(str(len(value)).encode())
        for item in value:
            _hash_value(digest, item)
    elif array.dtype.kind == "O":  # None, or something whose text would say where in memory it lies
        digest.update(type(value).__name__.encode())
    else:
        digest.update(str(array.tolist()).encode())
