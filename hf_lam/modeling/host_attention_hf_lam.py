# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Finds the attention of other people's encoders, and whether a mechanism can reach it.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .hosts_facts_hf_lam import (
    PROJECTION_NAMES,
    is_composed,
    is_fusion,
    read_bias,
    read_layerdrop,
    read_partition,
    read_softcap,
)
from .stand_ins_hf_lam import explain_no_stand_in

# --- the encoder -----------------------------------------------------------------------------------------------------


def find_encoder(model: Any) -> Any:
    """The encoder inside a model that mechanisms are attached to: what its head stands on, or the model itself.

    Attention that a head has of its own, as the poolers of SigLIP and V-JEPA 2, is not part of it. Of a model that is
    made of an encoder and a decoder, such as `VisionEncoderDecoderModel`, it is what is in the encoder.

    Raises:
        ValueError: if there are several, as the towers of CLIP or an encoder and a decoder; it names them.
    """
    base = encoder_side_of(model).base_model
    if is_fusion(base.config):
        return base
    while True:
        parts = {path: part for path, part in _parts_of(base) if _has_attention(part)}
        if len(parts) > 1 or (parts and _own_attentions(base)):
            raise ValueError(_explain_parts(model, base, parts))
        part = next(iter(parts.values()), None)
        # Whisper's heads stand on an encoder that takes their input; that inside of DINOv2 gets embeddings.
        if part is None or part.main_input_name not in inspect.signature(type(part).forward).parameters:
            return base
        base = part


def encoder_side_of(model: Any) -> Any:
    """The encoder of a model that is made of an encoder and a decoder, and any other model itself."""
    return model.encoder if is_composed(model.config) else model


def _parts_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    """The models inside a model, without those inside of these."""
    for name, child in module.named_children():
        if isinstance(child, PreTrainedModel):
            yield prefix + name, child
        else:
            yield from _parts_of(child, f"{prefix}{name}.")


def _has_attention(model: PreTrainedModel) -> bool:
    return bool(_own_attentions(model)) or any(_has_attention(part) for _, part in _parts_of(model))


def _own_attentions(model: PreTrainedModel) -> list[Any]:
    """The recorded self-attention of a model that is not inside of another model in it."""
    inner = {module for _, part in _parts_of(model) for module in part.modules()}
    return [attention for attention in recorded_attentions(model) if attention not in inner]


def _explain_parts(model: Any, base: Any, parts: dict[str, PreTrainedModel]) -> str:
    name = type(model).__name__
    if getattr(base.config, "is_encoder_decoder", False):
        return (
            f"{name} has an encoder and a decoder, and hf_lam works on encoders without a cache. Attach mechanisms to "
            "the encoder alone: hf_lam.inject(model.get_encoder(), ...)."
        )
    prefix = "model." if base is model else f"model.{model.base_model_prefix}."
    calls = " or ".join(f"hf_lam.inject({prefix}{path}, ...)" for path in parts)
    return f"{name} consists of several encoders, and a mechanism belongs to one of them. Choose it: {calls}."


# --- its attention ---------------------------------------------------------------------------------------------------


def find_attentions(base: PreTrainedModel) -> list[Any]:
    """The host's self-attention modules in layer order, or a `ValueError` that says why it cannot be a host."""
    name = type(base).__name__
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"{name} is not a transformers encoder.")
    if getattr(base.config, "is_decoder", False):
        raise ValueError(
            f"{name} is a decoder (is_decoder in its configuration); hf_lam works on encoders without a cache."
        )
    attentions = recorded_attentions(base)
    if not attentions and getattr(base.config, "num_hidden_layers", None) == 0:
        raise ValueError(f"{name} has num_hidden_layers=0, so it has no attention to attach a mechanism to.")
    without = [attention for attention in attentions if not uses_interface(attention)]
    if without or not attentions or (_takes_pictures(base) and read_partition(base.config) is not None):
        raise ValueError(_explain_no_interface(base))
    if is_causal(base, attentions) and _takes_cache(base):
        raise ValueError(f"{name} is a causal decoder with a cache; hf_lam works on encoders without one.")
    kinds = {type(attention) for attention in attentions}
    if any(map(_is_packed, kinds)):
        raise ValueError(
            f"{type(attentions[0]).__name__} of {name} attends piece by piece to several inputs in one sequence "
            "(cu_seqlens), and hf_lam needs them as a batch."
        )
    asked = {text for kind in kinds for text in _names_in(inspect.unwrap(kind.forward).__code__)}
    softcap = read_softcap(base.config) if "softcap" in asked else None
    unserved = ["s_aux"] * ("s_aux" in asked) + [f"softcap={softcap}"] * (softcap is not None)
    if unserved:
        raise ValueError(
            f"{type(attentions[0]).__name__} of {name} gives {', '.join(unserved)} to its attention function, which "
            "the mechanisms of hf_lam do not have."
        )
    return attentions


def _is_packed(kind: Any) -> bool:
    """Whether a class of attentions must be told where its inputs begin; RADIO's, for one, need not be."""
    parameters = inspect.signature(kind.forward).parameters
    return "cu_seqlens" in parameters and parameters["cu_seqlens"].default is inspect.Parameter.empty


def uses_interface(attention: Any) -> bool:
    """Whether an attention module goes through transformers' attention interface."""
    code = getattr(inspect.unwrap(type(attention).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and hasattr(attention, "config")


def _names_in(code: CodeType) -> set[str]:
    """The names of keyword arguments that a function gives to others, and its other texts."""
    found, rest = set(), list(code.co_consts)
    while rest:
        constant = rest.pop()
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, tuple):
            rest += constant
        elif isinstance(constant, CodeType):
            rest += constant.co_consts
    return found


def is_causal(base: PreTrainedModel, attentions: list[Any] | tuple[Any, ...]) -> bool:
    """Whether tokens see earlier ones only, as in CLIP's text encoder."""
    if any(getattr(attention, "is_causal", False) for attention in attentions):
        return True
    models = {type(module) for module in base.modules() if isinstance(module, PreTrainedModel)}
    names = [set(inspect.unwrap(kind.forward).__code__.co_names) for kind in models]
    # A forward that can make both asks the configuration, which has said already that this is no decoder.
    return any("create_causal_mask" in called and "create_bidirectional_mask" not in called for called in names)


def explain_masks_by_query(base: PreTrainedModel, attentions: list[Any]) -> str | None:
    """Why not every query of a host sees the same keys with the same weight, as a clause; None if they do."""
    if is_causal(base, attentions):
        return "its tokens see earlier ones only"
    bias = read_bias(base.config)
    return None if bias is None else f"it adds a bias to the scores ({bias})"


def explain_no_place(base: PreTrainedModel, attentions: list[Any]) -> str | None:
    """Why a host can have no more tokens at the end than those of its input, as a clause; None if it can."""
    name = type(base).__name__
    if is_causal(base, attentions):
        return f"the tokens of {name} see earlier ones only"
    # Those that turn queries and keys, or are added to scores: made beforehand, for the tokens of the input.
    parameters = inspect.signature(type(attentions[0]).forward).parameters
    positions = next((option for option in parameters if option.endswith("position_embeddings")), None)
    if positions is not None:
        return f"the attention of {name} gets the place of every token ({positions})"
    # The first layer appends them, and the last one takes them off.
    dropped = read_layerdrop(base.config)
    if dropped is None:
        return None
    return f"{name} leaves out layers at random in training ({dropped[0]}={dropped[1]}; with 0 it runs all)"


def input_width_of(attention: Any) -> int | None:
    """The number of features in the input of an attention; None if it has no query projection of its own to tell."""
    names = next((names for names in PROJECTION_NAMES if hasattr(attention, names[0])), None)
    return None if names is None else getattr(getattr(attention, names[0]), "in_features", None)


def _takes_cache(base: PreTrainedModel) -> bool:
    return bool({"past_key_values", "cache", "use_cache"} & set(inspect.signature(type(base).forward).parameters))


def _explain_no_interface(base: PreTrainedModel) -> str:
    """The reason why attention that does not go through transformers' interface cannot be reached."""
    name = type(base).__name__
    attentions = [module for module in base.modules() if _is_innermost_attention(module)]
    if not attentions:
        return f"{name} has no self-attention to attach a mechanism to."
    partition = read_partition(base.config) if _takes_pictures(base) else None
    if partition is not None:
        return f"{name} {partition}, and hf_lam needs layers that all see the same tokens at once."
    if not any(uses_interface(attention) for attention in attentions):
        return (
            f"{type(attentions[0]).__name__} of {name} computes its attention itself and not through transformers' "
            "attention interface (ALL_ATTENTION_FUNCTIONS), so there is no place for a mechanism in it."
        )
    recorded = recorded_attentions(base)
    if recorded:
        return (
            f"{name} does not say where its self-attention is: it names {type(recorded[0]).__name__} "
            "(`_can_record_outputs['attentions']`), which leaves the attention function to a module inside of it."
        )
    return (
        f"{name} does not say where its self-attention is (no `_can_record_outputs['attentions']`), so there is "
        "nothing to attach a mechanism to."
    )


def _is_innermost_attention(module: nn.Module) -> bool:
    inner = [child for child in module.modules() if "Attention" in type(child).__name__]
    return inner == [module]


def _takes_pictures(base: PreTrainedModel) -> bool:
    return base.main_input_name.startswith("pixel_values")


def recorded_attentions(base: PreTrainedModel, kind: str = "attentions") -> list[Any]:
    """The modules that the host says are its self-attention, in layer order; or its `"cross_attentions"`."""
    recorded = (getattr(base, "_can_record_outputs", None) or {}).get(kind)
    recorders = recorded if isinstance(recorded, (list, tuple)) else [recorded]
    return [module for path, module in base.named_modules() if any(_is_recorded(r, path, module) for r in recorders)]


def _is_recorded(recorder: Any, path: str, module: nn.Module) -> bool:
    # transformers writes a recorder as a class, a class name, or an `OutputRecorder` with a part of the module's path.
    target = getattr(recorder, "target_class", recorder)
    by_class = isinstance(target, type) and isinstance(module, target)
    by_name = isinstance(target, str) and path.endswith(target)
    part = getattr(recorder, "layer_name", None)
    return (by_class or by_name) and (part is None or f".{part.strip('.')}." in f".{path}.")


# --- its layers ------------------------------------------------------------------------------------------------------


def find_layers(
    base: PreTrainedModel, attentions: list[Any], num_layers: int | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """The module whose forward runs the host's layers one after the other, and the layers, one to each attention.

    num_layers: number of layers that there must be; the configuration's unless given.
    """
    name = type(base).__name__
    paths = _find_layer_paths(base, attentions)
    expected = getattr(base.config, "num_hidden_layers", len(attentions)) if num_layers is None else num_layers
    stacks = {_skip_containers(base, path) for path in paths}
    if len(attentions) < expected and len(stacks) <= 1:
        raise ValueError(
            f"{name} runs {expected} layers with {len(attentions)} self-attention module(s): its layers share their "
            "weights, and a mechanism has parts of its own for every layer."
        )
    if not len(paths) == len(attentions) == expected or len(stacks) != 1:
        raise ValueError(
            f"{name} runs {expected} layers with {len(attentions)} self-attention modules in {len(paths)} layer "
            f"modules and {len(stacks)} stacks; hf_lam needs one of each for every layer, in one stack."
        )
    stack, layers = base.get_submodule(stacks.pop()), tuple(paths.values())
    if stack is base and needs_stand_in(stack) and not hands_on(stack):
        raise ValueError(
            f"{name}.forward hands no keyword arguments to its layers, with which hf_lam reaches their attention."
        )
    on_the_way = [stack] if stack is not base and needs_stand_in(stack) else []
    for layer, attention in zip(layers, attentions, strict=True):
        on_the_way += [module for module, _ in path_between(layer, attention)]
    reason = next((reason for module in on_the_way if (reason := explain_no_stand_in(module)) is not None), None)
    if reason is not None:
        raise ValueError(f"hf_lam cannot reach the attention of {name}: {reason}")
    _check_sizes(base, attentions)
    return stack, layers


def _find_layer_paths(base: PreTrainedModel, attentions: list[Any]) -> dict[str, Any]:
    """The layers around some attention modules, by their paths."""
    modules = dict(base.named_modules())
    paths = [path for path, module in modules.items() if module in attentions]
    found = {}
    for path in paths:
        names = path.split(".")
        around = [".".join(names[:end]) for end in range(1, len(names) + 1)]
        layers = [part for part in around if isinstance(modules[part], GradientCheckpointingLayer)]
        listed = [part for part in around if isinstance(modules[part.rpartition(".")[0]], nn.ModuleList)]
        found.update({part: modules[part] for part in layers or listed[:1]})
    return found


def path_between(module: nn.Module, part: nn.Module) -> list[tuple[nn.Module, str | None]]:
    """The modules from one to a part of it, as from a layer to its attention, each with the name of the next one."""
    names = next(path for path, inner in module.named_modules() if inner is part).split(".")
    steps: list[tuple[nn.Module, str | None]] = []
    for name in names:
        steps.append((module, name))
        module = getattr(module, name)
    return [*steps, (module, None)]


def _skip_containers(base: nn.Module, path: str) -> str:
    """The path of the module around `path` that runs it, which a list does not."""
    parent = path.rpartition(".")[0]
    is_container = isinstance(base.get_submodule(parent), (nn.ModuleList, nn.ModuleDict))
    return _skip_containers(base, parent) if is_container else parent


def needs_stand_in(stack: nn.Module) -> bool:
    """Whether the module that runs the layers does not hand its keyword arguments on to them."""
    steps = list(dis.get_instructions(inspect.unwrap(type(stack).forward)))
    loops = [(step.offset, step.argval) for step in steps if step.opname == "FOR_ITER"]
    return not any(start < step.offset < end for step in steps if _gives_kwargs(step) for start, end in loops)


def hands_on(module: nn.Module) -> bool:
    """Whether a module's forward gives its keyword arguments to anything that it calls."""
    return any(map(_gives_kwargs, dis.get_instructions(inspect.unwrap(type(module).forward))))


def _gives_kwargs(step: dis.Instruction) -> bool:
    """Whether a step of a function is a call like `f(**kwargs)`."""
    return step.opname == "CALL_FUNCTION_EX"


def _check_sizes(base: PreTrainedModel, attentions: list[Any]) -> None:
    """Raises a `ValueError` where heads have no one number and size in all layers."""
    config: Any = base.config
    for option in ("hidden_size", "num_attention_heads"):
        if not isinstance(getattr(config, option, None), int):
            raise ValueError(
                f"the configuration of {type(base).__name__} says no {option} that holds for all layers "
                f"({getattr(config, option, None)!r}), which hf_lam needs."
            )
    sizes = [
        {name: child.out_features for name, child in attention.named_children() if isinstance(child, nn.Linear)}
        for attention in attentions
    ]
    for found in sizes:
        differing = [name for name, size in found.items() if sizes[0].get(name, size) != size]
        if differing:
            raise ValueError(
                f"the layers of {type(base).__name__} differ in width: {differing[0]} has {sizes[0][differing[0]]} "
                f"features in one and {found[differing[0]]} in another. hf_lam needs one width for all."
            )


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
