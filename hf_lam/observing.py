"""Run a model to look at its attention, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .modeling.injection_hf_lam import CALL, MODALITY_TOKENS, ModalityTokens
from .modeling.segments_hf_lam import is_fusion


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
def observing(base: Any, stand_in: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the call of every attention layer of an encoder with mechanisms.

    stand_in: gets the layer's `AttentionCall` and returns what has the same `attend`.
    """

    def observe(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # Runs after the hook that made the call of this layer: hooks run in the order of their registration.
        return args, {**kwargs, CALL: stand_in(kwargs[CALL])}

    handles = [module.register_forward_pre_hook(observe, with_kwargs=True) for module in base._hf_lam_attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def modality_tokens_of(base: Any) -> Iterator[list[ModalityTokens]]:
    """Note what the tokens of a fusion model's layers are in every forward pass; for other models nothing comes in."""
    found: list[ModalityTokens] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(kwargs[MODALITY_TOKENS])

    # Before the hook of the mechanisms, which takes the modalities' tokens out.
    stacks = [base.encoder] if is_fusion(base.config) else []
    handles = [stack.register_forward_pre_hook(enter, with_kwargs=True, prepend=True) for stack in stacks]
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
        model(**{name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()})
