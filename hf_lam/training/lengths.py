"""Lengths of samples, for batches of samples of about one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..modeling.configuration_hf_lam_fusion import ENCODER_ARGUMENTS, FEATURES, OTHER_NAMES
from ..modeling.samples_hf_lam import is_missing

# Samples of a wave that become one token: most encoders of waves have a stride of 20 ms at 16 kHz.
_WAVE_STRIDE = 320
_ROWS = 1000


class Lengths(torch.utils.data.Dataset):
    """The lengths of all samples of a data set, and nothing else of them; 0 for a sample without one.

    `Trainer` takes the `len` of one input, which a missing input does not have. Here the length is that of the texts,
    vectors and sounds of a sample together, in tokens, where one token of a wave is 20 ms; for samples without any of
    these, it is the `len` that `Trainer` takes.

    Args:
        dataset: data set with a length.
        name: name of the input that `Trainer` looks at.
        column: column with lengths that were counted before, if the data set has it.

    Raises:
        ValueError: if no sample has such an input.
    """

    def __init__(self, dataset: Any, name: str, column: str) -> None:
        self.name = name
        if isinstance(dataset, Dataset) and column in dataset.column_names:
            self.lengths = [0 if is_missing(length) else int(length) for length in dataset[column]]
            return
        lengths = _count_columns(dataset, name) if isinstance(dataset, Dataset) else None
        if lengths is None:
            lengths = _count_samples(dataset, name)
        if lengths is None:
            raise ValueError(
                f"samples cannot be grouped by their length: none is a dictionary with {name!r}. Give the data a "
                f"column {column!r} with the lengths, or leave out train_sampling_strategy."
            )
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, range]:
        # As long, and with nothing in it.
        return {self.name: range(self.lengths[index])}


class SeededLengthSampler(LengthGroupedSampler):
    """Groups samples by length in an order that only the seed and the epoch decide.

    `Trainer`'s draws from the generator that dropout and new weights draw from, too: models that differ in either
    would see the data in other orders, from the first epoch or the second one on.

    Args:
        sampler: sampler of `Trainer`.
        seed: seed of the data.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        super().__init__(sampler.batch_size, lengths=sampler.lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # Two seeds have no epoch in common, as they would with their sum.
        self.generator = torch.Generator().manual_seed((self.seed * 2**32 + self.epoch) % 2**63)
        return super().__iter__()


def _count_samples(dataset: Any, name: str) -> list[int] | None:
    """The lengths of samples that are looked at one by one; `None` if none has anything that could be counted."""
    lengths = []
    has_input = False
    for sample in dataset:
        names = _counted(sample, name) if isinstance(sample, Mapping) else []
        has_input = has_input or bool(names)
        lengths.append(sum(_tokens(key, _shape(sample[key])) for key in names if _has(sample, key)))
    return lengths if has_input else None


def _count_columns(dataset: Dataset, name: str) -> list[int] | None:
    """The same from the columns of a data set, without a look at what is in their lists; `None` if they must."""
    names = _counted(dataset.column_names, name)
    has = {key: _has_name(key) for key in names if _has_name(key) in dataset.column_names}
    if not names or dataset.format["type"] == "custom":
        return None
    lengths: list[int] = []
    for table in dataset.select_columns([*names, *has.values()]).with_format("arrow").iter(_ROWS):
        counted = np.zeros(len(table), np.int64)
        for key in names:
            shapes = _shapes_of(table[key].combine_chunks())
            if shapes is None or shapes.shape[1] not in ((1,) if key == ENCODER_ARGUMENTS["text"].values else (1, 2)):
                return None
            tokens = np.array([_tokens(key, tuple(shape)) if shape[0] else 0 for shape in shapes], np.int64)
            if key in has:
                tokens *= pc.fill_null(table[has[key]], True).to_numpy()
            counted += tokens
        lengths += counted.tolist()
    return lengths


def _counted(names: Iterable[Any], name: str) -> list[str]:
    """The names of the inputs that count for the length."""
    keys = [str(key) for key in names]
    own = [ENCODER_ARGUMENTS["text"].values, ENCODER_ARGUMENTS["audio"].values]
    found = [key for key in keys if key in own or (key.endswith(FEATURES) and key not in OTHER_NAMES)]
    return found or [key for key in keys if key == name]


def _has_name(key: str) -> str:
    """The input that says whether a sample has this one."""
    name = next((name for name, arguments in ENCODER_ARGUMENTS.items() if arguments.values == key), None)
    return f"has_{name or key.removesuffix(FEATURES)}"


def _has(sample: Mapping[str, Any], key: str) -> bool:
    said = sample.get(_has_name(key))
    return not is_missing(sample[key]) and (is_missing(said) or bool(np.any(np.asarray(said))))


def _tokens(key: str, shape: tuple[int, ...]) -> int:
    """The length of a sample of this shape, with or without an axis for the batch."""
    if key == ENCODER_ARGUMENTS["audio"].values:
        shape = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
        return -(-shape[0] // _WAVE_STRIDE) if len(shape) == 1 else sum(shape)
    if key == ENCODER_ARGUMENTS["text"].values:
        return shape[-1]
    if key.endswith(FEATURES) and key not in OTHER_NAMES:
        # One vector may stand for a sample of one.
        return 1 if len(shape) == 1 else shape[-2]
    return shape[0]


def _shape(value: Any) -> tuple[int, ...]:
    if hasattr(value, "shape") and str(value.dtype) != "object":
        return tuple(value.shape)
    if not hasattr(value, "__len__"):
        return ()
    return (len(value), *(_shape(value[0]) if len(value) and not isinstance(value, str) else ()))


def _shapes_of(column: pa.Array) -> np.ndarray | None:
    """`(rows, axes)` of a column of lists, or of lists of lists; zeros for what is not there, `None` for others."""
    if isinstance(column, pa.ExtensionArray):  # arrays of a number of axes that is said, such as Array2D
        column = column.storage
    if not _is_list(column.type):
        return None
    outer = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    if not _is_list(column.type.value_type):
        return outer[:, None]
    if _is_list(column.type.value_type.value_type):
        return None
    lengths = pc.fill_null(pc.list_value_length(pc.list_flatten(column)), 0).to_numpy()
    # Of every row, the length of its first list.
    starts = np.cumsum(outer) - outer
    inner = np.zeros_like(outer)
    inner[outer > 0] = lengths[starts[outer > 0]]
    return np.stack([outer, inner], axis=1)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
