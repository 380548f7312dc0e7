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

from .attention_pass_hf_lam import MODALITY_TOKENS, TOKEN_TYPES, AttentionCall, ForwardPass, Injection
from .hosts_hf_lam import choose_implementation
from .input_grids_hf_lam import take_grid
from .mechanism_hf_lam import PassStart
from .stand_ins_hf_lam import PASS, hand_again, handed_to

logger = logging.get_logger(__name__)


def refuse_replicas(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if getattr(stack, "_is_replica", False):
        raise RuntimeError(
            "hf_lam does not run under torch.nn.DataParallel, whose replicas share one copy of the masks. Start with "
            "`torchrun --nproc_per_node N`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )


def enter_stack(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    injection: Injection = stack._hf_lam
    base = injection.base
    if injection.with_state:
        carry_states_through_checkpoints(injection.layers)
    of_pass = ForwardPass(injection, choose_implementation(base))
    kwargs = dict(kwargs)
    modalities = kwargs.get(MODALITY_TOKENS)
    token_types = None
    if injection.token_types_position is not None:
        token_types = _take_token_types(injection, args, kwargs)
    grid, length = take_grid(injection, args, kwargs, _find_tokens(args, kwargs))
    if injection.begins:
        of_pass.begin(PassStart(token_types, modalities, grid, length))
    return args, {**kwargs, PASS: of_pass}


def _take_token_types(injection: Injection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Take the token types that the encoder was called with, or that its forward has handed down."""
    base = injection.base
    if injection.stack is base:
        token_types = _read_token_types(injection, args, kwargs)
    elif TOKEN_TYPES in kwargs:
        token_types = kwargs.pop(TOKEN_TYPES)
    else:
        raise RuntimeError(
            f"{type(base).__name__} does not pass keyword arguments down to its layers, or they were called "
            "without it, so the token types of this batch are not known. Call the encoder itself."
        )
    if token_types is None:
        tokens = _find_tokens(args, kwargs)
        assert tokens is not None
        token_types = tokens.new_zeros(1, tokens.shape[1], dtype=torch.long)
    return token_types


def _find_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Find the tokens, or their numbers, that a stack of layers is called with."""
    names = ("hidden_states", "inputs_embeds", "input_ids")
    given = (*args[:1], *(kwargs.get(name) for name in names))
    return next((x for x in given if isinstance(x, Tensor) and x.dim() in (2, 3)), None)


def _read_token_types(injection: Injection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The `token_type_ids` that an encoder is called with."""
    position = injection.token_types_position
    assert position is not None
    token_types = args[position] if len(args) > position else kwargs.get("token_type_ids")
    if token_types is None and not torch.compiler.is_compiling():
        logger.warning_once(
            f"{injection.host.name} was called without token_type_ids, so all tokens belong to one segment, that of "
            "token type 0. Pass what the tokenizer returns for pairs of texts."
        )
    return token_types


def hand_token_types(
    base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand the token types down to the stack: the host itself uses them for its embeddings only."""
    return args, {**kwargs, TOKEN_TYPES: _read_token_types(base._hf_lam, args, kwargs)}


def enter_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    of_pass: ForwardPass | None = kwargs.get(PASS)
    if of_pass is not None:
        _enter_first_layer(of_pass, _first_input(args, kwargs))


def _enter_first_layer(of_pass: ForwardPass, embeddings: Tensor) -> None:
    """Find out what is known only here; in later layers, and when layers are computed again, it is there already."""
    if of_pass.want_weights is None:
        # Hosts ask for attention weights on the encoder, on its stack or in their configuration; by now transformers'
        # own collector is active, whichever way it was.
        of_pass.want_weights = of_pass.recorded in (_active_collector.get() or ())
    if of_pass.injection.with_state and not of_pass.states:
        of_pass.states = of_pass.make_states(embeddings)


def enter_attention(
    index: int, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    of_pass: ForwardPass | None = kwargs.get(PASS)
    if of_pass is None:
        raise RuntimeError(
            f"{type(attention).__name__} carries an hf_lam mechanism but was called outside its encoder's forward. "
            "Call the encoder itself."
        )
    return args, {**kwargs, PASS: AttentionCall(of_pass, index, _first_input(args, kwargs))}


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
    length = hidden_states.shape[1] - injection.configs[injection.appending].appended_tokens
    collected = (_active_collector.get() or {}).get("hidden_states")
    if collected:
        # Heads put together what transformers has collected of the layers so far, as that of wav2vec 2.0.
        collected[:] = [states if states is None else states[:, :length] for states in collected]
    return _with_first(output, hidden_states[:, :length])


def _with_first(output: Any, hidden_states: Tensor) -> Any:
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


# --- gradient checkpointing ------------------------------------------------------------------------------------------


def carry_states_through_checkpoints(layers: tuple[Any, ...]) -> None:
    """Let what crosses layers get its gradient from layers that are checkpointed; called in every pass."""
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

    `run` is transformers' `partial` of the layer's forward, with the stand-in that has the pass. Before 5.24 it is one
    of the layer's call, with keyword arguments and the pass among them.
    """
    of_pass: ForwardPass = run.keywords[PASS] if PASS in run.keywords else handed_to(run.args[0])
    _enter_first_layer(of_pass, args[0])
    names = tuple(of_pass.states)
    return checkpoint(functools.partial(_run_with_states, run, of_pass, names), *of_pass.states.values(), *args)


def _run_with_states(run: functools.partial[Any], of_pass: ForwardPass, names: tuple[str, ...], *args: Any) -> Any:
    of_pass = of_pass.with_states(dict(zip(names, args, strict=False)))
    args = args[len(names) :]
    if PASS in run.keywords:
        return run(*args, **{PASS: of_pass})
    return run.func(hand_again(run.args[0], of_pass), *args, **run.keywords)
