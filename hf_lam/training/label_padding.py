"""The labels of a batch: one for each sample, or one for each of its places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..modeling.sample_padding_hf_lam import pad_samples
from ..modeling.samples_hf_lam import is_missing
from ..modeling.vectors_hf_lam import as_numbers

# What samples may call them.
LABELS = ("labels", "label", "label_ids")
# Those of moment retrieval: the true windows, and what people think of each clip.
SPANS, SALIENCY = MOMENT_LABELS = ("span_labels", "saliency_labels")
# What transformers' losses leave out; NaN among numbers.
_IGNORED = -100


def read_labels(samples: Sequence[Mapping[str, Any]]) -> list[np.ndarray] | None:
    """The labels of every sample; `None` if no sample has any.

    Raises:
        ValueError: if only some have them, or if they are no numbers.
    """
    values = [next((sample[key] for key in LABELS if not _is_nothing(sample.get(key))), None) for sample in samples]
    given = [value for value in values if value is not None]
    if not given:
        return None
    if len(given) != len(values):
        raise ValueError(f"{len(given)} of {len(values)} samples have labels; all must have them, or none.")
    try:
        return [as_numbers(value) for value in given]
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels must be numbers; {error}.") from error


def pad_labels(
    labels: Sequence[np.ndarray], lengths: Sequence[int | None], length: int, is_left: bool
) -> torch.Tensor:
    """Pad the labels of a batch.

    Args:
        labels: labels of each sample; if places have labels, the first axis is that of the places.
        lengths: number of labelled places of each sample; `None` where nothing says so.
        length: length of the batch; 0 if the longest labels decide.
        is_left: whether its padding comes before the labels.

    Raises:
        ValueError: if they are of several shapes otherwise, or more than there are places.
    """
    filled = [array for array in labels if array.size] or list(labels)
    is_float = any(array.dtype.kind == "f" for array in filled)
    # Of a sample without any place, nothing but this is known.
    rows = [
        (array if array.size else np.zeros((0, *filled[0].shape[1:]))).astype(np.float32 if is_float else np.int64)
        for array in labels
    ]
    if not filled[0].ndim:
        shapes = sorted({row.shape for row in rows})
        if len(shapes) > 1:
            raise ValueError(f"the labels of a batch must have one shape, got {shapes}.")
        return torch.from_numpy(np.stack(rows))
    padded, _ = pad_samples(
        "the labels",
        rows,
        0,
        _count_places(rows, lengths, length),
        float("nan") if is_float else _IGNORED,
        is_left,
    )
    return padded


def _count_places(rows: Sequence[np.ndarray | None], lengths: Sequence[int | None], length: int) -> int:
    """Count the places of a batch that have labels, at least; 0 if nothing says so."""
    # Tokens that stand for the whole of a modality have no labels.
    unlabelled = [
        count - len(row)
        for row, count in zip(rows, lengths, strict=True)
        if count is not None and row is not None and len(row)
    ]
    if unlabelled and min(unlabelled) < 0:
        raise ValueError(f"a sample has {-min(unlabelled)} labels more than places that are labelled.")
    return length - min(unlabelled) if unlabelled and length else 0


def pad_moment_labels(
    samples: Sequence[Mapping[str, Any]], lengths: Sequence[int | None], length: int
) -> dict[str, torch.Tensor]:
    """`span_labels`, `(B, W, 2)`, and `saliency_labels`, `(B, L)`, with NaN where a sample has nothing.

    Args:
        samples: samples with `span_labels`, `(windows, 2)`, and maybe `saliency_labels`, `(clips,)`.
        lengths: number of clips of each sample; `None` where nothing says so.
        length: length of the batch; 0 if the longest labels decide.

    Raises:
        ValueError: if only some have `span_labels`, for another shape, or for more labels than clips.
    """
    batch = {}
    for key, axes in ((SPANS, 2), (SALIENCY, 1)):
        rows = [None if _is_nothing(sample.get(key)) else _read_numbers(key, sample[key], axes) for sample in samples]
        given = [row for row in rows if row is not None]
        if not given:
            continue
        if key == SPANS and len(given) != len(rows):
            raise ValueError(f"{len(given)} of {len(rows)} samples have {key}; all must have them, or none.")
        # Of a sample without any window there is a row, too.
        least = 1 if key == SPANS else _count_places(rows, lengths, length)
        batch[key], _ = pad_samples(key, rows, 0, least, float("nan"))
    return batch


def _read_numbers(key: str, value: Any, axes: int) -> np.ndarray:
    array = as_numbers(value).astype(np.float32)
    array = array.reshape(0, 2) if axes == 2 and not array.size else array
    if array.ndim != axes or (axes == 2 and array.shape[1] != 2):
        raise ValueError(
            f"{key} of a sample must be {'(windows, 2)' if axes == 2 else '(clips,)'}, got shape {array.shape}."
        )
    return array


def _is_nothing(value: Any) -> bool:
    """An empty list of labels is that of a sample without places."""
    return is_missing(value) and not hasattr(value, "__len__")
