"""Data sets for classification and regression: where they come from, their splits, and their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import (
    Audio,
    Dataset,
    IterableDataset,
    Value,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import HfApi
from transformers import PreTrainedConfig, TrainingArguments

from ..loading import loading
from .arguments import FILE_BUILDERS, DataArguments, ModelArguments
from .columns import (
    MOST_SHOWN,
    AnyDataset,
    check_column,
    columns_of,
    first_row,
    names_of_rows,
    values_of,
    without_decoding,
)
from .folders import load_folders, read_folders, split_folders
from .goals import Classes, Goal
from .labels import find_labels
from .sources import ENCODED_FILE, Sources, first_of, numbered_stream, rows_in, shards_of, with_sources
from .tables import load_tables, reason_of

_Loaded = tuple[AnyDataset, Sources]


@dataclass(frozen=True)
class Data:
    """The data of a run.

    splits: `train`, `validation` and `test`, those that the run needs. Images, videos and audio are not decoded.
    sources: files that the samples of every split come from.
    goal: goal that a model learns.
    is_held_out: whether the split validation is a part of the training data, which had none of its own.
    """

    splits: dict[str, AnyDataset]
    sources: dict[str, Sources]
    goal: Goal
    is_held_out: bool = False


def load_data(
    data: DataArguments, model: ModelArguments, training: TrainingArguments, checkpoint: PreTrainedConfig | None = None
) -> Data:
    """Load the splits that the run needs, and find their classes.

    Args:
        data: options that say where the data come from.
        model: options for downloads.
        training: options that say what the run does.
        checkpoint: configuration of the model that is evaluated, or that training starts from.

    Raises:
        ValueError: see `load_splits` and `find_labels`.
    """
    splits, sources, is_held_out = load_splits(data, model, training)
    labels = find_labels(
        splits, data, checkpoint, training.do_train, sources, is_held_out, count_positions=model.count_positions
    )
    return Data(splits, sources, Classes(labels), is_held_out)


def load_splits(
    data: DataArguments, model: ModelArguments, training: TrainingArguments
) -> tuple[dict[str, AnyDataset], dict[str, Sources], bool]:
    """Load those of the splits `train`, `validation` and `test` that the run needs.

    Returns:
        The splits, where their samples come from, and whether validation is a part of the training data.

    Raises:
        ValueError: if a split is missing, naming those there are, or empty.
    """
    names = {"train": data.train_split_name, "validation": data.validation_split_name, "test": data.test_split_name}
    try:
        with training.main_process_first(desc="loading the data"):
            found = _load(data, model, names)
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        raise ValueError(f"the data cannot be loaded: {reason_of(error)}") from error
    wanted = {"train": training.do_train, "validation": training.do_eval, "test": training.do_predict}
    splits = {split: found[names[split]] for split, is_wanted in wanted.items() if is_wanted and names[split] in found}
    is_held_out = training.do_eval and "validation" not in splits and names["train"] in found
    if is_held_out:
        splits |= _validation_part(found[names["train"]], names["validation"], data, training)
    missing = [split for split, is_wanted in wanted.items() if is_wanted and split not in splits]
    if missing:
        option = missing[0]
        raise ValueError(
            f"the data have no split {names[option]!r}, only {', '.join(map(repr, found))}. Name the one you mean "
            f"with --{option}_split_name."
        )
    for split, (dataset, _) in splits.items():
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError(f"the split {split!r} has no samples.")
    sources = {split: source for split, (_, source) in splits.items()}
    return {split: dataset for split, (dataset, _) in splits.items()}, sources, is_held_out


def _load(data: DataArguments, model: ModelArguments, names: Mapping[str, str]) -> dict[str, _Loaded]:
    """All splits of the source that the arguments name."""
    cache_dir = model.cache_dir
    if data.dataset_name is not None:
        return {split: _with_sources(dataset) for split, dataset in _load_from_hub(data, model).items()}
    if data.data_dir is not None:
        return _load_folder(data, cache_dir)
    if folders := {names[split]: Path(path) for split, path in data.folders().items()}:
        read = read_folders(folders)
        if read is None:
            raise ValueError(
                f"{', '.join(str(path) for path in folders.values())}: these are no folders with images, videos or "
                "audio, either in a folder for each class or with a table metadata.csv, .jsonl or .parquet."
            )
        return dict(load_folders(*read, data, cache_dir))
    return {names[split]: load_tables([file], data, cache_dir) for split, file in data.files().items()}


def _load_from_hub(data: DataArguments, model: ModelArguments) -> Any:
    name, revision, token = str(data.dataset_name), data.dataset_revision, model.token
    options: dict[str, Any] = {"streaming": data.streaming, "cache_dir": model.cache_dir}
    try:
        return load_dataset(name, data.dataset_config_name, revision=revision, token=token, **options)
    except (DatasetNotFoundError, ConnectionError):
        # `datasets` does not pass on what the Hub answered; asked once more, it says so.
        cache_dir = model.cache_dir or str(HF_DATASETS_CACHE)
        with loading(name, revision, token, cache_dir, is_dataset=True):
            HfApi().dataset_info(name, revision=revision, token=token)
        raise


def _load_folder(data: DataArguments, cache_dir: str | None) -> dict[str, _Loaded]:
    """The splits of `--data_dir`."""
    root = Path(os.path.abspath(str(data.data_dir)))
    splits = split_folders(root)
    read = None if splits is None else read_folders(splits, are_splits=root not in splits.values())
    if read is not None:
        return dict(load_folders(*read, data, cache_dir))
    # As a name, "csv" or "imagefolder" is a builder and no folder; as a path, it is one.
    if get_dataset_config_names(str(root)) == ["default"]:
        files = load_dataset_builder(str(root), cache_dir=cache_dir).config.data_files or {}
        tables = {str(split): [str(path) for path in paths] for split, paths in files.items()}
        suffixes = {Path(path).suffix[1:] for paths in tables.values() for path in paths}
        if len({FILE_BUILDERS.get(suffix) for suffix in suffixes}) == 1 and suffixes <= set(FILE_BUILDERS):
            return {split: load_tables(paths, data, cache_dir) for split, paths in tables.items()}
    loaded = load_dataset(str(root), streaming=data.streaming, cache_dir=cache_dir)
    return {str(split): _with_sources(dataset) for split, dataset in loaded.items()}


def _with_sources(dataset: AnyDataset) -> _Loaded:
    """A split that `datasets` made, whose files it does not name."""
    dataset = without_decoding(dataset)
    if isinstance(dataset, IterableDataset):
        streams = shards_of(dataset)
        sources = Sources([None] * len(streams), count=lambda part: rows_in(streams[part]))
        return numbered_stream(streams), sources
    return with_sources([dataset], dataset), Sources([None], [len(dataset)])


def _validation_part(
    whole: _Loaded, name: str, data: DataArguments, training: TrainingArguments
) -> dict[str, _Loaded]:
    """A part of the training data to evaluate on, and the rest."""
    dataset, sources = whole
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"the data have no split {name!r}, and a stream cannot be divided. Give --validation_file "
            "or --validation_split_name, or leave out --do_eval."
        )
    parts = dataset.train_test_split(data.train_val_split, seed=training.seed)
    held_out = {"validation": (parts["test"], sources)}
    return {**({"train": (parts["train"], sources)} if training.do_train else {}), **held_out}


def find_column(dataset: AnyDataset, given: str | None, option: str, kind: Any, usual: Sequence[str]) -> str:
    """The column that was named, or else the one of the `datasets` feature `kind`, or one with a usual name.

    If several columns are of that kind, it is the one with a usual name.

    Raises:
        ValueError: if there is none, or it is not clear which.
    """
    if given is not None:
        check_column(dataset, given, option)
        return given
    features = (dataset.features or {}).items()
    of_kind = [
        name for name, feature in features if isinstance(feature, kind) or (kind is Audio and feature == ENCODED_FILE)
    ]
    named = [name for name in usual if name in (of_kind or columns_of(dataset))]
    candidates = of_kind if len(of_kind) == 1 else named[:1]
    if len(candidates) != 1:
        raise ValueError(
            f"which column is meant is not clear: say it with --{option}. The data have "
            f"{', '.join(columns_of(dataset))}."
        )
    return candidates[0]


def limited(splits: Mapping[str, AnyDataset], data: DataArguments, seed: int) -> dict[str, AnyDataset]:
    """Limit every split to as many samples as the arguments say, and shuffle the training stream.

    Streams and the split test keep their first samples, others a choice by `seed`, since files are often sorted.
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
            dataset = dataset if number is None else first_of(dataset, number)
            kept[split] = dataset.shuffle(seed, buffer_size=data.shuffle_buffer_size) if split == "train" else dataset
        elif number is not None and number < len(dataset):
            kept[split] = (dataset if split == "test" else dataset.shuffle(seed)).select(range(number))
        else:
            kept[split] = dataset
    return kept


def check_texts(
    splits: Mapping[str, AnyDataset], columns: Sequence[str], sources: Mapping[str, Sources] | None = None
) -> None:
    """Raises a `ValueError` if a column is missing, holds something else than text, or has rows without one.

    In a stream, only the first row is looked at.
    """
    found = []
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
                named = names_of_rows(dataset, missing[:MOST_SHOWN], (sources or {}).get(split))
                rows = ", ".join([named[0], *(name.removeprefix("row ") for name in named[1:])])
                found.append(
                    f"{len(missing)} of {len(dataset)} samples of the split {split!r} have no text in {column!r}: "
                    f"{rows}{', …' if len(missing) > MOST_SHOWN else ''}."
                )
    if found:
        raise ValueError(" ".join(found))
