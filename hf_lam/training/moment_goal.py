"""Moments and highlights as what a run learns: measured as QVHighlights does, written as it takes them, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from ..modeling.fusion_moments_hf_lam import Retrieved, read_moments
from ..visualization.moments import plot_moments
from .goals import Goal
from .moment_files import MomentAnnotation, scores_of, write_submission
from .moment_metrics import highlight_metrics, moment_metrics
from .sources import SOURCE

if TYPE_CHECKING:
    from .finetuning import Task

# What is written of the split test, and drawn for the card.
PREDICTIONS_FILE, PICTURE_FILE = "predictions.jsonl", "moments.png"
# Of a model of moments, in this order.
_OUTPUTS = ("logits", "pred_spans", "saliency_scores", "clip_mask")


@dataclass(frozen=True)
class Moments(Goal):
    """The windows of videos that queries speak of, and what people think of the clips, as far as they are known.

    annotations: annotations of all splits; the column `SOURCE` of a sample is its index among them.
    measured: annotations that metrics are computed for.
    clip_length: length of a clip in seconds.
    vectors: a sentence of the card, on what the model sees.
    """

    annotations: Sequence[MomentAnnotation]
    measured: Sequence[MomentAnnotation]
    clip_length: float
    vectors: str

    outputs = None

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.compare(self.measured, [Retrieved([], torch.zeros(1))] * len(self.measured)))

    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.compare(*self._read(prediction.predictions))

    def _read(self, predictions: Any) -> tuple[list[MomentAnnotation], list[Retrieved]]:
        """The queries that were predicted, and what was found for each, within its video."""
        outputs, sources = predictions
        rows, order = np.unique(sources, return_index=True)
        tensors = {
            name: torch.from_numpy(np.asarray(values)[order]) for name, values in zip(_OUTPUTS, outputs, strict=True)
        }
        annotations = [self.annotations[row] for row in rows]
        found = read_moments(tensors, self.clip_length)
        return annotations, [_within(x, annotation.duration) for x, annotation in zip(found, annotations, strict=True)]

    def compare(self, annotations: Sequence[MomentAnnotation], found: Sequence[Retrieved]) -> dict[str, float]:
        """The metrics of what was found for each of some queries, as far as their answers are known."""
        pairs = [*zip(annotations, found, strict=True)]
        with_windows = [(x, its) for x, its in pairs if x.windows is not None]
        with_scores = [(x, its) for x, its in pairs if x.scores is not None]
        metrics: dict[str, float] = {}
        if with_windows:
            metrics |= moment_metrics([its.moments for _, its in with_windows], [x.windows for x, _ in with_windows])
        if with_scores:
            metrics |= highlight_metrics(
                [its.saliency for _, its in with_scores], [scores_of(x, self.clip_length) for x, _ in with_scores]
            )
        return metrics

    def describe(self) -> str:
        said = ["the windows that it speaks of"] * any(x.windows is not None for x in self.annotations)
        said += ["what people think of the clips"] * any(x.scores is not None for x in self.annotations)
        what = f"With a query about a video, in clips of {self.clip_length:g} s, come {' and '.join(said)}."
        return f"{what} {self.vectors}"

    def write_predictions(self, folder: Path, predictions: Any, task: Task) -> None:
        """`predictions.jsonl`, as the evaluation of QVHighlights takes it."""
        annotations, found = self._read(predictions)
        windows = [its.moments for its in found]
        saliency = [its.saliency.tolist() for its in found]
        write_submission(folder / PREDICTIONS_FILE, annotations, windows, saliency)

    def draw(
        self, model: Any, sample: Mapping[str, Any], inputs: Mapping[str, Tensor], folder: Path
    ) -> dict[str, str]:
        """`moments.png`: what was found for a query of the validation data, over the seconds of its video."""
        if SOURCE not in sample or find_spec("matplotlib") is None:
            return {}
        annotation = self.annotations[sample[SOURCE]]
        with torch.no_grad():
            (found,) = model.eval().post_process(model(**inputs, return_dict=True))
        found = _within(found, annotation.duration)
        scores = None
        if annotation.scores is not None:
            known = scores_of(annotation, self.clip_length).mean(1)
            count = len(found.saliency)
            scores = np.pad(known[:count], (0, max(0, count - len(known)))).tolist()
        figure = plot_moments(
            found, annotation.query, windows=annotation.windows, scores=scores, clip_length=self.clip_length
        )
        figure.savefig(folder / PICTURE_FILE)
        return {PICTURE_FILE: "The moments found for a query of the evaluation data, and the true ones."}


def _within(found: Retrieved, duration: float) -> Retrieved:
    """The same, whose windows end with the video: its last clip may be longer than what is left of it."""
    moments = [x._replace(start=min(x.start, duration), end=min(x.end, duration)) for x in found.moments]
    return Retrieved(moments, found.saliency)
