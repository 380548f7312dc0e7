"""Predictions that know which sample they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .sources import SOURCE
from .trainer import HfLamTrainer

# The column that says how many positions of a sample have a prediction, where each has one.
POSITIONS = "hf_lam_positions"
# What samples may have beside the arguments of a model.
BESIDE = (SOURCE, POSITIONS)
# In a batch, the captions that generated ones are compared with, see `CaptionCollator`.
REFERENCES = "reference_labels"


def is_argument(name: str) -> bool:
    """Whether the model is called with something in a batch, to compute its loss."""
    return name not in (*BESIDE, REFERENCES)


def is_input(name: str) -> bool:
    """Whether an argument in a batch is what the model sees of its samples: no labels, nor where they come from."""
    return name not in BESIDE and not name.endswith("labels")


class CollatorWithSources:
    """A data collator for samples that say where they come from, or how many positions they have."""

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        inputs = [{name: value for name, value in sample.items() if name not in BESIDE} for sample in samples]
        batch = dict(self.collator(inputs))
        for name in BESIDE:
            if samples and all(name in sample for sample in samples):
                batch[name] = torch.tensor([int(sample[name]) for sample in samples])
        return batch


class PredictingTrainer(HfLamTrainer):
    """An `HfLamTrainer` whose predictions are the logits, and what `CollatorWithSources` puts into a batch.

    kept_outputs: number of the model's outputs, after the loss, that are predictions; several are a tuple. None for
        all.
    """

    kept_outputs: int | None = 1

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """`Trainer.prediction_step`, without hidden states and the like."""
        beside = [x for x in (inputs.pop(name, None) for name in BESIDE) if x is not None]
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if isinstance(logits, tuple):
            logits = logits[0] if self.kept_outputs == 1 else logits[: self.kept_outputs]
        if not beside or logits is None:
            return loss, logits, labels
        return loss, (logits, *map(self._prepare_input, beside)), labels


def logits_and_sources(predictions: Any) -> tuple[Any, np.ndarray | None]:
    """The result of `PredictingTrainer.predict` in the order of the data; without sources, in its own.

    Where samples have positions, each has logits of its own length, `(positions, classes)`.
    """
    if not isinstance(predictions, tuple):
        return np.asarray(predictions), None
    logits, sources, *positions = predictions
    # Workers read the files of a stream in turn.
    sources, order = np.unique(sources, return_index=True)
    if not positions:
        return logits[order], sources
    # `Trainer` pads them to the longest.
    return [logits[index, : positions[0][index]] for index in order], sources
