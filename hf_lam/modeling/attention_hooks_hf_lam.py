# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The hooks on an encoder with mechanisms: where its modules begin a pass, and hand it on to the attention function.

They find everything in the pass, or in the encoder's record; `attention_pass_hf_lam.py` says what runs when.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.output_capturing import _active_collector

from .attention_pass_hf_lam import CALL, MODALITY_TOKENS, PASS, TOKEN_TYPES, AttentionCall, ForwardPass, Injection
from .hosts_facts_hf_lam import read_input_grid
from .hosts_hf_lam import choose_implementation
from .mechanism_hf_lam import PassStart

logger = logging.get_logger(__name__)


def enter_stack(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if getattr(stack, "_is_replica", False):
        raise RuntimeError(
            "hf_lam does not run under torch.nn.DataParallel, whose replicas share one copy of the masks. Start with "
            "`torchrun --nproc_per_node N`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    injection: Injection = stack._hf_lam
    base = injection.base
    if injection.with_state:
        _carry_states_through_checkpoints(injection.layers)
    of_pass = ForwardPass(injection, choose_implementation(base))
    kwargs = dict(kwargs)
    modalities = kwargs.get(MODALITY_TOKENS)
    token_types = None
    if injection.token_types_position is not None:
        if TOKEN_TYPES not in kwargs:
            raise RuntimeError(
                f"{type(base).__name__} does not pass keyword arguments down to its layers, or they were called "
                "without it, so the token types of this batch are not known. Call the encoder itself."
            )
        token_types = kwargs.pop(TOKEN_TYPES)
        if token_types is None:
            hidden_states = _first_input(args, kwargs)
            token_types = hidden_states.new_zeros(1, hidden_states.shape[1], dtype=torch.long)
    if injection.begins:
        of_pass.begin(PassStart(token_types, modalities))
    return args, {**kwargs, PASS: of_pass}


def forward_with_token_types(base: Any, host_forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand the token types down to the stack: the host itself uses them for its embeddings only."""
    run = functools.partial(type(base).forward, base) if host_forward is None else host_forward
    injection = base.__dict__.get("_hf_lam")
    if injection is None:  # removed while something had wrapped this function
        return run(*args, **kwargs)
    position = injection.token_types_position
    token_types = args[position] if len(args) > position else kwargs.get("token_type_ids")
    if token_types is None and not torch.compiler.is_compiling():
        logger.warning_once(
            f"{type(base).__name__} was called without token_type_ids, so all tokens belong to one segment, that of "
            "token type 0. Pass what the tokenizer returns for pairs of texts."
        )
    return run(*args, **{**kwargs, TOKEN_TYPES: token_types})


def check_input_grid(injection: Injection, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """An image of another shape may have as many patches as the grid, which then would not be noticed.

    model: the encoder, or the model around one that gets embeddings.
    """
    name = model.main_input_name
    values: Any = kwargs.get(name, args[0] if args else None)
    found = read_input_grid(model.config, tuple(values.shape)) if isinstance(values, Tensor) else ()
    for config in injection.configs.values():
        grid = config.input_grid(injection.host)
        if found and grid and found != grid:
            patches, made_for = (" × ".join(map(str, sizes)) for sizes in (found, grid))
            raise ValueError(
                f"{name} of shape {tuple(values.shape)} has a grid of {patches} patches, but "
                f"{type(config).__name__} was made for {made_for}. {config.explain_input_grid(found)}"
            )


def enter_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    of_pass: ForwardPass | None = kwargs.get(PASS)
    if of_pass is not None:
        _enter_first_layer(of_pass, _first_input(args, kwargs))


def _enter_first_layer(of_pass: ForwardPass, embeddings: Tensor) -> None:
    """Find out what is known only here; in later layers, and when layers are computed again, it is there already."""
    if of_pass.want_weights is None:
        # Hosts ask for attention weights on the encoder, on its stack or in their configuration; by now transformers'
        # own collector is active, whichever way it was.
        of_pass.want_weights = "attentions" in (_active_collector.get() or ())
    if of_pass.injection.with_state and not of_pass.states:
        of_pass.states = of_pass.make_states(embeddings)


def enter_attention(
    index: int, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs = dict(kwargs)
    of_pass: ForwardPass | None = kwargs.pop(PASS, None)
    if of_pass is None:
        raise RuntimeError(
            f"{type(attention).__name__} carries an hf_lam mechanism but was called outside its encoder's forward, or "
            "its host does not pass keyword arguments down to it. Call the encoder itself."
        )
    return args, {**kwargs, CALL: AttentionCall(of_pass, index, _first_input(args, kwargs))}


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


# --- tokens that a mechanism appends ---------------------------------------------------------------------------------


def append_tokens(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    of_pass: ForwardPass = kwargs[PASS]
    longer = of_pass.dispatch.append_tokens(str(of_pass.injection.appending), _first_input(args, kwargs))
    return ((longer, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": longer})


def mix_appended(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    of_pass: ForwardPass = kwargs[PASS]
    hidden_states = output[0] if isinstance(output, tuple) else output
    return _with_first(output, of_pass.begun[str(of_pass.injection.appending)].mix_appended(hidden_states))


def drop_appended(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    injection = kwargs[PASS].injection
    hidden_states = output[0] if isinstance(output, tuple) else output
    return _with_first(output, hidden_states[:, : -injection.configs[injection.appending].appended_tokens])


def _with_first(output: Any, hidden_states: Tensor) -> Any:
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


# --- gradient checkpointing ------------------------------------------------------------------------------------------


def _carry_states_through_checkpoints(layers: tuple[Any, ...]) -> None:
    # `gradient_checkpointing_enable` may be called on any model around the encoder, at any time, and sets a function
    # on every layer; so it is looked at here, when it is about to be used.
    for layer in layers:
        checkpoint = layer.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is not None and not _carries_states(checkpoint):
            layer._gradient_checkpointing_func = functools.partial(_checkpoint_with_states, checkpoint)


def restore_checkpointing(layers: tuple[Any, ...]) -> None:
    """Give the layers of an encoder their own checkpointing back."""
    for layer in layers:
        checkpoint = layer.__dict__.get("_gradient_checkpointing_func")
        if _carries_states(checkpoint):
            layer._gradient_checkpointing_func = checkpoint.args[0]


def _carries_states(checkpoint: Any) -> bool:
    # By name: a model may be handled by another copy of this code than the one that attached its mechanisms.
    is_partial = isinstance(checkpoint, functools.partial)
    return is_partial and getattr(checkpoint.func, "__name__", None) == _checkpoint_with_states.__name__


def _checkpoint_with_states(checkpoint: Callable[..., Any], run: functools.partial[Any], *args: Any) -> Any:
    """Checkpoint a layer with the states as tensor arguments, so that they are made once, outside, with gradients.

    `run` is transformers' `partial` of the layer's forward with its keyword arguments, the pass among them.
    """
    of_pass: ForwardPass = run.keywords[PASS]
    _enter_first_layer(of_pass, args[0])
    names = tuple(of_pass.states)
    return checkpoint(functools.partial(_run_with_states, run, of_pass, names), *of_pass.states.values(), *args)


def _run_with_states(run: functools.partial[Any], of_pass: ForwardPass, names: tuple[str, ...], *args: Any) -> Any:
    states = dict(zip(names, args, strict=False))
    return run(*args[len(names) :], **{PASS: of_pass.with_states(states)})
