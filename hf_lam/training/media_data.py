"""Data sets of images, videos and audio: made ready for a model, and what in them cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, IterableDataset, Value
from datasets.fingerprint import generate_fingerprint
from transformers.utils import logging

from .arguments import DataArguments, MediaArguments
from .data import MOST_SHOWN, AnyDataset, columns_of, limited, list_first
from .labels import Labels, has_labels
from .media import UnreadableError

logger = logging.get_logger(__name__)

# Rows of a stream that are made ready together.
_STREAMED = 16


def prepare_media(
    splits: Mapping[str, AnyDataset],
    read: Callable[..., Any],
    encode: Callable[[Any], dict[str, Any]],
    labels: Labels,
    data: MediaArguments,
    seed: int,
) -> dict[str, AnyDataset]:
    """Splits whose rows become what the model is called with, when they are needed.

    Every file is read once before, so that one that cannot be read is known before training starts; those of a stream
    are looked at on the way.

    Args:
        splits: what `load_splits` gave.
        read: `read(row, root)` takes images, videos or audio out of a row, and raises an `UnreadableError` if they are
            damaged. `root` is the folder that relative paths start from, that of the split's file.
        encode: makes inputs of the model from what `read` returned.
        labels: the classes.
        data: says how many samples, and with `skip_unreadable` to go on without what cannot be read.
        seed: for the choice of samples.

    Returns:
        The splits, without `labels` where there are none. Those that are no stream have `rows`, a list: which rows of
        what `limited` gives are left. In the split test they are numbered as they were loaded.

    Raises:
        ValueError: naming and counting what cannot be read, of all splits, unless it is left out.
    """

    def transform(row: dict[str, Any], root: str | None, is_labelled: bool) -> dict[str, Any]:
        inputs = encode(read(row, root))
        return {**inputs, "labels": labels.encode(row[data.label_column_name])} if is_labelled else inputs

    prepared: dict[str, AnyDataset] = {}
    refused: list[str] = []
    for split, dataset in limited(splits, data, seed).items():
        root = _root_of(data, split)
        ready = partial(transform, root=root, is_labelled=has_labels(split, splits[split], data))
        if isinstance(dataset, Dataset):
            unreadable = _unreadable(dataset, partial(read, root=root), split, data)
            rows = [row for row in range(len(dataset)) if row not in unreadable]
            prepared[split] = _Transformed(dataset, rows, ready)
            if unreadable:
                message = _message_of(unreadable, len(dataset), split)
                if data.skip_unreadable and rows:
                    logger.warning(f"{message} They are left out.")
                else:
                    refused.append(message if rows else f"{message} None is left.")
        else:
            prepared[split] = _readable_stream(dataset, ready, split, data)
    if refused:
        raise ValueError(
            " ".join([*refused, *([] if data.skip_unreadable else ["--skip_unreadable leaves them out."])])
        )
    return prepared


def _root_of(data: DataArguments, split: str) -> str | None:
    """The folder that relative paths in a data file start from: its own. None for data that are in no file."""
    # Validation data may be a part of the training data.
    files = {"train": data.train_file, "validation": data.validation_file or data.train_file, "test": data.test_file}
    file = files[split]
    return None if file is None else os.path.dirname(os.path.abspath(file))


class _Transformed(torch.utils.data.Dataset):
    """Rows that are made ready when they are needed.

    Unlike `Dataset.with_transform`, which pickles the transform for a fingerprint that nobody needs, for seconds.
    """

    def __init__(
        self, dataset: Dataset, rows: list[int], transform: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.dataset = dataset
        self.rows = rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform(self.dataset[self.rows[index]])


def _unreadable(dataset: Dataset, read: Callable[..., Any], split: str, data: DataArguments) -> dict[int, str]:
    """What is wrong with the rows that cannot be read. The main process looks, and tells the others."""

    def problem_of(row: dict[str, Any]) -> dict[str, str | None]:
        try:
            read(row)
        except UnreadableError as error:
            return {"problem": str(error)}
        return {"problem": None}

    found: list[Any] = [None]
    if PartialState().is_main_process:
        problems = dataset.map(
            problem_of,
            remove_columns=dataset.column_names,
            num_proc=data.preprocessing_num_workers,
            # Files may have changed since an earlier run, which no fingerprint of the data set tells.
            load_from_cache_file=False,
            keep_in_memory=True,
            # Otherwise `read` is pickled for one, which takes long.
            new_fingerprint=generate_fingerprint(dataset),
            features=Features({"problem": Value("string")}),
            desc=f"Reading the {split} files",
        )["problem"]
        found = [{row: problem for row, problem in enumerate(problems) if problem}]
    return broadcast_object_list(found)[0]


def _message_of(unreadable: Mapping[int, str], total: int, split: str) -> str:
    shown = [f"row {row}: {problem}" for row, problem in islice(unreadable.items(), MOST_SHOWN)]
    named = list_first(shown, len(unreadable))
    return f"{len(unreadable)} of {total} samples of the split {split!r} cannot be read: {named}."


def _readable_stream(
    dataset: IterableDataset, transform: Callable[[dict[str, Any]], dict[str, Any]], split: str, data: MediaArguments
) -> IterableDataset:
    def of_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = []
        for row in _rows(batch):
            try:
                rows.append(transform(row))
            except UnreadableError as error:
                message = f"a sample of the split {split!r} cannot be read: {error}."
                if not data.skip_unreadable:
                    raise ValueError(f"{message} --skip_unreadable leaves such samples out.") from error
                logger.warning(f"{message} It is left out.")
            except ValueError as error:
                raise ValueError(f"a sample of the split {split!r}: {error}") from error
        return _columns(rows)

    return dataset.map(of_batch, batched=True, batch_size=_STREAMED, remove_columns=columns_of(dataset))


def _rows(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
