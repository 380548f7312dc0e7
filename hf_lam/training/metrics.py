"""Metrics that work offline: `evaluate.load` would download their code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

_CLASSES = """
Args:
    predictions: the predicted classes, `n` whole numbers; with `config_name="multilabel"` `n` lists of 0 and 1.
    references: the true ones, in the same form."""


class _ClassMetric(evaluate.Metric):
    """A metric of predicted classes, or with `config_name="multilabel"` of multi-hot rows."""

    description: str
    more_inputs: str

    def _info(self) -> evaluate.MetricInfo:
        one = datasets.Value("int32")
        feature = datasets.Sequence(one) if self.config_name == "multilabel" else one
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=_CLASSES + self.more_inputs,
            features=datasets.Features({"predictions": feature, "references": feature}),
        )


class Accuracy(_ClassMetric):
    """The fraction of samples whose class (with `config_name="multilabel"` whose every label) is right.

    Called as evaluate's metric of that name: `Accuracy().compute(predictions=[0, 1], references=[0, 0])` is
    `{"accuracy": 0.5}`; with `normalize=False` it counts samples, and `sample_weight` weighs them.
    """

    description = "The fraction of samples whose class is right."
    more_inputs = """
    normalize: a fraction, or else a number of samples.
    sample_weight: `n` numbers, all 1 unless given."""

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        normalize: bool = True,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        score = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(score)}


class F1(_ClassMetric):
    """F1, the harmonic mean of precision and recall.

    Called as evaluate's metric of that name: `F1().compute(predictions=[0, 1], references=[1, 1])` is
    `{"f1": 0.66…}`. `labels`, `pos_label`, `average` and `sample_weight` are those of scikit-learn's `f1_score`;
    more than two classes need another `average` than `"binary"`, and `average=None` gives an array, one value a class.
    """

    description = "The harmonic mean of precision and recall."
    more_inputs = """
    labels: the classes that count, all in predictions and references unless given.
    pos_label: with `average="binary"`, the class whose F1 it is.
    average: "binary", "micro", "macro", "weighted", "samples" (multilabel only), or None for one value a class.
    sample_weight: `n` numbers, all 1 unless given."""

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        from sklearn.metrics import f1_score

        score = f1_score(
            references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
        )
        return {"f1": float(score) if np.ndim(score) == 0 else score}


class MeanAveragePrecision(evaluate.Metric):
    """The mean over the classes of the average precision of their scores: AudioSet's mAP.

    Predictions are scores, `(n, classes)`: logits or probabilities, only their order within a class matters.
    References are multi-hot, `(n, classes)`. The mean is over the classes that have at least one positive sample, all
    with the same weight; the average precision of each is scikit-learn's, `Σ (R_k − R_{k−1}) · P_k` over its ranks.
    `MeanAveragePrecision().compute(predictions=[[0.9], [0.1]], references=[[1], [0]])` is `{"map": 1.0}`.

    Raises:
        ValueError: when computed on shapes that differ, scores that are not finite, references other than 0 and 1, or
            no positive sample at all.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The mean over the classes of the average precision of their scores.",
            citation="",
            inputs_description="""
Args:
    predictions: scores, `n` lists of a number for each class.
    references: `n` lists of 0 and 1.""",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int32")),
                }
            ),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        widths = [sorted({len(row) for row in rows}) for rows in (predictions, references)]
        if max(map(len, widths)) > 1 or widths[0] != widths[1]:
            raise ValueError(
                "every sample needs one score and one reference for each class, got rows of "
                f"{' or '.join(map(str, widths[0]))} scores and {' or '.join(map(str, widths[1]))} references."
            )
        return {"map": mean_average_precision(np.asarray(predictions), np.asarray(references))}


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """[`MeanAveragePrecision`] of arrays in memory, `(n, classes)` both; the same errors."""
    from sklearn.metrics import average_precision_score

    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(
            "mean average precision needs scores and multi-hot references of one shape (samples, classes), got "
            f"{scores.shape} and {targets.shape}."
        )
    bad_scores, bad_targets = ~np.isfinite(scores), (targets != 0) & (targets != 1)
    for what, values, is_bad, wanted in (
        ("score", scores, bad_scores, "finite"),
        ("reference", targets, bad_targets, "0 or 1"),
    ):
        if is_bad.any():
            sample, index = np.argwhere(is_bad)[0]
            raise ValueError(
                f"the {what} of sample {sample} for class {index} is {values[sample, index]}, not {wanted}."
            )
    with_positives = np.flatnonzero(targets.any(axis=0))
    if not with_positives.size:
        raise ValueError(
            f"none of the {targets.shape[1]} classes has a positive among the {targets.shape[0]} samples, so there is "
            "no average precision; evaluate on samples that have labels."
        )
    return float(np.mean([average_precision_score(targets[:, i], scores[:, i]) for i in with_positives]))


def classification_metrics(is_multi_label: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a classifier's `Trainer`; computed in memory, nothing is written.

    Args:
        is_multi_label: whether a sample has any number of classes, with labels `(n, classes)` of 0 and 1, or exactly
            one, with labels `(n,)`.

    Returns:
        A function of the predictions, logits `(n, classes)` or a tuple that begins with them. With one class a sample
        it gives "accuracy" and "f1", the macro mean over the classes among predictions and labels; with any number,
        "map" ([`MeanAveragePrecision`]) and "f1", the micro F1 of the classes whose logit is above 0. Of tokens, with
        logits `(n, tokens, classes)` and labels `(n, tokens)` or `(n, tokens, classes)`, it is the same of all those
        that have labels: whole numbers other than -100, or numbers that are not NaN, in every class.

    Raises:
        ValueError: when called with logits or labels of other shapes, or with tokens none of which has a label, and
            for what MeanAveragePrecision refuses.

    Examples:
        >>> import numpy as np
        >>> from hf_lam.training import classification_metrics
        >>> from transformers import EvalPrediction
        >>> compute_metrics = classification_metrics(is_multi_label=False)
        >>> compute_metrics(EvalPrediction(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0])))["accuracy"]
        0.5
    """
    return _multi_label_metrics if is_multi_label else _single_label_metrics


def _single_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    logits, labels = _logits_and_labels(prediction)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "with one class a sample, logits must be (samples, classes) and labels (samples,), got "
            f"{logits.shape} and {labels.shape}. Use classification_metrics(is_multi_label=True) for multi-hot labels."
        )
    classes = logits.argmax(-1)
    return {
        "accuracy": float(accuracy_score(labels, classes)),
        "f1": float(f1_score(labels, classes, average="macro", zero_division=0)),
    }


def _multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    from sklearn.metrics import f1_score

    logits, labels = _logits_and_labels(prediction)
    # Before F1, because it checks both.
    average_precision = mean_average_precision(logits, labels)
    # Flat, which is what micro means, because scikit-learn does not take a single column for multi-label.
    f1 = f1_score(labels.ravel().astype(int), (logits > 0).ravel().astype(int), zero_division=0)
    return {"map": average_precision, "f1": float(f1)}


def regression_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The `compute_metrics` of a `Trainer` for regression; computed in memory, nothing is written.

    Args:
        prediction: predictions of the model, `(n, targets)` or `(n,)`, or a tuple that begins with them; the true
            numbers likewise. For tokens, they are `(n, tokens, targets)`, and the true numbers that or `(n, tokens)`;
            those with NaN in place of one are left out.

    Returns:
        "mse" and "mae", the mean squared and the mean absolute error, and "pearson" and "spearman", the correlations.
        With several targets, each is the mean over them. A correlation that is not defined, because all predictions or
        all true numbers of a target are equal, is left out.

    Raises:
        ValueError: when called with other shapes.

    Examples:
        >>> import numpy as np
        >>> from hf_lam.training import regression_metrics
        >>> from transformers import EvalPrediction
        >>> regression_metrics(EvalPrediction(np.array([1.0, 2.0]), np.array([1.0, 4.0])))["mae"]
        1.0
    """
    from scipy.stats import pearsonr, spearmanr

    predicted, true = (np.asarray(values, dtype=np.float64) for values in _logits_and_labels(prediction))
    predicted, true = (values[:, None] if values.ndim == 1 else values for values in (predicted, true))
    if predicted.ndim != 2 or predicted.shape != true.shape:
        raise ValueError(
            f"for regression, predictions and labels must be of one shape (samples, targets), got {predicted.shape} "
            f"and {true.shape}."
        )
    errors = predicted - true
    metrics = {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors)))}
    if len(true) > 1 and (np.ptp(predicted, axis=0) > 0).all() and (np.ptp(true, axis=0) > 0).all():
        for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
            columns = zip(predicted.T, true.T, strict=True)
            metrics[name] = float(np.mean([correlation(x, y).statistic for x, y in columns]))
    return metrics


def _logits_and_labels(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    outputs = prediction.predictions
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    labels = np.asarray(prediction.label_ids)
    return _labelled_tokens(logits, labels) if logits.ndim == 3 else (logits, labels)


# What `Trainer` fills up samples with that have fewer tokens than others.
_PADDING = -100


def _labelled_tokens(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logits and labels of all tokens that have labels, one after the other."""
    if labels.shape[:2] != logits.shape[:2] or labels.ndim not in (2, 3):
        raise ValueError(
            f"labels of tokens must be {logits.shape[:2]} or {logits.shape}, like the logits, got {labels.shape}."
        )
    is_padding = labels == _PADDING
    is_padding = is_padding.all(-1) if labels.ndim == 3 else is_padding
    if labels.dtype.kind == "f":
        # A true number may be -100. Where it stands for padding, it is in the logits too.
        is_padding &= (logits == _PADDING).all(-1)
        is_known = ~np.isnan(labels)
    else:
        is_known = labels != _PADDING
    is_known = (is_known.all(-1) if labels.ndim == 3 else is_known) & ~is_padding
    if not is_known.any():
        raise ValueError(f"none of the {is_known.size} tokens has a label; evaluate on samples that have labels.")
    return logits[is_known], labels[is_known]


def retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the `compute_metrics` of an embedding model's `Trainer`: how well one side of a sample finds the other.

    For every sample with both sides, the samples of the other side are sorted by their similarity, the scalar product,
    and the rank of its own is looked at, 1 at best. Where others are exactly as similar, its own comes last: a model
    that gives one embedding to everything finds nothing.

    Args:
        prediction: a tuple that begins with the embeddings of the first and of the second side, `(n, size)` each,
            row by row of the same sample. A row of zeros is a sample without that side; it is left out.

    Returns:
        "first_to_second_r@1", "…_r@5" and "…_r@10", the share of samples whose own is among the first 1, 5 or 10, and
        "first_to_second_median_rank"; and the same for "second_to_first".

    Raises:
        ValueError: when called with other shapes, numbers that are not finite, or no sample with both sides.

    Examples:
        >>> import numpy as np
        >>> from hf_lam.training import retrieval_metrics
        >>> from transformers import EvalPrediction
        >>> sides = (np.eye(3), np.eye(3)[[0, 1, 2]])  # each text is nearest to its own picture
        >>> retrieval_metrics(EvalPrediction(sides, None))["first_to_second_r@1"]
        1.0
    """
    outputs = prediction.predictions
    if not isinstance(outputs, tuple) or len(outputs) < 2:
        raise ValueError("retrieval needs the embeddings of both sides, a tuple that begins with two arrays.")
    first, second = (np.asarray(side, dtype=np.float64) for side in outputs[:2])
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"the embeddings of both sides must be of one shape (samples, size), got {first.shape} and {second.shape}."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("some embeddings are NaN or infinite.")
    has_both = first.any(axis=1) & second.any(axis=1)
    if not has_both.any():
        raise ValueError(f"none of the {len(first)} samples has both sides, so nothing can be found.")
    first, second = first[has_both], second[has_both]
    metrics = {}
    for name, queries, items in (("first_to_second", first, second), ("second_to_first", second, first)):
        ranks = ranks_of(queries, items)
        metrics |= {f"{name}_r@{k}": float(np.mean(ranks <= k)) for k in (1, 5, 10)}
        metrics[f"{name}_median_rank"] = float(np.median(ranks))
    return metrics


def ranks_of(queries: np.ndarray, items: np.ndarray, rows: int = 1024) -> np.ndarray:
    """The rank of item `i` for query `i`, from 1, last of those that are as similar; so many rows at a time."""
    ranks = np.empty(len(queries), dtype=np.int64)
    # Products of the same numbers may differ in their last digits.
    slack = 1e-12 * np.linalg.norm(queries, axis=1, keepdims=True) * np.linalg.norm(items, axis=1).max()
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        similarities = queries[part] @ items.T
        own = similarities[np.arange(len(similarities)), np.arange(len(similarities)) + start]
        ranks[part] = (similarities >= own[:, None] - slack[part]).sum(axis=1)
    return ranks
