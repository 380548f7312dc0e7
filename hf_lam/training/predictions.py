"""Predictions that know which sample they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .sources import SOURCE
from .trainer import HfLamTrainer


class CollatorWithSources:
    """A data collator for samples that say where they come from, which no collator of transformers takes."""

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        inputs = [{name: value for name, value in sample.items() if name != SOURCE} for sample in samples]
        batch = dict(self.collator(inputs))
        if samples and all(SOURCE in sample for sample in samples):
            batch[SOURCE] = torch.tensor([int(sample[SOURCE]) for sample in samples])
        return batch


class PredictingTrainer(HfLamTrainer):
    """An `HfLamTrainer` whose predictions are the logits, and where the data say it, also where samples come from."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """`Trainer.prediction_step`, without hidden states and the like."""
        sources = inputs.pop(SOURCE, None)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        logits = logits[0] if isinstance(logits, tuple) else logits
        if sources is None or logits is None:
            return loss, logits, labels
        return loss, (logits, self._prepare_input(sources)), labels


def logits_and_sources(predictions: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """What `PredictingTrainer.predict` gives, in the order of the data; without sources, in its own."""
    if not isinstance(predictions, tuple):
        return np.asarray(predictions), None
    logits, sources = predictions
    # Workers read the files of a stream in turn.
    sources, order = np.unique(sources, return_index=True)
    return logits[order], sources
