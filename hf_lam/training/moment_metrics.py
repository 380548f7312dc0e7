"""How well moments and highlights were found, as the evaluation of QVHighlights defines it.

Source: Lei, Berg & Bansal, "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries",
arXiv 2107.09609, and the evaluation script that was published with it. Names and units are that script's: percentages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ..modeling.moment_options_hf_lam import MomentOptions

# What a predicted window must share with a true one, intersection over union, to count.
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# Lengths of the true windows that count, in seconds: more than the first, at most the second.
LENGTHS = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0), "full": (-math.inf, math.inf)}
# The lowest score, of those that a person may give a clip, 0 to 4, that makes it a highlight.
GRADES = {"Fair": 2, "Good": 3, "VeryGood": 4}
# Windows of a query after these are not looked at, in the order in which they were given.
MAX_WINDOWS = 10

_WINDOW = datasets.Sequence(datasets.Value("float64"))
_NUMBERS = datasets.Sequence(datasets.Value("float64"))


class MomentRetrieval(evaluate.Metric):
    """Scores of retrieved windows of time: R1@IoU and mAP@IoU, over the lengths of the true windows.

    Predictions are, for every query, windows `[start, end, score]` in seconds, the best first; only the first ten
    count. References are, for every query, the true windows `[start, end]`.

    - `MR-full-R1@0.5`: the percentage of queries whose first window shares at least half with a true one (intersection
      over union); also `@0.7`, and for the other lengths.
    - `MR-full-mAP@0.5`: the mean over the queries of the average precision of their windows, each true window found
      once; also `@0.75`, and `MR-full-mAP`, the mean over ten thresholds from 0.5 to 0.95.

    A length (`short`, `middle`, `long`) counts the true windows of that length alone, in the queries that have one;
    its numbers are left out where no query does. A query without any predicted window has found nothing.

    Raises:
        ValueError: when computed on a query without a true window, a window that does not end after it starts, or
            numbers that are not finite.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How well windows of time were found: R1@IoU and mAP@IoU of moment retrieval.",
            citation="",
            inputs_description="""
Args:
    predictions: of every query, windows `[start, end, score]`, the best first.
    references: of every query, windows `[start, end]`.""",
            features=datasets.Features(
                {"predictions": datasets.Sequence(_WINDOW), "references": datasets.Sequence(_WINDOW)}
            ),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return moment_metrics(predictions, references)


class HighlightDetection(evaluate.Metric):
    """Scores of the clips of a video: mAP and HIT@1 against what several people thought of them.

    Predictions are, for every query, a score for each clip. References are, for every query, the scores that people
    gave: `(clips, people)`, from 0 to 4, 0 for a clip that has nothing to do with the query ([`clip_scores`] makes
    them of an annotation). Of each grade (`Fair`, `Good`, `VeryGood`: 2, 3 or 4 and more make a highlight):

    - `HL-min-Good-mAP`: the mean over queries and people of the interpolated average precision of the scores; 0 for a
      person who saw no highlight.
    - `HL-min-Good-Hit1`: the percentage of queries whose best scored clip is a highlight for one of the people.

    Clips without a predicted score have 0, scores without a clip are left out.

    Raises:
        ValueError: when computed on a query without clips or scores, or numbers that are not finite.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How well the clips of a video were scored: mAP and HIT@1 of highlight detection.",
            citation="",
            inputs_description="""
Args:
    predictions: of every query, a score for each clip.
    references: of every query, `(clips, people)`, scores from 0 to 4.""",
            features=datasets.Features({"predictions": _NUMBERS, "references": datasets.Sequence(_NUMBERS)}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return highlight_metrics(predictions, references)


def count_clips(duration: float, clip_length: float) -> int:
    """The whole clips of a video, lengths in seconds."""
    return math.floor(duration / clip_length + 1e-6)  # 0.3 s are three clips of 0.1 s, and 0.3 / 0.1 is less than 3


def clip_scores(
    duration: float,
    relevant_clip_ids: Sequence[int],
    saliency_scores: Sequence[Sequence[float]],
    clip_length: float = MomentOptions.clip_length,
) -> np.ndarray:
    """The scores of all clips of a video, `(clips, people)`, of an annotation that names the relevant ones.

    Args:
        duration: duration of the video in seconds.
        relevant_clip_ids: the clips that have scores, counted from 0.
        saliency_scores: scores of each of these clips, one for each person.
        clip_length: length of a clip in seconds.

    Raises:
        ValueError: if a clip is not in the video, or scores and clips are not as many.

    Examples:
        >>> from hf_lam.training import clip_scores
        >>> clip_scores(6.0, [1], [[4, 3, 4]], clip_length=2.0).tolist()
        [[0.0, 0.0, 0.0], [4.0, 3.0, 4.0], [0.0, 0.0, 0.0]]
    """
    clips = count_clips(duration, clip_length)
    scores = np.asarray(saliency_scores, dtype=float)
    if scores.ndim != 2 or len(scores) != len(relevant_clip_ids):
        raise ValueError(
            f"there must be a list of scores for each of the {len(relevant_clip_ids)} relevant clips, got shape "
            f"{scores.shape}."
        )
    beyond = [index for index in relevant_clip_ids if not 0 <= index < clips]
    if beyond:
        raise ValueError(f"clip {beyond[0]} is not in a video of {duration} s, which has {clips} clips.")
    of_all = np.zeros((clips, scores.shape[1]))
    of_all[list(relevant_clip_ids)] = scores
    return of_all


# --- moments ---------------------------------------------------------------------------------------------------------


def moment_metrics(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """[`MomentRetrieval`] of lists in memory; the same numbers and errors."""
    _check_windows(predictions, references)
    metrics: dict[str, float] = {}
    for name, (low, high) in LENGTHS.items():
        kept = [[window for window in windows if low < window[1] - window[0] <= high] for windows in references]
        chosen = [query for query, windows in enumerate(kept) if windows]
        if not chosen:
            continue
        overlaps, is_true = _overlaps([predictions[query] for query in chosen], [kept[query] for query in chosen])
        first = overlaps[:, 0].max(-1, initial=0.0)
        precision = _average_precisions(overlaps, is_true, [predictions[query] for query in chosen]).mean(0)
        metrics[f"MR-{name}-mAP"] = 100 * float(precision.mean())
        metrics |= {f"MR-{name}-mAP@{t}": 100 * float(precision[THRESHOLDS.index(t)]) for t in (0.5, 0.75)}
        metrics |= {f"MR-{name}-R1@{t}": 100 * float((first >= t).mean()) for t in (0.5, 0.7)}
    return metrics


def _check_counts(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references) or not len(references):
        raise ValueError(f"there must be a prediction for each query, got {len(predictions)} for {len(references)}.")


def _check_windows(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    _check_counts(predictions, references)
    for what, size, rows in (("predicted", 3, predictions), ("true", 2, references)):
        for query, windows in enumerate(rows):
            if what == "true" and not len(windows):
                raise ValueError(f"query {query} has no true window.")
            for window in windows:
                if len(window) != size or not np.isfinite(np.asarray(window, dtype=float)).all():
                    raise ValueError(f"query {query}: a {what} window has {size} finite numbers, got {list(window)}.")
                # A model may well predict a window without length; nobody means one.
                if window[1] < window[0] or (what == "true" and window[1] == window[0]):
                    raise ValueError(f"query {query}: the {what} window {list(window)} does not end after it starts.")


def _overlaps(predictions: Sequence[Any], references: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of windows, `(queries, predicted, true)`, and which places have a true one."""
    predicted, is_predicted = _padded([[window[:2] for window in windows] for windows in predictions], MAX_WINDOWS)
    true, is_true = _padded(references)
    starts = np.maximum(predicted[:, :, None, 0], true[:, None, :, 0])
    ends = np.minimum(predicted[:, :, None, 1], true[:, None, :, 1])
    shared = np.clip(ends - starts, 0, None)
    lengths = [windows[..., 1] - windows[..., 0] for windows in (predicted, true)]
    union = lengths[0][:, :, None] + lengths[1][:, None, :] - shared
    found = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return np.where(is_predicted[:, :, None] & is_true[:, None, :], found, 0.0), is_true


def _padded(rows: Sequence[Sequence[Sequence[float]]], limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lists of windows as one array, `(rows, windows, 2)`, and where it has one; at least one place a row."""
    cut = [list(row[:limit]) for row in rows]
    is_there = np.arange(max(1, *map(len, cut)))[None] < np.array([len(row) for row in cut])[:, None]
    values = np.zeros((*is_there.shape, 2))
    values[is_there] = np.array([window for row in cut for window in row], dtype=float).reshape(-1, 2)
    return values, is_there


def _average_precisions(overlaps: np.ndarray, is_true: np.ndarray, predictions: Sequence[Any]) -> np.ndarray:
    """The average precision of every query at every threshold, `(queries, thresholds)`.

    By falling score, each window takes the true one that it shares most with and that none before it took, if it
    shares enough; of equal ones the last.
    """
    queries, places, _ = overlaps.shape
    scores = np.full((queries, places), -np.inf)
    for query, windows in enumerate(predictions):
        scores[query, : len(windows)] = [window[2] for window in windows[:places]]
    order = np.argsort(-scores, axis=1, kind="stable")
    overlaps = np.take_along_axis(overlaps, order[:, :, None], axis=1)
    thresholds = np.array(THRESHOLDS)
    is_free = np.repeat(is_true[:, None], len(thresholds), axis=1)  # (queries, thresholds, true windows)
    is_hit = np.zeros((queries, len(thresholds), places), dtype=bool)
    rows, columns = np.ogrid[:queries, : len(thresholds)]
    for place in range(places):
        open_ones = np.where(is_free, overlaps[:, place, None, :], -1.0)
        best = open_ones.shape[-1] - 1 - open_ones[..., ::-1].argmax(-1)
        is_hit[..., place] = open_ones[rows, columns, best] >= thresholds
        is_free[rows, columns, best] &= ~is_hit[..., place]
    # What follows the last window of a query is no hit, and lowers no precision that counts.
    hits = is_hit.cumsum(-1)
    precision = hits / np.arange(1, places + 1)
    best_after = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    return (best_after * is_hit).sum(-1) / is_true.sum(-1)[:, None]


# --- highlights ------------------------------------------------------------------------------------------------------


def highlight_metrics(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """[`HighlightDetection`] of lists in memory; the same numbers and errors."""
    graded = [np.asarray(scores, dtype=float) for scores in references]
    predicted = [np.asarray(scores, dtype=float) for scores in predictions]
    _check_counts(predicted, graded)
    for query, (scores, own) in enumerate(zip(graded, predicted, strict=True)):
        if scores.ndim != 2 or not scores.size or own.ndim != 1 or not own.size:
            raise ValueError(
                f"query {query}: a score for each clip and (clips, people) to compare it with are needed, got shapes "
                f"{own.shape} and {scores.shape}."
            )
        if not (np.isfinite(scores).all() and np.isfinite(own).all()):
            raise ValueError(f"query {query}: a score is not finite.")
    metrics: dict[str, float] = {}
    best = [int(own.argmax()) for own in predicted]
    for name, lowest in GRADES.items():
        is_highlight = [scores >= lowest for scores in graded]
        hits = [clip < len(marks) and marks[clip].any() for clip, marks in zip(best, is_highlight, strict=True)]
        precisions = [
            _interpolated_precision(own, marks).mean() for own, marks in zip(predicted, is_highlight, strict=True)
        ]
        metrics[f"HL-min-{name}-mAP"] = 100 * float(np.mean(precisions))
        metrics[f"HL-min-{name}-Hit1"] = 100 * float(np.mean(hits))
    return metrics


def _interpolated_precision(scores: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The mean precision for each person, `(people,)`, over the scores at which more highlights are found.

    At each of them, the best precision there or at any lower score counts. Clips with one score are found together.
    """
    clips = len(marks)
    scores = np.pad(scores[:clips], (0, max(0, clips - len(scores))))
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of its score
    found = marks[order].cumsum(0)[is_last]
    precision = found / (np.flatnonzero(is_last) + 1)[:, None]
    best_after = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    is_more = np.diff(found, axis=0, prepend=0) > 0
    return (best_after * is_more).sum(0) / np.maximum(1, is_more.sum(0))


def submission_metrics(
    submission: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    *,
    clip_length: float = MomentOptions.clip_length,
) -> dict[str, float]:
    """The metrics of a file of predictions for a file of annotations, both as their lines.

    They are those of moments if every line has windows, and those of highlights if every line has scores.

    Args:
        submission: `qid`, with `pred_relevant_windows` or `pred_saliency_scores` or both.
        annotations: `qid`, with `relevant_windows`; or with `duration`, `relevant_clip_ids` and `saliency_scores`; or
            both.
        clip_length: seconds of a clip.

    Raises:
        ValueError: if the queries of the two are not the same.

    Examples:
        >>> from hf_lam.training import submission_metrics
        >>> found = [{"qid": 1, "pred_relevant_windows": [[0, 10, 0.9]]}]
        >>> round(submission_metrics(found, [{"qid": 1, "relevant_windows": [[0, 8]]}])["MR-full-R1@0.5"])
        100
    """
    by_query = {line["qid"]: line for line in submission}
    wanted = {line["qid"]: line for line in annotations}
    if by_query.keys() != wanted.keys():
        differing = sorted(map(str, by_query.keys() ^ wanted.keys()))
        raise ValueError(
            f"predictions and annotations are not of the same queries; {len(differing)} are in one of them alone, "
            f"such as qid {differing[0]}."
        )
    pairs = [(line, wanted[query]) for query, line in by_query.items()]
    metrics: dict[str, float] = {}
    if _have(pairs, "pred_relevant_windows", "relevant_windows"):
        windows = [ours["pred_relevant_windows"] for ours, _ in pairs]
        metrics |= moment_metrics(windows, [line["relevant_windows"] for _, line in pairs])
    if _have(pairs, "pred_saliency_scores", "saliency_scores"):
        graded = [
            clip_scores(line["duration"], line["relevant_clip_ids"], line["saliency_scores"], clip_length)
            for _, line in pairs
        ]
        metrics |= highlight_metrics([ours["pred_saliency_scores"] for ours, _ in pairs], graded)
    return metrics


def _have(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], predicted: str, true: str) -> bool:
    return all(ours.get(predicted) is not None and line.get(true) is not None for ours, line in pairs)
