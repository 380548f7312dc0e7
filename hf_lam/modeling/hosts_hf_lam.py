# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Other people's encoders: what their tokens are, and what they are asked for.

A host keeps its projections, layers and classes. What differs from family to family, and cannot be read off a module,
is in the tables of `hosts_facts_hf_lam.py`; everything here holds for any transformers encoder.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import inspect
from math import isqrt, prod
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .hosts_facts_hf_lam import (
    INPUT_NAMES,
    SAMPLING_RATE,
    count_first_tokens,
    count_sound_tokens,
    is_fusion,
    read_grid,
    read_positions,
)


class ModalityTokens(NamedTuple):
    """The modality of each token in a fusion model's batch.

    lengths: tokens of each modality, in their order; 0 for one that the batch does not have.
    is_present: `(B, m)` bool, which modalities each sample has; None if all samples have those of the batch.
    """

    lengths: tuple[int, ...]
    is_present: torch.Tensor | None = None


class HostTokens(NamedTuple):
    """The token sequence that an encoder makes of its input.

    host: the encoder's name, for messages.
    length: most tokens, on a grid those of an input of the size that the host is configured for; None if it does not
        say.
    prefix: tokens before the grid, such as `[CLS]`.
    grid: axes of the row-major grid of the others in an input of that size: `(rows, columns)`, `(steps, rows,
        columns)`, or `(steps,)` for sound of one length; empty for text. An input of another size has another grid,
        which a mechanism learns when a pass begins (`PassStart.grid`).
    frames_per_step: frames of the input in one step of a video grid.
    token_types: number of different `token_type_ids`; 0 if the encoder takes none.
    modalities: modalities of a fusion model, in their order; else empty.
    modality_lengths: the most tokens of each; None where its encoder does not say.
    sound_tokens: number of tokens for one second and for ten, on a host of plain sound of any length; else empty.
    """

    host: str
    length: int | None
    prefix: int = 0
    grid: tuple[int, ...] = ()
    frames_per_step: int = 1
    token_types: int = 0
    modalities: tuple[str, ...] = ()
    modality_lengths: tuple[int | None, ...] = ()
    sound_tokens: tuple[int, ...] = ()

    def grid_of(self, length: int | None) -> tuple[int, ...]:
        """The grid of inputs with `length` tokens; empty for text, and if the length does not tell.

        It is the host's own grid if that fits, or else a square where the host's is one, a video of the same pictures,
        or a sequence.

        length: number of tokens; None for as many as the host's own inputs have.
        """
        places = None if length is None else length - self.prefix
        if not self.grid or places in (None, prod(self.grid)):
            return self.grid
        assert places is not None
        picture = prod(self.grid[1:])
        if len(self.grid) in (1, 3) and places > 0 and places % picture == 0:
            return (places // picture, *self.grid[1:])
        side = isqrt(places) if places > 0 and len(self.grid) == 2 and len(set(self.grid)) == 1 else 0
        return (side, side) if side > 0 and side * side == places else ()

    def count(self, grid: tuple[int, ...]) -> int:
        """Tokens of an input with this grid."""
        return self.prefix + prod(grid)

    @property
    def example_length(self) -> int:
        """A number of tokens to give as an example."""
        return self.sound_tokens[1] if self.sound_tokens else min(512, self.length or 512)

    def describe_sound(self) -> str:
        """Say in a sentence how many tokens a host of plain sound makes; empty for others."""
        if not self.sound_tokens:
            return ""
        rate, (second, ten) = SAMPLING_RATE // 1000, self.sound_tokens
        return f"It makes {second} tokens of one second of sound at {rate} kHz, and {ten} of ten seconds. "


class Host(NamedTuple):
    """The facts about an encoder that a mechanism is made for.

    name: the encoder's class.
    hidden_size: width `d` of the tokens.
    num_heads, head_size: `H` and `D`.
    num_layers: number of attention layers.
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


def read_host(base: Any, num_layers: int, model: Any = None) -> Host:
    """The plain record of an encoder.

    model: the model around the encoder, which may make its embeddings.
    """
    config = base.config
    return Host(
        name=type(base).__name__,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=head_size_of(config),
        num_layers=num_layers,
        initializer_range=getattr(config, "initializer_range", 0.02),
        tokens=read_tokens(base, model),
    )


def head_size_of(config: Any) -> int:
    """Features `D` of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# --- tokens ----------------------------------------------------------------------------------------------------------


def read_tokens(base: Any, model: Any = None) -> HostTokens:
    """The token sequence of an encoder, from its configuration and its modules.

    model: the model around the encoder, which may make its embeddings.
    """
    config, name = base.config, type(base).__name__
    if is_fusion(config):
        lengths = tuple(base.max_lengths)
        length = None if None in lengths else sum(lengths)
        return HostTokens(name, length, modalities=tuple(config.modalities), modality_lengths=lengths)
    arguments = inspect.signature(type(base).forward).parameters
    grid, frames_per_step = ((), 1) if "input_ids" in arguments else read_grid(config)
    if grid:
        prefix = count_first_tokens(base if model is None or input_name_of(base) else model)
        return HostTokens(name, prefix + prod(grid), prefix, grid, frames_per_step)
    seconds = [count_sound_tokens(config, seconds * SAMPLING_RATE) for seconds in (1, 10)]
    return HostTokens(
        name,
        read_positions(base),
        token_types=getattr(config, "type_vocab_size", 0) if "token_type_ids" in arguments else 0,
        sound_tokens=tuple(number for number in seconds if number is not None),
    )


def max_length_of(base: Any) -> int | None:
    """The longest sequence the host is made for, in tokens, prefix tokens included; None if it does not say."""
    return read_tokens(base).length


def input_name_of(module: Any) -> str | None:
    """The name of the model's input in a module; None if it takes embeddings that a model around it makes."""
    arguments = inspect.signature(type(module).forward).parameters
    return next((name for name in (module.main_input_name, *INPUT_NAMES) if name in arguments), None)


def find_input_module(model: nn.Module, base: Any) -> Any:
    """The module inside `model` that takes the input, and has the encoder `base` in it; None if there is none."""
    around = (module for module in model.modules() if isinstance(module, PreTrainedModel) and input_name_of(module))
    return next((module for module in reversed(list(around)) if any(part is base for part in module.modules())), None)


# --- what it is asked for --------------------------------------------------------------------------------------------


# The attention function that the attention modules of an encoder with mechanisms are sent to. Not "hf_lam", which also
# older copies of this code register.
DISPATCH = "hf_lam_stand_in"


def make_dispatching_config(host_config: Any) -> Any:
    """A copy of the host's configuration that sends attention to our function, for the attention modules alone.

    The model's own configuration keeps saying what the user asked for, so `set_attn_implementation` on any model
    around the encoder selects our kernel and can never drop the mechanism.
    """
    config = copy.copy(host_config)
    config._attn_implementation_internal = DISPATCH
    config.hf_lam_dispatches = True
    return config


def read_implementation(config: Any) -> str | None:
    """The attention implementation that the user asked for."""
    return config._attn_implementation


def read_whole_modules(model: PreTrainedModel) -> list[str]:
    """The classes of modules that stay whole where a model is spread over devices."""
    return list(model._no_split_modules or ())


def choose_implementation(base: PreTrainedModel) -> str:
    """Choose our kernel for the model's setting: `"eager"`, `"flex_attention"` or `"auto"`."""
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
