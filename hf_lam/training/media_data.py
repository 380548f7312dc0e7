"""Data sets of images, videos and audio: made ready for a model, and what in them cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from transformers.utils import logging

from .arguments import DataArguments, MediaArguments
from .columns import MOST_SHOWN, AnyDataset, list_first, name_of_sample, names_of_rows, stored_columns
from .data import limited
from .file_checks import Checked, check_rows, may_be_readable, rows_of
from .labels import has_labels
from .media import UnreadableError
from .predictions import POSITIONS
from .sources import SOURCE, Sources

logger = logging.get_logger(__name__)

# Rows of a stream that are made ready together.
_STREAMED = 16

# Memory for samples that were made ready before training.
KEPT_BYTES = 2**30


class Labelling(Protocol):
    """Makes labels of the column that has them, as `Labels` does."""

    def encode(self, value: Any) -> Any: ...


def prepare_media(
    splits: Mapping[str, AnyDataset],
    read: Callable[..., Any],
    encode: Callable[[Any], dict[str, Any]],
    labels: Labelling,
    data: MediaArguments,
    seed: int,
    sources: Mapping[str, Sources] | None = None,
    count_labels: Callable[[Mapping[str, Any]], int] | None = None,
    files: Sequence[str] = (),
) -> dict[str, AnyDataset]:
    """Splits whose rows become what the model is called with, when they are needed.

    Files are read, and their inputs made, before, so that one that cannot be read or that the model could not learn
    from is known before training starts. The inputs are kept, and training does not read these files again. Beyond
    what `KEPT_BYTES` has room for, files are only looked at: whether they are there, of a known kind, and do not end
    early. `data.skip_unreadable` reads them all, `data.max_checked_samples` so many of each split, whatever room they
    need. Those of a stream are read on the way.

    Args:
        splits: splits from `load_splits`.
        read: `read(row, root)` takes images, videos or audio out of a row, and raises an `UnreadableError` if they are
            damaged. `root` is the folder that relative paths start from, that of the split's file.
        encode: makes inputs of the model from what `read` returned. A sample that it refuses, or of which it makes
            something that is not finite, counts as one that cannot be read.
        labels: the classes, or another goal.
        data: options that say how many samples, and with `skip_unreadable` to go on without those that cannot be read.
        seed: seed for the choice of samples.
        sources: files that the samples of every split come from, for messages.
        count_labels: function that counts the labels in the inputs of a sample whose positions have labels.
        files: the columns that may have files.

    Returns:
        The splits, without `labels` where there are none. Those that are no stream have `rows`, a list: which rows of
        what `limited` gives are left. Samples of the split test say where they come from, as `SOURCE`, if the rows do,
        and how many labels they have, as `POSITIONS`.

    Raises:
        ValueError: naming and counting what cannot be read, of all splits, unless it is left out.
    """

    def made(row: dict[str, Any], root: str | None) -> dict[str, Any]:
        sample = read(row, root)
        try:
            return _usable(sample, encode)
        except UnreadableError as error:
            files = ", ".join(map(repr, _files_of(row, root)))
            raise UnreadableError(f"{files}: {error}" if files else str(error)) from error

    def transform(row: dict[str, Any], root: str | None, is_labelled: bool, is_test: bool) -> dict[str, Any]:
        inputs = made(row, root)
        if is_test and SOURCE in row:
            inputs[SOURCE] = row[SOURCE]
            if count_labels is not None:
                inputs[POSITIONS] = count_labels(inputs)
        return {**inputs, "labels": labels.encode(row[data.label_column_name])} if is_labelled else inputs

    prepared: dict[str, AnyDataset] = {}
    refused: list[str] = []
    budget = KEPT_BYTES
    for split, dataset in limited(splits, data, seed).items():
        root = root_of(data, split)
        source = (sources or {}).get(split)
        is_labelled = has_labels(split, splits[split], data)
        ready = partial(transform, root=root, is_labelled=is_labelled, is_test=split == "test")
        if isinstance(dataset, Dataset):
            checked = _check(dataset, ready, partial(_looks_fine, columns=files, root=root), split, data, budget)
            budget -= checked.size
            unreadable = checked.problems
            rows = [row for row in range(len(dataset)) if row not in unreadable]
            prepared[split] = _Transformed(dataset, rows, ready, checked.kept)
            if unreadable:
                named = names_of_rows(dataset, list(unreadable)[:MOST_SHOWN], source)
                message = _message_of(unreadable, named, len(dataset), split)
                if data.skip_unreadable and rows:
                    logger.warning(f"{message} They are left out.")
                else:
                    refused.append(message if rows else f"{message} None is left.")
        else:
            prepared[split] = _readable_stream(dataset, ready, split, data, source)
    if refused:
        raise ValueError(
            " ".join([*refused, *([] if data.skip_unreadable else ["--skip_unreadable leaves them out."])])
        )
    return prepared


def _check(
    dataset: Dataset,
    make: Callable[[dict[str, Any]], dict[str, Any]],
    looks_fine: Callable[[dict[str, Any]], bool],
    split: str,
    data: MediaArguments,
    budget: int,
) -> Checked:
    """Describe what is wrong with rows that cannot be read. The main process looks, and tells the others."""
    checked = Checked({}, {}, 0)
    if PartialState().is_main_process:
        checked = check_rows(
            dataset,
            make,
            looks_fine,
            number=data.max_checked_samples,
            is_whole=data.skip_unreadable,
            workers=data.preprocessing_num_workers,
            budget=budget,
            split=split,
        )
    problems: list[Any] = [checked.problems]
    return checked._replace(problems=broadcast_object_list(problems)[0])


def _looks_fine(row: Mapping[str, Any], columns: Sequence[str], root: str | None) -> bool:
    return all(may_be_readable(row[column], row.get(f"{column}_shape"), root) for column in columns)


def _usable(sample: Any, encode: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        inputs = encode(sample)
    except ImportError:
        raise
    except Exception as error:  # whatever a processor raises for a sample that is too short, too thin, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"it cannot be made into inputs of the model: {reason}") from error
    for name, values in inputs.items():
        array = np.asarray(values)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UnreadableError(f"its {name} would be NaN or infinite")
    return inputs


def _files_of(row: Mapping[str, Any], root: str | None) -> list[str]:
    """The files that a row names."""
    values = [value.get("path") if isinstance(value, Mapping) else value for value in row.values()]
    texts = [value for value in values if isinstance(value, str) and value]
    return [text for text in texts if os.path.isfile(os.path.join(root or "", text))]


def root_of(data: DataArguments, split: str) -> str | None:
    """The folder that relative paths in a data file start from: its own. None for data that are in no file."""
    if data.data_dir is not None:
        return os.path.abspath(data.data_dir)
    # Validation data may be a part of the training data.
    files = {"train": data.train_file, "validation": data.validation_file or data.train_file, "test": data.test_file}
    file = files[split]
    return None if file is None else os.path.dirname(os.path.abspath(file))


class _Transformed(torch.utils.data.Dataset):
    """Rows that are made ready when they are needed, or were before.

    Unlike `Dataset.with_transform`, which pickles the transform for a fingerprint that nobody needs, for seconds.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: list[int],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        kept: Mapping[int, dict[str, Any]],
    ) -> None:
        self.dataset = dataset
        self.rows = rows
        self.transform = transform
        self.kept = kept

    def __getstate__(self) -> dict[str, Any]:
        # A process that is not forked reads files itself, rather than to be sent all that was kept.
        return {**self.__dict__, "kept": {}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read a batch at once for a `DataLoader`; from the table, this takes as long as reading one row."""
        rows = [self.rows[index] for index in indices]
        lacking = [row for row in rows if row not in self.kept]
        read = iter(rows_of(self.dataset[lacking]) if lacking else ())
        # Whoever gets a sample may put something else into it.
        return [dict(self.kept[row]) if row in self.kept else self._make(next(read)) for row in rows]

    def _make(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.transform(row)
        except UnreadableError as error:
            raise UnreadableError(f"{error}. --skip_unreadable reads all files before training.") from error


def _message_of(unreadable: Mapping[int, str], named: Sequence[str], total: int, split: str) -> str:
    shown = [f"{name}: {problem}" for name, problem in zip(named, unreadable.values(), strict=False)]
    found = list_first(shown, len(unreadable))
    return f"{len(unreadable)} of {total} samples of the split {split!r} cannot be read: {found}."


def _readable_stream(
    dataset: IterableDataset,
    transform: Callable[[dict[str, Any]], dict[str, Any]],
    split: str,
    data: MediaArguments,
    sources: Sources | None,
) -> IterableDataset:
    def of_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = []
        for row in rows_of(batch):
            try:
                rows.append(transform(row))
            except UnreadableError as error:
                message = f"{name_of_sample(row, sources)} of the split {split!r} cannot be read: {error}."
                if not data.skip_unreadable:
                    raise ValueError(f"{message} --skip_unreadable leaves such samples out.") from error
                logger.warning(f"{message} It is left out.")
            except ValueError as error:
                raise ValueError(f"{name_of_sample(row, sources)} of the split {split!r}: {error}") from error
        return _columns(rows)

    return dataset.map(of_batch, batched=True, batch_size=_STREAMED, remove_columns=stored_columns(dataset))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
