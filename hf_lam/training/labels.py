"""The labels of a data set: which classes there are, and how the column is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value
from transformers import PreTrainedConfig
from transformers.utils import logging

from .arguments import DataArguments
from .columns import (
    LISTS,
    MOST_SHOWN,
    AnyDataset,
    check_column,
    columns_of,
    first_row,
    list_first,
    names_of_rows,
    values_of,
)
from .label_lists import is_multi_hot, looks_like_list, read_list
from .label_positions import are_of_positions, entries_of
from .label_values import Labels, some_of
from .sources import Sources

logger = logging.get_logger(__name__)

_PROBLEM_TYPES = {"single_label_classification", "multi_label_classification", "regression"}

# What stands for a missing number in tables.
_NO_NUMBERS = {"", "na", "n/a", "nan", "null", "none"}

# How many rows of a stream are looked at before training, to see what kind of labels it has.
_LOOKED_AT = 100


def has_labels(split: str, dataset: AnyDataset, data: DataArguments) -> bool:
    """Whether a split has labels, which only the split test may lack: its column, or all that is in it.

    In a stream, only the first row is looked at.
    """
    if split != "test":
        return True
    column = data.label_column_name
    if column not in columns_of(dataset):
        return False
    labels = values_of(dataset, column) if isinstance(dataset, Dataset) else [first_row(dataset)[column]]
    # NaN is what pandas makes of an empty field, and -1 what the Hub has in place of labels that are kept secret.
    is_secret = not data.do_regression and "-1" not in (data.class_names or ())
    return not all(label is None or label != label or (is_secret and label == -1) for label in labels)


def find_labels(
    splits: Mapping[str, AnyDataset],
    data: DataArguments,
    checkpoint: PreTrainedConfig | None = None,
    is_trained: bool = False,
    sources: Mapping[str, Sources] | None = None,
    is_held_out: bool = False,
    count_positions: Callable[[Mapping[str, Any]], int | None] | None = None,
) -> Labels:
    """Find the classes of the data, and check them in every split; in a stream, its first rows.

    They are those of `--class_names`, or of the column where it has them (`datasets.ClassLabel`), or else the values
    that occur: names in alphabetical order, or whole numbers from 0 without a gap. Where these are the classes of the
    checkpoint in another order, or are numbers only, they are as in the checkpoint. Where the classes are numbers
    ("1" to "5"), a whole number in the data is the class of this name, otherwise its place from 0.

    Args:
        splits: splits from `load_splits`. The split test may have no labels.
        data: options that name the column, and say whether this is regression.
        checkpoint: configuration of the model that is evaluated, or that training starts from.
        is_trained: whether the model is trained; otherwise the data must have the classes of `checkpoint`. A model
            that is trained may get others.
        sources: files that the samples of every split come from, for messages.
        is_held_out: whether the split validation is a part of the training data: a class may occur there alone.
        count_positions: function that gives the number of positions of a row that may have a label each; None where
            that cannot be seen.

    Raises:
        ValueError: if the column is missing, the classes are not known, the labels can be read in two ways, or one is
            none of the classes; the message names the split and the rows.
    """
    labelled = {split: dataset for split, dataset in splits.items() if has_labels(split, dataset, data)}
    if len(labelled) < len(splits):
        logger.warning(
            f"The split 'test' has no labels in {data.label_column_name!r}; there will be no metrics of it."
        )
    evaluated = None if is_trained else checkpoint
    column = data.label_column_name
    for dataset in labelled.values():
        check_column(dataset, column, "label_column_name")
    given = seen = {split: _seen(dataset, column) for split, dataset in labelled.items()}
    of_positions = are_of_positions(labelled, seen, data, checkpoint, count_positions)
    if of_positions:
        # What they mean is what their entries mean.
        seen = {split: entries_of(values) for split, values in seen.items()}
    if data.do_regression or (evaluated is not None and _is_regression(evaluated)):
        labels = _targets(labelled, seen, data, evaluated, of_positions)
    elif labelled:
        labels = _classes_of(labelled, seen, data, checkpoint, is_trained, is_held_out, of_positions)
    elif evaluated is None:
        raise ValueError("the data have no labels, and there is no model that says which classes there are.")
    else:
        names = _given_names(data, evaluated) if data.class_names is not None else _names_of(evaluated)
        labels = Labels(tuple(names), evaluated.problem_type == "multi_label_classification")
    labels = replace(labels, is_per_position=of_positions)
    if len(labels.names) < 2 and labels.problem_type == "single_label_classification":
        raise ValueError(f"the column {column!r} has one class only, {some_of(labels.names)}; nothing can be learnt.")
    if evaluated is not None and evaluated.problem_type in _PROBLEM_TYPES - {labels.problem_type}:
        raise ValueError(f"the model is for {evaluated.problem_type}, the data are for {labels.problem_type}.")
    wrong = [
        message
        for split, dataset in labelled.items()
        if (message := _wrong_labels(given[split], labels, split, dataset, (sources or {}).get(split))) is not None
    ]
    if wrong:
        raise ValueError(" ".join(wrong))
    return labels


def _seen(dataset: AnyDataset, column: str) -> list[Any]:
    """All labels, of a stream those of its first rows."""
    if isinstance(dataset, Dataset):
        return values_of(dataset, column)
    return [row[column] for row in islice(dataset, _LOOKED_AT)]


def _is_regression(model: PreTrainedConfig) -> bool:
    # As the models of transformers have it, where their configuration does not say.
    return model.problem_type == "regression" or (model.problem_type is None and model.num_labels == 1)


def _targets(
    splits: Mapping[str, AnyDataset],
    seen: Mapping[str, Sequence[Any]],
    data: DataArguments,
    evaluated: PreTrainedConfig | None,
    of_positions: bool,
) -> Labels:
    """The targets of regression: one number, or as many as the lists in the column have."""
    column = data.label_column_name
    if data.class_names is not None:
        raise ValueError("--class_names is for classes, and this is regression.")
    if any(isinstance(_read_feature(dataset, column, of_positions)[0], ClassLabel) for dataset in splits.values()):
        raise ValueError(f"the column {column!r} holds classes (datasets.ClassLabel), and no numbers for regression.")
    given = [read_list(value) for values in seen.values() for value in islice(values, _LOOKED_AT)]
    first = next((value for value in given if value is not None and value == value), None)
    if first is None and evaluated is None:
        raise ValueError(f"the column {column!r} has no numbers.")
    number = len(first) if isinstance(first, (list, tuple)) else 1
    if evaluated is None:
        return Labels(
            (column,) if number == 1 else tuple(f"{column}_{index}" for index in range(number)), is_regression=True
        )
    names = tuple(_names_of(evaluated))
    if first is not None and number != len(names):
        raise ValueError(f"the model predicts {len(names)} numbers, the column {column!r} has {number} for a sample.")
    return Labels(names, is_regression=True)


def _classes_of(
    splits: Mapping[str, AnyDataset],
    seen: Mapping[str, Sequence[Any]],
    data: DataArguments,
    checkpoint: PreTrainedConfig | None,
    is_trained: bool,
    is_held_out: bool,
    of_positions: bool,
) -> Labels:
    """The classes, and how the labels are read."""
    column = data.label_column_name
    first = next(iter(splits))
    entry, is_list = _read_feature(splits[first], column, of_positions)
    # Of a part that is held out, any class may be in one of both parts alone.
    known = [split for split in ("train", "validation") if split in splits] if is_held_out else [first]
    if not is_list and _are_lists_as_text([value for split in known for value in seen[split]], column):
        is_list, seen = True, {split: [value and read_list(value) for value in seen[split]] for split in known}
    values: list[Any] = [value for split in known for value in seen[split]]
    if data.multi_hot is not None and not is_list:
        raise ValueError(
            f"--multi_hot is for lists of numbers, the column {column!r} holds {some_of(map(str, values))}."
        )
    evaluated = None if is_trained else checkpoint
    said = _names_said(entry, data, evaluated) if data.class_names is not None or evaluated is not None else None
    is_hot = (
        is_list
        and not isinstance(entry, ClassLabel)
        and is_multi_hot(values, column, None if said is None else len(said), data.multi_hot)
    )
    is_counted = False
    if said is not None:
        names: Sequence[str] = said
    elif isinstance(entry, ClassLabel):
        names = entry.names
    elif is_hot:
        width = next(len(value) for value in values if value is not None)
        names, is_counted = [str(index) for index in range(width)], True
    elif isinstance(splits[first], IterableDataset):
        raise ValueError(
            f"the column {column!r} of a stream does not say which classes there are; give them with --class_names."
        )
    else:
        names, is_counted = _occurring(values, is_list, column)
        _warn_of_classes(names, is_held_out and len(known) > 1, seen, column)
    names, is_of_checkpoint = _in_order_of(checkpoint, names, is_counted, splits[first], data, entry, is_trained)
    counted = [str(index) for index in range(len(names))]
    is_numbered = not (isinstance(entry, ClassLabel) or is_hot or (is_counted and is_of_checkpoint))
    numbers_are_names = is_numbered and list(names) != counted and all(map(_is_whole, names))
    if not (isinstance(entry, ClassLabel) or is_hot or numbers_are_names):
        _check_counting(seen.values(), len(names), column)
    return Labels(tuple(names), is_list, is_hot, numbers_are_names)


def _in_order_of(
    checkpoint: PreTrainedConfig | None,
    names: Sequence[str],
    is_counted: bool,
    dataset: AnyDataset,
    data: DataArguments,
    entry: Any,
    is_trained: bool,
) -> tuple[Sequence[str], bool]:
    """The classes as the checkpoint has them, if they are the same, and whether they are those of the checkpoint."""
    own = [] if checkpoint is None else _names_of(checkpoint)
    if all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return names, False
    if list(names) == own or (is_counted and len(names) == len(own)):
        return own, True
    if not is_counted and sorted(names) == sorted(own):
        if not _holds_names(dataset, data.label_column_name, entry):
            raise ValueError(
                f"the model has the classes {some_of(own)}, the data have the same as {some_of(names)}, and number "
                "them in this order. Bring them into the order of the model, or have them by name in the data."
            )
        return own, True
    if is_trained:
        logger.warning(
            f"The checkpoint has the classes {some_of(own)}, the data {some_of(names)}: the model is trained for "
            "those of the data."
        )
    return names, False


def _read_feature(
    dataset: AnyDataset, column: str, of_positions: bool = False
) -> tuple[Value | ClassLabel | None, bool]:
    """Read what a column says of one class, None if it does not say, and whether a sample has a list of classes.

    of_positions: whether each position of a sample has labels.
    """
    feature = (dataset.features or {}).get(column)
    if of_positions:
        feature = feature.feature if isinstance(feature, LISTS) else None
    is_list = isinstance(feature, LISTS)
    if feature is None:
        first = first_row(dataset)[column]
        first = next(iter(read_list(first) or ()), None) if of_positions else first
        is_list = isinstance(first, list)
    entry = feature.feature if isinstance(feature, LISTS) else feature
    if not isinstance(entry, (Value, ClassLabel, type(None))):
        raise ValueError(f"the column {column!r} must hold labels or lists of labels, it holds {feature}.")
    return entry, is_list


def _are_lists_as_text(values: Iterable[Any], column: str) -> bool:
    """Whether labels are lists that are written as text; a `ValueError` if some are, and others not."""
    given = [value for value in values if value is not None]
    written = [value for value in given if looks_like_list(value)]
    if not written:
        return False
    try:
        for value in written:
            read_list(value)
    except ValueError:
        return False  # names in brackets
    if len(written) < len(given):
        raise ValueError(
            f"the column {column!r} can be read in two ways: {len(written)} labels are written like lists of classes, "
            f"such as {written[0]!r}, and {len(given) - len(written)} are not, such as "
            f"{next(value for value in given if not looks_like_list(value))!r}. Write all as lists, or none."
        )
    return True


def _names_said(
    entry: Value | ClassLabel | None, data: DataArguments, evaluated: PreTrainedConfig | None
) -> list[str]:
    """The classes that `--class_names` or else the evaluated model says, which those of the data must fit."""
    in_data = entry.names if isinstance(entry, ClassLabel) else None
    if data.class_names is not None:
        names = _given_names(data, evaluated)
        if in_data is not None and names != in_data and sorted(names) == sorted(in_data):
            raise ValueError(
                f"--class_names has the classes of {data.label_column_name!r} in another order: {some_of(in_data)}."
            )
        return names
    assert evaluated is not None
    names = _names_of(evaluated)
    if in_data is not None and in_data != names:
        raise ValueError(
            f"the model has the classes {some_of(names)}, the data {some_of(in_data)}; they must be the same, in "
            "the same order. --class_names with those of the model says that they mean the same."
        )
    return names


def _given_names(data: DataArguments, evaluated: PreTrainedConfig | None) -> list[str]:
    """The names in `--class_names`, which must fit a model that is only evaluated."""
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
    label = read_list(first_row(dataset)[column])
    while isinstance(label, (list, tuple)) and label:
        label = label[0]
    return isinstance(label, str)


def _occurring(values: Iterable[Any], is_list: bool, column: str) -> tuple[list[str], bool]:
    """The classes that occur, and whether they are numbers from 0."""
    found: set[Any] = set()
    for value in values:
        try:
            found.update(value or () if is_list else (value,))
        except TypeError as error:
            raise ValueError(
                f"the column {column!r} must hold names or whole numbers, or lists of them; it holds {value!r}."
            ) from error
    # Missing labels are named with their rows later.
    found = {value for value in found if value is not None and value == value}
    if found and all(isinstance(value, str) for value in found):
        nothing = {value for value in found if value.strip().lower() in _NO_NUMBERS}
        if nothing and nothing < found and all(map(_is_number, found - nothing)):
            raise ValueError(
                f"the column {column!r} holds numbers, and {some_of(sorted(nothing))} where there is none."
            )
        if not is_list:
            _check_joined(found, column)
        return sorted(found, key=int if all(map(_is_whole, found)) else None), False
    if not found or not all(isinstance(value, (int, float)) and float(value).is_integer() for value in found):
        raise ValueError(
            f"the column {column!r} must hold names or whole numbers, all of one kind (numbers to predict are "
            f"regression, see --do_regression); it holds {some_of(map(str, found)) or 'nothing'}."
        )
    if all(isinstance(value, bool) for value in found):
        return sorted(map(str, found)), True
    if -1 in found:
        others = " ".join(str(int(value)) for value in sorted(found))
        raise ValueError(
            f"the column {column!r} holds -1, which can be read in two ways: as a class of its own, or as no label at "
            f"all, as on the Hub. If it is a class, give all of them: --class_names {others}. If not, leave these "
            "rows out."
        )
    numbers = sorted(int(value) for value in found if value >= 0)
    if not numbers:
        raise ValueError(f"the column {column!r} has no labels, only {some_of(map(str, found))}.")
    if numbers != list(range(len(numbers))):
        shown = " ".join(map(str, numbers)) if len(numbers) <= MOST_SHOWN else f"{numbers[0]} … {numbers[-1]}"
        raise ValueError(
            f"the labels in {column!r} must be whole numbers from 0 without a gap; there are {len(numbers)} different "
            f"ones, from {numbers[0]} to {numbers[-1]}. Where these are the classes, name them by their numbers "
            f"(--class_names {shown}); where classes are missing, give all of them with --class_names."
        )
    return [str(number) for number in numbers], True


def _check_joined(names: set[str], column: str) -> None:
    """Raises a `ValueError` for a name that other names are joined in, or if all look like vectors of 0 and 1."""
    for name in sorted(names):
        for mark in ",;| ":
            parts = [part.strip() for part in name.split(mark)]
            # "New York" may lie beside "York".
            if len(parts) > 1 and set(parts) <= names and (mark != " " or all(map(_is_whole, parts))):
                raise ValueError(
                    f"the column {column!r} can be read in two ways: {name!r} is a class, or it is several, which "
                    f"occur by themselves as well: {some_of(parts)}. For several write lists, such as "
                    f"'{json.dumps(parts[:2], ensure_ascii=False)}'; if it is a class, give all with --class_names."
                )
    if all(re.fullmatch(r"[01]([ ,;|]+[01])+", name) for name in names):
        raise ValueError(
            f"the column {column!r} can be read in two ways: {some_of(sorted(names))} are names, or vectors of 0 and "
            "1. For vectors write lists, such as '[1, 0]'; if they are names, give all with --class_names."
        )


def _warn_of_classes(names: Sequence[str], is_held_out: bool, seen: Mapping[str, Sequence[Any]], column: str) -> None:
    """Say what may not be meant: names that differ in blanks or case alone, classes that are not trained."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    same = [some_of(group) for group in alike.values() if len(group) > 1]
    if same:
        logger.warning(
            f"The column {column!r} has classes whose names differ in blanks or case alone; they are different "
            f"classes: {list_first(same[:MOST_SHOWN], len(same))}."
        )
    if is_held_out:
        trained, held_out = (set(_flat(seen[split])) for split in ("train", "validation"))
        rare = sorted(map(str, held_out - trained - {None}))
        if rare:
            logger.warning(
                f"The samples that are held out for evaluation have classes that no other sample has: {some_of(rare)}."
            )


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _check_counting(columns: Iterable[Sequence[Any]], classes: int, column: str) -> None:
    """Raises a `ValueError` if numbers of classes, which count from 0, must count from 1; a warning if they may."""
    is_number = {int(x) for values in columns for x in _flat(values) if isinstance(x, (int, float)) and x == x}
    if classes in is_number and not is_number & {0, -1} and max(is_number) == classes and min(is_number) > 0:
        raise ValueError(
            f"the labels in {column!r} are whole numbers from {min(is_number)} to {classes}, and can be read in two "
            f"ways. They count from 1: then give their numbers as the names, --class_names 1 … {classes}. Or they "
            f"count from 0, as they do here: then {classes} is a class more than the {classes} there are."
        )
    if is_number and min(is_number) == 1:
        logger.warning(
            f"The labels in {column!r} are whole numbers from 1 to {max(is_number)}, and count from 0: none is of the "
            f"first of the {classes} classes. If they count from 1, give their numbers as the names, --class_names "
            f"1 … {classes}."
        )


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _wrong_labels(
    values: Iterable[Any], labels: Labels, split: str, dataset: AnyDataset, sources: Sources | None
) -> str | None:
    """Describe what is wrong with the labels of a split, and in which rows."""
    valid: set[Any] = set()
    wrong: list[tuple[int, str]] = []
    for row, value in enumerate(values):
        try:
            key = _hashable(value)
            if key not in valid:
                labels.encode(value)
                valid.add(key)
        except ValueError as error:
            wrong.append((row, str(error)))
    if not wrong:
        return None
    shown = wrong[:MOST_SHOWN]
    rows = [row for row, _ in shown]
    named = names_of_rows(dataset, rows, sources)
    found = [f"{name}: {error}" for name, (_, error) in zip(named, shown, strict=True)]
    return f"{len(wrong)} labels of the split {split!r} are wrong: {list_first(found, len(wrong))}."
