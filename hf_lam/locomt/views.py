"""Other attention views for a model that has some."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import nn

from ..modeling.injection_hf_lam import encoders_with, injection_of, replace_config
from ..modeling.layers_hf_lam import all_containers, make_mechanism, mark_as_initialised
from ..modeling.locomt_hf_lam import LocomtConfig

ModelT = TypeVar("ModelT", bound=nn.Module)


def set_views(model: ModelT, config: LocomtConfig) -> ModelT:
    """Give a model with attention views other ones, in place: a calibrated table, for example.

    Args:
        model: a model with `LocomtConfig` in one encoder.
        config: the new views. Segments left out (`None`) stay as they are.

    Returns:
        The same model. Its other mechanisms stay; a learned bottleneck stays if the new configuration has one of the
        same size.

    Raises:
        TypeError: if `config` is something else.
        ValueError: if the model has no attention views in exactly one encoder, or the new ones do not fit. The model
            is unchanged.

    Examples:
        >>> from hf_lam import LocomtConfig, convert, set_views
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig())
        >>> model = set_views(model, LocomtConfig(views="half"))
        >>> model.config.hf_lam["locomt"]["views"][0][0]  # the first head of the first layer
        'self'
    """
    if not isinstance(config, LocomtConfig):
        raise TypeError(f"set_views needs a LocomtConfig, got {config!r}.")
    encoders = encoders_with(model, LocomtConfig.name)
    if len(encoders) != 1:
        raise ValueError(
            f"{type(model).__name__} has attention views in {len(encoders)} encoders, set_views needs one; call "
            "hf_lam.inject(model, LocomtConfig(...)) first."
        )
    (base,) = encoders
    injection = injection_of(base)
    before: LocomtConfig = injection.configs[LocomtConfig.name]
    if config.segments is None:
        config = replace(config, segments=before.segments)
    config = config.resolve(injection.host)
    is_changed = bool(config.bottleneck_tokens) != bool(before.bottleneck_tokens)
    if is_changed or config.has_token_types != before.has_token_types:
        raise ValueError(
            "set_views cannot add or take away a bottleneck or token types, which change what the encoder's layers "
            "get; call hf_lam.remove(model) and hf_lam.inject(model, ...)."
        )
    containers = all_containers(base)
    new = [make_mechanism(base, config, injection.host, injection.attentions) for _ in containers]
    replace_config(base, config)
    for container, views in zip(containers, new, strict=True):
        views.train(base.training)
        if config.bottleneck_tokens == before.bottleneck_tokens != 0:
            views.bottleneck = container.locomt.bottleneck
        mark_as_initialised(views)
        container.locomt = views
    return model
