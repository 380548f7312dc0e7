"""The goal of a run: how it is measured, written into a file, and described in the model card."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

from .label_values import Labels
from .metrics import classification_metrics, regression_metrics
from .predictions import logits_and_sources
from .sources import Place

if TYPE_CHECKING:
    from .finetuning import Task


class Goal(ABC):
    """The goal of a run: what the model learns to predict.

    Predictions are outputs of the model, and beside them what `CollatorWithSources` puts into a batch, where samples
    say it: `(outputs, sources, …)`.

    outputs: number of the model's outputs, after the loss, that are its predictions; several are a tuple. None for
        all.
    errors: those of the metrics of which less is better, besides the loss.
    """

    outputs: int | None = 1
    errors: tuple[str, ...] = ()

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names that an evaluation gives besides the loss, without `eval_`."""

    @abstractmethod
    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics; `compute_metrics` of a `Trainer`."""

    @abstractmethod
    def describe(self) -> str:
        """Sentences of the model card: what the data say of a sample."""

    @abstractmethod
    def write_predictions(self, folder: Path, predictions: Any, task: Task) -> None:
        """Write the predictions for the split test into the output folder.

        Args:
            folder: folder of the run.
            predictions: predictions as described above.
            task: task of the run.
        """

    def draw(
        self, model: Any, sample: Mapping[str, Any], inputs: Mapping[str, Tensor], folder: Path
    ) -> dict[str, str]:
        """Draw a model's predictions for the card.

        Args:
            model: model after training.
            sample: sample of the validation data, or else of the training data.
            inputs: arguments that the model is called with for it.
            folder: folder to write to.

        Returns:
            The captions, by the names of the files in the folder.
        """
        return {}


@dataclass(frozen=True)
class Classes(Goal):
    """Classes, one or any number to a sample or to each of its positions; or the numbers of regression."""

    labels: Labels

    @property
    def metrics(self) -> tuple[str, ...]:
        return {
            "single_label_classification": ("accuracy", "f1"),
            "multi_label_classification": ("map", "f1"),
            "regression": ("mse", "mae", "pearson", "spearman"),
        }[self.labels.problem_type]

    errors = ("mse", "mae")

    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        if self.labels.is_regression:
            return regression_metrics(prediction)
        return classification_metrics(self.labels.is_multi_label)(prediction)

    def describe(self) -> str:
        classes = self.labels.names
        one = "position" if self.labels.is_per_position else "sample"
        shown = ", ".join(f"`{name}`" for name in classes[:10]) + (", …" if len(classes) > 10 else "")
        if self.labels.is_regression:
            what = "One number" if len(classes) == 1 else f"{len(classes)} numbers"
            return f"{what} per {one} (regression): {shown}."
        kind = f"any number per {one}" if self.labels.is_multi_label else f"one per {one}"
        return f"{len(classes)} classes, {kind}: {shown}."

    def write_predictions(self, folder: Path, predictions: Any, task: Task) -> None:
        """`predictions.csv`, see [`write_classes`]."""
        logits, sources = logits_and_sources(predictions)
        places = None if sources is None else task.sources["test"].places(sources, task.predicts_all)
        rows = range(len(logits)) if places is None else [place.row for place in places]
        write_classes(folder / "predictions.csv", logits, rows, self.labels, places)


def write_classes(
    path: Path, logits: Any, rows: Iterable[int], labels: Labels, places: Sequence[Place] | None = None
) -> None:
    """One line a sample: its row in the split, what is predicted, and the file and the row in it; all count from 0.

    Where samples have positions, there is a line for each of them, and a column `position`.

    The prediction is the name of the class; of a multi-label task a JSON list of the names of those with a logit above
    0; of regression the number, or a JSON list of several.

    Args:
        path: path of the csv file.
        logits: `(n, classes)`; of regression `(n, targets)`; of positions, of each sample `(positions, …)`.
        rows: row of every sample in the split.
        labels: the classes.
        places: places of the samples, if they are known.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        position = ["position"] if labels.is_per_position else []
        writer.writerow(["row", *position, "prediction", *(["file", "file_row"] if places is not None else [])])
        for index, (row, values) in enumerate(zip(rows, logits, strict=True)):
            said: list[list[Any]]
            if labels.is_per_position:
                said = [[place, _said(entry, labels)] for place, entry in enumerate(values)]
            else:
                said = [[_said(values, labels)]]
            where = [] if places is None else [places[index].file, places[index].file_row]
            writer.writerows([row, *cells, *where] for cells in said)


def _said(values: Any, labels: Labels) -> Any:
    if labels.is_regression:
        numbers = [float(str(value)) for value in np.atleast_1d(values)]
        return numbers[0] if len(numbers) == 1 else json.dumps(numbers)
    if labels.is_multi_label:
        chosen = [labels.names[number] for number in (values > 0).nonzero()[0]]
        return json.dumps(chosen, ensure_ascii=False)
    return labels.names[values.argmax()]
