"""The trainable parts of the mechanisms, and the one container that holds them inside a host model.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hf_lam import LamConfig


class LearnableAttentionMask(nn.Module):
    """The mask network of LAM (arXiv 2406.02761): `M = W2 · relu(W1 · x_i + b1) + b2`, row `i` of `M`.

    Dense (the paper's): `W2` has one row per key position, cut to the sequence length. Low rank (`config.rank`):
    `M_ij = f(x_i) · g(x_j)` with `f` and `g` linear in the hidden layer, for any length.

    The weights are parameters of this module, not of inner `nn.Linear`s, so that transformers initialises them through
    this module and no tool that looks for linear layers (LoRA's `all-linear`, quantisers) takes them for the host's.

    Args:
        config: the options.
        hidden_size: width `d` of the tokens it reads.
        num_heads: heads `H` of the host's attention; used with `config.per_head`.
        max_length: longest sequence of a dense mask, in tokens; not read with `config.rank`.
        initializer_range: standard deviation of the random weights.

    Shapes: `(B, L, d)` to `(B, 1, L, L)`, or `(B, H, L, L)` with `config.per_head`.
    """

    def __init__(
        self, config: LamConfig, hidden_size: int, num_heads: int, max_length: int, initializer_range: float = 0.02
    ) -> None:
        super().__init__()
        self.config = config
        self.initializer_range = initializer_range
        self.max_length = max_length
        masks = num_heads if config.per_head else 1
        width = config.bottleneck_size or max(1, hidden_size // 4)
        self.in_weight = nn.Parameter(torch.empty(width, hidden_size))
        self.in_bias = nn.Parameter(torch.empty(width))
        if config.rank is None:
            self.out_weight = nn.Parameter(torch.empty(masks, max_length, width))
            self.out_bias = nn.Parameter(torch.empty(masks, max_length))
        else:
            self.row_weight = nn.Parameter(torch.empty(masks, config.rank, width))
            self.row_bias = nn.Parameter(torch.empty(masks, config.rank))
            self.column_weight = nn.Parameter(torch.empty(masks, config.rank, width))
            self.column_bias = nn.Parameter(torch.empty(masks, config.rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write every parameter that was not loaded (transformers marks those that were)."""
        init.normal_(self.in_weight, std=self.initializer_range)
        init.zeros_(self.in_bias)
        if self.config.rank is None:
            self._reset_dense()
        else:
            self._reset_low_rank()

    def _reset_dense(self) -> None:
        if self.config.init == "identity":
            init.zeros_(self.out_weight)
            init.ones_(self.out_bias)
        else:
            init.normal_(self.out_weight, std=self.initializer_range)
            init.zeros_(self.out_bias)

    def _reset_low_rank(self) -> None:
        init.normal_(self.column_weight, std=self.initializer_range)
        init.zeros_(self.column_bias)
        if self.config.init == "normal":
            init.normal_(self.row_weight, std=self.initializer_range)
            init.zeros_(self.row_bias)
            return
        # f ≡ e_0 and g_0 ≡ 1, so M ≡ 1. The other factors of g stay random: if they were constant too, all factors
        # would get the same gradient and the mask would keep rank 1 for ever.
        first_factor = torch.zeros_like(self.row_bias)
        first_factor[:, 0] = 1.0
        init.zeros_(self.row_weight)
        init.copy_(self.row_bias, first_factor)
        init.copy_(self.column_bias, first_factor)
        random_but_first = self.column_weight.detach().clone()
        random_but_first[:, 0] = 0.0
        init.copy_(self.column_weight, random_but_first)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The mask of each sample. Raises a `ValueError` if a dense mask is shorter than the sequence."""
        length = hidden_states.shape[1]
        hidden = torch.relu(nn.functional.linear(hidden_states, self.in_weight, self.in_bias)).unsqueeze(1)
        if self.config.rank is not None:
            rows = hidden @ self.row_weight.mT + self.row_bias.unsqueeze(1)
            columns = hidden @ self.column_weight.mT + self.column_bias.unsqueeze(1)
            return rows @ columns.mT
        if length > self.max_length:
            raise ValueError(
                f"the sequence has {length} tokens but this learnable attention mask was made for at most "
                f"max_length={self.max_length}. Make it longer with LamConfig(max_length={length}), or use a low-rank "
                "mask, which takes any length: LamConfig(rank=8)."
            )
        return hidden @ self.out_weight[:, :length].mT + self.out_bias[:, None, :length]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items() if value is not None)


class AttentionMechanisms(nn.Module):
    """All new parameters of one encoder, under one name (`hf_lam`) at the root of the host.

    Everything goes through `forward`, because PEFT's `modules_to_save` replaces this module by a wrapper that forwards
    only that call to its trained copy.
    """

    def __init__(self, lam: nn.ModuleList) -> None:
        super().__init__()
        self.lam = lam

    def forward(self, hidden_states: torch.Tensor, layer_index: int) -> torch.Tensor:
        """The mask of layer `layer_index` for its source tokens `(B, L, d)`; a shared mask has only layer 0."""
        return self.lam[layer_index](hidden_states)
