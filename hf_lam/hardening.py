"""From a mixture of dot products and synthesised attention to the synthesised attention alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from .modeling.configuration_hf_lam import Mechanisms
from .modeling.injection_hf_lam import (
    _all_containers,
    _check_combination,
    _query_and_key_of,
    _set_configs,
    drop_projections,
    injected_encoders,
    mechanisms_of,
)

ModelT = TypeVar("ModelT", bound=nn.Module)


def harden(model: ModelT, *, force: bool = False) -> ModelT:
    """Turn the mixtures of a model into the pure STT that they have become, in place.

    The query and key projections are dropped, and the map of each layer, which is `softmax(log P) = P` at `λ = 1`, is
    no longer formed. The outputs stay the same (fp32: to 1e-5).

    Args:
        model: a model with `SttConfig(variant="mixture")`, with `λ` exactly 1 in every head: trained with
            `hf_lam.training.SttAnnealingCallback`, for example.
        force: harden it wherever `λ` is, which changes the outputs if it is not 1.

    Returns:
        The same model. An optimizer made for it before still holds the dropped parameters; make a new one.

    Raises:
        ValueError: if there is no mixture, `λ` is not 1 (the message says how far it is), the mixture is combined
            with LAM or LoCoMT, for which there are no scores left, or PEFT has adapters on queries or keys. The model
            is unchanged.
    """
    encoders = encoders_with_mixture(model)
    if not encoders:
        raise ValueError(
            f"{type(model).__name__} has no mixture to harden; convert it with SttConfig(variant='mixture') first."
        )
    plans = [(base, *hardened(base)) for base in encoders]
    for base in encoders:
        mixing = mixing_of(base)
        short = ~(mixing >= 1)  # NaN too
        if not force and bool(short.any()):
            layer, head = divmod(int(mixing.argmin()), mixing.shape[1])
            advice = "Train on" if base._hf_lam_configs.stt.train_mixing else "Train on with SttAnnealingCallback"
            raise ValueError(
                f"harden needs λ = 1 in every head, but {int(short.sum())} of {mixing.numel()} heads of "
                f"{type(base).__name__} are short of it: the lowest λ is {mixing.min():.4g} (layer {layer}, head "
                f"{head}), the mean {mixing.mean():.4g}. {advice}, or pass force=True to drop what is left of the dot "
                "products."
            )
    for base, configs, projections in plans:
        for container in _all_containers(base):
            for synthesizer in container.stt:
                del synthesizer.mixing
                synthesizer.config = configs.stt
        drop_projections(projections)
        _set_configs(base, configs)
    return model


def hardened(base: Any) -> tuple[Mechanisms, list[tuple[nn.Module, str]]]:
    """What an encoder with a mixture has once it is hardened, and the projections that it then does without.

    Raises:
        ValueError: if it cannot be hardened, wherever `λ` is.
    """
    configs: Mechanisms = base._hf_lam_configs
    assert configs.stt is not None
    pure = replace(configs.stt, variant=configs.stt.synthesized_by, synthesizer=None, train_mixing=False)
    configs = configs._replace(stt=pure)
    _check_combination(base, configs)
    projections = _query_and_key_of(base, list(base._hf_lam_attentions))
    adapted = sorted({name for module, name in projections if hasattr(getattr(module, name), "base_layer")})
    if adapted:
        raise ValueError(
            f"{' and '.join(adapted)} of {type(base).__name__} carry an adapter of PEFT, which would be saved and not "
            "load again without them. Call merge_and_unload() on the PEFT model first, and harden what it returns."
        )
    return configs, projections


def encoders_with_mixture(model: nn.Module) -> list[Any]:
    """The encoders inside `model` that have a mixture of dot products and synthesised attention."""
    return [
        base
        for base in injected_encoders(model)
        if base._hf_lam_configs.stt is not None and base._hf_lam_configs.stt.is_mixture
    ]


def mixing_of(base: Any) -> torch.Tensor:
    """`λ` of every layer and head of an encoder with a mixture, `(layers, H)`, between 0 and 1."""
    container: Any = mechanisms_of(base)
    mixings = [synthesizer.mixing.detach() for synthesizer in container.stt]
    # A DTensor has a part in every process (FSDP2).
    whole = [mixing.full_tensor() if hasattr(mixing, "full_tensor") else mixing for mixing in mixings]
    return torch.stack([mixing.clamp(0, 1).float().cpu() for mixing in whole])
