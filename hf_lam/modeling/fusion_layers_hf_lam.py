# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The layers of the fusion model: plain transformer layers over the tokens of all modalities.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .hosts_hf_lam import ModalityTokens
from .lam_attention_hf_lam import changed_attention_with_weights


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`softmax(Q Kᵀ · scaling + padding) V`, as in transformers' own encoders."""
    options: dict[str, Any] = {"attention_mask": attention_mask, "scaling": scaling, "dropout_p": dropout}
    context, weights = changed_attention_with_weights(query, key, value, **options)
    return context.transpose(1, 2).contiguous(), weights


class FusionSelfAttention(nn.Module):
    """Self-attention over the tokens of all modalities."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(context.flatten(-2)), weights


class FusionLayer(GradientCheckpointingLayer):
    """A transformer layer, with its norms before (`norm_first`) or after attention and feed-forward layers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = FusionSelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if self.norm_first:
            attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
            hidden_states = hidden_states + self.dropout(attended)
            return hidden_states + self.dropout(self._feed_forward(self.mlp_norm(hidden_states)))
        attended, _ = self.attention(hidden_states, attention_mask, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self._feed_forward(hidden_states)))

    def _feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class FusionEncoder(nn.Module):
    """The fusion layers, one after the other."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.num_hidden_layers))
        has_norm = config.norm_first and config.num_hidden_layers > 0
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if has_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        hf_lam_modality_tokens: ModalityTokens | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        # `hf_lam_modality_tokens` is for the mechanisms, which read it on its way here.
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.norm(hidden_states)
