# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Vectors that were computed before, as a processor handles them: it cuts, standardises and checks them.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from transformers.utils import to_numpy

from .fusion_features_hf_lam import POSITIONS, read_features
from .option_checks_hf_lam import is_count


@dataclasses.dataclass(frozen=True)
class VectorOptions:
    """Options for preparing the vectors of one modality.

    Args:
        size: numbers in one vector.
        max_length: the most vectors of one sample; of longer ones, the first are taken. `None` for no limit.
        mean: number that is subtracted from every vector, or one number for each of its places; `None` for nothing.
        std: number that it is divided by after that, likewise. 0, at a place that is constant, counts as 1.
        positions: kind of positions that the model has: `"sinusoidal"` (any numbers), `"learned"` (whole numbers), or
            `None`.

    Raises:
        ValueError: for a value outside of the above; the message names it.
    """

    size: int
    max_length: int | None = None
    mean: Any = None
    std: Any = None
    positions: str | None = "sinusoidal"

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("max_length", self.max_length)):
            if not (is_count(value, 1) or (name == "max_length" and value is None)):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.positions not in (*POSITIONS, None):
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, or None, got {self.positions!r}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._read_numbers(name, getattr(self, name)))

    def _read_numbers(self, name: str, given: Any) -> Any:
        if given is None:
            return None
        try:
            numbers = as_numbers(given)
            is_fitting = numbers.shape in ((), (self.size,)) and _are_finite(numbers)
        except (TypeError, ValueError):
            is_fitting = False
        if not is_fitting or (name == "std" and bool((numbers < 0).any())):
            wanted = "numbers that are not negative" if name == "std" else "numbers"
            raise ValueError(f"{name} must be one of, or {self.size} {wanted}, got {given!r}")
        return numbers.tolist()

    @cached_property
    def _shift(self) -> Any:
        return as_numbers(self.mean).astype("float32")

    @cached_property
    def _scale(self) -> Any:
        std = as_numbers(self.std).astype("float32")
        return std + (std == 0)

    def prepare(self, name: str, vectors: Any) -> Any:
        """The vectors of one sample, an array `(L, size)` in single precision.

        Args:
            name: name of the modality.
            vectors: `(L, size)`, or `(size,)` for one vector.

        Raises:
            ValueError: for another shape, or numbers that are not finite; the message names the modality.
        """
        try:
            numbers = as_numbers(vectors)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: one sample must have vectors of {self.size} numbers; {error}.") from error
        if numbers.ndim == 1:
            numbers = numbers[None]
        if numbers.ndim != 2 or numbers.shape[1] != self.size:
            raise ValueError(f"{name}: one sample must be of shape (vectors, {self.size}), got {numbers.shape}.")
        numbers = numbers[: self.max_length].astype("float32")
        if self.mean is not None:
            numbers = numbers - self._shift
        if self.std is not None:
            numbers = numbers / self._scale
        if not _are_finite(numbers):
            raise ValueError(f"{name}: a sample has numbers that are NaN or infinite.")
        return numbers

    def prepare_positions(self, name: str, positions: Any, count: int) -> Any:
        """Read the position of each of `count` vectors, an array `(count,)`: whole numbers if they are learned.

        Raises:
            ValueError: if there are too few, too many, or others; the message names the modality.
        """
        try:
            numbers = as_numbers([] if positions is None else positions)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: positions must be numbers; {error}.") from error
        numbers = numbers[: self.max_length] if numbers.ndim else numbers[None]
        if numbers.shape != (count,) or not _are_finite(numbers):
            raise ValueError(
                f"{name}: positions must be one number for each of the {count} vectors of a sample, got "
                f"{'None' if positions is None else numbers.shape}."
            )
        if self.positions == "learned":
            if (numbers % 1 != 0).any():
                raise ValueError(f"{name}: positions that are learned must be whole numbers, got {positions!r}.")
            return numbers.astype("int64")
        return numbers.astype("float32")

    @property
    def blank_positions(self) -> Any:
        """The positions of a sample without vectors."""
        return torch.zeros(0, dtype=torch.long if self.positions == "learned" else torch.float).numpy()


def vector_options(options: Mapping[str, Any]) -> VectorOptions:
    """The options of one modality, as the `features` of a processor have them; read once, and not for every sample."""
    return _vector_options(**{name: tuple(x) if isinstance(x, list) else x for name, x in options.items()})


_vector_options = lru_cache(maxsize=64)(VectorOptions)


def read_vector_options(features: Any) -> dict[str, dict[str, Any]]:
    """The `features` of a processor with every option written down.

    Raises:
        ValueError: for a name or an option that is not one; the message names both.
    """
    # The names are those that the model can have.
    sizes = {name: _sized(options).get("size") for name, options in features.items()} if _is_table(features) else None
    if sizes is None or None in sizes.values():
        raise ValueError(
            "features must have the options of each modality of vectors by its name, such as {'clips': {'size': "
            f"512}}}}, got {features!r}."
        )
    known = {field.name for field in dataclasses.fields(VectorOptions)}
    read = {}
    for name, options in features.items():
        options = _sized(options)
        if not set(options) <= known:
            raise ValueError(f"features[{name!r}] may have {', '.join(sorted(known))}; got {options!r}.")
        try:
            read[name] = dataclasses.asdict(VectorOptions(**options))
        except ValueError as error:
            raise ValueError(f"features[{name!r}]: {error}.") from error
    try:
        read_features({name: options["size"] for name, options in read.items()})
    except ValueError as error:
        raise ValueError(str(error).removeprefix("HfLamFusionConfig: ")) from error
    return read


def as_numbers(values: Any) -> Any:
    """An array of numpy, of numbers, from lists, tensors, arrays, and arrays of arrays, as tables have them.

    Raises:
        ValueError: if the lists are of several lengths.
        TypeError: if there is something else in them.
    """
    if isinstance(values, torch.Tensor):
        # numpy has no bfloat16.
        return (values.float() if values.is_floating_point() else values).numpy(force=True)
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], torch.Tensor):
        return to_numpy([as_numbers(value) for value in values])
    array = _as_array(values)
    while array.dtype == object and array.ndim:
        # Each turn opens one level of arrays in arrays.
        opened = to_numpy(array.tolist())
        if opened.shape == array.shape and opened.dtype == object:
            break
        array = opened
    if array.dtype.kind not in "fiub":
        raise TypeError(f"numbers are needed, not {array.dtype}")
    return array


def _as_array(values: Any) -> Any:
    if hasattr(values, "__array__"):
        return values.__array__()
    if isinstance(values, (list, tuple)):
        return to_numpy(values)
    # In a list, numpy reads whatever it can read.
    array = to_numpy([values])
    return array.reshape(array.shape[1:])


def _are_finite(numbers: Any) -> bool:
    return not numbers.size or bool(abs(numbers).max() < float("inf"))


def _is_table(features: Any) -> bool:
    return isinstance(features, Mapping) and all(
        is_count(options, 1) or isinstance(options, Mapping) for options in features.values()
    )


def _sized(options: Any) -> dict[str, Any]:
    return {"size": options} if is_count(options, 1) else dict(options)
