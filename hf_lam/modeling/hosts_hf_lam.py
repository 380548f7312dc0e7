# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Other people's encoders: where their attention is, and what their tokens are.

A host keeps its projections, layers and classes. What differs from family to family, and cannot be read off a module,
is in the tables of `hosts_facts_hf_lam.py`; everything here holds for any transformers encoder.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .hosts_facts_hf_lam import (
    PROJECTION_NAMES,
    SHIMS,
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


# --- where its attention is ------------------------------------------------------------------------------------------


def find_attentions(base: PreTrainedModel) -> list[Any]:
    """The host's self-attention modules in layer order, or a `ValueError` that says why it cannot be a host."""
    name = type(base).__name__
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"{name} is not a transformers encoder.")
    if getattr(base.config, "is_encoder_decoder", False) or getattr(base.config, "is_decoder", False):
        raise ValueError(
            f"{name} is a decoder or has one (is_decoder or is_encoder_decoder in its configuration); hf_lam works on "
            "encoders without a cache."
        )
    attentions = recorded_attentions(base)
    if not attentions and getattr(base.config, "num_hidden_layers", None) == 0:
        raise ValueError(f"{name} has num_hidden_layers=0, so it has no attention to attach a mechanism to.")
    if not attentions:
        raise ValueError(
            f"{name} does not say where its self-attention is (no `_can_record_outputs['attentions']`), so it has no "
            "attention interface to attach to."
        )
    for attention in attentions:
        forward = inspect.unwrap(type(attention).forward)
        if "ALL_ATTENTION_FUNCTIONS" not in forward.__code__.co_names or not hasattr(attention, "config"):
            raise ValueError(
                f"{type(attention).__name__} of {name} does not use transformers' attention interface, so a mechanism "
                "cannot be attached to it."
            )
        if getattr(attention, "is_causal", False):
            raise ValueError(f"{type(attention).__name__} of {name} is causal; hf_lam works on encoders.")
        if takes_kwargs(forward) and not _hands_kwargs_on(forward):
            raise ValueError(
                f"{type(attention).__name__} of {name} keeps its keyword arguments to itself, through which hf_lam "
                "reaches the attention function."
            )
        if getattr(base.config, "num_key_value_heads", None) not in (None, base.config.num_attention_heads):
            raise ValueError(
                f"{name} has {base.config.num_key_value_heads} key and value heads for "
                f"{base.config.num_attention_heads} query heads; hf_lam needs as many of each."
            )
        if not takes_kwargs(forward) and type(attention).__name__ not in SHIMS:
            raise ValueError(f"{type(attention).__name__} of {name} takes no keyword arguments, which hf_lam needs.")
    return attentions


def recorded_attentions(base: PreTrainedModel) -> list[Any]:
    """The modules that the host says are its self-attention, in layer order."""
    recorded = (getattr(base, "_can_record_outputs", None) or {}).get("attentions")
    recorders = recorded if isinstance(recorded, (list, tuple)) else [recorded]
    return [module for path, module in base.named_modules() if any(_is_recorded(r, path, module) for r in recorders)]


def _is_recorded(recorder: Any, path: str, module: nn.Module) -> bool:
    # transformers writes a recorder as a class, a class name, or an `OutputRecorder` with a part of the module's path.
    target = getattr(recorder, "target_class", recorder)
    by_class = isinstance(target, type) and isinstance(module, target)
    by_name = isinstance(target, str) and path.endswith(target)
    part = getattr(recorder, "layer_name", None)
    return (by_class or by_name) and (part is None or f".{part.strip('.')}." in f".{path}.")


def find_layers(base: PreTrainedModel, attentions: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """The module whose forward runs the host's layers one after the other, and the layers, one to each attention."""
    name = type(base).__name__
    paths = {
        path: module
        for path, module in base.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and any(child in attentions for child in module.modules())
    }
    expected = getattr(base.config, "num_hidden_layers", len(attentions))
    stacks = {_skip_containers(base, path) for path in paths}
    if not len(paths) == len(attentions) == expected or len(stacks) != 1:
        raise ValueError(
            f"{name} runs {expected} layers with {len(attentions)} self-attention modules in {len(paths)} layer "
            "modules; hf_lam needs one of each for every layer, in one stack."
        )
    stack = base.get_submodule(stacks.pop())
    without = [type(module).__name__ for module in (stack, *paths.values()) if not takes_kwargs(type(module).forward)]
    if without:
        raise ValueError(
            f"{without[0]}.forward takes no keyword arguments, which hf_lam needs to reach the attention."
        )
    return stack, tuple(paths.values())


def _skip_containers(base: nn.Module, path: str) -> str:
    """The path of the module around `path` that runs it, which a list does not."""
    parent = path.rpartition(".")[0]
    is_container = isinstance(base.get_submodule(parent), (nn.ModuleList, nn.ModuleDict))
    return _skip_containers(base, parent) if is_container else parent


def takes_kwargs(forward: Callable[..., Any]) -> bool:
    """Whether a forward takes any keyword argument."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def _hands_kwargs_on(forward: Callable[..., Any]) -> bool:
    """Whether any call in a forward gets its keyword arguments; true where the source cannot be read."""
    try:
        source = textwrap.dedent(inspect.getsource(forward))
    except OSError:
        return True
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return any(keyword.arg is None for call in calls for keyword in call.keywords)


def find_query_and_key(base: PreTrainedModel, attentions: list[Any], advice: str) -> list[tuple[nn.Module, str]]:
    """The projections that a replacement of the scores does without, as modules and names in them.

    Raises:
        ValueError: if the host cannot do without them; `advice` ends the message.
    """
    found = []
    for attention in attentions:
        children = dict(attention.named_children())
        names = next((names for names in PROJECTION_NAMES if set(names) <= set(children)), None)
        if names is None:
            raise ValueError(
                f"{type(attention).__name__} of {type(base).__name__} has no query and key projections of its own "
                f"({', '.join(children)}), which attention without scores would drop. {advice}"
            )
        size = getattr(children[names[2]], "out_features", None)
        if size != base.config.hidden_size or size % base.config.num_attention_heads:
            raise ValueError(
                f"attention without scores needs heads × head size = hidden size, but the values of "
                f"{type(base).__name__} have {size} features for a hidden size of {base.config.hidden_size} and "
                f"{base.config.num_attention_heads} heads. {advice}"
            )
        found += [(attention, name) for name in names[:2]]
    return found


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
