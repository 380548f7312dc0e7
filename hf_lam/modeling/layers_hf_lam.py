# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The layers of an encoder that something is attached to, and what becomes of it when they change.

People keep some layers of an encoder, put them into another order, or repeat copies of them:
`model.vit.layers = model.vit.layers[2:]`. Every layer goes on with what it had, since its hooks know its number. But
what is saved would belong to other layers: before anything else is done with the model, the layers that there are get
the numbers 0, 1, … and the mechanisms follow them.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .attention_hooks_hf_lam import append_tokens, drop_appended, enter_attention, enter_layer, mix_appended
from .attention_pass_hf_lam import Injection
from .changes_hf_lam import Changes, drop_hooks, key_of, undo_changes
from .host_attention_hf_lam import find_layers, needs_stand_in, path_between, recorded_attentions
from .hosts_facts_hf_lam import PROJECTION_NAMES, keep_layers
from .hosts_hf_lam import Host, make_dispatching_config
from .mechanism_hf_lam import MARK, Mechanism, MechanismConfig
from .mechanism_registry_hf_lam import block_of, mechanism_class_of
from .stand_ins_hf_lam import StoodIn, put_stand_in, take_off_stand_in


def make_mechanism(base: Any, config: MechanismConfig, host: Host, attentions: Any) -> Mechanism:
    """The module of one mechanism, on the devices of the host and in its dtype."""
    mechanism = mechanism_class_of(config.name)(config, host)
    if not mechanism.state_dict():
        # It is in the configuration alone then. With a tensor that says so, weights do not load without it unnoticed.
        mechanism.register_buffer(MARK, torch.ones(1, dtype=torch.uint8))
    place_mechanism(mechanism, base, attentions)
    return mechanism


def place_mechanism(mechanism: nn.Module, base: Any, attentions: Sequence[Any]) -> None:
    """Put a mechanism on the devices of the attention modules that it is for, in the dtype of their model."""
    devices = [next(attention.parameters()).device for attention in attentions]
    found = {(tensor.device, tensor.dtype) for tensor in (*mechanism.parameters(), *mechanism.buffers())}
    if found != {(devices[0], base.dtype)}:  # while a model is loaded they are made where they belong
        mechanism.to(device=devices[0], dtype=base.dtype)
    if len(set(devices)) > 1 and isinstance(mechanism, nn.ModuleList) and len(mechanism) == len(attentions):
        for part, device in zip(mechanism, devices, strict=True):
            part.to(device)


def mark_as_initialised(module: nn.Module) -> None:
    """Say that all weights have their values: a model built around this one would draw those anew that do not say so.

    `VisionEncoderDecoderModel(encoder=…)` does, for example, as every class does at the end of its `__init__`.
    """
    child: Any
    for child in module.modules():
        child._is_hf_initialized = True


def write_block(base: Any, configs: Mapping[str, MechanismConfig]) -> None:
    """Let the host's configuration say what the encoder has, if it has a place for it."""
    if hasattr(base.config, "hf_lam"):
        base.config.hf_lam = block_of(configs)


def attach_to_layers(injection: Injection, changes: Changes) -> None:
    """Put on each layer, and on its attention, what hands a pass on to the attention function."""
    layers = injection.layers
    if injection.appending is not None:
        changes.hook_before(layers[0], append_tokens)
        for layer in layers[:-1]:
            changes.hook_after(layer, mix_appended)
        changes.hook_after(layers[-1], drop_appended)
    for layer in layers:
        changes.hook_before(layer, enter_layer)
    if injection.stack is not injection.base and needs_stand_in(injection.stack):
        put_stand_in(injection.stack, injection.layers_path.partition(".")[0])
        changes.undo.append(StoodIn(injection.stack))
    for index, (layer, attention) in enumerate(zip(layers, injection.attentions, strict=True)):
        for module, child in path_between(layer, attention):
            put_stand_in(module, child)
        changes.undo.append(StoodIn(layer))
        changes.set(attention, "config", make_dispatching_config(attention.config))
        changes.hook_before(attention, functools.partial(enter_attention, index))


# --- when the layers change ------------------------------------------------------------------------------------------

_ENTER = key_of(enter_attention)
_ON_LAYERS = (key_of(append_tokens), key_of(enter_layer), key_of(mix_appended), key_of(drop_appended))


def number_of(attention: nn.Module) -> int | None:
    """The number of the layer whose mechanisms an attention module has; None if it has none."""
    hook: Any = attention._forward_pre_hooks.get(_ENTER)  # type: ignore[call-overload]
    return None if hook is None else hook.args[0]


def notice_changed_layers(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Follow changed layers before a forward: what one layer makes for all needs to know the first and the last."""
    injection: Injection = stack._hf_lam
    if not (injection.appending or injection.with_state):
        return
    now = tuple(layers_in(stack, injection.layers_path))
    if len(now) == len(injection.seen) and all(a is b for a, b in zip(now, injection.seen, strict=True)):
        return
    if torch.compiler.is_compiling():
        raise ValueError(
            f"the layers of {type(injection.base).__name__} were changed after its mechanisms had been attached; call "
            "it once before it is compiled or exported."
        )
    problem = follow_layers(injection.base)
    if problem is not None:
        raise ValueError(problem)
    injection.seen = now


def follow_in_state(base: Any, *args: Any) -> None:
    """Follow changed layers before an encoder's tensors are gathered or loaded: they belong to the present layers.

    Where that is not possible, `save_pretrained` and the like say so.
    """
    follow_layers(base)


def layers_in(stack: nn.Module, path: str) -> list[nn.Module]:
    """The modules in the place of a stack's layers: the layers, or what somebody has wrapped around them."""
    try:
        return list(stack.get_submodule(path).children())
    except AttributeError:
        return []


def path_of_layers(stack: nn.Module, layers: Sequence[nn.Module]) -> str:
    """The path of the layers in a stack."""
    return next(path for path, module in stack.named_modules() if module is layers[0]).rpartition(".")[0]


def follow_layers(base: Any) -> str | None:
    """Number the layers that an encoder has now, and give each the part of the mechanisms that it had.

    Returns:
        None; or why that is not possible. Nothing is changed then.
    """
    injection: Injection = base._hf_lam
    numbered = [(module, number) for module in base.modules() if (number := number_of(module)) is not None]
    if [module for module, _ in numbered] == list(injection.attentions):
        return None
    try:
        _renumber(base, injection, [module for module, _ in numbered], [number for _, number in numbered])
    except ValueError as error:
        return (
            f"the layers of {type(base).__name__} were changed after its mechanisms had been attached: {error} Or "
            "call hf_lam.remove before the layers are changed, and attach mechanisms afterwards."
        )
    return None


def explain_layers(base: Any) -> str | None:
    """Why what an encoder has now cannot be saved so that it loads again as it is; None if it can."""
    problem = follow_layers(base)
    if problem is not None:
        return problem
    name = type(base).__name__
    new = [attention for attention in recorded_attentions(base) if number_of(attention) is None]
    if new:
        return (
            f"{name} has {len(new)} layers that were put in after its mechanisms had been attached, and have none. "
            "Call hf_lam.remove before the layers are changed, and attach mechanisms afterwards."
        )
    return explain_number_of_layers(base)


def explain_number_of_layers(base: Any) -> str | None:
    """Why an encoder, with mechanisms or without, would not load again with the layers it has; None if it would."""
    name, has = type(base).__name__, len(recorded_attentions(base))
    said = getattr(base.config, "num_hidden_layers", has)
    if said != has:
        return f"{name} has {has} layers, and its configuration says {said}. Set config.num_hidden_layers={has}."
    return None


def strip_copies(base: Any) -> None:
    """Take off copies of layers what was attached to these: it came with them, and is written down nowhere.

    Called when the layers that were copied have their own state back.
    """
    injection: Injection = base._hf_lam
    for module in injection.stack.modules():
        number = number_of(module)
        if number is not None:
            module.config = injection.attentions[number].config
        take_off_stand_in(module)
        drop_hooks(module, (*_ON_LAYERS, _ENTER))


def explain_heads(base: Any) -> str | None:
    """Why an encoder whose heads were pruned cannot be saved so that it loads again; None if it has all of them."""
    host = base._hf_lam.host
    heads = getattr(base.config, "num_key_value_heads", None) or host.num_heads
    for attention in base._hf_lam.attentions:
        names = next((names for names in PROJECTION_NAMES if hasattr(attention, names[2])), None)
        size = None if names is None else getattr(getattr(attention, names[2]), "out_features", None)
        if size is not None and size < heads * host.head_size and size % host.head_size == 0:
            return (
                f"an attention of {host.name} has {size // host.head_size} heads, and its configuration can only say "
                f"that all have {heads}, so it would not load again. Zero the output of heads instead of "
                "taking them out."
            )
    return None


def _renumber(base: Any, injection: Injection, attentions: list[Any], numbers: list[int]) -> None:
    wanted = getattr(base.config, "num_hidden_layers", len(numbers))
    if wanted != len(numbers):
        raise ValueError(
            f"there are {len(numbers)} with mechanisms now, and its configuration says {wanted}. Set "
            f"config.num_hidden_layers={len(numbers)}, or put copies (copy.deepcopy) where one layer is used twice."
        )
    stack, layers = find_layers(base, attentions)
    host = injection.host._replace(num_layers=len(numbers))
    configs = {name: config.take_layers(numbers).resolve(host) for name, config in injection.configs.items()}
    made = []
    for container in all_containers(base):
        for name, config in configs.items():
            before = getattr(container, name)
            mechanism = make_mechanism(base, config, host, attentions)
            mechanism.take_layers(before, numbers)
            mechanism.train(before.training)
            made.append((container, name, mechanism))

    keep_layers(base.config, numbers, injection.host.num_layers)
    undo_changes(injection.undo, [*injection.layers, *injection.attentions])
    strip_copies(base)
    for container, name, mechanism in made:
        mark_as_initialised(mechanism)
        setattr(container, name, mechanism)
    injection.host, injection.stack, injection.layers, injection.attentions = host, stack, layers, tuple(attentions)
    injection.layers_path = path_of_layers(stack, layers)
    injection.seen = tuple(layers_in(stack, injection.layers_path))
    injection.set_configs(configs)
    injection.has_other_layers = True
    attach_to_layers(injection, Changes(injection.undo))
    write_block(base, configs)


# --- the container of an encoder -------------------------------------------------------------------------------------


def container_of(base: Any) -> Any:
    """The container of an encoder; where PEFT's `modules_to_save` wrapped it, what a forward pass uses.

    That is the copy of the active adapter, and the original where that has none, or no adapter is active.
    """
    copies = getattr(base.hf_lam, "modules_to_save", None)
    if copies is None:
        return base.hf_lam
    active = base.hf_lam.active_adapter
    names = [active] if isinstance(active, str) else list(active)
    if base.hf_lam.disable_adapters or not names or any(name not in copies for name in names):
        return base.hf_lam.original_module
    return copies[names[0]]


def all_containers(base: Any) -> list[Any]:
    """The container of an encoder; where PEFT's `modules_to_save` wrapped it, the original and every copy."""
    copies = getattr(base.hf_lam, "modules_to_save", None)
    return [base.hf_lam] if copies is None else [base.hf_lam.original_module, *copies.values()]
