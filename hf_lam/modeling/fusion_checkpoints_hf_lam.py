# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Fusion layers that start from those of a checkpoint: which are taken over, and whether they compute the same.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .fusion_encoders_hf_lam import find_layers, run_encoder
from .fusion_layers_hf_lam import FusionEncoder, FusionLayer
from .hosts_facts_hf_lam import LAYER_FAMILIES, LAYER_OPTIONS, PARTS, name_last_norm, read_input_shape, read_window


def _layers_and_names(name: str, source: nn.Module) -> tuple[list[nn.Module], bool, tuple[str, ...]]:
    """An encoder's layers, whether they normalise first, and what they call the parts of a layer."""
    layers = find_layers(source)
    for norm_first, names in LAYER_FAMILIES:
        parts = {child for child, _ in layers[0].named_modules()} if layers else set()
        weights = {key.rpartition(".")[0] for key, _ in layers[0].named_parameters()} if layers else set()
        if set(names) <= parts and weights == set(names):
            return layers, norm_first, names
    raise ValueError(
        f"the layers of {type(source).__name__} cannot become fusion layers: they have other parts than attention, "
        f"two norms and a feed-forward layer. Leave out fusion_from={name!r}, or name another modality."
    )


def read_layer_options(name: str, source: Any) -> dict[str, Any]:
    """The options of fusion layers that are like an encoder's own.

    Raises:
        ValueError: if its layers have other parts than fusion layers.
    """
    layers, norm_first, names = _layers_and_names(name, source)
    options: dict[str, Any] = {"norm_first": norm_first}
    for option, other in LAYER_OPTIONS:
        found = next((name for name in (option, other) if hasattr(source.config, name)), None)
        if found is not None:
            options[option] = getattr(source.config, found)
    parts: dict[str, Any] = {part: layers[-1].get_submodule(path) for part, path in zip(PARTS, names, strict=True)}
    # Not every configuration says it by this name.
    return options | {"intermediate_size": parts["fc1"].out_features, "layer_norm_eps": parts["mlp_norm"].eps}


def check_sizes(name: str, source: Any, config: Any) -> None:
    """Check that an encoder has layers for all fusion layers, of their sizes. Its weights are not read.

    Args:
        name: name of the modality.
        source: the encoder, which may be on the meta device.
        config: configuration of the fusion model.

    Raises:
        ValueError: otherwise; the message says what differs.
    """
    layers, _, names = _layers_and_names(name, source)
    if config.num_hidden_layers > len(layers):
        raise ValueError(
            f"fusion_from={name!r} has {len(layers)} layers, but there are {config.num_hidden_layers} fusion layers."
        )
    with torch.device("meta"):
        ours = FusionLayer(config)
    for path, theirs in zip(PARTS, names, strict=True):
        there: Any = layers[-1].get_submodule(theirs)
        here: Any = ours.get_submodule(path)
        has, needs = there.weight.shape, here.weight.shape
        if has != needs:
            raise ValueError(
                f"fusion_from={name!r}: the fusion layers cannot start from the {name} encoder: a weight has the "
                f"shape {tuple(needs)} there and {tuple(has)} here. Leave out the sizes, which are then the encoder's."
            )


# How far two layers may be from each other that compute the same, relative to what they compute.
_TOLERANCE = 1e-4
_TOKENS = 8


class _Reached(Exception):
    """The first layer of an encoder is about to be called."""


@torch.no_grad()
def check_layers(name: str, source: Any, config: Any) -> None:
    """Raises a `ValueError` unless fusion layers compute what the layers of an encoder do; it says where they differ.

    Their parts may have the same names and shapes, and yet attention may be causal, positions may turn queries and
    keys, or residuals be scaled. So both run on the same random tokens, with what the encoder hands to its layers. The
    projections of attention are scaled to one size for it: with those of a model that has not been trained, it is next
    to uniform, whatever it computes.

    config: configuration of a fusion model, with the options that `read_layer_options` found.
    """
    window = read_window(source.config)
    if window is not None:
        raise ValueError(
            f"fusion_from={name!r}: the attention of {type(source).__name__} sees a part of a long sequence "
            f"({window}={getattr(source.config, window)}), and that of the fusion layers all of it. "
            + _LEAVE_OUT.format(name)
        )
    layers, _, names = _layers_and_names(name, source)
    args, kwargs = _catch_call(name, source, layers)
    # What else it hands to its layers may be for as many tokens as its own.
    tokens = args[0].shape[1] if _tensors_in((args[1:], kwargs)) else _TOKENS
    plain = copy.copy(config)
    plain._attn_implementation_internal = "sdpa"
    with torch.device("meta"):
        ours = FusionLayer(plain).eval()
    generator = torch.Generator().manual_seed(0)
    checked: set[Any] = set()
    for number in range(max(0, len(layers) - config.num_hidden_layers), len(layers)):
        kind = _kind_of(layers[number], number)
        if kind in checked:
            continue
        checked.add(kind)
        parts = {part: layers[number].get_submodule(of_layer) for part, of_layer in zip(PARTS, names, strict=True)}
        weights = {path: _weights_of(part, is_scaled=path.startswith("attention.")) for path, part in parts.items()}
        x = torch.randn(1, tokens, config.hidden_size, generator=generator)
        expected = _run_layer(layers[number], dict(zip(names, weights.values(), strict=True)), x, args, kwargs)
        found = torch.func.functional_call(ours, _flatten(weights), (x,))
        difference = (found - expected).abs().max() / (expected - x).abs().max()
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"fusion_from={name!r}: layer {number} of {type(source).__name__} computes something else than a "
                f"fusion layer with the same weights: on random tokens they differ by {difference:.1%}. Its attention "
                "may be causal, use rotary or relative positions or a bias, or its residuals be scaled. "
                + _LEAVE_OUT.format(name)
            )


_LEAVE_OUT = "Leave out fusion_from={!r}, and the fusion layers start from random weights, or name another modality."


def _catch_call(name: str, source: Any, layers: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Catch the arguments that an encoder calls its first layer with, the tokens first."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Reached

    handles = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    if source.main_input_name == "input_ids":
        values = (2 + torch.arange(_TOKENS, device=source.device)[None]) % source.config.vocab_size
    else:
        shape = read_input_shape(source.config) or ()
        values = torch.zeros(1, *shape, device=source.device, dtype=source.dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            run_encoder(name, source, values, None, {})
    except _Reached:
        pass
    except Exception as error:
        raise ValueError(
            f"fusion_from={name!r}: {type(source).__name__} does not run on {source.main_input_name} alone, which a "
            f"fusion model would give it: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not caught:
        raise ValueError(f"fusion_from={name!r}: {type(source).__name__} does not run its layers one by one.")
    args, kwargs = caught[0]
    return args or (kwargs["hidden_states"],), {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _kind_of(layer: nn.Module, number: int) -> Any:
    """Describe what distinguishes a layer from others in what it computes, besides its weights and its number."""
    return tuple(
        (path, type(module), name, repr(value))
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, tuple)) and (isinstance(value, bool) or value != number)
    )


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors_in(item)] if isinstance(value, (list, tuple)) else []


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float().cpu() if value.is_floating_point() else value.cpu()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    return type(value)(map(_to_cpu, value)) if type(value) in (list, tuple) else value


def _weights_of(part: Any, is_scaled: bool) -> dict[str, torch.Tensor]:
    """The weights of a linear layer or norm; scaled so that a layer keeps the size of what it gets."""
    weight = _to_cpu(part.weight)
    if is_scaled:
        weight = weight * (len(weight) ** 0.5 / weight.norm().clamp(min=1e-12))
    return {"weight": weight, "bias": torch.zeros(len(weight)) if part.bias is None else _to_cpu(part.bias)}


def _flatten(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{path}.{kind}": tensor for path, kinds in weights.items() for kind, tensor in kinds.items()}


def _run_layer(
    layer: nn.Module,
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    x: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """The output of a layer of an encoder with other weights, on the CPU; the layer is left as it is."""
    tensors = dict([*layer.named_parameters(), *layer.named_buffers()])
    twin = copy.deepcopy(layer, {id(tensor): tensor for tensor in tensors.values()}).eval()
    for module in twin.modules():
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if implementation not in (None, "sdpa", "eager"):
            module.config._attn_implementation_internal = "sdpa"  # type: ignore[union-attr]
    given = {key: tensor for key, tensor in _flatten(weights).items() if key in tensors}
    rest = {key: _to_cpu(tensor) for key, tensor in tensors.items() if key not in given}
    output = torch.func.functional_call(twin, {**given, **rest}, (x, *_to_cpu(args[1:])), _to_cpu(kwargs))
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def copy_layers(name: str, source: Any, encoder: FusionEncoder) -> None:
    """Let the fusion layers start from the last layers of an encoder.

    Raises:
        ValueError: if the encoder normalises before its layers, and its norm behind the last one is not known.
    """
    layers, norm_first, names = _layers_and_names(name, source)
    child = name_last_norm(source)
    if norm_first and child is None:
        raise ValueError(
            f"fusion_from={name!r}: {type(source).__name__} normalises before its layers, and where it does so after "
            "the last one is not known. " + _LEAVE_OUT.format(name)
        )
    for target, layer in zip(encoder.layers, layers[len(layers) - len(encoder.layers) :], strict=True):
        for ours, theirs in zip(PARTS, names, strict=True):
            _copy_part(layer.get_submodule(theirs), target.get_submodule(ours))
    last_norm = None if child is None else getattr(source, child)
    if isinstance(encoder.norm, nn.LayerNorm) and isinstance(last_norm, nn.LayerNorm):
        _copy_part(last_norm, encoder.norm)


def _copy_part(source: Any, target: Any) -> None:
    target.weight.copy_(source.weight)
    # VideoMAE's keys have no bias.
    target.bias.copy_(source.bias) if source.bias is not None else target.bias.zero_()
