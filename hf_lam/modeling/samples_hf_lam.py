# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a processor: one sample or many, of which some lack a modality.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

# Axes of one sample: most for an image (one of grey has two), a video and a sound, and exactly for vectors.
_AXES = {"image": 3, "video": 4, "audio": 1, "vectors": 2, "numbers": 1}
_NUMBERED = ("vectors", "numbers")


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing.

    That is `None`, what pandas has in its place (NaN, NA and NaT), and what is empty: a string, a list, an array, a
    dictionary.
    """
    if isinstance(value, Real):
        return bool(value != value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    shape = getattr(value, "shape", None)
    if shape is not None:
        # One number in an array may be NaN as well as any other.
        return 0 in shape or (len(shape) == 0 and bool(value != value))
    return isinstance(value, (str, bytes, list, tuple, Mapping)) and len(value) == 0


class Given(NamedTuple):
    """One modality that a processor is called with.

    kind: `"text"`, `"words"` (texts that are split already), `"image"`, `"video"`, `"audio"`, `"vectors"`, or
        `"numbers"`, one for each vector.
    values: one sample, a list of them, an array with an axis for the batch, or a column of a data set or a table.
    """

    kind: str
    values: Any


def read_samples(given: Mapping[str, Given], is_batch: bool | None = None) -> tuple[dict[str, list[Any]], bool]:
    """Read every modality as a list with an entry for each sample, `None` for those that lack it.

    Args:
        given: values by name.
        is_batch: whether they are several samples; `None` if the values must tell.

    Returns:
        The samples, as many for each name unless the values disagree, and whether there were lists of them, rather
        than one sample.
    """
    values = {name: list(x.values) if _is_column(x.values) else x.values for name, x in given.items()}
    if is_batch is None:
        told = {name: None if x is None else _is_batch(given[name].kind, x) for name, x in values.items()}
        is_batch = any(told.values())
    else:
        told = {name: None if x is None else is_batch for name, x in values.items()}
    lists = {
        # Where other modalities have several samples, several vectors are one for each.
        name: list(x) if told[name] or (is_batch and x is not None and given[name].kind in _NUMBERED) else [x]
        for name, x in values.items()
    }
    size = max((len(lists[name]) for name, is_told in told.items() if is_told is not None), default=1)
    return {
        name: [None] * size if told[name] is None else [None if is_missing(sample) else sample for sample in samples]
        for name, samples in lists.items()
    }, is_batch


def row_or_batch(columns: Any) -> bool | None:
    """Whether the type says that these are several rows: that of `datasets`, or of pandas; `None` if it does not."""
    kinds = {base.__name__ for base in type(columns).__mro__}
    return True if kinds & {"LazyBatch", "DataFrame"} else False if "LazyRow" in kinds else None


def columns_of(given: Any) -> Any:
    """A table of pandas as a mapping of its columns; anything else as it is."""
    if type(given).__name__ == "DataFrame" and hasattr(given, "iloc"):
        return {name: column.tolist() for name, column in given.items()}
    return given


def _is_batch(kind: str, values: Any) -> bool:
    is_list = isinstance(values, (list, tuple))
    # An empty list of vectors is one sample that has none.
    if is_list and all(map(is_missing, values)):
        return bool(values) or kind not in _NUMBERED
    if kind == "text":
        return isinstance(values, list)
    if kind == "words":
        return is_list and not isinstance(_first(values), str)
    if kind in _AXES and (hasattr(values, "ndim") or _is_of_numbers(values)):
        return _count_axes(values) > _AXES[kind]
    if kind in _NUMBERED:
        return is_list and _count_axes(values) > _AXES[kind]
    if kind == "video":
        # Frames are images or arrays of two or three axes; a path in a list is that of a video.
        first = _first(values) if is_list else None
        return is_list and (isinstance(first, (list, tuple, str, Mapping)) or getattr(first, "ndim", 0) == 4)
    return is_list


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if not is_missing(value)), None)


def _is_of_numbers(values: Any) -> bool:
    """Whether it is lists of lists, as deep as they are, and then numbers."""
    while isinstance(values, (list, tuple)):
        values = _first(values)
    return isinstance(values, Real)


def _count_axes(values: Any) -> int:
    """Count how deeply lists and arrays are nested."""
    axes = 0
    while isinstance(values, (list, tuple)) or hasattr(values, "ndim"):
        if hasattr(values, "ndim") and str(values.dtype) != "object":
            return axes + int(values.ndim)
        axes += 1
        values = _first(values)
    return axes


def _is_column(values: Any) -> bool:
    """Whether it is a column of a data set or of a table: one axis of objects, and no list."""
    if isinstance(values, (str, bytes, list, tuple)):
        return False
    dtype = getattr(values, "dtype", None)
    if isinstance(values, Sequence):
        return True
    if getattr(values, "ndim", 0) != 1 or dtype is None:
        return False
    is_of_objects = str(dtype) in ("object", "str", "string", "category") or getattr(dtype, "kind", "") == "U"
    # pandas makes numbers, NaN, of a column without any value.
    return is_of_objects or (hasattr(values, "isna") and bool(values.isna().all()))
