"""From a mixture of dot products and synthesised attention to the synthesised attention alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from ..modeling.injection_hf_lam import (
    InjectedEncoder,
    drop_projections,
    encoders_with,
    injection_of,
    mechanism_of,
    plan_projections,
    replace_config,
)
from ..modeling.layers_hf_lam import all_containers
from ..modeling.mechanism_registry_hf_lam import check_combination
from ..modeling.stt_config_hf_lam import SttConfig

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

    Examples:
        >>> from hf_lam import SttConfig, convert, harden
        >>> model = convert("google/vit-base-patch16-224", SttConfig())
        >>> model = harden(model, force=True)  # after training with SttAnnealingCallback, without force
        >>> model.config.hf_lam["stt"]["variant"]
        'dense'
    """
    encoders = encoders_with_mixture(model)
    if not encoders:
        raise ValueError(
            f"{type(model).__name__} has no mixture to harden; convert it with SttConfig(variant='mixture') first."
        )
    plans = [(base, *plan_hardening(base)) for base in encoders]
    for base in encoders:
        mixing = mixing_of(base)
        short = ~(mixing >= 1)  # NaN too
        if not force and bool(short.any()):
            layer, head = divmod(int(mixing.argmin()), mixing.shape[1])
            is_trained = injection_of(base).configs[SttConfig.name].train_mixing
            advice = "Train on" if is_trained else "Train on with SttAnnealingCallback"
            raise ValueError(
                f"harden needs λ = 1 in every head, but {int(short.sum())} of {mixing.numel()} heads of "
                f"{type(base).__name__} are short of it: the lowest λ is {mixing.min():.4g} (layer {layer}, head "
                f"{head}), the mean {mixing.mean():.4g}. {advice}, or pass force=True to drop what is left of the dot "
                "products."
            )
    for base, config, projections in plans:
        for container in all_containers(base):
            container.stt.config = config
            for synthesizer in container.stt:
                del synthesizer.mixing
                synthesizer.config = config
        drop_projections(projections)
        replace_config(base, config)
    return model


def plan_hardening(base: InjectedEncoder) -> tuple[SttConfig, list[tuple[nn.Module, str]]]:
    """Plan an encoder with a mixture as it is once hardened, and the projections that it then does without.

    Raises:
        ValueError: if it cannot be hardened, wherever `λ` is.
    """
    injection = injection_of(base)
    mixture: SttConfig = injection.configs[SttConfig.name]
    pure = replace(mixture, variant=mixture.synthesized_by, synthesizer=None, train_mixing=False)
    configs = {**injection.configs, SttConfig.name: pure}
    check_combination(configs)
    projections = plan_projections(base, configs, injection.attentions)
    adapted = sorted({name for module, name in projections if hasattr(getattr(module, name), "base_layer")})
    if adapted:
        raise ValueError(
            f"{' and '.join(adapted)} of {type(base).__name__} carry an adapter of PEFT, which would be saved and not "
            "load again without them. Call merge_and_unload() on the PEFT model first, and harden what it returns."
        )
    return pure, projections


def encoders_with_mixture(model: nn.Module) -> list[Any]:
    """The encoders inside `model` that have a mixture of dot products and synthesised attention."""
    return [
        base for base in encoders_with(model, SttConfig.name) if injection_of(base).configs[SttConfig.name].is_mixture
    ]


def mixing_of(base: InjectedEncoder) -> torch.Tensor:
    """`λ` of every layer and head of an encoder with a mixture, `(layers, H)`, between 0 and 1."""
    mechanism = mechanism_of(base, SttConfig.name)
    return torch.stack([mechanism.mixing_of(layer) for layer in range(len(mechanism))])
