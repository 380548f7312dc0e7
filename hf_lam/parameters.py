"""Train the mechanisms and leave the host as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from .modeling.cross_lam_hf_lam import decoders_with_masks
from .modeling.host_attention_hf_lam import find_encoder
from .modeling.injection_hf_lam import InjectedEncoder, injected_encoders
from .modeling.layers_hf_lam import all_containers, container_of
from .result_tables import Column, ResultTable

ModelT = TypeVar("ModelT", bound=nn.Module)


def only_injected_encoder(model: nn.Module) -> InjectedEncoder:
    """The one encoder of `model` that carries mechanisms; a `ValueError` if there is none or more than one."""
    encoders = injected_encoders(model)
    if len(encoders) != 1:
        raise ValueError(
            f"expected a model with hf_lam mechanisms in one encoder, {type(model).__name__} has them in "
            f"{len(encoders)}. Use hf_lam.convert or hf_lam.inject first, or pass the encoder you mean."
        )
    return encoders[0]


def list_carriers(model: nn.Module) -> list[Any]:
    """List the modules that carry something of hf_lam: encoders with mechanisms, and decoders with masks."""
    return [*injected_encoders(model), *decoders_with_masks(model)]


def mechanism_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that hf_lam added to `model`, ready for an optimizer; not every mechanism has some.

    Raises:
        ValueError: if the model has no mechanisms.

    Examples:
        >>> import torch
        >>> from hf_lam import LamConfig, convert, mechanism_parameters
        >>> model = convert("bert-base-uncased", LamConfig(rank=8))
        >>> optimizer = torch.optim.AdamW(mechanism_parameters(model), lr=1e-3)
    """
    bases = list_carriers(model)
    if not bases:
        raise ValueError(
            f"{type(model).__name__} has no hf_lam mechanisms; call hf_lam.inject or hf_lam.convert with some first."
        )
    return [parameter for base in bases for parameter in container_of(base).parameters()]


def freeze_host(model: ModelT, train_head: bool = False) -> ModelT:
    """Let only the mechanisms train, in place, and return the model.

    Args:
        model: a model with mechanisms.
        train_head: also train the head: what lies outside of the encoder, such as a classifier that starts from random
            weights or a decoder, and the encoder's pooler, which is trained for one task.

    Raises:
        ValueError: if the model has no mechanisms.

    Examples:
        >>> from hf_lam import LamConfig, convert, freeze_host
        >>> model = freeze_host(convert("bert-base-uncased", LamConfig(rank=8)))
        >>> all("hf_lam" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
        True
    """
    trained = {id(parameter) for parameter in mechanism_parameters(model)}
    if train_head:
        bodies = injected_encoders(model) or _bodies_of(decoders_with_masks(model), model)
        trained |= {id(parameter) for parameter in head_parameters(model, bodies)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return model


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters a model has and how many of them train: host, mechanisms, head, adapters.

    Args:
        model: any model, with or without mechanisms, and with or without adapters of PEFT around it. What PEFT copies
            of a part (`modules_to_save`) counts as that part.

    Examples:
        >>> from hf_lam import LamConfig, convert, freeze_host, print_trainable_parameters
        >>> model = freeze_host(convert("bert-base-uncased", LamConfig(rank=8)))
        >>> print_trainable_parameters(model)  # doctest: +ELLIPSIS
        HfLamBert...: parameters
        part           trained  ...
    """
    print(parameter_table(model).to_text())


def parameter_table(model: nn.Module) -> ResultTable:
    """The table that [`print_trainable_parameters`] prints."""
    found: dict[str, list[nn.Parameter]] = {"host": []}
    taken: set[int] = set()
    for part, parameters in _parts_of(model):
        # What two parts share belongs to the first.
        its = [parameter for parameter in dict.fromkeys(parameters) if id(parameter) not in taken]
        taken |= {id(parameter) for parameter in its}
        found.setdefault(part, []).extend(its)
    found["host"] = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return ResultTable(
        f"{type(model).__name__}: parameters",
        [Column("part", is_number=False), Column("trained"), Column("all"), Column("trained, %")],
        [_counted(part, parameters) for part, parameters in found.items() if parameters],
        [_counted("all", list(model.parameters()))],
    )


def _counted(part: str, parameters: Sequence[nn.Parameter]) -> list[str]:
    every = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return [part, f"{trained:,}", f"{every:,}", f"{100 * trained / every:.2f}" if every else "–"]


def _parts_of(model: nn.Module) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
    """The parts of a model besides its host, by their names; a part may come in several pieces."""
    encoders, decoders = injected_encoders(model), decoders_with_masks(model)
    for base in encoders:
        for container in all_containers(base):
            for name, mechanism in container.named_children():
                yield f"mechanism {name}", mechanism.parameters()
            yield "mechanisms", container.parameters()
    for base in decoders:
        for container in all_containers(base):
            yield "masks of the decoder", container.parameters()
    for module in model.modules():
        # PEFT says so of its layers; its copies of whole modules are not adapters, but those modules trained.
        for name in getattr(module, "adapter_layer_names", ()):
            of_adapters = getattr(module, name, None)
            if name != "modules_to_save" and isinstance(of_adapters, nn.Module):
                yield "adapters", of_adapters.parameters()
    prompts = getattr(model, "prompt_encoder", None)
    if isinstance(prompts, nn.Module):
        yield "adapters", prompts.parameters()
    try:
        bodies = encoders or (_bodies_of(decoders, model) if decoders else [find_encoder(_around(model))])
    except (ValueError, TypeError, StopIteration):  # nothing that hf_lam knows as an encoder: all of it is the host
        return
    yield "head", head_parameters(model, bodies)


def _around(model: nn.Module) -> Any:
    """The transformers model in a model."""
    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))


def _bodies_of(decoders: Iterable[Any], model: nn.Module) -> list[Any]:
    """The encoders that decoders look at, in a model that has both; or else the decoders themselves."""
    encoder = find_encoder(_around(model))
    return [*decoders] if any(encoder is part for base in decoders for part in base.modules()) else [encoder]


def head_parameters(model: nn.Module, encoders: Iterable[InjectedEncoder | nn.Module]) -> list[nn.Parameter]:
    """The parameters of a task model outside of what its encoders stand in, and those of the encoders' poolers."""
    body = {
        id(parameter)
        for base in encoders
        for name, parameter in body_around(model, base).named_parameters()
        if not name.startswith("pooler.")
    }
    return [parameter for parameter in model.parameters() if id(parameter) not in body]


def body_around(model: nn.Module, encoder: Any) -> Any:
    """The pretrained part of a task model that an encoder stands in: the encoder itself, or it and its embeddings.

    Some models have their embeddings, and a last norm, around the module that mechanisms are attached to (DINOv3).
    """
    around = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and any(child is encoder for child in module.modules())
    ]
    for module in reversed(around):  # from the inside out
        embeddings = _input_embeddings(module)
        if embeddings is not None:
            return encoder if any(child is embeddings for child in encoder.modules()) else module
    return encoder


def _input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # of those that take sounds, and of parts of a model
        return None
