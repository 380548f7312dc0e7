"""The trainable parts of the mechanisms, and the one container that holds them inside a host model.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hf_lam import LamConfig, LocomtConfig
from .locomt_hf_lam import Layout, fixed_layout, sample_layout
from .segments_hf_lam import bottleneck_segments, is_in_order, leading_lengths, spans_of
from .synthesizers_hf_lam import SyntheticLogits
from .views_hf_lam import View, parse_view


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

    def forward(self, hidden_states: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
        """The mask of each sample.

        Args:
            hidden_states: `(B, L, d)`.
            columns: `(L,)`, which column of a dense mask belongs to each token; the first `L` unless given.

        Raises:
            ValueError: if a dense mask is shorter than the sequence.
        """
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
        if columns is not None:
            columns = columns.to(hidden.device)
            weight, bias = self.out_weight.index_select(1, columns), self.out_bias.index_select(1, columns)
            return hidden @ weight.mT + bias.unsqueeze(1)
        return hidden @ self.out_weight[:, :length].mT + self.out_bias[:, None, :length]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items() if value is not None)


class AttentionViews(nn.Module):
    """What LoCoMT (arXiv 2402.15096) holds for one encoder: the views of its heads, and where its segments lie.

    Args:
        config: the options, resolved for the host (`resolve_locomt`).
        segment_ids: the segment of each token, bottleneck tokens at the end; `None` where samples or batches differ
            (`token_type_ids`, modalities).
        hidden_size: width `d` of the tokens.
        initializer_range: standard deviation of the bottleneck's tokens.
    """

    segment_ids: torch.Tensor
    penalty: torch.Tensor

    def __init__(
        self, config: LocomtConfig, segment_ids: list[int] | None, hidden_size: int, initializer_range: float = 0.02
    ) -> None:
        super().__init__()
        self.config = config
        self.initializer_range = initializer_range
        self.fixed_segments = segment_ids
        names, is_global = config.names, config.is_global
        self.views: list[tuple[View, ...]] = [
            tuple(parse_view(view, names, is_global) for view in row) for row in config.views
        ]
        self.lengths = tuple((segment_ids or []).count(segment) for segment in range(len(names)))
        self.is_permuted = segment_ids is not None and not is_in_order(segment_ids)
        self.bottleneck_length = len(bottleneck_segments(config))
        if self.is_permuted:
            self.register_buffer(
                "segment_ids", torch.empty(len(segment_ids or ()), dtype=torch.long), persistent=False
            )
        if config.annealing:
            self.register_buffer("penalty", torch.empty(()))
        if config.bottleneck_tokens:
            self.bottleneck = nn.Parameter(torch.empty(config.bottleneck_tokens, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write every parameter and buffer that was not loaded (transformers marks those that were)."""
        if self.is_permuted:
            init.copy_(self.segment_ids, torch.tensor(self.fixed_segments, device=self.segment_ids.device))
        if self.config.annealing:
            init.zeros_(self.penalty)
        if self.config.bottleneck_tokens:
            init.normal_(self.bottleneck, std=self.initializer_range)

    def layout(self, token_types: torch.Tensor | None, lengths: tuple[int, ...] | None = None) -> Layout:
        """Where the segments lie in this batch.

        Args:
            token_types: `(1 or B, L)` if samples differ, else None.
            lengths: tokens of each segment if batches differ, else None.
        """
        if lengths is not None:
            appended = bottleneck_segments(self.config)
            if not appended:
                return Layout(lengths)
            device = self.bottleneck.device
            spans = [torch.full((length,), segment, device=device) for segment, length in enumerate(lengths)]
            longer = tuple(length + appended.count(segment) for segment, length in enumerate(lengths))
            return fixed_layout(torch.cat([*spans, torch.tensor(appended, device=device)]), longer)
        if token_types is None:
            return fixed_layout(self.segment_ids, self.lengths) if self.is_permuted else Layout(self.lengths)
        leading = leading_lengths(self.config)
        # The segments may be listed in any order of their token types.
        types = [extent["token_type"] for _, extent in self.config.segments[len(leading) :]]
        segment_of_type = [len(leading) + types.index(t) for t in range(len(types))]
        device = token_types.device
        before, after = (
            torch.tensor(ids, dtype=torch.long, device=device).expand(token_types.shape[0], -1)
            for ids in (spans_of(leading), bottleneck_segments(self.config))
        )
        before = before[:, : token_types.shape[1]]  # of the tensor: cutting the list would fix an exported length
        of_types = torch.tensor(segment_of_type, device=device)[token_types]
        ids = torch.cat([before, of_types[:, before.shape[1] :], after], dim=1)
        return sample_layout(ids, len(self.config.segments))

    def with_bottleneck(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, L, d)` with the bottleneck's tokens of every segment behind it."""
        copies = self.bottleneck_length // self.config.bottleneck_tokens
        tokens = self.bottleneck.to(hidden_states.dtype).repeat(copies, 1)
        return torch.cat([hidden_states, tokens.expand(hidden_states.shape[0], -1, -1)], dim=1)

    def extra_repr(self) -> str:
        return f"segments={self.config.segments}, annealing={self.config.annealing}"


class AttentionMechanisms(nn.Module):
    """All that hf_lam adds to one encoder, under one name (`hf_lam`) at the root of the host.

    Everything goes through `forward`, because PEFT's `modules_to_save` replaces this module by a wrapper that forwards
    only that call to its trained copy.
    """

    def __init__(
        self, lam: nn.ModuleList | None, locomt: AttentionViews | None, stt: nn.ModuleList | None = None
    ) -> None:
        super().__init__()
        self.lam = lam
        self.locomt = locomt
        self.stt = stt

    def forward(self, part: str, *args: Any) -> Any:
        """One part of the mechanisms: `"mask"`, `"layout"`, `"penalty"`, `"bottleneck"` or `"synthesis"`."""
        return getattr(self, f"_{part}")(*args)

    def _mask(
        self, hidden_states: torch.Tensor, layer_index: int, columns: torch.Tensor | None = None
    ) -> torch.Tensor:
        """LAM's mask of layer `layer_index` for its source tokens `(B, L, d)`; a shared mask has only layer 0."""
        assert self.lam is not None
        return self.lam[layer_index](hidden_states, columns)

    def _layout(self, token_types: torch.Tensor | None, lengths: tuple[int, ...] | None = None) -> Layout:
        assert self.locomt is not None
        return self.locomt.layout(token_types, lengths)

    def _penalty(self) -> torch.Tensor:
        assert self.locomt is not None
        return self.locomt.penalty

    def _bottleneck(self, hidden_states: torch.Tensor) -> torch.Tensor:
        assert self.locomt is not None
        return self.locomt.with_bottleneck(hidden_states)

    def _synthesis(
        self, hidden_states: torch.Tensor, layer_index: int, sizes: tuple[int, ...], is_token: torch.Tensor | None
    ) -> SyntheticLogits:
        """STT's map of layer `layer_index`; arguments as in `AttentionSynthesizer.forward`."""
        assert self.stt is not None
        return self.stt[layer_index](hidden_states, sizes, is_token)
