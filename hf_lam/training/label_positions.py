"""Samples that are sequences, with a label for each position: how lists of labels are told from those of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedConfig

from .arguments import DataArguments
from .columns import AnyDataset
from .label_lists import looks_like_list, read_list
from .label_values import is_no_label

# How many rows are looked at for the number of their positions.
_LOOKED_AT = 100


def labels_positions(model: PreTrainedConfig) -> bool:
    """Whether a saved model gives each position of a sample its label."""
    return any(name.endswith("ForTokenClassification") for name in model.architectures or ())


def entries_of(lists: Iterable[Any]) -> list[Any]:
    """The labels of all positions that have one."""
    given = [read_list(value) for value in lists]
    return [
        entry for entries in given if isinstance(entries, (list, tuple)) for entry in entries if not is_no_label(entry)
    ]


def are_of_positions(
    splits: Mapping[str, AnyDataset],
    seen: Mapping[str, Sequence[Any]],
    data: DataArguments,
    checkpoint: PreTrainedConfig | None,
    count_positions: Callable[[Mapping[str, Any]], int | None] | None,
) -> bool:
    """Whether a sample has a label for each of its positions, as the user, the model or the data say.

    Lists of labels that are as long as their samples are such labels, if they cannot be those of whole samples.

    Args:
        splits: splits with labels.
        seen: labels of every split, or the first of them.
        data: options that name the column; `per_position` is the choice of the user.
        checkpoint: configuration of the model that is evaluated, or that training starts from.
        count_positions: function that gives the number of positions of a row; None where that cannot be seen.

    Raises:
        ValueError: if both could be meant, with both readings; or if they are no lists, and the user says they are.
    """
    wanted = data.per_position
    if wanted is None and checkpoint is not None and labels_positions(checkpoint):
        wanted = True
    first = next(iter(splits), None)
    if first is None:
        return bool(wanted)
    column = data.label_column_name
    labels = [value for value in seen[first] if value is not None]
    is_list = bool(labels) and (isinstance(labels[0], (list, tuple)) or looks_like_list(labels[0]))
    if wanted and labels and not is_list:
        raise ValueError(f"labels of positions are lists, which the column {column!r} does not hold.")
    if wanted is not None or not is_list or count_positions is None:
        return bool(wanted)
    pairs = [
        (entries, count)
        for row in islice(splits[first], _LOOKED_AT)
        if (count := count_positions(row)) is not None and isinstance(entries := read_list(row[column]), (list, tuple))
    ]
    # One that is too short is wrong, and is named as such later.
    fitting = [entries for entries, count in pairs if len(entries) == count]
    if 2 * len(fitting) <= len(pairs):
        return False
    if not _could_be_of_samples(map(read_list, labels), data.do_regression):
        return True
    raise ValueError(
        f"the lists in {column!r} can be read in two ways: {fitting[0]!r:.60} has a label for each of the "
        f"{len(fitting[0])} vectors of its sample, or the labels of the sample as a whole. Say which: --per_position "
        "true or --per_position false."
    )


def _could_be_of_samples(lists: Iterable[Any], is_regression: bool) -> bool:
    """Whether lists could be the numbers or the classes of whole samples."""
    lists = [entries for entries in lists if isinstance(entries, (list, tuple))]
    if any(isinstance(entry, (list, tuple)) or entry is None for entries in lists for entry in entries):
        return False
    is_even = len({len(entries) for entries in lists}) == 1
    if is_regression:
        return is_even
    if is_even and all(entry in (0, 1) for entries in lists for entry in entries):
        return True
    return all(len(set(entries)) == len(entries) for entries in lists)
