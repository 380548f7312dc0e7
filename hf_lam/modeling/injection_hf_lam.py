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
from transformers.utils import logging

from .attention_hooks_hf_lam import (
    append_tokens,
    check_image_size,
    drop_appended,
    enter_attention,
    enter_layer,
    enter_stack,
    forward_with_token_types,
    mix_appended,
    restore_checkpointing,
)
from .attention_pass_hf_lam import Injection
from .hosts_facts_hf_lam import SHIMS, drops_tokens, is_fusion
from .hosts_hf_lam import (
    Host,
    check_keeps_tokens,
    find_attentions,
    find_layers,
    find_query_and_key,
    make_dispatching_config,
    read_host,
    refuse_dropped_tokens,
    takes_kwargs,
)
from .mechanism_hf_lam import REPLACEMENT, Mechanism, MechanismConfig, MechanismContainer, MechanismPart, overrides
from .mechanism_registry_hf_lam import (
    block_of,
    check_combination,
    configs_in,
    mechanism_block,
    mechanism_class_of,
)

logger = logging.get_logger(__name__)

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


def inject(model: ModelT, *configs: Any) -> ModelT:
    """Attach mechanisms to a transformers encoder, in place.

    Args:
        model: an encoder, or a task model on top of one, whose attention goes through transformers' attention
            interface (BERT, RoBERTa, ViT, DeiT, VideoMAE, AST and many more).
        *configs: what to attach, one of each kind: `LamConfig()`, `LocomtConfig()`, `SttConfig()`, or registered ones
            of your own.

    Returns:
        The same model. With the defaults its outputs are unchanged; what changes them at once is logged. A pure STT
        drops the query and key projections for good. Its class stays the stock one, which cannot
        load the new weights again: save them with `save_mechanism`, or use `convert` for a model that saves whole.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if the host cannot take the mechanism, with the reason, or already has one. The model is unchanged.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"inject needs a transformers model (a PreTrainedModel), got {type(model).__name__}.")
    plan_injection(model, mechanism_block(configs)).apply()
    for change in list_changes(model):
        logger.warning(change)
    return model


# --- plan, apply, undo -----------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What `apply` will do to an encoder.

    base: the encoder.
    injection: the record that it will have.
    container: the new modules, which may be given their weights before.
    projections: what a replacement of the scores does without, as modules and names in them.
    """

    base: Any
    injection: Injection
    container: MechanismContainer
    projections: list[tuple[nn.Module, str]]

    def apply(self) -> None:
        """Attach the mechanisms."""
        base, injection = self.base, self.injection
        change = _Changes(injection.undo)
        if torch.tensor([]).device.type != "meta":  # in that context weights get their values later, when loaded
            mark_as_initialised(self.container)
        change.set(base, "hf_lam", self.container)
        drop_projections(self.projections)
        change.set(base, "_hf_lam", injection)
        if injection.stack is not base:
            change.set(injection.stack, "_hf_lam", injection)
        write_block(base, injection)
        # Loading builds models without values and then asks `_init_weights` for those the checkpoint lacks.
        change.set(base, "_init_weights", functools.partial(initialize_weights, base))
        change.hook(injection.stack.register_forward_pre_hook(enter_stack, with_kwargs=True))
        _apply_to_inputs(base, injection, change)
        _apply_to_layers(injection, change)


def plan_injection(model: PreTrainedModel, block: dict[str, Any] | None) -> Plan:
    """Find out how to attach the mechanisms of a validated `hf_lam` block to a model, and whether that is possible.

    Raises:
        ValueError: if the host cannot take the mechanisms, with the reason, or already has some.
    """
    configs = configs_in(block)
    if not configs:
        raise ValueError(f"nothing to attach in the hf_lam block {block!r}; expected {{'lam': {{...}}}}, for example.")
    base: Any = model.base_model
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
    host = read_host(base, len(attentions))
    configs = {name: config.resolve(host) for name, config in configs.items()}
    check_combination(configs)
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
    )
    return Plan(base, injection, container, projections)


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


def make_mechanism(base: Any, config: MechanismConfig, host: Host, attentions: Any) -> Mechanism:
    """The module of one mechanism, on the devices of the host and in its dtype."""
    mechanism = mechanism_class_of(config.name)(config, host)
    mechanism.to(device=next(attentions[0].parameters()).device, dtype=base.dtype)
    if isinstance(mechanism, nn.ModuleList) and len(mechanism) == len(attentions):
        for part, attention in zip(mechanism, attentions, strict=True):
            part.to(next(attention.parameters()).device)
    return mechanism


def _position_of_token_types(base: Any, configs: dict[str, Any]) -> int | None:
    if not any(config.needs_token_types for config in configs.values()):
        return None
    # Without `self`.
    return list(inspect.signature(type(base).forward).parameters).index("token_type_ids") - 1


class Replaced(NamedTuple):
    """An attribute of a module before and after."""

    module: nn.Module
    name: str
    existed: bool
    before: Any
    after: Any


class _Changes:
    """Changes modules and writes down how to undo it."""

    def __init__(self, undo: list[Any]) -> None:
        self.undo = undo

    def set(self, module: Any, name: str, value: Any) -> None:
        before = module.__dict__
        self.undo.append(Replaced(module, name, name in before, before.get(name), value))
        setattr(module, name, value)

    def hook(self, handle: Any) -> None:
        self.undo.append(handle)


def undo_changes(undo: list[Any]) -> None:
    """Take back what was written down, last first. What something else has replaced since stays as it is."""
    for entry in reversed(undo):
        if hasattr(entry, "remove"):
            entry.remove()
        elif not _is_ours(entry):
            continue
        elif entry.existed:
            setattr(entry.module, entry.name, entry.before)
        else:
            delattr(entry.module, entry.name)
    undo.clear()


def _is_ours(entry: Replaced) -> bool:
    """Whether an attribute is still what it was changed to, as far as it would do harm without us."""
    now = getattr(entry.module, entry.name, None)
    # PEFT puts a wrapper in the container's place; a copy of the configuration sends attention to us, too.
    return now is entry.after or entry.name == "hf_lam" or getattr(now, "hf_lam_dispatches", False)


def _apply_to_inputs(base: Any, injection: Injection, change: _Changes) -> None:
    """Check and note what the encoder is called with, where mechanisms are tied to it."""
    configs = injection.configs.values()
    if any(config.needs_places for config in configs) and drops_tokens(base.config):
        change.hook(base.register_forward_pre_hook(refuse_dropped_tokens, with_kwargs=True))
    if any(config.input_grid and config.input_grid == injection.host.tokens.grid for config in configs):
        change.hook(base.register_forward_pre_hook(check_image_size, with_kwargs=True))
    if injection.token_types_position is not None:
        # Not a hook: sentence-transformers calls `forward` itself. What accelerate may have put there stays beneath.
        host_forward = base.__dict__.get("forward")
        forward: Any = functools.partial(forward_with_token_types, base, host_forward)
        forward.__signature__ = inspect.signature(base.forward)
        change.set(base, "forward", forward)


def _apply_to_layers(injection: Injection, change: _Changes) -> None:
    layers = injection.layers
    if injection.appending is not None:
        change.hook(layers[0].register_forward_pre_hook(append_tokens, with_kwargs=True))
        for layer in layers[:-1]:
            change.hook(layer.register_forward_hook(mix_appended, with_kwargs=True))
        change.hook(layers[-1].register_forward_hook(drop_appended, with_kwargs=True))
    for layer in layers:
        change.hook(layer.register_forward_pre_hook(enter_layer, with_kwargs=True))
    for index, attention in enumerate(injection.attentions):
        change.set(attention, "config", make_dispatching_config(attention.config))
        if not takes_kwargs(attention.forward):
            change.set(attention, "forward", functools.partial(SHIMS[type(attention).__name__], attention))
        enter = functools.partial(enter_attention, index)
        change.hook(attention.register_forward_pre_hook(enter, with_kwargs=True))


def mark_as_initialised(module: nn.Module) -> None:
    """Say that all weights have their values: a model built around this one would draw those anew that do not say so.

    `VisionEncoderDecoderModel(encoder=…)` does, for example, as every class does at the end of its `__init__`.
    """
    child: Any
    for child in module.modules():
        child._is_hf_initialized = True


def drop_projections(projections: list[tuple[nn.Module, str]]) -> None:
    """Put the identity in their place: no weights, no work, and the sizes that the host goes on with."""
    for attention, name in projections:
        setattr(attention, name, nn.Identity())


def write_block(base: Any, injection: Injection) -> None:
    """Let the host's configuration say what the encoder has, if it has a place for it."""
    if hasattr(base.config, "hf_lam"):
        base.config.hf_lam = block_of(injection.configs)


def initialize_weights(base: PreTrainedModel, module: nn.Module) -> None:
    """Give a module of an encoder its first values: a mechanism's own, or those that the host gives to its kind."""
    if isinstance(module, MechanismPart):
        module.reset_parameters()
    else:
        type(base)._init_weights(base, module)


def remove(model: ModelT) -> ModelT:
    """Take all mechanisms off a model again, in place; its outputs are those of the host alone.

    Raises:
        ValueError: if the model has none, or a pure STT, for which it gave up its query and key projections.
    """
    encoders = injected_encoders(model)
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
        restore_checkpointing(injection.layers)
        undo_changes(injection.undo)
        if getattr(base.config, "hf_lam", None) is not None:
            base.config.hf_lam = None
    return model


# --- what is there ---------------------------------------------------------------------------------------------------


def injected_encoders(model: nn.Module) -> list[InjectedEncoder]:
    """The encoders inside `model` that carry mechanisms, by whichever copy of this code they were attached."""
    return [module for module in model.modules() if getattr(module.__dict__.get("_hf_lam"), "base", None) is module]


def injection_of(base: InjectedEncoder) -> Injection:
    """What is attached to an encoder that `injected_encoders` found."""
    return base._hf_lam


def encoders_with(model: nn.Module, name: str) -> list[InjectedEncoder]:
    """The encoders inside `model` that have the mechanism `name`."""
    return [base for base in injected_encoders(model) if name in injection_of(base).configs]


def container_of(base: InjectedEncoder) -> Any:
    """The container of an encoder; where PEFT's `modules_to_save` wrapped it, the copy that is trained."""
    copies = getattr(base.hf_lam, "modules_to_save", None)
    if copies is None:
        return base.hf_lam
    active = base.hf_lam.active_adapter
    return copies[active if isinstance(active, str) else active[0]]


def all_containers(base: InjectedEncoder) -> list[Any]:
    """The container of an encoder; where PEFT's `modules_to_save` wrapped it, the original and every copy."""
    copies = getattr(base.hf_lam, "modules_to_save", None)
    return [base.hf_lam] if copies is None else [base.hf_lam.original_module, *copies.values()]


def mechanism_of(base: InjectedEncoder, name: str) -> Any:
    """The module of the mechanism `name`, which the encoder must have."""
    return getattr(container_of(base), name)


def list_changes(model: nn.Module) -> list[str]:
    """What of the mechanisms just attached changes the model's outputs before any training."""
    messages = (
        config.explain_change(type(model).__name__)
        for base in injected_encoders(model)
        for config in injection_of(base).configs.values()
    )
    return [message for message in messages if message is not None]


def replace_config(base: InjectedEncoder, config: MechanismConfig) -> None:
    """Let an encoder have another configuration of a mechanism that it has; its modules are the caller's."""
    injection = injection_of(base)
    injection.set_configs({**injection.configs, config.name: config})
    write_block(base, injection)
