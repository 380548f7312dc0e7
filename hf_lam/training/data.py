"""Data sets for classification: where they come from, and their columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import (
    Audio,
    Dataset,
    Image,
    IterableDataset,
    LargeList,
    List,
    Value,
    Video,
    load_dataset,
)
from datasets.exceptions import DatasetsError
from transformers import TrainingArguments

from .arguments import FILE_BUILDERS, DataArguments, ModelArguments

AnyDataset: TypeAlias = "Dataset | IterableDataset"
_MEDIA = (Image, Video, Audio)
LISTS = (List, LargeList)

# How many offending rows or files a message names.
MOST_SHOWN = 5


def load_splits(data: DataArguments, model: ModelArguments, training: TrainingArguments) -> dict[str, AnyDataset]:
    """Those of `train`, `validation` and `test` that the run needs. Images, videos and audio are not decoded.

    Raises:
        ValueError: if a split is missing, naming those there are, or empty.
    """
    names = {"train": data.train_split_name, "validation": data.validation_split_name, "test": data.test_split_name}
    try:
        with training.main_process_first(desc="loading the data"):
            found = _load(data, model, names)
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        # `datasets` says that something went wrong, and why in the cause; of an empty json file, nothing.
        reason = str(error.__cause__ or error) or "there are no samples"
        raise ValueError(f"the data cannot be loaded: {reason}") from error
    wanted = {"train": training.do_train, "validation": training.do_eval, "test": training.do_predict}
    splits = {split: found[names[split]] for split, is_wanted in wanted.items() if is_wanted and names[split] in found}
    if training.do_eval and "validation" not in splits:
        splits |= _validation_part(found, names, data, training)
    missing = [split for split, is_wanted in wanted.items() if is_wanted and split not in splits]
    if missing:
        option = missing[0]
        raise ValueError(
            f"the data have no split {names[option]!r}, only {', '.join(map(repr, found))}. Name the one you mean "
            f"with --{option}_split_name."
        )
    return {split: _without_decoding(dataset, split) for split, dataset in splits.items()}


def _load(data: DataArguments, model: ModelArguments, names: Mapping[str, str]) -> Any:
    """All splits of the source that the arguments name."""
    options: dict[str, Any] = {"streaming": data.streaming, "cache_dir": model.cache_dir}
    if data.dataset_name is not None:
        return load_dataset(
            data.dataset_name, data.dataset_config_name, revision=data.dataset_revision, token=model.token, **options
        )
    if data.data_dir is not None:
        # As a name, "csv" or "imagefolder" is a builder and no folder.
        return load_dataset(os.path.abspath(data.data_dir), **options)
    given = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    files = {names[split]: path for split, path in given.items() if path is not None}
    suffix = Path(next(iter(files.values()))).suffix[1:]
    if FILE_BUILDERS[suffix] == "csv":
        # A text may be "null" or "NA"; only an empty field is a missing one.
        options |= {"keep_default_na": False, "na_values": [""]}
    if suffix == "tsv":
        options["sep"] = "\t"
    return load_dataset(FILE_BUILDERS[suffix], data_files=files, **options)


def _validation_part(
    found: Any, names: dict[str, str], data: DataArguments, training: TrainingArguments
) -> dict[str, AnyDataset]:
    """A part of the training data to evaluate on, and the rest."""
    if names["train"] not in found:
        return {}
    if data.streaming:
        raise ValueError(
            f"the data have no split {names['validation']!r}, and a stream cannot be divided. Give --validation_file "
            "or --validation_split_name, or leave out --do_eval."
        )
    parts = found[names["train"]].train_test_split(data.train_val_split, seed=training.seed)
    return {"validation": parts["test"]} | ({"train": parts["train"]} if training.do_train else {})


def _without_decoding(dataset: AnyDataset, split: str) -> AnyDataset:
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"the split {split!r} has no samples.")
    for name, feature in (dataset.features or {}).items():
        entry = feature.feature if isinstance(feature, LISTS) else feature
        if isinstance(entry, _MEDIA):
            undecoded = type(entry)(decode=False)
            dataset = dataset.cast_column(name, type(feature)(undecoded) if isinstance(feature, LISTS) else undecoded)
    return dataset


def columns_of(dataset: AnyDataset) -> list[str]:
    """The names of the columns, of a stream those of its first row."""
    return list(dataset.column_names or first_row(dataset))


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
    if column not in columns_of(dataset):
        raise ValueError(
            f"--{option} {column!r}: the data have no such column, only {', '.join(columns_of(dataset))}."
        )


def find_column(dataset: AnyDataset, given: str | None, option: str, kind: Any, usual: Sequence[str]) -> str:
    """The column that was named, or else the one of the `datasets` feature `kind`, or one with a usual name.

    Raises:
        ValueError: if there is none, or several of that kind.
    """
    if given is not None:
        check_column(dataset, given, option)
        return given
    of_kind = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, kind)]
    candidates = of_kind or [name for name in usual if name in columns_of(dataset)][:1]
    if len(candidates) != 1:
        raise ValueError(
            f"which column is meant is not clear: say it with --{option}. The data have "
            f"{', '.join(columns_of(dataset))}."
        )
    return candidates[0]


def limited(splits: Mapping[str, AnyDataset], data: DataArguments, seed: int) -> dict[str, AnyDataset]:
    """As many samples of every split as the arguments say, and the training stream shuffled.

    Of a stream and of the split test they are the first, otherwise a choice by `seed`, since files are often sorted.
    """
    numbers = {
        "train": data.max_train_samples,
        "validation": data.max_eval_samples,
        "test": data.max_predict_samples,
    }
    kept: dict[str, AnyDataset] = {}
    for split, dataset in splits.items():
        number = numbers[split]
        if isinstance(dataset, IterableDataset):
            dataset = dataset if number is None else dataset.take(number)
            kept[split] = dataset.shuffle(seed, buffer_size=data.shuffle_buffer_size) if split == "train" else dataset
        elif number is not None and number < len(dataset):
            # Predictions are told apart by the numbers of their rows.
            kept[split] = (dataset if split == "test" else dataset.shuffle(seed)).select(range(number))
        else:
            kept[split] = dataset
    return kept


def check_texts(splits: Mapping[str, AnyDataset], columns: Sequence[str]) -> None:
    """Raises a `ValueError` if a column is missing, holds something else than text, or has rows without one.

    Of a stream, the first row is looked at.
    """
    for split, dataset in splits.items():
        for column in columns:
            check_column(dataset, column, "text_column_names")
            feature = (dataset.features or {}).get(column)
            is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
            if not is_text and (feature is not None or not isinstance(first_row(dataset)[column], str)):
                kind = feature or type(first_row(dataset)[column]).__name__
                raise ValueError(f"the column {column!r} of the split {split!r} must hold text, it holds {kind}.")
            if isinstance(dataset, IterableDataset):
                continue
            missing = [row for row, text in enumerate(values_of(dataset, column)) if text is None]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(dataset)} samples of the split {split!r} have no text in {column!r}: "
                    f"row {', '.join(map(str, missing[:MOST_SHOWN]))}{', …' if len(missing) > MOST_SHOWN else ''}."
                )


def list_first(shown: Sequence[str], number: int) -> str:
    """The first few of so many findings, and how many more there are."""
    return "; ".join(shown) + (f"; and {number - MOST_SHOWN} more" if number > MOST_SHOWN else "")
