# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attach mechanisms to a transformers encoder, in place, and take them off again.

The host keeps its projections, layers and classes. Everything between q, k, v and the context is ours, reached through
pre-hooks (`attention_hooks_hf_lam.py`) and one attention function (`attention_pass_hf_lam.py`). Attaching is three
steps:

    plan_injection(model, block)   looks, checks and makes the new modules; may raise, changes nothing
    plan.container                 gets its weights, where there are any to load
    plan.apply()                   changes the encoder, and writes down what, for `remove`

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .attention_hooks_hf_lam import enter_stack, hand_token_types, refuse_replicas, restore_checkpointing
from .attention_pass_hf_lam import GRID, Injection
from .changes_hf_lam import Changes, undo_changes
from .host_attention_hf_lam import (
    encoder_side_of,
    explain_masks_by_query,
    explain_no_place,
    find_attentions,
    find_encoder,
    find_layers,
    find_query_and_key,
    hands_on,
    input_width_of,
    path_between,
)
from .hosts_facts_hf_lam import drops_tokens, is_fusion
from .hosts_hf_lam import check_keeps_tokens, find_input_module, read_host, refuse_dropped_tokens
from .input_grids_hf_lam import check_one_grid, find_arguments, watch_input
from .layers_hf_lam import (
    attach_to_layers,
    container_of,
    follow_in_state,
    follow_layers,
    layers_in,
    make_mechanism,
    mark_as_initialised,
    notice_changed_layers,
    path_of_layers,
    strip_copies,
    write_block,
)
from .mechanism_hf_lam import MARK, PATTERN, REPLACEMENT, MechanismConfig, MechanismContainer, MechanismPart, overrides
from .mechanism_registry_hf_lam import check_combination, configs_in
from .stand_ins_hf_lam import PASS, StoodIn, explain_no_stand_in, put_stand_in

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


class InjectedEncoder(Protocol):
    """An encoder with mechanisms, as `injected_encoders` finds it: a `PreTrainedModel` with two attributes more.

    hf_lam: the `MechanismContainer`, or what PEFT put in its place.
    _hf_lam: the `Injection`; `injection_of` reads it.
    """

    config: Any
    hf_lam: Any
    _hf_lam: Injection
    training: bool
    main_input_name: str

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def parameters(self) -> Any: ...

    def named_parameters(self) -> Any: ...

    def modules(self) -> Any: ...


# --- plan, apply, undo -----------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The changes that `apply` will make to an encoder.

    model: the model that was given: the encoder, or a model around it.
    base: the encoder.
    injection: the record that it will have.
    container: the new modules, which may be given their weights before.
    entered: the module that takes the input; None if there is none.
    projections: projections that a replacement of the scores does without, as modules and names in them.
    """

    model: Any
    base: Any
    injection: Injection
    container: MechanismContainer
    entered: Any
    projections: list[tuple[nn.Module, str]]

    def apply(self) -> None:
        """Attach the mechanisms."""
        base, injection = self.base, self.injection
        changes = Changes(injection.undo)
        if torch.tensor([]).device.type != "meta":  # in that context weights get their values later, when loaded
            mark_as_initialised(self.container)
        changes.set(base, "hf_lam", self.container)
        drop_projections(self.projections)
        changes.set(base, "_hf_lam", injection)
        if injection.stack is not base:
            changes.set(injection.stack, "_hf_lam", injection)
        write_block(base, injection.configs)
        # Loading builds models without values and then asks `_init_weights` for those the checkpoint lacks.
        changes.set(base, "_init_weights", functools.partial(initialize_weights, base))
        changes.hook_state(base, follow_in_state)
        changes.hook_before(injection.stack, refuse_replicas)
        # Users, and other libraries, call the forward of an encoder; that of a stack in it is called by the encoder.
        hook = changes.enter if injection.stack is base else changes.hook_before
        hook(injection.stack, notice_changed_layers)
        hook(injection.stack, enter_stack)
        _apply_to_inputs(self.entered, injection, changes)
        attach_to_layers(injection, changes)


def plan_injection(model: PreTrainedModel, block: dict[str, Any] | None) -> Plan:
    """Find out how to attach the mechanisms of a validated `hf_lam` block to a model, and whether that is possible.

    Raises:
        ValueError: if the host cannot take the mechanisms, with the reason, or already has some.
    """
    configs = configs_in(block)
    if not configs:
        raise ValueError(f"nothing to attach in the hf_lam block {block!r}; expected {{'lam': {{...}}}}, for example.")
    base: Any = find_encoder(model)
    if injected_encoders(model):
        raise ValueError(
            f"{type(model).__name__} already has hf_lam mechanisms; call hf_lam.remove(model) before injecting others."
        )
    if any("_hf_lam_configs" in module.__dict__ for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has mechanisms that an older hf_lam attached, which this one cannot read. Load "
            "it without trust_remote_code, where hf_lam is imported."
        )
    attentions = find_attentions(base)
    stack, layers = find_layers(base, attentions)
    if any(config.needs_places for config in configs.values()):
        check_keeps_tokens(base)
    if is_fusion(base.config):
        check_grid(type(base).__name__, configs)
    host = read_host(base, len(attentions), encoder_side_of(model))
    configs = {name: config.resolve(host) for name, config in configs.items()}
    check_combination(configs)
    check_one_grid(configs, host)
    check_input(base, configs, attentions)
    projections = plan_projections(base, configs, attentions)
    mechanisms = {name: make_mechanism(base, config, host, attentions) for name, config in configs.items()}
    container = MechanismContainer(mechanisms)
    container.train(base.training)
    injection = Injection(
        configs=configs,
        host=host,
        base=base,
        stack=stack,
        layers=layers,
        attentions=tuple(attentions),
        begins=tuple(name for name, mechanism in mechanisms.items() if overrides(mechanism, "begin")),
        token_types_position=_position_of_token_types(base, configs),
        layers_path=path_of_layers(stack, layers),
    )
    injection.seen = tuple(layers_in(stack, injection.layers_path))
    # DINOv3's encoder, for one, gets embeddings, and that alone may be what there is.
    entered = find_input_module(model, base)
    check_way_of_input(entered, injection)
    return Plan(model, base, injection, container, entered, projections)


def check_input(base: Any, configs: dict[str, Any], attentions: list[Any]) -> None:
    """Raises a `ValueError` for mechanisms that cannot do with what a host's attention gets, or what it may see."""
    name, width = type(base).__name__, input_width_of(attentions[0])
    reading = next((config for config in configs.values() if config.change != PATTERN), None)
    if reading is not None and width not in (None, base.config.hidden_size):
        raise ValueError(
            f"{type(reading).__name__} reads tokens of hidden_size={base.config.hidden_size} features, but the "
            f"attention of {name} gets {width}."
        )
    replacing = next((config for config in configs.values() if config.change == REPLACEMENT), None)
    reason = None if replacing is None else explain_masks_by_query(base, attentions)
    if replacing is not None and reason is not None:
        raise ValueError(
            f"{type(replacing).__name__} without scores has no place for what {name} does to them: {reason}. It can "
            f"only be a mixture: {replacing.instead_of_replacement}"
        )
    appending = next((config for config in configs.values() if config.appended_tokens), None)
    reason = None if appending is None else explain_no_place(base, attentions)
    if reason is not None:
        raise ValueError(
            f"{reason}, so that the tokens that {type(appending).__name__} appends have no place. Leave bottleneck "
            "tokens out."
        )


def check_grid(name: str, configs: dict[str, Any]) -> None:
    """Raises a `ValueError` for mechanisms on a grid in a model of several modalities, which have none."""
    needing = [type(config).__name__ for config in configs.values() if config.needs_grid]
    if needing:
        raise ValueError(
            f"{needing[0]} needs tokens on one grid, which the sequence of several modalities of {name} is not. Leave "
            "it out."
        )


def plan_projections(
    base: Any, configs: dict[str, Any], attentions: list[Any] | tuple[Any, ...]
) -> list[tuple[nn.Module, str]]:
    """The query and key projections that these configurations do without; a `ValueError` if the host cannot."""
    replacing = [config for config in configs.values() if config.change == REPLACEMENT]
    if not replacing:
        return []
    return find_query_and_key(
        base, list(attentions), f"It can only be a mixture: {replacing[0].instead_of_replacement}"
    )


def _position_of_token_types(base: Any, configs: dict[str, Any]) -> int | None:
    if not any(config.needs_token_types for config in configs.values()):
        return None
    # Without `self`.
    return list(inspect.signature(type(base).forward).parameters).index("token_type_ids") - 1


def check_way_of_input(entered: Any, injection: Injection) -> None:
    """Raises a `ValueError` where what an encoder is called with cannot be told to its layers."""
    if not (injection.needs_places and injection.host.tokens.grid) or entered in (None, injection.stack):
        return
    for module, _ in _keeping_keywords(entered, injection.stack):
        reason = explain_no_stand_in(module)
        if reason is not None:
            raise ValueError(f"hf_lam cannot tell the layers of {injection.host.name} the grid of its input: {reason}")


def _keeping_keywords(entered: nn.Module, stack: nn.Module) -> list[tuple[nn.Module, str | None]]:
    """The modules from what gets the input to the stack of layers, if one of them hands no keyword arguments on."""
    way = path_between(entered, stack)[:-1]
    return [] if all(hands_on(module) for module, _ in way) else way


def _apply_to_inputs(entered: Any, injection: Injection, changes: Changes) -> None:
    """Check and note what the encoder is called with, where mechanisms are tied to it."""
    base = injection.base
    if injection.needs_places and injection.host.tokens.grid and entered is not None:
        if entered is injection.stack:
            injection.input_places = find_arguments(entered)
        else:
            standing_in = _keeping_keywords(entered, injection.stack)
            for module, child in standing_in:
                put_stand_in(module, child)
                changes.undo.append(StoodIn(module))
            changes.enter(entered, watch_input(injection, entered, PASS if standing_in else GRID))
    if injection.needs_places and drops_tokens(base.config):
        changes.enter(base, refuse_dropped_tokens)
    if injection.token_types_position is not None and injection.stack is not base:
        changes.enter(base, hand_token_types)


def drop_projections(projections: list[tuple[nn.Module, str]]) -> None:
    """Put the identity in their place: no weights, no work, and the sizes that the host goes on with."""
    for attention, name in projections:
        setattr(attention, name, nn.Identity())


def initialize_weights(base: PreTrainedModel, module: nn.Module) -> None:
    """Give a module of an encoder its first values: a mechanism's own, or those that the host gives to its kind."""
    if isinstance(module, MechanismPart):
        module.reset_parameters()
        if MARK in module._buffers:
            init.ones_(module.get_buffer(MARK))
    else:
        type(base)._init_weights(base, module)


def remove_mechanisms(model: ModelT) -> ModelT:
    """Take all mechanisms off the encoders in a model again, in place; their outputs are those of the hosts alone.

    Raises:
        ValueError: if the model has none, or a pure STT, for which it gave up its query and key projections.
    """
    encoders = _find_injected(model)
    if not encoders:
        raise ValueError(f"{type(model).__name__} has no hf_lam mechanisms to remove.")
    for base in encoders:
        replacement = injection_of(base).replacement
        if replacement is not None:
            raise ValueError(
                f"{type(base).__name__} with {injection_of(base).configs[replacement]} has no query and key "
                "projections any more, without which its own attention cannot run. Load the original checkpoint "
                "again."
            )
    for base in encoders:
        injection = injection_of(base)
        follow_layers(base)
        restore_checkpointing(tuple(base.modules()))
        undo_changes(injection.undo, [*injection.layers, *injection.attentions])
        strip_copies(base)
        undo_changes(injection.undo)
        if getattr(base.config, "hf_lam", None) is not None:
            base.config.hf_lam = None
    return model


# --- what is there ---------------------------------------------------------------------------------------------------


def injected_encoders(model: nn.Module) -> list[InjectedEncoder]:
    """The encoders inside `model` that carry mechanisms, by whichever copy of this code they were attached.

    Where layers were cut, reordered or copied since, their mechanisms follow them first, if they can.
    """
    encoders = _find_injected(model)
    for base in encoders:
        follow_layers(base)
    return encoders


def _find_injected(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if getattr(module.__dict__.get("_hf_lam"), "base", None) is module]


def injection_of(base: InjectedEncoder) -> Injection:
    """The record of an encoder that `injected_encoders` found."""
    return base._hf_lam


def encoders_with(model: nn.Module, name: str) -> list[InjectedEncoder]:
    """The encoders inside `model` that have the mechanism `name`."""
    return [base for base in injected_encoders(model) if name in injection_of(base).configs]


def mechanism_of(base: InjectedEncoder, name: str) -> Any:
    """The module of the mechanism `name`, which the encoder must have."""
    return getattr(container_of(base), name)


def list_changes(model: nn.Module) -> list[str]:
    """List what the mechanisms just attached change in the model's outputs before any training."""
    messages = (
        config.explain_change(type(model).__name__)
        for base in _find_injected(model)
        for config in injection_of(base).configs.values()
    )
    return [message for message in messages if message is not None]


def replace_config(base: InjectedEncoder, config: MechanismConfig) -> None:
    """Let an encoder have another configuration of a mechanism that it has; its modules are the caller's."""
    injection = injection_of(base)
    configs = {**injection.configs, config.name: config}
    check_one_grid(configs, injection.host)
    write_block(base, configs)  # before anything else: it is checked there
    injection.set_configs(configs)
