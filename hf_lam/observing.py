"""Run a model to look at its attention, without changing it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .modeling.attention_pass_hf_lam import MODALITY_TOKENS, Observer
from .modeling.host_attention_hf_lam import encoder_side_of
from .modeling.hosts_facts_hf_lam import is_fusion
from .modeling.injection_hf_lam import InjectedEncoder, injection_of
from .modeling.mechanism_hf_lam import Attention
from .modeling.padding_hf_lam import dense_padding, valid_tokens


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run `model` in evaluation mode, and leave it as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Module by module: a frozen part may be in evaluation mode inside a model that trains.
        for module, mode in modes:
            module.training = mode


@contextmanager
def observing(base: InjectedEncoder, wrap: Observer) -> Iterator[None]:
    """Stand in front of the attention of every layer of an encoder with mechanisms.

    wrap: `wrap(attention, attend)` gets what a layer is about to do and what does it, and returns what `attend` does:
        the context `(B, H, L, D)`, and the attention weights if they are wanted. It may hand `attend` another
        attention (`attention._replace(want_weights=True)`). One within another stands in front of it.
    """
    injection = injection_of(base)
    injection.observers = (*injection.observers, wrap)
    try:
        yield
    finally:
        # By identity, and not the last: another thread may observe, too.
        injection.observers = tuple(other for other in injection.observers if other is not wrap)


class FusedTokens(NamedTuple):
    """The tokens of a fusion model's layers in one forward pass.

    lengths: tokens of each modality, in their order; 0 for one that the batch does not have.
    counts: `(B, L)` bool, which of them count: they are not padding, and of a modality that the sample has.
    """

    lengths: tuple[int, ...]
    counts: Tensor


@contextmanager
def fused_tokens_of(base: Any) -> Iterator[list[FusedTokens]]:
    """Note what the tokens of a fusion model's layers are in every forward pass; for other models nothing comes in.

    It needs no mechanisms, and no layers: late fusion has none.
    """
    found: list[FusedTokens] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states, mask = args
        batch, length, _ = hidden_states.shape
        # As the queries and keys of one head. Encoders shorten masks in ways of their own: this one has all of that.
        padding = dense_padding(mask, hidden_states[:, None], hidden_states[:, None])
        everything = torch.ones(batch, length, dtype=torch.bool, device=hidden_states.device)
        counts = everything if padding is None else valid_tokens(padding, batch, length)
        found.append(FusedTokens(kwargs[MODALITY_TOKENS].lengths, counts))

    stacks = [base.encoder] if is_fusion(base.config) else []
    handles = [stack.register_forward_pre_hook(enter, with_kwargs=True) for stack in stacks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def run_batches(model: nn.Module, base: Any, batches: Iterable[Mapping[str, Any]]) -> None:
    """Call `model` with every batch, on the device of its encoder `base`; a `TypeError` for what is no mapping."""
    device = next(base.parameters()).device
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise TypeError(
                "batches must be an iterable of dictionaries that the model is called with, such as "
                f"[{{'input_ids': ...}}, ...]; one of them is {type(batch).__name__}."
            )
        run_encoder(model, {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()})


def run_encoder(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Call the part of `model` with mechanisms: all of it, or the encoder alone if there is a decoder beside it."""
    config: Any = getattr(model, "config", None)
    encoder: Any = model if config is None else encoder_side_of(model)
    if encoder is not model:
        taken = inspect.signature(encoder.forward).parameters
        named = {encoder.main_input_name if name == "inputs" else name: x for name, x in inputs.items()}
        inputs = {name: x for name, x in named.items() if name in taken}
    encoder(**inputs)


def tokens_of(attention: Attention) -> Tensor | None:
    """The tokens that are not padding, bool `(B, L)`, those that a mechanism appends included; None if all are."""
    padding = attention.padding_of_tokens
    if padding is None:
        return None
    return valid_tokens(padding, attention.query.shape[0], attention.query.shape[2])
