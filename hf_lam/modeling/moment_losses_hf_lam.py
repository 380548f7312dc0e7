# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Windows of time: what they share, which prediction stands for which true one, and the losses of moment retrieval.

Source: Lei, Berg & Bansal, "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries",
arXiv 2107.09609 (Moment-DETR), section 4; Rezatofighi et al., "Generalized Intersection over Union", arXiv 1902.09630.

A span is a center and a width, a window a start and an end; both as fractions of a sample's video.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .moment_options_hf_lam import MomentOptions
from .numerics_hf_lam import needs_plain_operators

# The classes of a query.
FOREGROUND, BACKGROUND = 0, 1


def windows_of(spans: Tensor) -> Tensor:
    """`(…, 2)` centers and widths as starts and ends."""
    center, width = spans.unbind(-1)
    return torch.stack([center - width / 2, center + width / 2], dim=-1)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union, less the share that neither covers of the stretch that both lie in: from -1 to 1.

    Args:
        first: `(…, 2)`, windows.
        second: `(…, 2)`, windows, broadcast against the others.
    """
    starts, ends = torch.broadcast_tensors(first[..., 0], second[..., 0]), first[..., 1]
    shared = (torch.minimum(ends, second[..., 1]) - torch.maximum(*starts)).clamp(min=0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - shared
    stretch = torch.maximum(ends, second[..., 1]) - torch.minimum(*starts)
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=tiny) - (stretch - union) / stretch.clamp(min=tiny)


class Matched(NamedTuple):
    """The queries and the true windows that they stand for: three `(n,)` of indices."""

    sample: Tensor
    query: Tensor
    window: Tensor


@torch.no_grad()
def match(logits: Tensor, spans: Tensor, labels: Tensor, options: MomentOptions) -> Matched:
    """The assignment of queries to true windows with the lowest total cost, each true one to one query.

    Args:
        logits: `(B, Q, 2)`.
        spans: `(B, Q, 2)`, predicted.
        labels: `(B, W, 2)`, true spans; NaN where a sample has fewer.
        options: the weights.

    Raises:
        ImportError: if SciPy is not installed.
        NotImplementedError: under the transforms of `torch.func` and in forward-mode differentiation, which show no
            values.
    """
    if needs_plain_operators():
        raise NotImplementedError(
            "the loss of windows matches predicted windows to true ones by their values, which torch.func and "
            "forward-mode differentiation do not show: use backward(), or leave out span_labels."
        )
    try:
        assign = importlib.import_module("scipy.optimize").linear_sum_assignment
    except ImportError as error:
        raise ImportError("the loss of moment retrieval needs SciPy: pip install scipy") from error
    logits, spans, labels = logits.float(), spans.float(), labels.float()
    is_there = ~labels.isnan().any(-1)
    labels = labels.nan_to_num(0.5)
    distance = torch.cdist(spans, labels, p=1)
    overlap = generalized_iou(windows_of(spans).unsqueeze(2), windows_of(labels).unsqueeze(1))
    is_window = logits.softmax(-1)[..., FOREGROUND].unsqueeze(2)
    cost = options.set_cost_span * distance - options.set_cost_giou * overlap - options.set_cost_class * is_window
    pairs = []
    for sample, (of_sample, counts) in enumerate(zip(cost.cpu().numpy(), is_there.cpu().numpy(), strict=True)):
        (places,) = counts.nonzero()
        queries, chosen = assign(of_sample[:, places])
        pairs += [(sample, query, places[window]) for query, window in zip(queries, chosen, strict=True)]
    indices = torch.tensor(pairs, dtype=torch.long, device=logits.device).view(-1, 3)
    return Matched(*indices.unbind(1))


def span_losses(spans: Tensor, labels: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
    """The mean L1 distance of matched spans from the true ones, and the mean of 1 minus their generalised overlap.

    Args:
        spans: predicted spans, `(B, Q, 2)`.
        labels: true spans, `(B, W, 2)`.
        matched: pairs of predicted and true spans that [`match`] found. Both losses are 0 without any.
    """
    ours = spans[matched.sample, matched.query].float()
    true = labels[matched.sample, matched.window].float()
    if not len(ours):
        return ours.sum(), ours.sum()
    return (ours - true).abs().mean(), (1 - generalized_iou(windows_of(ours), windows_of(true))).mean()


def label_loss(logits: Tensor, matched: Matched, eos_coef: float) -> Tensor:
    """The cross entropy of being a window, averaged over all queries; those that were matched are windows.

    Args:
        logits: `(B, Q, 2)`.
        matched: pairs of queries and true windows that [`match`] found.
        eos_coef: weight of the queries without a match.
    """
    logits = logits.float()
    classes = torch.full(logits.shape[:2], BACKGROUND, device=logits.device)
    classes[matched.sample, matched.query] = FOREGROUND
    weight = logits.new_tensor([1.0, eos_coef])
    return cross_entropy(logits.transpose(1, 2), classes, weight, reduction="none").mean()


def saliency_loss(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The mean over the samples of how far preferred clips are from a margin above the others.

    In each sample, the best of the relevant clips is compared with the worst, and relevant clips with all others. The
    code of Moment-DETR draws one pair for the second; this is the mean over all of them, which a draw has on average.
    A sample without irrelevant clips has the first twice, as there.

    Args:
        scores: `(B, L)`.
        labels: `(B, L)`, what people think of a relevant clip, at least 0; -1 for an irrelevant one, and NaN where
            there is no clip, or nobody said.
        margin: between the two scores of a pair.
    """
    scores, labels = scores.float(), labels.float()
    if not labels.shape[1]:
        return scores.sum()  # of nothing, 0
    is_relevant, is_other = labels >= 0, labels == -1
    has_relevant = is_relevant.any(1)
    known = labels.nan_to_num(-1.0)
    best = known.masked_fill(~is_relevant, -torch.inf).argmax(1, keepdim=True)
    worst = known.masked_fill(~is_relevant, torch.inf).argmin(1, keepdim=True)
    hard = (margin + scores.gather(1, worst) - scores.gather(1, best)).squeeze(1).clamp(min=0)
    pairs = is_relevant.unsqueeze(2) & is_other.unsqueeze(1)  # (B, relevant, other)
    gaps = (margin + scores.unsqueeze(1) - scores.unsqueeze(2)).clamp(min=0)
    number = pairs.sum((1, 2))
    easy = gaps.masked_fill(~pairs, 0).sum((1, 2)) / number.clamp(min=1)
    per_sample = hard + torch.where(number > 0, easy, hard)
    return per_sample.masked_fill(~has_relevant, 0).sum() / has_relevant.sum().clamp(min=1)


def moment_losses(
    layers: list[tuple[Tensor, Tensor]],
    span_labels: Tensor | None,
    saliency_scores: Tensor,
    saliency_labels: Tensor | None,
    options: MomentOptions,
) -> dict[str, Tensor]:
    """All losses by name, and `loss`, their weighted sum.

    Args:
        layers: logits and spans, `(B, Q, 2)` both, of the decoder's layers that have a loss, the last one last.
        span_labels: `(B, W, 2)`; None for no loss of windows.
        saliency_scores: `(B, L)`.
        saliency_labels: `(B, L)`; None for no loss of scores.
        options: the weights.
    """
    losses: dict[str, Tensor] = {}
    # Nothing of each: parallel training needs a gradient for every parameter, whatever labels a batch has.
    total: Any = sum(x[:, :0].float().sum() for x in (*layers[-1], saliency_scores))
    if span_labels is not None:
        for layer, (logits, spans) in enumerate(layers):
            suffix = "" if layer == len(layers) - 1 else f"_{layer}"
            matched = match(logits, spans, span_labels, options)
            of_span, of_overlap = span_losses(spans, span_labels, matched)
            of_label = label_loss(logits, matched, options.eos_coef)
            losses |= {f"loss_span{suffix}": of_span, f"loss_giou{suffix}": of_overlap}
            losses[f"loss_label{suffix}"] = of_label
            total = total + options.span_loss_coef * of_span + options.giou_loss_coef * of_overlap
            total = total + options.label_loss_coef * of_label
    if saliency_labels is not None and options.lw_saliency:
        losses["loss_saliency"] = saliency_loss(saliency_scores, saliency_labels, options.saliency_margin)
        total = total + options.lw_saliency * losses["loss_saliency"]
    return {"loss": total, **losses}
