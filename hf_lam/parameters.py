"""Train the mechanisms and leave the host as it is."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from .modeling.injection_hf_lam import injected_encoders, mechanisms_of

ModelT = TypeVar("ModelT", bound=nn.Module)


def mechanism_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that hf_lam added to `model`, ready for an optimizer.

    Raises:
        ValueError: if the model has no mechanisms.
    """
    parameters = [parameter for base in injected_encoders(model) for parameter in mechanisms_of(base).parameters()]
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no hf_lam mechanisms; call hf_lam.inject(model, LamConfig()) first."
        )
    return parameters


def freeze_host(model: ModelT, train_head: bool = False) -> ModelT:
    """Let only the mechanisms train, in place, and return the model.

    Args:
        model: a model with mechanisms.
        train_head: also train what lies outside of the encoder, such as a classifier that starts from random weights.

    Raises:
        ValueError: if the model has no mechanisms.
    """
    trained = {id(parameter) for parameter in mechanism_parameters(model)}
    if train_head:
        host = {id(parameter) for base in injected_encoders(model) for parameter in base.parameters()}
        trained |= {id(parameter) for parameter in model.parameters() if id(parameter) not in host}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return model
