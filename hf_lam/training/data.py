"""Data sets for classification: where they come from, columns, classes, and what in them cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    Value,
    Video,
    load_dataset,
)
from datasets.exceptions import DatasetsError
from datasets.fingerprint import generate_fingerprint
from transformers import PreTrainedConfig, TrainingArguments
from transformers.utils import logging

from .arguments import FILE_BUILDERS, DataArguments, MediaArguments, ModelArguments
from .media import UnreadableError

logger = logging.get_logger(__name__)

AnyDataset: TypeAlias = "Dataset | IterableDataset"
_MEDIA = (Image, Video, Audio)
_LISTS = (List, LargeList)

# How many offending rows or files a message names.
_SHOWN = 5

# Rows of a stream that are made ready together.
_STREAMED = 16

_PROBLEM_TYPES = {"single_label_classification", "multi_label_classification"}

# What stands for a missing number in tables.
_NO_NUMBERS = {"", "na", "n/a", "nan", "null", "none"}


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
        entry = feature.feature if isinstance(feature, _LISTS) else feature
        if isinstance(entry, _MEDIA):
            undecoded = type(entry)(decode=False)
            dataset = dataset.cast_column(name, type(feature)(undecoded) if isinstance(feature, _LISTS) else undecoded)
    return dataset


def columns_of(dataset: AnyDataset) -> list[str]:
    """The names of the columns, of a stream those of its first row."""
    return list(dataset.column_names or _first_row(dataset))


def _first_row(dataset: AnyDataset) -> dict[str, Any]:
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError("the data have no samples.")
    return row


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


def _root_of(data: DataArguments, split: str) -> str | None:
    """The folder that relative paths in a data file start from: its own. None for data that are in no file."""
    # Validation data may be a part of the training data.
    files = {"train": data.train_file, "validation": data.validation_file or data.train_file, "test": data.test_file}
    file = files[split]
    return None if file is None else os.path.dirname(os.path.abspath(file))


def check_texts(splits: Mapping[str, AnyDataset], columns: Sequence[str]) -> None:
    """Raises a `ValueError` if a column is missing, holds something else than text, or has rows without one.

    Of a stream, the first row is looked at.
    """
    for split, dataset in splits.items():
        for column in columns:
            check_column(dataset, column, "text_column_names")
            feature = (dataset.features or {}).get(column)
            is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
            if not is_text and (feature is not None or not isinstance(_first_row(dataset)[column], str)):
                kind = feature or type(_first_row(dataset)[column]).__name__
                raise ValueError(f"the column {column!r} of the split {split!r} must hold text, it holds {kind}.")
            if isinstance(dataset, IterableDataset):
                continue
            missing = [row for row, text in enumerate(_values(dataset, column)) if text is None]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(dataset)} samples of the split {split!r} have no text in {column!r}: "
                    f"row {', '.join(map(str, missing[:_SHOWN]))}{', …' if len(missing) > _SHOWN else ''}."
                )


# --- Classes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The classes of a task.

    names: of the classes, in order.
    is_multi_label: whether a sample has any number of classes, as a list.
    """

    names: tuple[str, ...]
    is_multi_label: bool = False

    @property
    def config_options(self) -> dict[str, Any]:
        """What the configuration of a model is told about them."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            "problem_type": "multi_label_classification" if self.is_multi_label else "single_label_classification",
        }

    def encode(self, value: Any) -> int | list[float]:
        """The class as its number; of a multi-label sample, 1.0 for each class that it has and 0.0 for the others.

        Raises:
            ValueError: saying what is wrong with `value`.
        """
        found = [self.index(entry) for entry in self.entries(value)]
        if not self.is_multi_label:
            return found[0]
        present = set(found)
        return [float(index in present) for index in range(len(self.names))]

    def entries(self, value: Any) -> Sequence[Any]:
        """The classes in a label, which is one class itself unless the task is multi-label."""
        if not self.is_multi_label:
            return (value,)
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} is no list of classes")
        return value

    def index(self, value: Any) -> int:
        """The number of one class, which is given by name or number."""
        if _is_missing(value):
            raise ValueError(f"there is no label (it is {value})")
        if isinstance(value, str):
            if value not in self.names:
                raise ValueError(f"{value!r} is none of the {len(self.names)} classes {_some(self.names)}")
            return self.names.index(value)
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{value!r} is no class; labels are whole numbers or names (regression is not covered)")
        if not isinstance(value, (bool, int, float)):
            raise ValueError(f"{value!r} is no class; labels are whole numbers or names")
        if not 0 <= value < len(self.names):
            raise ValueError(f"{int(value)} is outside of the {len(self.names)} classes, 0 to {len(self.names) - 1}")
        return int(value)


def _some(names: Iterable[str]) -> str:
    shown = [repr(name) for name in islice(names, _SHOWN + 1)]
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")


def _is_missing(label: Any) -> bool:
    # NaN is what pandas makes of an empty field, and -1 what the Hub has in place of labels that are kept secret.
    return label is None or label != label or label == -1


def has_labels(split: str, dataset: AnyDataset, data: DataArguments) -> bool:
    """Whether a split has labels, which only the split test may lack: its column, or all that is in it.

    Of a stream, the first row is looked at.
    """
    if split != "test":
        return True
    column = data.label_column_name
    if column not in columns_of(dataset):
        return False
    labels = _values(dataset, column) if isinstance(dataset, Dataset) else [_first_row(dataset)[column]]
    return not all(_is_missing(label) for label in labels)


def find_labels(
    splits: Mapping[str, AnyDataset],
    data: DataArguments,
    checkpoint: PreTrainedConfig | None = None,
    is_trained: bool = False,
) -> Labels:
    """The classes of the data, which are checked in every split that is not a stream.

    They are those of `--class_names`, or of the column where it has them (`datasets.ClassLabel`), or else the values
    that occur: names in alphabetical order, or whole numbers from 0 without a gap. Where these are the classes of the
    checkpoint in another order, or are numbers only, they are as in the checkpoint.

    Args:
        splits: what `load_splits` gave. The split test may have no labels.
        data: names the column.
        checkpoint: of the model that is evaluated, or that training starts from.
        is_trained: whether the model is trained; otherwise the data must have the classes of `checkpoint`. A model
            that is trained may get others.

    Raises:
        ValueError: if the column is missing, the classes are not known, or a label is none of them; the message names
            the split and the rows.
    """
    labelled = {split: dataset for split, dataset in splits.items() if has_labels(split, dataset, data)}
    if len(labelled) < len(splits):
        logger.warning(
            f"The split 'test' has no labels in {data.label_column_name!r}; there will be no metrics of it."
        )
    evaluated = None if is_trained else checkpoint
    if labelled:
        names, is_list = _classes_of(labelled, data, checkpoint, is_trained)
    elif evaluated is None:
        raise ValueError("the data have no labels, and there is no model that says which classes there are.")
    else:
        names = _given_names(data, evaluated) if data.class_names is not None else _names_of(evaluated)
        is_list = evaluated.problem_type == "multi_label_classification"
    labels = Labels(tuple(map(str, names)), is_list)
    if len(labels.names) < 2 and not is_list:
        raise ValueError(
            f"the column {data.label_column_name!r} has one class only, {_some(labels.names)}; nothing can be learnt."
        )
    ours = labels.config_options["problem_type"]
    if evaluated is not None and evaluated.problem_type in _PROBLEM_TYPES - {ours}:
        raise ValueError(f"the model is for {evaluated.problem_type}, the data are for {ours}.")
    for split, dataset in labelled.items():
        if isinstance(dataset, Dataset):
            _check_labels(_values(dataset, data.label_column_name), labels, split)
    return labels


def _classes_of(
    splits: Mapping[str, AnyDataset], data: DataArguments, checkpoint: PreTrainedConfig | None, is_trained: bool
) -> tuple[Sequence[str], bool]:
    """The names of the classes, and whether a sample has a list of them."""
    column = data.label_column_name
    for dataset in splits.values():
        check_column(dataset, column, "label_column_name")
    first = next(iter(splits.values()))
    feature = (first.features or {}).get(column)
    is_list = isinstance(feature, _LISTS) or (feature is None and isinstance(_first_row(first)[column], list))
    entry = feature.feature if isinstance(feature, _LISTS) else feature
    if not isinstance(entry, (Value, ClassLabel, type(None))):
        raise ValueError(f"the column {column!r} must hold labels or lists of labels, it holds {feature}.")
    evaluated = None if is_trained else checkpoint
    is_counted = False
    if data.class_names is not None:
        names = _given_names(data, evaluated)
        if isinstance(entry, ClassLabel) and names != entry.names and sorted(names) == sorted(entry.names):
            raise ValueError(f"--class_names has the classes of {column!r} in another order: {_some(entry.names)}.")
    elif evaluated is not None:
        names = _names_of(evaluated)
        if isinstance(entry, ClassLabel) and entry.names != names:
            raise ValueError(
                f"the model has the classes {_some(names)}, the data {_some(entry.names)}; they must be the same, in "
                "the same order. --class_names with those of the model says that they mean the same."
            )
    elif isinstance(entry, ClassLabel):
        names = entry.names
    elif isinstance(first, IterableDataset):
        raise ValueError(
            f"the column {column!r} of a stream does not say which classes there are; give them with --class_names."
        )
    else:
        names, is_counted = _occurring(_values(first, column), is_list, column)
    own = [] if checkpoint is None else _names_of(checkpoint)
    if names == own or all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return names, is_list
    if is_counted and len(names) == len(own):
        return own, is_list
    if not is_counted and sorted(names) == sorted(own):
        if not _holds_names(first, column, entry):
            raise ValueError(
                f"the model has the classes {_some(own)}, the data have the same as {_some(names)}, and number them "
                "in this order. Bring them into the order of the model, or have them by name in the data."
            )
        return own, is_list
    if is_trained:
        logger.warning(
            f"The checkpoint has the classes {_some(own)}, the data {_some(names)}: the model is trained for those of "
            "the data."
        )
    return names, is_list


def _given_names(data: DataArguments, evaluated: PreTrainedConfig | None) -> list[str]:
    """What `--class_names` says, which must fit a model that is only evaluated."""
    names = data.class_names or []
    if len(set(names)) < len(names):
        raise ValueError(f"--class_names has a class twice: {' '.join(names)}.")
    if evaluated is not None and len(names) != len(_names_of(evaluated)):
        raise ValueError(f"--class_names has {len(names)} classes, the evaluated model {len(_names_of(evaluated))}.")
    return names


def _names_of(checkpoint: PreTrainedConfig) -> list[str]:
    return [str(name) for _, name in sorted((checkpoint.id2label or {}).items())]


def _holds_names(dataset: AnyDataset, column: str, entry: Any) -> bool:
    """Whether the labels are names and not numbers."""
    if entry is not None:
        return isinstance(entry, Value) and entry.dtype in ("string", "large_string")
    label = _first_row(dataset)[column]
    return isinstance(label[0] if isinstance(label, list) and label else label, str)


def _values(dataset: Dataset, column: str) -> list[Any]:
    # As a whole: row by row, a million of them take minutes.
    return dataset[column][:]


def _occurring(values: Iterable[Any], is_list: bool, column: str) -> tuple[list[str], bool]:
    """The classes that occur, and whether they are numbers."""
    found: set[Any] = set()
    for value in values:
        found.update(value or () if is_list else (value,))
    # What is missing or negative is named with its row later.
    found = {value for value in found if value is not None and value == value}
    if found and all(isinstance(value, str) for value in found):
        nothing = {value for value in found if value.strip().lower() in _NO_NUMBERS}
        if nothing and nothing < found and all(map(_is_number, found - nothing)):
            raise ValueError(f"the column {column!r} holds numbers, and {_some(sorted(nothing))} where there is none.")
        return sorted(found), False
    if not found or not all(isinstance(value, (int, float)) and float(value).is_integer() for value in found):
        raise ValueError(
            f"the column {column!r} must hold names or whole numbers, all of one kind (regression is not covered); it "
            f"holds {_some(map(str, found)) or 'nothing'}."
        )
    numbers = sorted(int(value) for value in found if value >= 0)
    if not numbers:
        raise ValueError(f"the column {column!r} has no labels, only {_some(map(str, found))}.")
    if numbers != list(range(len(numbers))):
        raise ValueError(
            f"the labels in {column!r} must be whole numbers from 0 without a gap; there are {len(numbers)} different "
            f"ones, from {numbers[0]} to {numbers[-1]}. Where classes are missing, or start elsewhere, give all of "
            "them with --class_names."
        )
    return [str(number) for number in numbers], True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(shown: Sequence[str], number: int) -> str:
    """The first few of so many findings, and how many more there are."""
    return "; ".join(shown) + (f"; and {number - _SHOWN} more" if number > _SHOWN else "")


def _check_labels(values: Iterable[Any], labels: Labels, split: str) -> None:
    valid: set[Any] = set()
    wrong, shown = 0, []
    for row, value in enumerate(values):
        try:
            for entry in labels.entries(value):
                if entry not in valid:
                    labels.index(entry)
                    valid.add(entry)
        except ValueError as error:
            wrong += 1
            if wrong <= _SHOWN:
                shown.append(f"row {row}: {error}")
    if wrong:
        raise ValueError(f"{wrong} labels of the split {split!r} are wrong: {_listed(shown, wrong)}.")


# --- Images, videos and audio ----------------------------------------------------------------------------------------


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
    shown = [f"row {row}: {problem}" for row, problem in islice(unreadable.items(), _SHOWN)]
    named = _listed(shown, len(unreadable))
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
