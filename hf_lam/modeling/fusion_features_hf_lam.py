# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Modalities of a fusion model that come as vectors, computed before, rather than through an encoder.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from .numerics_hf_lam import softmax_dtype
from .option_checks_hf_lam import MOST, is_count

POSITIONS = ("sinusoidal", "learned")

# `NAME_model` is where a fusion model keeps the encoder of a modality: `base_model` is transformers' own, and
# `modality_model` finds one. `input_features` is what others call the frames of a sound.
_RESERVED = ("base", "modality", "input")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """One modality of vectors: `(B, L, size)`, such as one for each clip of a video, or each utterance.

    Args:
        size: numbers in one vector.
        max_length: the most vectors of one sample; `None` for no limit. Learned positions and dense masks of LAM need
            it.
        norm: a layer norm on every vector, before it is projected.
        project: a linear layer to the width of the fusion model. It starts with a standard deviation of 1 / √size,
            whatever `initializer_range` is, so that the numbers of a projected vector are about 1, as those of
            sinusoidal positions are. Without one, `size` must be the width.
        positions: positions that are added to the projected vectors: `"sinusoidal"` ones, which may be any numbers,
            such as seconds; `"learned"` ones, which are numbers from 0 to `max_length - 1`; or `None`, for vectors
            that carry their position already, as those of an encoder do.
        dropout: dropout of the sum, in training.
        class_tokens: number of leading vectors that stand for the whole sample, which is what `pooling="cls"` takes.

    Raises:
        ValueError: for a value outside of the above; the message names it.
    """

    size: int
    max_length: int | None = None
    norm: bool = True
    project: bool = True
    positions: str | None = "sinusoidal"
    dropout: float = 0.0
    class_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("max_length", 1), ("class_tokens", 0)):
            value = getattr(self, name)
            if not (is_count(value, least) or (name == "max_length" and value is None)):
                raise ValueError(f"{name} must be an integer of at least {least} and at most {MOST:,}, got {value!r}")
        for name in ("norm", "project"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.positions not in (*POSITIONS, None):
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, or None, got {self.positions!r}")
        if self.positions == "learned" and self.max_length is None:
            raise ValueError("learned positions need max_length, the most vectors of one sample")
        is_number = isinstance(self.dropout, (int, float)) and not isinstance(self.dropout, bool)
        if not is_number or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, got {self.dropout!r}")
        if self.max_length is not None and self.class_tokens > self.max_length:
            raise ValueError(f"class_tokens={self.class_tokens} are more than max_length={self.max_length}")


def read_features(features: Any) -> dict[str, dict[str, Any]]:
    """`HfLamFusionConfig.features` with every option written down.

    Raises:
        ValueError: for a name or an option that is not one; the message names both.
    """
    if not isinstance(features, Mapping):
        raise ValueError(
            "HfLamFusionConfig: features must have the options of each modality by its name, such as "
            f"{{'clips': {{'size': 512}}}}, got {features!r}."
        )
    known = {field.name for field in dataclasses.fields(FeatureOptions)}
    read = {}
    for name, options in features.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(
                f"HfLamFusionConfig: features cannot be called {name!r}. A name has lower-case letters, digits and "
                f"underscores, begins with a letter, and is not {', '.join(_RESERVED)}."
            )
        options = {"size": options} if is_count(options, 1) else options
        if not isinstance(options, Mapping) or "size" not in options or not set(options) <= known:
            raise ValueError(
                f"HfLamFusionConfig: features[{name!r}] must have a size, and may have "
                f"{', '.join(sorted(known - {'size'}))}; got {options!r}."
            )
        try:
            read[name] = dataclasses.asdict(FeatureOptions(**options))
        except ValueError as error:
            raise ValueError(f"HfLamFusionConfig: features[{name!r}]: {error}.") from error
    return read


class FeatureInput(nn.Module):
    """Prepares vectors before they are projected: by a norm, or not at all.

    config: their options.
    """

    def __init__(self, options: FeatureOptions, layer_norm_eps: float) -> None:
        super().__init__()
        self.config = options
        self.norm = VectorLayerNorm(options.size, eps=layer_norm_eps) if options.norm else None

    def forward(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The vectors, `(B, L, size)`, as the projection takes them, in the dtype of the model."""
        return values.to(dtype) if self.norm is None else self.norm(values).to(dtype)


class VectorLayerNorm(nn.LayerNorm):
    """A layer norm in at least single precision: vectors from elsewhere may be larger than half precision reaches."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        dtype = softmax_dtype(self.weight.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return layer_norm(values.to(dtype), self.normalized_shape, weight, bias, self.eps)


class FeatureProjection(nn.Linear):
    """The linear layer between the two, which starts with random weights of its own size."""


class FeaturePositions(nn.Module):
    """Adds positions to projected vectors, and applies dropout.

    config: their options.
    """

    def __init__(self, options: FeatureOptions, hidden_size: int) -> None:
        super().__init__()
        self.config = options
        self.dropout = nn.Dropout(options.dropout)
        if options.positions == "learned":
            assert options.max_length is not None
            self.embeddings = nn.Embedding(options.max_length, hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The tokens, `(B, L, d)`.

        Args:
            hidden_states: `(B, L, d)`, the projected vectors.
            mask: `(B, L)` bool, True where there is a vector; `None` for everywhere.
            positions: `(B, L)`; unless given, the vectors that are there are counted from 0.
        """
        if self.config.positions is not None:
            if positions is None:
                there = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.bool) if mask is None else mask
                positions = (there.cumsum(1) - 1).clamp(min=0)
            elif mask is not None:
                positions = positions.masked_fill(~mask, 0)
            hidden_states = hidden_states + self._embed(positions, hidden_states.shape[-1]).to(hidden_states.dtype)
        return self.dropout(hidden_states)

    def _embed(self, positions: torch.Tensor, size: int) -> torch.Tensor:
        if self.config.positions == "learned":
            return self.embeddings(positions)
        return sinusoidal_positions(positions, size)


def sinusoidal_positions(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Sines, then cosines, of wavelengths from 2π to 10,000 · 2π (arXiv 1706.03762, section 3.5), `(…, size)`.

    positions: `(…)`, any numbers.
    """
    half = (size + 1) // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000) / max(half - 1, 1)))
    angles = positions.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :size]
