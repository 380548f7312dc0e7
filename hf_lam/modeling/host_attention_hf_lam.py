# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Where the attention of other people's encoders is, and whether a mechanism can reach it.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .hosts_facts_hf_lam import PROJECTION_NAMES, SHIMS


def find_encoder(model: Any) -> Any:
    """The encoder inside a model that mechanisms are attached to: the model itself, or what its head stands on."""
    return model.base_model


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
