# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""LAM, the learnable attention mask: its options, the networks that make the masks, and what they do to the scores.

Source: Barrios & Jin, "Multi-layer Learnable Attention Mask for Multimodal Tasks", arXiv 2406.02761. The attention
itself is in `lam_attention_hf_lam.py`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .hosts_hf_lam import Host
from .lam_attention_hf_lam import COMBINES
from .mechanism_hf_lam import LayerInput, Mechanism, MechanismConfig, MechanismPart, PassStart, ScoreChange
from .mechanism_registry_hf_lam import register_mechanism
from .option_checks_hf_lam import MOST_LAYERS, check_bool, check_choice, check_positive_or_none, is_count

# softplus of it is 1.
_SOFTPLUS_OF_ONE = math.log(math.e - 1)


@dataclass(frozen=True)
class LamConfig(MechanismConfig):
    """A learnable attention mask (LAM; Barrios & Jin, arXiv 2406.02761).

    The mask `M` multiplies the raw attention scores before the softmax:
    `softmax((Q Kᵀ / sqrt(D)) ⊙ M + padding) V`. A zero in `M` means "no preference", not "blocked". With
    `combine="add"` it is added to them: `softmax(Q Kᵀ / sqrt(D) + M + padding) V`.

    Args:
        scope: `"per_layer"` gives every layer a mask of its own (the paper's multi-layer LAM), `"shared"` one mask
            to all layers (its single one).
        source: what a per-layer mask reads: `"layer_input"`, the input of its attention layer, or `"embeddings"`, the
            input of the first encoder layer. A shared mask always reads the embeddings.
        per_head: one mask per head instead of one for all heads.
        bottleneck_size: width of the mask network's hidden layers; `None` is a quarter of the hidden size.
        init: `"identity"` starts at the mask that changes nothing, `M = 1`, or 0 where it is added; `"normal"` draws
            the first and the last layer from the host's `initializer_range`, which changes the outputs at once.
        rank: `None` is the paper's dense mask, with one output per key position. With `r`,
            `M_ij = f(x_i) · g(x_j)` with `r` factors: any length, and no parameters that grow with it.
        max_length: the longest sequence a dense mask can take; on a grid, of an image for example, the only one.
            `None` takes it from the host; 257 is for a square image of 16 × 16 patches and `[CLS]`, whatever size the
            host is configured for.
        depth: linear layers of the mask network, with ReLU between them; at least 2.
        combine: `"multiply"`, the paper's first version, or `"add"`, its later one.
        non_negative: `M = softplus(…)` of what the network computes, so that a mask that multiplies weakens a score at
            most to nothing and never turns it around.

    Raises:
        ValueError: for a value outside the above; the message names it.
    """

    scope: str = "per_layer"
    source: str = "layer_input"
    per_head: bool = False
    bottleneck_size: int | None = None
    init: str = "identity"
    rank: int | None = None
    max_length: int | None = None
    depth: int = 2
    combine: str = "multiply"
    non_negative: bool = False

    later: ClassVar[tuple[str, ...]] = ("depth", "combine", "non_negative")
    title: ClassVar[str] = "Learnable attention mask"
    arxiv: ClassVar[str] = "2406.02761"
    citation: ClassVar[str] = """@article{barrios2024lam,
  title   = {Multi-layer Learnable Attention Mask for Multimodal Tasks},
  author  = {Barrios, Wayner and Jin, SouYoung},
  journal = {arXiv:2406.02761},
  year    = {2024}
}"""

    def __post_init__(self) -> None:
        check_choice(self, "scope", ("per_layer", "shared"))
        check_choice(self, "source", ("layer_input", "embeddings"))
        check_choice(self, "init", ("identity", "normal"))
        check_choice(self, "combine", COMBINES)
        check_bool(self, "per_head")
        check_bool(self, "non_negative")
        for name in ("bottleneck_size", "rank", "max_length"):
            check_positive_or_none(self, name)
        if not is_count(self.depth, 2, MOST_LAYERS):
            raise ValueError(
                f"LamConfig: depth must be an integer from 2 to {MOST_LAYERS:,}, the linear layers of the mask "
                f"network, got {self.depth!r}."
            )
        if self.non_negative and self.adds:
            raise ValueError(
                "LamConfig: non_negative=True has no meaning with combine='add': an added mask turns no score around, "
                "whatever its sign, and without negative numbers it could not weaken any. Leave one of the two out."
            )
        if self.rank is not None and self.max_length is not None:
            raise ValueError(
                f"LamConfig: max_length={self.max_length} has no meaning with rank={self.rank}; a low-rank mask takes "
                "any length. Leave one of the two out."
            )
        if self.scope == "shared":
            object.__setattr__(self, "source", "embeddings")

    def explain_change(self, model: str) -> str | None:
        if self.init == "identity":
            return None
        return (
            f"LamConfig(init={self.init!r}) starts from random masks: the outputs of {model} change at once. "
            "init='identity' starts from the original model."
        )

    @property
    def adds(self) -> bool:
        """Whether the mask is added to the scores."""
        return self.combine == "add"

    @property
    def neutral(self) -> float:
        """The mask that changes nothing."""
        return 0.0 if self.adds else 1.0

    @property
    def is_dense(self) -> bool:
        """Whether there is a column for every position."""
        return self.rank is None

    @property
    def is_shared(self) -> bool:
        """Whether all layers have one mask."""
        return self.scope == "shared"

    @property
    def needs_places(self) -> bool:
        return self.is_dense

    @property
    def needs_embeddings(self) -> bool:
        return self.source == "embeddings"

    def explain_input_grid(self, grid: tuple[int, ...], host: Host) -> str:
        length = host.tokens.count(grid)
        makes = f" make the model for this size with LamConfig(max_length={length}),"
        return (
            f"Resize them,{makes if host.tokens.grid_of(length) in ((), grid) else ''} or use a low-rank mask, which "
            "is tied to no place: LamConfig(rank=8)."
        )

    @property
    def no_place_for_appended(self) -> str:
        return "for which a learnable attention mask has no rows and columns"

    @property
    def max_tokens(self) -> int | None:
        return self.max_length

    def choose_length(self, host: Host) -> int:
        """Columns of a dense mask on a host.

        Raises:
            ValueError: if the host does not say how many, or has more.
        """
        tokens = host.tokens
        if None in tokens.modality_lengths:
            name = tokens.modalities[tokens.modality_lengths.index(None)]
            raise ValueError(
                f"{host.name} does not know how many tokens its {name} has at most, so a dense mask has no columns "
                "for them. Use a low-rank mask, LamConfig(rank=8), or give features a max_length."
            )
        length = self.max_length or tokens.length
        if length is None:
            raise ValueError(
                f"{host.name} does not say how long its sequences get. {tokens.describe_sound()}Give "
                f"LamConfig(max_length={tokens.example_length}), for example, or use a low-rank mask, which takes any "
                "length: LamConfig(rank=8)."
            )
        of_modalities = [n for n in tokens.modality_lengths if n is not None]
        if length < sum(of_modalities):
            raise ValueError(
                f"LamConfig(max_length={length}) is too short for {host.name}, whose modalities have up to "
                f"{of_modalities} tokens. Leave it out, or use a low-rank mask: LamConfig(rank=8)."
            )
        return length

    def list_limits(self, host: Host) -> list[str]:
        if not self.is_dense:
            return []
        length = self.choose_length(host)
        if len(host.tokens.grid) > 1:
            return [
                f"The model takes inputs of exactly {length:,} tokens, as its masks have a column for each of their "
                "places. It refuses inputs of another size."
            ]
        return [
            f"The model takes sequences of at most {length:,} tokens, as its masks have a column for every position. "
            "Padding belongs on the right."
        ]


class TokenReader(MechanismPart):
    """The first layers of a mask network: `relu(W · x + b)`, `config.depth - 1` times.

    Its weights get their values with `reset_parameters`, once all that there are have been made.

    Shapes: `(B, L, d)` to `(B, 1, L, width)`.
    """

    def __init__(self, config: LamConfig, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        self.config = config
        self.initializer_range = initializer_range
        width = config.bottleneck_size or max(1, hidden_size // 4)
        self.in_weight = nn.Parameter(torch.empty(width, hidden_size))
        self.in_bias = nn.Parameter(torch.empty(width))
        if config.depth > 2:
            self.hidden_weight = nn.Parameter(torch.empty(config.depth - 2, width, width))
            self.hidden_bias = nn.Parameter(torch.empty(config.depth - 2, width))

    def reset_parameters(self) -> None:
        """Write every parameter that was not loaded (transformers marks those that were)."""
        init.normal_(self.in_weight, std=self.initializer_range)
        init.zeros_(self.in_bias)
        if self.config.depth > 2:
            # As large as ReLU keeps a signal (He et al., arXiv 1502.01852): with the host's small weights, it would be
            # a tenth after every layer, and so would what the first one learns from.
            init.normal_(self.hidden_weight, std=math.sqrt(2 / len(self.in_bias)))
            init.zeros_(self.hidden_bias)

    def read(self, hidden_states: Tensor) -> Tensor:
        """The last hidden layer."""
        hidden = torch.relu(nn.functional.linear(hidden_states, self.in_weight, self.in_bias))
        if self.config.depth > 2:
            for weight, bias in zip(self.hidden_weight, self.hidden_bias, strict=True):
                hidden = torch.relu(nn.functional.linear(hidden, weight, bias))
        return hidden.unsqueeze(1)


class LearnableAttentionMask(TokenReader):
    """The mask network of LAM (arXiv 2406.02761): `M = W2 · relu(W1 · x_i + b1) + b2`, row `i` of `M`.

    Dense (the paper's): `W2` has one row per key position, cut to the sequence length. Low rank (`config.rank`):
    `M_ij = f(x_i) · g(x_j)` with `f` and `g` linear in the last hidden layer, for any length. A `config.depth` above 2
    puts more layers `relu(W · h + b)` of the hidden width between the two. With `config.non_negative` the mask is
    `softplus(M + c)`, where `softplus(c) = 1`.

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
        super().__init__(config, hidden_size, initializer_range)
        self.max_length = max_length
        masks, width = num_heads if config.per_head else 1, len(self.in_bias)
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
        super().reset_parameters()
        if self.config.rank is None:
            self._reset_dense()
        else:
            self._reset_low_rank()

    def _reset_dense(self) -> None:
        if self.config.init == "identity":
            init.zeros_(self.out_weight)
            init.constant_(self.out_bias, self._identity)
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
        # f ≡ e_0 and g_0 ≡ 1, so M ≡ 1; or f ≡ 0, so M ≡ 0. The other factors of g stay random: if they were constant
        # too, all factors would get the same gradient and the mask would keep rank 1 for ever.
        first_factor = torch.zeros_like(self.row_bias)
        first_factor[:, 0] = 1.0
        init.zeros_(self.row_weight)
        init.copy_(self.row_bias, first_factor * self._identity)
        if self.config.adds:  # what is the same for all keys cancels in the softmax
            return
        init.copy_(self.column_bias, first_factor)
        random_but_first = self.column_weight.detach().clone()
        random_but_first[:, 0] = 0.0
        init.copy_(self.column_weight, random_but_first)

    @property
    def _identity(self) -> float:
        """The output of the last layer for the mask that changes nothing."""
        return 0.0 if self.config.non_negative else self.config.neutral

    def forward(self, hidden_states: Tensor, columns: Tensor | None = None) -> Tensor:
        """The mask of each sample.

        Args:
            hidden_states: `(B, L, d)`.
            columns: `(L,)`, which column of a dense mask belongs to each token; the first `L` unless given.

        Raises:
            ValueError: if a dense mask is shorter than the sequence.
        """
        hidden, length = self.read(hidden_states), hidden_states.shape[1]
        if self.config.rank is None:
            return self.bound(self.make_dense(hidden, length, columns))
        return self.bound(_multiply(self.make_rows(hidden), self.make_columns(hidden)))

    def make_dense(self, hidden: Tensor, length: int, columns: Tensor | None) -> Tensor:
        """`(B, 1 or H, Lq, length)`, from the last hidden layer of the queries; a `ValueError` for too many keys."""
        if length > self.max_length:
            raise ValueError(
                f"the sequence has {length} tokens but this learnable attention mask was made for at most "
                f"max_length={self.max_length}. Make it longer with LamConfig(max_length={length}), or use a low-rank "
                "mask, which takes any length: LamConfig(rank=8)."
            )
        if columns is None and torch.compiler.is_exporting():
            # A slice of the weights of several heads would hold an exported program to lengths below the longest.
            columns = torch.arange(length, device=hidden.device)
        if columns is not None:
            columns = columns.to(hidden.device)
            return _project(hidden, self.out_weight.index_select(1, columns), self.out_bias.index_select(1, columns))
        return _project(hidden, self.out_weight[:, :length], self.out_bias[:, :length])

    def make_rows(self, hidden: Tensor) -> Tensor:
        """The factors `f` of the queries, `(B, 1 or H, Lq, rank)`, from their last hidden layer."""
        return _project(hidden, self.row_weight, self.row_bias)

    def make_columns(self, hidden: Tensor) -> Tensor:
        """The factors `g` of the keys, `(B, 1 or H, Lk, rank)`, from their last hidden layer."""
        return _project(hidden, self.column_weight, self.column_bias)

    def bound(self, mask: Tensor) -> Tensor:
        """Turn the output of the network into a mask."""
        return nn.functional.softplus(mask + _SOFTPLUS_OF_ONE) if self.config.non_negative else mask

    def count_flops(self, batch: int, length: int) -> int:
        """FLOPs of the masks of a batch, two for a multiply-add."""
        width, size = self.in_weight.shape
        hidden = length * width * (size + (self.config.depth - 2) * width)
        if self.config.rank is None:
            return 2 * batch * (hidden + len(self.out_bias) * length * width * length)
        masks, rank = self.row_bias.shape
        return 2 * batch * (hidden + masks * length * rank * (2 * width + length))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items() if value is not None)


def _multiply(rows: Tensor, columns: Tensor) -> Tensor:
    """`(B, m, Lq, r)` and `(B, m, Lk, r)` to `(B, m, Lq, Lk)`."""
    if torch.compiler.is_exporting():  # as below
        pairs = zip(rows.unbind(1), columns.unbind(1), strict=True)
        return torch.stack([of_rows @ of_columns.mT for of_rows, of_columns in pairs], 1)
    return rows @ columns.mT


def _project(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last layer of each of `m` masks, with weights `(m, n, w)` and biases `(m, n)`.

    Shapes: `(B, 1, L, w)` to `(B, m, L, n)`.
    """
    if torch.compiler.is_exporting():
        # A product that broadcasts would hold an exported program to some of the lengths.
        tokens = hidden.squeeze(1)
        return torch.stack([nn.functional.linear(tokens, *of_mask) for of_mask in zip(weight, bias, strict=True)], 1)
    return hidden @ weight.mT + bias.unsqueeze(1)


class LearnableAttentionMasks(Mechanism, nn.ModuleList):
    """The masks of one encoder: one network for each layer, or a single one for all."""

    factor_name: ClassVar[str] = "mask"
    addend_name: ClassVar[str] = "mask"
    logged: ClassVar[tuple[str, ...]] = ("mask_spread",)
    fact_titles: ClassVar[dict[str, tuple[str, str]]] = {
        "mask_parameters": ("mask parameters", ""),
        "mask_deviation": ("mean |M − 1|", ""),
        "mask_deviation_by_head": ("", "mean |M − 1|"),
        "mask_magnitude": ("mean |M|", ""),
        "mask_magnitude_by_head": ("", "mean |M|"),
        "mask_spread": ("", ""),
    }

    # The module that makes a mask.
    network: ClassVar[type[LearnableAttentionMask]] = LearnableAttentionMask

    def __init__(self, config: LamConfig, host: Host) -> None:
        super().__init__(config, host)
        max_length = config.choose_length(host) if config.is_dense else 0
        for _ in range(1 if config.is_shared else host.num_layers):
            mask = self.network(config, host.hidden_size, host.num_heads, max_length, host.initializer_range)
            self.append(mask)
        # The columns for a short text are the first ones; those for a smaller image lie all over the grid.
        self.exact_length = max_length if config.is_dense and len(host.tokens.grid) > 1 else None
        self.modality_lengths = [length for length in host.tokens.modality_lengths if length is not None]

    def begin(self, start: PassStart) -> Tensor | None:
        """`(L,)`, the column of a dense mask that belongs to each token; None if they are in its order.

        A modality's tokens always have the same columns, however long the others are.
        """
        if start.modalities is None or not self.config.is_dense:
            return None
        device = next(self.parameters()).device
        return _columns_of(self.modality_lengths, start.modalities.lengths, device)

    def make_state(self, embeddings: Tensor, begun: Tensor | None) -> Tensor:
        """The shared mask, or what the layers' own masks read."""
        return self.make_mask(0, embeddings, begun) if self.config.is_shared else embeddings

    def change_scores(self, given: LayerInput) -> ScoreChange:
        if self.config.is_shared:
            mask = given.state
        else:
            source = given.state if self.config.needs_embeddings else given.hidden_states
            mask = self.make_mask(given.layer, source, given.begun)
        return ScoreChange(addend=mask) if self.config.adds else ScoreChange(factor=mask)

    def make_mask(self, index: int, source: Any, columns: Tensor | None) -> Tensor:
        """The masks of network `index`, from `(B, L, d)`; a `ValueError` for an image of another size."""
        self.check_grid(source.shape[1])
        return self[index](source, columns)

    def check_grid(self, length: int) -> None:
        """Raises a `ValueError` for tokens of an image of another size than the masks have columns for."""
        if self.exact_length not in (None, length):
            raise ValueError(
                f"the input has {length} tokens, but the learnable attention mask has a column for each of "
                f"{self.exact_length} places on a grid; in an input of another size they lie elsewhere. Resize it, "
                f"make the model for this size with LamConfig(max_length={length}), or use a low-rank mask, which "
                "takes any size: LamConfig(rank=8)."
            )

    def count_flops(self, layer: int, batch: int, length: int) -> int:
        """A shared mask is made once, and counted with the first layer."""
        if self.config.is_shared and layer > 0:
            return 0
        mask: Any = self[layer]
        return mask.count_flops(batch, length)

    def list_facts(self, layer: int) -> dict[str, Any]:
        mask = self[0 if self.config.is_shared else layer]
        return {"mask_parameters": sum(parameter.numel() for parameter in mask.parameters())}

    def list_facts_of(self, change: ScoreChange, is_token: Tensor | None) -> dict[str, Any]:
        mask = change.addend if self.config.adds else change.factor
        assert mask is not None
        mask = mask.cpu()
        by_head = (mask.float() - self.config.neutral).abs().mean((0, 2, 3)).tolist()
        distance = "mask_magnitude" if self.config.adds else "mask_deviation"
        return {
            distance: sum(by_head) / len(by_head),
            f"{distance}_by_head": by_head,
            "mask_spread": _spread(mask, is_token),
        }


def _columns_of(max_lengths: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor:
    starts = accumulate(max_lengths, initial=0)
    spans = zip(starts, lengths, strict=False)  # the last start is the end
    return torch.cat([torch.arange(start, start + length, device=device) for start, length in spans])


def _spread(mask: Tensor, is_token: Tensor | None) -> float:
    """Standard deviation of the entries of `(B, 1 or H, L, L)` between tokens, `(B, L)` bool; None is all of them."""
    mask = mask.double()
    if is_token is not None:
        is_token = is_token.cpu()
        is_pair = is_token[:, None, :, None] & is_token[:, None, None, :]
        mask = mask[is_pair.expand_as(mask)]
    return float(mask.std(correction=0))


register_mechanism("lam", LamConfig, LearnableAttentionMasks)
