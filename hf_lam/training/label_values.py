"""Turns a label into the number of its class, 0 or 1 for each class, or numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from .columns import MOST_SHOWN
from .label_lists import read_list

# What transformers has in place of the label of a position that has none.
NO_LABEL = -100


@dataclass(frozen=True)
class Labels:
    """The classes of a task, or the targets of regression.

    names: names of the classes, in order; in regression, names of the targets.
    is_multi_label: whether a sample has any number of classes, as a list.
    is_multi_hot: whether such a list is a vector of 0 and 1, one entry for each class.
    numbers_are_names: whether a whole number is the name of its class ("1" to "5"), and not its place from 0.
    is_regression: whether a sample has a number, or a list of several, instead.
    is_per_position: whether a sample is a sequence, with a list that has all of this for each of its positions.
    """

    names: tuple[str, ...]
    is_multi_label: bool = False
    is_multi_hot: bool = False
    numbers_are_names: bool = False
    is_regression: bool = False
    is_per_position: bool = False

    @property
    def problem_type(self) -> str:
        """The problem type, as the configurations of transformers have it."""
        if self.is_regression:
            return "regression"
        return "multi_label_classification" if self.is_multi_label else "single_label_classification"

    @property
    def config_options(self) -> dict[str, Any]:
        """Options about the classes for the configuration of a model."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            "problem_type": self.problem_type,
        }

    def encode(self, value: Any) -> Any:
        """Convert a label into what a model is trained with.

        Returns:
            The number of the class; of a multi-label sample, 1.0 for each class that it has and 0.0 for the others;
            of regression, the number, or a list of as many as there are targets. Where positions have labels, a list
            with one of these for each, and for those without a label -100 or NaN.

        Raises:
            ValueError: for a wrong `value`, with the reason.
        """
        if self.is_per_position:
            return self._encode_positions(value)
        if self.is_regression:
            return self._numbers(value)
        found = self.classes_of(value)
        if not self.is_multi_label:
            return found[0]
        present = set(found)
        return [float(index in present) for index in range(len(self.names))]

    def _encode_positions(self, value: Any) -> list[Any]:
        entries = read_list(value)
        if not isinstance(entries, (list, tuple)):
            raise ValueError(f"{value!r} is no list with a label for each position")
        of_one = self._of_one
        encoded = []
        for position, entry in enumerate(entries):
            if is_no_label(entry):
                encoded.append(self._blank)
                continue
            try:
                encoded.append(of_one.encode(entry))
            except ValueError as error:
                raise ValueError(f"position {position}: {error}") from error
        return encoded

    @cached_property
    def _of_one(self) -> Labels:
        return replace(self, is_per_position=False)

    @property
    def _blank(self) -> Any:
        if self.problem_type == "single_label_classification":
            return NO_LABEL
        is_single = self.is_regression and len(self.names) == 1
        return math.nan if is_single else [math.nan] * len(self.names)

    def classes_of(self, value: Any) -> list[int]:
        """The numbers of the classes in a label, which is one class itself unless the task is multi-label."""
        if not self.is_multi_label:
            return [self.index(value)]
        entries = read_list(value)
        if not isinstance(entries, (list, tuple)):
            raise ValueError(f"{value!r} is no list of classes")
        if self.is_multi_hot:
            if len(entries) != len(self.names) or any(entry not in (0, 1) for entry in entries):
                raise ValueError(
                    f"{value!r} is no vector of 0 and 1 with an entry for each of {len(self.names)} classes"
                )
            return [index for index, entry in enumerate(entries) if entry]
        found = [self.index(entry) for entry in entries]
        if len(set(found)) < len(found) and not any(isinstance(entry, str) for entry in entries):
            raise ValueError(
                f"{value!r} has a class number twice; the labels before were lists of class numbers, and this one "
                "looks like a vector of 0 and 1 (see --multi_hot)"
            )
        return found

    def index(self, value: Any) -> int:
        """The number of one class, which is given by name or number."""
        if isinstance(value, str):
            if value not in self._places:
                raise ValueError(f"{value!r} is none of the {len(self.names)} classes {some_of(self.names)}")
            return self._places[value]
        if value is None or value != value:
            raise ValueError(f"there is no label (it is {value})")
        if not isinstance(value, (bool, int, float)):
            raise ValueError(f"{value!r} is no class; labels are whole numbers or names")
        if isinstance(value, bool) and str(value) in self._places:
            return self._places[str(value)]
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{value!r} is no class; labels are whole numbers or names (see --do_regression)")
        number = int(value)
        if self.numbers_are_names and str(number) in self._places:
            return self._places[str(number)]
        if number == -1:
            raise ValueError(
                "there is no label (it is -1, which stands for that; if it is a class, give the numbers of all with "
                "--class_names)"
            )
        if self.numbers_are_names:
            raise ValueError(f"{number} is none of the {len(self.names)} classes {some_of(self.names)}")
        if not 0 <= number < len(self.names):
            from_one = (
                "; if they count from 1, --class_names must be their numbers" if number == len(self.names) else ""
            )
            raise ValueError(
                f"{number} is outside of the {len(self.names)} classes, 0 to {len(self.names) - 1}{from_one}"
            )
        return number

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def _numbers(self, value: Any) -> float | list[float]:
        entries = read_list(value)
        if not isinstance(entries, (list, tuple)):
            if len(self.names) > 1:
                raise ValueError(f"{value!r} is no list of {len(self.names)} numbers")
            return _finite(entries)
        if len(entries) != len(self.names):
            raise ValueError(f"{value!r} is no list of {len(self.names)} numbers")
        numbers = [_finite(entry) for entry in entries]
        return numbers if len(numbers) > 1 else numbers[0]


def is_no_label(entry: Any) -> bool:
    """Whether the label of one position says that there is none: nothing, NaN, or -100 as in transformers."""
    if entry is None:
        return True
    return isinstance(entry, (int, float)) and not isinstance(entry, bool) and (entry != entry or entry == NO_LABEL)


def _finite(value: Any) -> float:
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number that can be predicted")
    return number


def some_of(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    shown = [repr(name) for name in islice(names, MOST_SHOWN + 1)]
    return ", ".join(shown[:MOST_SHOWN]) + (", …" if len(shown) > MOST_SHOWN else "")
