"""The classes of a data set: which there are, and which each sample has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value
from transformers import PreTrainedConfig
from transformers.utils import logging

from .arguments import DataArguments
from .data import LISTS, MOST_SHOWN, AnyDataset, check_column, columns_of, first_row, list_first, values_of

logger = logging.get_logger(__name__)

_PROBLEM_TYPES = {"single_label_classification", "multi_label_classification"}

# What stands for a missing number in tables.
_NO_NUMBERS = {"", "na", "n/a", "nan", "null", "none"}


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
    shown = [repr(name) for name in islice(names, MOST_SHOWN + 1)]
    return ", ".join(shown[:MOST_SHOWN]) + (", …" if len(shown) > MOST_SHOWN else "")


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
    labels = values_of(dataset, column) if isinstance(dataset, Dataset) else [first_row(dataset)[column]]
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
            _check_labels(values_of(dataset, data.label_column_name), labels, split)
    return labels


def _classes_of(
    splits: Mapping[str, AnyDataset], data: DataArguments, checkpoint: PreTrainedConfig | None, is_trained: bool
) -> tuple[Sequence[str], bool]:
    """The names of the classes, and whether a sample has a list of them."""
    for dataset in splits.values():
        check_column(dataset, data.label_column_name, "label_column_name")
    first = next(iter(splits.values()))
    entry, is_list = _read_feature(first, data.label_column_name)
    is_counted = False
    if data.class_names is not None or not (is_trained or checkpoint is None):
        names = _names_said(entry, data, None if is_trained else checkpoint)
    elif isinstance(entry, ClassLabel):
        names = entry.names
    elif isinstance(first, IterableDataset):
        raise ValueError(
            f"the column {data.label_column_name!r} of a stream does not say which classes there are; give them with "
            "--class_names."
        )
    else:
        column = data.label_column_name
        names, is_counted = _occurring(values_of(first, column), is_list, column)
    own = [] if checkpoint is None else _names_of(checkpoint)
    if all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return names, is_list
    if names == own or (is_counted and len(names) == len(own)):
        return own, is_list
    if not is_counted and sorted(names) == sorted(own):
        if not _holds_names(first, data.label_column_name, entry):
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


def _read_feature(dataset: AnyDataset, column: str) -> tuple[Value | ClassLabel | None, bool]:
    """What a column says of one class, None if it does not say, and whether a sample has a list of classes."""
    feature = (dataset.features or {}).get(column)
    is_list = isinstance(feature, LISTS) or (feature is None and isinstance(first_row(dataset)[column], list))
    entry = feature.feature if isinstance(feature, LISTS) else feature
    if not isinstance(entry, (Value, ClassLabel, type(None))):
        raise ValueError(f"the column {column!r} must hold labels or lists of labels, it holds {feature}.")
    return entry, is_list


def _names_said(
    entry: Value | ClassLabel | None, data: DataArguments, evaluated: PreTrainedConfig | None
) -> list[str]:
    """The classes that `--class_names` or else the evaluated model says, which those of the data must fit."""
    in_data = entry.names if isinstance(entry, ClassLabel) else None
    if data.class_names is not None:
        names = _given_names(data, evaluated)
        if in_data is not None and names != in_data and sorted(names) == sorted(in_data):
            raise ValueError(
                f"--class_names has the classes of {data.label_column_name!r} in another order: {_some(in_data)}."
            )
        return names
    assert evaluated is not None
    names = _names_of(evaluated)
    if in_data is not None and in_data != names:
        raise ValueError(
            f"the model has the classes {_some(names)}, the data {_some(in_data)}; they must be the same, in "
            "the same order. --class_names with those of the model says that they mean the same."
        )
    return names


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
    label = first_row(dataset)[column]
    return isinstance(label[0] if isinstance(label, list) and label else label, str)


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
            if wrong <= MOST_SHOWN:
                shown.append(f"row {row}: {error}")
    if wrong:
        raise ValueError(f"{wrong} labels of the split {split!r} are wrong: {list_first(shown, wrong)}.")
