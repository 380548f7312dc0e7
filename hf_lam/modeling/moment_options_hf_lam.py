# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The options of moment retrieval, with the names and defaults of the field.

Source: Lei, Berg & Bansal, "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries",
arXiv 2107.09609 (Moment-DETR), section 4 and the options of its code; after Carion et al., "End-to-End Object
Detection with Transformers" (DETR), arXiv 2005.12872.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .option_checks_hf_lam import MOST_LAYERS, is_count


@dataclasses.dataclass(frozen=True)
class MomentOptions:
    """Options of a model that finds moments, besides those of its fusion layers: its head and its loss.

    Args:
        num_queries: number of windows that are predicted, each by a learned query (`num_queries`).
        dec_layers: layers of the decoder that the queries run through, transformers' own of DETR (`dec_layers`).
        dropout: dropout of the decoder, in training (`dropout`).
        clip_length: seconds of one clip (`clip_length`).
        aux_loss: compute the loss of windows for every layer of the decoder, not for the last alone (`aux_loss`).
        span_loss_coef: weight of the distance of center and width from the true window's (`span_loss_coef`).
        giou_loss_coef: weight of 1 minus the generalised intersection over union (`giou_loss_coef`).
        label_loss_coef: weight of the cross entropy of being a window at all (`label_loss_coef`).
        eos_coef: weight of queries without a true window in that cross entropy (`eos_coef`).
        lw_saliency: weight of the loss of the clips' scores; 0 leaves it out (`lw_saliency`).
        saliency_margin: margin by which a clip that people like more must score higher (`saliency_margin`).
        set_cost_span: weight of the distance where queries are matched with true windows (`set_cost_span`).
        set_cost_giou: weight of the generalised intersection over union in that matching (`set_cost_giou`).
        set_cost_class: weight of the probability of being a window in that matching (`set_cost_class`).

    Raises:
        ValueError: for a value outside of the above; the message names it.
    """

    num_queries: int = 10
    dec_layers: int = 2
    dropout: float = 0.1
    clip_length: float = 2.0
    aux_loss: bool = True
    span_loss_coef: float = 10.0
    giou_loss_coef: float = 1.0
    label_loss_coef: float = 4.0
    eos_coef: float = 0.1
    lw_saliency: float = 1.0
    saliency_margin: float = 0.2
    set_cost_span: float = 10.0
    set_cost_giou: float = 1.0
    set_cost_class: float = 4.0

    def __post_init__(self) -> None:
        for name in ("num_queries", "dec_layers"):
            value = getattr(self, name)
            if not is_count(value, 1, MOST_LAYERS):
                raise ValueError(f"{name} must be an integer from 1 to {MOST_LAYERS:,}, got {value!r}")
        if not isinstance(self.aux_loss, bool):
            raise ValueError(f"aux_loss must be True or False, got {self.aux_loss!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("num_queries", "dec_layers", "aux_loss"):
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be a finite number of at least 0, got {value!r}")
        if self.dropout >= 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, got {self.dropout!r}")
        if self.clip_length == 0:
            raise ValueError("clip_length must be more than 0 seconds")


def read_moment_options(options: Any) -> dict[str, Any]:
    """`HfLamFusionConfig.moments` with every option written down.

    Raises:
        ValueError: for an option that is not one, or its value; the message names both.
    """
    known = {field.name for field in dataclasses.fields(MomentOptions)}
    if not isinstance(options, Mapping) or not set(options) <= known:
        raise ValueError(f"HfLamFusionConfig: moments may have {', '.join(sorted(known))}; got {options!r}.")
    try:
        return dataclasses.asdict(MomentOptions(**options))
    except ValueError as error:
        raise ValueError(f"HfLamFusionConfig: moments: {error}.") from error
