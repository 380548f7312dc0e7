# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Samples of several lengths in one tensor.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch


def pad_samples(
    name: str,
    samples: Sequence[Any],
    axis: int | None = None,
    length: int = 0,
    value: float = 0,
    is_left: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad arrays that differ in the length of one axis at most, and join them into one tensor.

    Args:
        name: name of the arrays, for errors.
        samples: an array for each sample, `None` for one that is all padding. At least one must be there.
        axis: axis that differs; `None` if the arrays tell, and the first where they do not differ.
        length: the least length of the result.
        value: number that fills the rest.
        is_left: whether the padding comes before the sample, rather than after it.

    Returns:
        The tensor `(B, …)`, of the type of the arrays; and `(B, length)` of ones and zeros: where along that axis
        something is.

    Raises:
        ValueError: if they differ in more; the message has the name.
    """
    present = [sample for sample in samples if sample is not None]
    shapes = {sample.shape for sample in present}
    axis = _check_shapes(name, shapes, axis)
    longest = max(length, *(shape[axis] for shape in shapes))
    shape = list(present[0].shape)
    shape[axis] = longest
    kinds = {sample.dtype: sample for sample in present}.values()
    dtype = reduce(torch.promote_types, [torch.from_numpy(sample[:0].copy()).dtype for sample in kinds])
    made = torch.full((len(samples), *shape), value, dtype=dtype)
    mask = torch.zeros(len(samples), longest, dtype=torch.long)
    # Arrays of other kinds, such as those of a memory map, are written into arrays.
    for row, is_filled, sample in zip(made.numpy(), mask.numpy(), samples, strict=True):
        if sample is None:
            continue
        count = sample.shape[axis]
        place = slice(longest - count, longest) if is_left else slice(0, count)
        row[(slice(None),) * axis + (place,)] = sample
        is_filled[place] = 1
    return made, mask


def _check_shapes(name: str, shapes: set[tuple[int, ...]], axis: int | None) -> int:
    """Along which axis samples may differ in their lengths."""
    if len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"{name} of a batch must have as many axes in every sample, got shapes {sorted(shapes)}.")
    differing = [index for index, lengths in enumerate(zip(*shapes, strict=True)) if len(set(lengths)) > 1]
    if len(differing) > 1 or (axis is not None and differing and differing != [axis]):
        raise ValueError(f"{name} of a batch must have one shape but for their lengths, got {sorted(shapes)}.")
    return axis if axis is not None else differing[0] if differing else 0
