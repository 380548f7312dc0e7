"""Moments that were found in a video, on the axis of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..modeling.moment_options_hf_lam import MomentOptions
from ._drawing import matplotlib_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart by everybody (Okabe & Ito); and by their height and hatching.
_PREDICTED, _TRUE, _SCORES = "#0072b2", "#009e73", "#d55e00"
# Windows that are drawn: those below are seldom more than noise.
_MOST = 5


def plot_moments(
    retrieved: Any,
    query: str,
    *,
    windows: Sequence[Sequence[float]] | None = None,
    scores: Sequence[float] | None = None,
    clip_length: float = MomentOptions.clip_length,
    most: int = _MOST,
) -> Figure:
    """The windows that a query speaks of, and the score of every clip, over the seconds of a video.

    Args:
        retrieved: result of `model.retrieve`.
        query: text of the query, which becomes the title.
        windows: true windows `[start, end]` in seconds, if they are known.
        scores: score of every clip by people, `(clips,)`, if it is known; drawn on a scale of its own.
        clip_length: length of a clip in seconds.
        most: number of predicted windows to draw, the most probable ones.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for scores of another number of clips, or a `most` below 1.

    Examples:
        >>> import torch
        >>> from hf_lam.modeling.fusion_moments_hf_lam import Moment, Retrieved
        >>> from hf_lam.visualization import plot_moments
        >>> found = Retrieved([Moment(2.0, 8.0, 0.9)], torch.tensor([-0.5, 0.5, 1.5, 1.0]))  # what `retrieve` gives
        >>> figure = plot_moments(found, "a dog barks", windows=[[2, 6]])
    """
    figure_class = matplotlib_figure()
    saliency = [float(score) for score in retrieved.saliency]
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}.")
    if scores is not None and len(scores) != len(saliency):
        raise ValueError(f"there are {len(scores)} scores for a video of {len(saliency)} clips.")
    moments = retrieved.moments[:most]
    rows = len(moments) + (windows is not None)
    figure = figure_class(figsize=(7.0, 1.9 + 0.28 * rows), layout="constrained", dpi=150)
    figure.suptitle(query, fontsize=10, parse_math=False)  # dollars are dollars
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 0.28 * rows + 0.1])
    edges = [index * clip_length for index in range(len(saliency) + 1)]
    curve.stairs(saliency, edges, color=_SCORES, linewidth=1.4, baseline=None)
    curve.set_ylabel("saliency", fontsize=8, color=_SCORES)
    curve.tick_params(labelsize=7)
    if scores is not None:
        people = curve.twinx()
        people.stairs([float(score) for score in scores], edges, color=_TRUE, linewidth=1.0, linestyle="--")
        people.set_ylabel("people", fontsize=8, color=_TRUE)
        people.tick_params(labelsize=7)
    names = []
    for row, moment in enumerate(moments):
        width = max(moment.end - moment.start, 0.0)
        bars.barh(row, width, left=moment.start, height=0.62, color=_PREDICTED, alpha=0.35 + 0.65 * moment.score)
        names.append(f"{moment.score:.2f}")
    if windows is not None:
        for start, end in windows:
            bars.barh(len(moments), end - start, left=start, height=0.62, color=_TRUE, hatch="///", edgecolor="white")
        names.append("true")
    bars.set_yticks(range(rows), names, fontsize=7)
    bars.invert_yaxis()
    bars.set_xlim(0, edges[-1])
    bars.set_xlabel("seconds", fontsize=8)
    bars.tick_params(axis="x", labelsize=7)
    return figure
