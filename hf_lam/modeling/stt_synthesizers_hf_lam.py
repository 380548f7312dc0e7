# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The trainable parts of synthesised attention (STT): what makes the matrices of the axes, and mixes them in.

The weights are parameters of these modules, not of inner `nn.Linear`s, so that transformers initialises them through
the modules and no tool that looks for linear layers (LoRA's `all-linear`, quantisers) takes them for the host's.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .mechanism_hf_lam import Attended, Attention, MechanismPart
from .numerics_hf_lam import is_forward_mode, softmax_dtype
from .padding_hf_lam import additive, refuse_masks_by_query, valid_tokens
from .stt_attention_hf_lam import stt_attention, stt_attention_with_weights
from .stt_config_hf_lam import SttConfig
from .threads_hf_lam import run_alone

# A synthesised map has one product, weights by values.
FLOPS_PER_WEIGHT = 2


class SyntheticLogits(NamedTuple):
    """The synthesised logits of one layer.

    axes: `S_a` of every axis, `(B or 1, H, p + n_a, n_a)`, the rows of the `p` prefix tokens first.
    shares: how every token divides its attention between the grid and the prefix tokens, `(B or 1, H, L, 1 + p)`;
        None without prefix tokens.
    mixing: `λ` of every head, `(H,)`; None without queries and keys.
    is_token: places of the grid that are not padding, bool `(B, n_1, …, n_k)`; None without padding. Rows are
        normalised over the slices across the axis that hold any token, so that a short text gets what it gets alone.
    """

    axes: tuple[Tensor, ...]
    shares: Tensor | None
    mixing: Tensor | None
    is_token: Tensor | None = None

    def weights(self) -> tuple[list[Tensor], Tensor | None]:
        """The arguments of `stt_attention`, in at least fp32. Slices of padding get no weight."""
        axes = [logits.to(softmax_dtype(logits.dtype)) for logits in self.axes]
        if self.is_token is not None:
            # Before the softmax: what is divided out after it could leave nothing.
            axes = [_without(logits, self._alive(axis)) for axis, logits in enumerate(axes)]
        axes = [_softmax(logits, is_short=len(axes) > 1) for logits in axes]
        if self.is_token is not None:  # rows without any token
            axes = [axis.masked_fill(~self._alive(index), 0) for index, axis in enumerate(axes)]
        shares = self.shares
        if shares is not None:
            shares = _softmax(shares.to(softmax_dtype(shares.dtype)), is_short=True)
        return axes, shares

    def log_weights(self) -> tuple[list[Tensor], Tensor | None]:
        """The logarithms of `weights()`, finite everywhere: what is padding is left to the caller's mask."""
        axes = [logits.to(softmax_dtype(logits.dtype)) for logits in self.axes]
        if self.is_token is None:
            axes = [logits.log_softmax(-1) for logits in axes]
        else:
            axes = [self._normalized(logits, self._alive(index)) for index, logits in enumerate(axes)]
        shares = self.shares
        return axes, None if shares is None else shares.to(softmax_dtype(shares.dtype)).log_softmax(-1)

    def attend(self, attention: Attention) -> Attended:
        """The context from the values, without any scores; see `mechanism_hf_lam.Replacement`."""
        value, padding, dropout = attention.value, attention.padding, attention.dropout
        keys, shares = None, None
        if padding is not None and len(self.axes) == 1 and self.shares is None:
            # On one axis the scores are there, and any mask can be added to them.
            (scores,) = self.axes
            addend, blocked = additive(padding.to(scores.device), softmax_dtype(scores.dtype))
            axes = [(scores + addend).softmax(-1).masked_fill(blocked, 0)]
        else:
            axes, shares = run_alone(self.weights, value.device)
            if padding is not None:
                if attention.layer == 0:
                    refuse_masks_by_query(padding)
                keys = valid_tokens(padding, value.shape[0], value.shape[2]).to(value.device)[:, None, None]
        axes = [axis.to(value.device) for axis in axes]
        shares = None if shares is None else shares.to(value.device)
        options: dict[str, Any] = {"prefix_shares": shares, "attention_mask": keys, "dropout_p": dropout}
        if attention.want_weights:
            return stt_attention_with_weights(value, axes, **options)
        implementation = "eager" if attention.implementation == "eager" else "auto"
        return stt_attention(value, axes, implementation=implementation, **options), None

    def count_flops(self, attention: Attention) -> tuple[int, ...]:
        """FLOPs of the mode products for every head, whole batch."""
        batch, heads, _, size = attention.value.shape
        grid = [axis.shape[3] for axis in self.axes]
        prefix = 0 if self.shares is None else self.shares.shape[3] - 1
        # On one axis alone padding is part of the softmax; else it is divided out, which takes one more feature.
        is_divided = attention.padding is not None and (len(grid) > 1 or prefix > 0)
        return (FLOPS_PER_WEIGHT * batch * (size + is_divided) * count_products(grid, prefix),) * heads

    def _alive(self, axis: int) -> Tensor:
        """The slices across an axis that hold a token, bool `(B, 1, 1, n_a)`."""
        assert self.is_token is not None
        others = [1 + other for other in range(len(self.axes)) if other != axis]
        return (self.is_token.amax(others) if others else self.is_token)[:, None, None]

    @staticmethod
    def _normalized(logits: Tensor, alive: Tensor) -> Tensor:
        total = _without(logits, alive).logsumexp(-1, keepdim=True)
        return logits - total.masked_fill(~alive.any(-1, keepdim=True), 0)


def count_products(grid: Sequence[int], prefix: int = 0) -> int:
    """Multiply-adds a feature of a synthesised map: `N · Σ n_a` on the grid, and what `prefix` tokens add.

    A prefix token sums up one axis after the other, `N + N / n_1 + …`. What it gives to the others is no matrix
    product, and not counted.
    """
    places = math.prod(grid)
    of_prefix, left = 0, places
    for size in grid:
        of_prefix, left = of_prefix + left, left // size
    return places * sum(grid) + prefix * of_prefix


def _without(logits: Tensor, alive: Tensor) -> Tensor:
    """Logits without those of padding: a finite number, with which rows without any token have gradients of 0."""
    return logits.masked_fill(~alive, torch.finfo(logits.dtype).min / 2)


def _softmax(logits: Tensor, is_short: bool) -> Tensor:
    """`logits.softmax(-1)`; short rows, of which torch computes one at a time, lie across in memory."""
    return logits.mT.contiguous().softmax(-2).mT.contiguous() if is_short else logits.softmax(-1)


class DenseAxis(MechanismPart):
    """`S_a = W2 · relu(W1 · x̄)`, a row of the matrix of one axis from the mean of the tokens at its place.

    Args:
        hidden_size: width `d` of the tokens.
        num_heads: heads `H`, which share `W1`.
        width: rows of `W1`.
        factors: sizes of the vectors whose products fill a row: `(n_a,)`, or `(s, t)` with `s · t = n_a`.
        initializer_range: standard deviation of the random weights.

    Shapes: `(B, R, d)` to `(B, H, R, n_a)`.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, width: int, factors: tuple[int, ...], initializer_range: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.factors = factors
        self.initializer_range = initializer_range
        self.in_weight = nn.Parameter(torch.empty(width, hidden_size))
        self.in_bias = nn.Parameter(torch.empty(width))
        self.out_weight = nn.Parameter(torch.empty(num_heads * sum(factors), width))
        self.out_bias = nn.Parameter(torch.empty(num_heads * sum(factors)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write every parameter that was not loaded (transformers marks those that were)."""
        for weight in (self.in_weight, self.out_weight):
            init.normal_(weight, std=self.initializer_range)
        init.zeros_(self.in_bias)
        if len(self.factors) == 1:
            init.zeros_(self.out_bias)
        else:
            # Where both factors are 0, neither would get a gradient; a first factor of 1 leaves the second free.
            first = torch.zeros(self.num_heads, sum(self.factors), device=self.out_bias.device)
            first[:, : self.factors[0]] = 1.0
            init.copy_(self.out_bias, first.flatten())

    def count_flops(self, batch: int, rows: int) -> int:
        """FLOPs of `rows` rows of every sample."""
        return 2 * batch * rows * (self.in_weight.numel() + self.out_weight.numel())

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = torch.relu(nn.functional.linear(hidden_states, self.in_weight, self.in_bias))
        rows = nn.functional.linear(hidden, self.out_weight, self.out_bias)
        rows = rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        if len(self.factors) == 1:
            return rows
        first, second = rows.split(self.factors, dim=-1)
        return (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)


class RandomAxis(MechanismPart):
    """`S_a` as a parameter, or as the product `R_1 R_2ᵀ` of two, the same for every input.

    Drawn so that the logits have variance 1: from small numbers, a map that stays frozen would be the plain mean.

    Args:
        num_heads: heads `H`.
        prefix: rows for tokens before the grid.
        places: size `n_a` of the axis.
        rank: rank of the product; None for a parameter of full size.
        frozen: keep what was drawn.

    Shapes: `(1, H, prefix + n, n)` for the first `n` places.
    """

    row_logits: Tensor
    column_logits: Tensor

    def __init__(self, num_heads: int, prefix: int, places: int, rank: int | None, frozen: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.rank = rank
        size = places if rank is None else rank
        _add(self, "row_logits", (num_heads, prefix + places, size), frozen)
        if rank is not None:
            _add(self, "column_logits", (num_heads, places, rank), frozen)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write every parameter and buffer that was not loaded (transformers marks those that were)."""
        std = 1.0 if self.rank is None else self.rank**-0.25
        for _, tensor in (*self.named_parameters(), *self.named_buffers()):
            init.normal_(tensor, std=std)

    def count_flops(self, places: int) -> int:
        """FLOPs for the first `places` of the axis, the same for any batch."""
        heads, rank = self.row_logits.shape[0], self.rank or 0
        return 2 * heads * (self.prefix + places) * rank * places

    def forward(self, places: int) -> Tensor:
        rows = _first(self.row_logits, 1, self.prefix + places)
        if self.rank is None:
            return _first(rows, 2, places).unsqueeze(0)
        return (rows @ _first(self.column_logits, 1, places).mT).unsqueeze(0)


def _first(tensor: Tensor, dim: int, count: int) -> Tensor:
    """The first of a dimension; not as a slice, whose strides would fix an exported length.

    Nor are views of parameters what torch's FlopCounterMode can take from a module without gradients.
    """
    return tensor.index_select(dim, torch.arange(count, device=tensor.device))


class DenseShares(MechanismPart):
    """Logits of the prefix tokens' shares, linear in each token: `(B, L, d)` to `(B, H, L, 1 + p)`.

    They start from the shares that they have in a plain mean over all tokens. The grid, which comes first, has 0: with
    one prefix token, its share is a sigmoid.
    """

    def __init__(self, hidden_size: int, num_heads: int, prefix: int, places: int, initializer_range: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.initializer_range = initializer_range
        self.mean_logit = -math.log(places)
        self.weight = nn.Parameter(torch.empty(num_heads * prefix, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_heads * prefix))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write every parameter that was not loaded (transformers marks those that were)."""
        init.normal_(self.weight, std=self.initializer_range)
        init.constant_(self.bias, self.mean_logit)

    def forward(self, hidden_states: Tensor) -> Tensor:
        # A linear layer of so few outputs takes twice as long, and a transposition.
        weight = self.weight.expand(hidden_states.shape[0], -1, -1)
        logits = torch.baddbmm(self.bias.unsqueeze(1), weight, hidden_states.mT)
        return _with_grid(logits.unflatten(1, (self.num_heads, -1)))


class RandomShares(MechanismPart):
    """Logits of the prefix tokens' shares as a parameter: `(1, H, L, 1 + p)` for the first `L` tokens."""

    logits: Tensor

    def __init__(self, num_heads: int, prefix: int, places: int, frozen: bool) -> None:
        super().__init__()
        self.mean_logit = -math.log(places)
        _add(self, "logits", (num_heads, prefix + places, prefix), frozen)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write the parameter or buffer if it was not loaded (transformers marks those that were)."""
        init.normal_(self.logits, mean=self.mean_logit, std=1.0)

    def forward(self, length: int) -> Tensor:
        return _with_grid(_first(self.logits, 1, length).mT.unsqueeze(0))


def _with_grid(shares: Tensor) -> Tensor:
    """`(B or 1, H, p, L)` to `(B or 1, H, L, 1 + p)`."""
    return torch.cat([torch.zeros_like(shares[:, :, :1]), shares], dim=2).mT


def _add(module: nn.Module, name: str, shape: tuple[int, ...], frozen: bool) -> None:
    """A parameter, or a buffer that is saved like one but never trained."""
    if frozen:
        module.register_buffer(name, torch.empty(shape))
    else:
        module.register_parameter(name, nn.Parameter(torch.empty(shape)))


class _ClampedMixing(torch.autograd.Function):
    """`λ` clamped to [0, 1], whose gradient passes at the ends and beyond if it leads back inside.

    With `torch.clamp`, one step out of the range would be the last: there its gradient is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(mixing: Tensor) -> Tensor:
        return mixing.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (mixing,) = ctx.saved_tensors
        leads_out = ((mixing <= 0) & (grad > 0)) | ((mixing >= 1) & (grad < 0))
        return grad.masked_fill(leads_out, 0)


def _clamp_mixing(mixing: Tensor) -> Tensor:
    # Which way a step leads is known backwards only.
    return mixing.clamp(0, 1) if is_forward_mode() else _ClampedMixing.apply(mixing)


class AttentionSynthesizer(MechanismPart):
    """The synthetic attention map of one layer (STT, arXiv 2201.01410).

    Args:
        config: the options, resolved for the host (`resolve_stt`).
        hidden_size: width `d` of the tokens.
        num_heads: heads `H`.
        initializer_range: standard deviation of the dense variants' weights.
    """

    mixing: Tensor

    def __init__(self, config: SttConfig, hidden_size: int, num_heads: int, initializer_range: float = 0.02) -> None:
        super().__init__()
        self.config = config
        assert config.grid is not None and config.prefix_tokens is not None
        prefix, places = config.prefix_tokens, math.prod(config.grid)
        self.is_dense = config.synthesized_by in ("dense", "factorized_dense")
        self.shares: nn.Module | None = None
        if self.is_dense:
            assert config.bottleneck_size is not None
            factors = [(n,) for n in config.grid] if config.factors is None else [tuple(f) for f in config.factors]
            axes: list[nn.Module] = [
                DenseAxis(hidden_size, num_heads, config.bottleneck_size, sizes, initializer_range)
                for sizes in factors
            ]
            if prefix:
                self.shares = DenseShares(hidden_size, num_heads, prefix, places, initializer_range)
        else:
            axes = [RandomAxis(num_heads, prefix, n, config.rank, config.frozen) for n in config.grid]
            if prefix:
                self.shares = RandomShares(num_heads, prefix, places, config.frozen)
        self.axes = nn.ModuleList(axes)
        if config.train_mixing:
            self.mixing = nn.Parameter(torch.empty(num_heads))
        elif config.is_mixture:
            self.register_buffer("mixing", torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write `λ = 0` if it was not loaded: a mixture starts as the original attention."""
        if self.config.is_mixture:
            init.zeros_(self.mixing)

    def forward(
        self, hidden_states: Tensor, sizes: tuple[int, ...], is_token: Tensor | None = None
    ) -> SyntheticLogits:
        """Synthesise the map of each sample.

        Args:
            hidden_states: `(B, p + n_1·…·n_k, d)`.
            sizes: `n_1, …, n_k`, none beyond that of the configuration's grid.
            is_token: which tokens are not padding, bool `(B, p + n_1·…·n_k)`; the others are left out of the means.
        """
        if self.is_dense:
            rows = _with_prefix(hidden_states, sizes, is_token, self.config.prefix_tokens or 0)
            axes = [axis(x)[..., :n] for axis, x, n in zip(self.axes, rows, sizes, strict=True)]
            shares = None if self.shares is None else self.shares(hidden_states)
        else:
            axes = [axis(n) for axis, n in zip(self.axes, sizes, strict=True)]
            shares = None if self.shares is None else self.shares(hidden_states.shape[1])
        mixing = None
        if self.config.is_mixture:
            mixing = _clamp_mixing(self.mixing) if self.config.train_mixing else self.mixing
        if is_token is not None:
            is_token = is_token[:, self.config.prefix_tokens :].unflatten(1, sizes)
        return SyntheticLogits(tuple(axes), shares, mixing, is_token)

    def count_flops(self, batch: int, length: int) -> int:
        """FLOPs of synthesising the map of a batch, two for a multiply-add."""
        sizes, prefix = self.config.sizes_of(length), self.config.prefix_tokens or 0
        axes: list[Any] = list(self.axes)
        if not self.is_dense:
            return sum(axis.count_flops(n) for axis, n in zip(axes, sizes, strict=True))
        flops = sum(axis.count_flops(batch, prefix + n) for axis, n in zip(axes, sizes, strict=True))
        shares: Any = self.shares
        return flops if shares is None else flops + 2 * batch * length * shares.weight.numel()

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value}" for name, value in self.config.to_dict().items() if value not in (None, False)
        )


def _with_prefix(hidden_states: Tensor, sizes: tuple[int, ...], is_token: Tensor | None, prefix: int) -> list[Tensor]:
    """The inputs of the rows of every axis: the prefix tokens, and `x̄` of every place, `(B, p + n_a, d)`."""
    if len(sizes) == 1:
        return [hidden_states]
    grid = hidden_states[:, prefix:].unflatten(1, sizes)
    others = [[1 + other for other in range(len(sizes)) if other != axis] for axis in range(len(sizes))]
    if is_token is None:
        # One dimension after the other: torch takes three times as long for several at once.
        means = [reduce(Tensor.mean, reversed(dims), grid) for dims in others]
    else:
        counted = is_token[:, prefix:].unflatten(1, sizes).unsqueeze(-1).to(grid.dtype)
        means = [(grid * counted).sum(dims) / counted.sum(dims).clamp(min=1) for dims in others]
    return [torch.cat([hidden_states[:, :prefix], mean], dim=1) if prefix else mean for mean in means]
