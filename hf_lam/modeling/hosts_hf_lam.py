# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Other people's encoders: what their tokens are, and what they are asked for.

A host keeps its projections, layers and classes. What differs from family to family, and cannot be read off a module,
is in the tables of `hosts_facts_hf_lam.py`; everything here holds for any transformers encoder.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import inspect
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .hosts_facts_hf_lam import (
    count_first_tokens,
    is_fusion,
    read_grid,
    read_positions,
)


class ModalityTokens(NamedTuple):
    """What the tokens of a fusion model's batch belong to.

    lengths: tokens of each modality, in their order; 0 for one that the batch does not have.
    is_present: `(B, m)` bool, which modalities each sample has; None if all samples have those of the batch.
    """

    lengths: tuple[int, ...]
    is_present: torch.Tensor | None = None


class HostTokens(NamedTuple):
    """The token sequence that an encoder makes of its input.

    host: the encoder's name, for messages.
    length: most tokens, on a host with a grid their number; None if it does not say.
    prefix: tokens before the grid, such as `[CLS]`.
    grid: axes of the row-major grid of the others, `(rows, columns)` or `(steps, rows, columns)`; empty for text.
    frames_per_step: frames of the input in one step of a video grid.
    token_types: how many different `token_type_ids` there are; 0 if the encoder takes none.
    modalities: of a fusion model, in their order; else empty.
    modality_lengths: the most tokens of each; None where its encoder does not say.
    patches: of a host that does not say its length, the grid of an input of the size that it is configured for.
    first: tokens before it then, as far as the host's modules tell.
    """

    host: str
    length: int | None
    prefix: int = 0
    grid: tuple[int, ...] = ()
    frames_per_step: int = 1
    token_types: int = 0
    modalities: tuple[str, ...] = ()
    modality_lengths: tuple[int | None, ...] = ()
    patches: tuple[int, ...] = ()
    first: int = 0

    @property
    def configured_grid(self) -> tuple[int, ...]:
        """The grid of an input of the size that the host is configured for; empty for text."""
        return self.grid or self.patches

    def grid_of(self, length: int | None) -> tuple[int, ...]:
        """The grid of inputs of the host's own size, if they have `length` tokens; empty for others, and for text.

        length: None for as many as they have.
        """
        if length is None or length == self.length:
            return self.grid
        # Class tokens may be put in front by a model around the encoder.
        is_own = self.length is None and 0 <= length - self.first - prod(self.patches) <= 2
        return self.patches if is_own else ()


class Host(NamedTuple):
    """What a mechanism knows of the encoder that it is made for.

    name: the encoder's class.
    hidden_size: width `d` of the tokens.
    num_heads, head_size: `H` and `D`.
    num_layers: how many layers of attention there are.
    initializer_range: standard deviation of the host's random weights.
    tokens: its token sequence.
    """

    name: str
    hidden_size: int
    num_heads: int
    head_size: int
    num_layers: int
    initializer_range: float
    tokens: HostTokens


def read_host(base: Any, num_layers: int) -> Host:
    """The plain record of an encoder."""
    config = base.config
    return Host(
        name=type(base).__name__,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=head_size_of(config),
        num_layers=num_layers,
        initializer_range=getattr(config, "initializer_range", 0.02),
        tokens=read_tokens(base),
    )


def head_size_of(config: Any) -> int:
    """Features `D` of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# --- tokens ----------------------------------------------------------------------------------------------------------


def read_tokens(base: Any) -> HostTokens:
    """The token sequence of an encoder, from its configuration and its positions."""
    config, name, length = base.config, type(base).__name__, max_length_of(base)
    if is_fusion(config):
        return HostTokens(name, length, modalities=tuple(config.modalities), modality_lengths=tuple(base.max_lengths))
    grid, frames_per_step = read_grid(config)
    if grid and length is None:  # positions that turn queries and keys, or that are added to scores
        return HostTokens(name, None, patches=grid, first=count_first_tokens(base))
    if grid:
        assert length is not None
        return HostTokens(name, length, length - prod(grid), grid, frames_per_step)
    takes_token_types = "token_type_ids" in inspect.signature(type(base).forward).parameters
    return HostTokens(name, length, token_types=getattr(config, "type_vocab_size", 0) if takes_token_types else 0)


def max_length_of(base: Any) -> int | None:
    """The longest sequence the host is made for, in tokens, prefix tokens included; None if it does not say."""
    if is_fusion(base.config):
        return None if None in base.max_lengths else sum(base.max_lengths)
    return read_positions(base)


# --- what it is asked for --------------------------------------------------------------------------------------------


def make_dispatching_config(host_config: Any) -> Any:
    """A copy of the host's configuration that sends attention to "hf_lam", for the attention modules alone.

    The model's own configuration keeps saying what the user asked for, so `set_attn_implementation` on any model
    around the encoder selects our kernel and can never drop the mechanism.
    """
    config = copy.copy(host_config)
    config._attn_implementation_internal = "hf_lam"
    config.hf_lam_dispatches = True
    return config


def is_dispatching(module: nn.Module) -> bool:
    """Whether a module's attention goes to mechanisms, and not just to the function of that name."""
    return getattr(getattr(module, "config", None), "hf_lam_dispatches", False)


def read_implementation(config: Any) -> str | None:
    """What the user asked of a model's attention."""
    return config._attn_implementation


def read_whole_modules(model: PreTrainedModel) -> list[str]:
    """The classes of modules that stay whole where a model is spread over devices."""
    return list(model._no_split_modules or ())


def choose_implementation(base: PreTrainedModel) -> str:
    """Which of our kernels the model's setting asks for: `"eager"`, `"flex_attention"` or `"auto"`."""
    requested = read_implementation(base.config)
    windowed = getattr(base.config, "sliding_window", None) or getattr(base.config, "local_attention", None)
    if windowed and "flash" in str(requested):
        raise ValueError(
            f"with attn_implementation={requested!r} {type(base).__name__} leaves its attention window to the flash "
            'kernel, which hf_lam replaces. Use attn_implementation="sdpa".'
        )
    return requested if requested in ("eager", "flex_attention") else "auto"


def check_keeps_tokens(base: PreTrainedModel) -> None:
    """Raises a `ValueError` for a host that drops tokens, where mechanisms are tied to places."""
    if getattr(base.config, "mask_ratio", None) is not None:  # 0.0 keeps all, in another order in each call
        raise ValueError(
            f"{type(base).__name__} drops tokens at random and puts the others into a random order "
            f"(mask_ratio={base.config.mask_ratio}), but {TIED_TO_PLACES}"
        )


def refuse_dropped_tokens(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook for a host whose `bool_masked_pos` drops tokens (`drops_tokens`)."""
    if kwargs.get("bool_masked_pos", args[1] if len(args) > 1 else None) is not None:
        raise ValueError(f"bool_masked_pos drops tokens from {type(base).__name__}'s sequence, but {TIED_TO_PLACES}")


TIED_TO_PLACES = (
    "the columns of a dense learnable attention mask, the segments of attention views and the grid of a synthesised "
    "attention are absolute positions. Leave it out, or use a low-rank mask alone, which takes any length."
)
