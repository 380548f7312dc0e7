"""How long samples are, for batches of texts of about one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from ..modeling.processing_hf_lam import is_missing


class Lengths(torch.utils.data.Dataset):
    """Of every sample of a data set, nothing but the length of one input: 0 where it has none.

    `Trainer` takes the `len` of that input, which what is missing does not have.

    Args:
        dataset: with a length.
        name: the input.
        column: of lengths that were counted before, if the data set has it.

    Raises:
        ValueError: if no sample has the input.
    """

    def __init__(self, dataset: Any, name: str, column: str) -> None:
        self.name = name
        if isinstance(dataset, Dataset) and column in dataset.column_names:
            self.lengths = [0 if is_missing(length) else int(length) for length in dataset[column]]
            return
        self.lengths = []
        has_input = False
        for sample in dataset:
            value: Any = sample.get(name) if isinstance(sample, Mapping) else None
            has_input = has_input or (isinstance(sample, Mapping) and name in sample)
            self.lengths.append(0 if is_missing(value) else len(value))
        if not has_input:
            raise ValueError(
                f"samples cannot be grouped by their length: none is a dictionary with {name!r}. Give the data a "
                f"column {column!r} with the lengths, or leave out train_sampling_strategy."
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, range]:
        # As long, and with nothing in it.
        return {self.name: range(self.lengths[index])}
