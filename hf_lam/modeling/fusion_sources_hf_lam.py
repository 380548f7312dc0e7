# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The checkpoints that a fusion model's encoders start from: first their configurations are read, then their weights.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .configuration_hf_lam_fusion import encoder_config_of
from .fusion_encoders_hf_lam import build_encoder, find_encoder_class
from .hosts_facts_hf_lam import keep_layers
from .injection_hf_lam import injected_encoders


class Source(NamedTuple):
    """A modality's checkpoint whose weights have not been read.

    whole: configuration of the whole checkpoint.
    config: configuration of the encoder in it.
    given: the model, or its name.
    options: options for loading it.
    """

    whole: Any
    config: Any
    given: Any
    options: dict[str, Any]


def check_config_options(config_class: Any, options: Mapping[str, Any]) -> None:
    """A misspelt option would become an attribute of the configuration that nobody reads."""
    known = {field.name for field in dataclasses.fields(config_class)}
    known |= {"baseline", "num_labels", "attn_implementation", "output_attentions", "name_or_path"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(
            f"from_modality_pretrained has no option {', '.join(unknown)}: give modalities, options of "
            f"{config_class.__name__}, or for from_pretrained those with the name of a modality in front."
        )


# --- configurations --------------------------------------------------------------------------------------------------

# What a model of several encoders calls the configuration of the one for a modality (CLIP, SigLIP, CLAP).
_PARTS = {"text": "text_config", "image": "vision_config", "video": "vision_config", "audio": "audio_config"}
# What says where a checkpoint is, rather than how it is loaded.
WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def read_source(name: str, given: Any, options: dict[str, Any]) -> Source:
    """Read a modality's checkpoint, without its weights, and find the encoder in it.

    Args:
        name: name of the modality.
        given: a loaded model, a folder, or a Hub id.
        options: options for loading it.

    Raises:
        TypeError: if it is none of these.
        ValueError: for one that a fusion model cannot start from; the message names the modality.
    """
    if isinstance(given, PreTrainedModel):
        if options:
            raise ValueError(f"{sorted(options)} have no meaning for {name}, which is a loaded model.")
        if injected_encoders(given):
            raise ValueError(
                f"the {name} model has hf_lam mechanisms of its own, which a fusion model would lose: it has them in "
                "its fusion layers. Call hf_lam.remove on it first."
            )
        return Source(given.config, _read_encoder_config(name, given.config), given, {})
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"{name} must be a transformers model, a folder or a Hub id, got {type(given).__name__}.")
    where = {key: value for key, value in options.items() if key in WHERE}
    try:
        whole = AutoConfig.from_pretrained(given, **where)
    except (OSError, ValueError):
        subfolder = None if "subfolder" in where else _find_transformer(given, where)
        if subfolder is None:
            raise
        options = {**options, "subfolder": subfolder}
        whole = AutoConfig.from_pretrained(given, **where, subfolder=subfolder)
    return Source(whole, _read_encoder_config(name, whole), given, options)


def _find_transformer(given: Any, where: Mapping[str, Any]) -> str | None:
    """The folder of the transformer in a folder of sentence-transformers; None if it is no such folder."""
    options = {key: value for key, value in where.items() if key != "trust_remote_code"}
    try:
        path = cached_file(given, "modules.json", **options)
    except OSError:
        return None
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        modules = json.load(file)
    paths = [
        module.get("path") for module in modules if str(module.get("type")).endswith(("Transformer", "CLIPModel"))
    ]
    return paths[0] if paths and isinstance(paths[0], str) and paths[0] else None


def _read_encoder_config(name: str, whole: Any) -> Any:
    """The configuration of a modality's encoder, from that of a checkpoint."""
    part = getattr(whole, _PARTS[name], None)
    if isinstance(part, PreTrainedConfig) and _PARTS[name] in type(whole).sub_configs:
        whole = part
    host_type = getattr(whole, "host_model_type", None)
    if host_type is not None and getattr(whole, "hf_lam", None) is None:
        # A folder of hf_lam without mechanisms is what it was made from.
        own = {key: value for key, value in whole.to_dict().items() if key not in ("model_type", "hf_lam", "auto_map")}
        whole = CONFIG_MAPPING[host_type](**own)
    elif host_type is not None:
        raise ValueError(
            f"the {name} checkpoint has hf_lam mechanisms, which a fusion model would lose: it has them in its fusion "
            "layers. Save it after hf_lam.remove."
        )
    return encoder_config_of(name, whole)


# --- layers ----------------------------------------------------------------------------------------------------------


def plan_encoder(name: str, encoder_config: Any) -> Any:
    """An encoder without weights; a `ValueError` if a fusion model cannot have it as that modality's."""
    try:
        with torch.device("meta"):
            return build_encoder(name, copy.deepcopy(encoder_config))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name}_config is a {type(encoder_config).__name__}, of which no encoder can be made: "
            f"{type(error).__name__}: {error}"
        ) from error


def cut_config(name: str, planned: Any, encoder_config: Any, wanted: Any) -> None:
    """Make a configuration that of an encoder's first layers.

    Args:
        name: name of the modality.
        planned: the encoder with all layers.
        encoder_config: its configuration, which is changed.
        wanted: number of layers to keep.

    Raises:
        ValueError: if the encoder has fewer, or cannot be cut.
    """
    has = encoder_config.num_hidden_layers
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= has:
        raise ValueError(
            f"own_layers[{name!r}]={wanted!r} must be a number of layers that the {name} checkpoint has, from 0 to "
            f"{has}."
        )
    if wanted == has:
        return
    encoder_config.num_hidden_layers = wanted
    keep_layers(encoder_config, list(range(wanted)), has)
    try:
        kept = plan_encoder(name, encoder_config).state_dict()
    except ValueError as error:
        raise ValueError(_CANNOT_CUT.format(name, wanted, type(planned).__name__)) from error
    whole = planned.state_dict()
    dropped = {_place_of(key) for key in whole.keys() - kept.keys()}
    lists, numbers = {place for place, _ in dropped}, {number for _, number in dropped}
    is_same = all(key in whole and whole[key].shape == tensor.shape for key, tensor in kept.items())
    if not is_same or len(lists) != 1 or numbers != set(range(wanted, has)):
        raise ValueError(_CANNOT_CUT.format(name, wanted, type(planned).__name__))


_CANNOT_CUT = (
    "own_layers[{0!r}]={1}: the layers of {2} cannot be cut, because they share weights, are stages of different "
    "sizes, or are counted by another option. Leave it out of own_layers, and it is used whole."
)


def _place_of(key: str) -> tuple[str, int]:
    """The list of modules that a weight is in, and its place there."""
    found = re.match(r"(.*?)\.(\d+)\.", key)
    return (found[1], int(found[2])) if found else (key, -1)


# --- weights ---------------------------------------------------------------------------------------------------------


def load_encoder(name: str, source: Source) -> tuple[Any, set[str]]:
    """The encoder in a checkpoint, and the names of weights that it started from random numbers.

    Raises:
        ValueError: if there is none, or one with mechanisms.
    """
    if isinstance(source.given, PreTrainedModel):
        return _find_encoder(name, source.given, source.config)[1], set()
    loader = AutoModel if type(source.whole) in MODEL_MAPPING else find_encoder_class(name, source.config)
    model, info = loader.from_pretrained(source.given, output_loading_info=True, **source.options)
    lost = sorted(key for key in info["unexpected_keys"] if ".hf_lam." in f".{key}")
    if lost:
        raise ValueError(
            f"the {name} checkpoint {str(source.given)!r} was saved with hf_lam mechanisms ({lost[0]}, …), which a "
            "fusion model would lose: it has them in its fusion layers. Save it after hf_lam.remove."
        )
    path, encoder = _find_encoder(name, model, source.config)
    prefix = f"{path}." if path else ""
    return encoder, {key.removeprefix(prefix) for key in info["missing_keys"] if key.startswith(prefix)}


def _find_encoder(name: str, model: nn.Module, encoder_config: Any) -> tuple[str, Any]:
    """The encoder of a modality in a model, and the path to it."""
    wanted = find_encoder_class(name, encoder_config)
    found = next(((path, module) for path, module in model.named_modules() if isinstance(module, wanted)), None)
    if found is None:
        raise ValueError(
            f"{type(model).__name__} of the {name} has no {wanted.__name__} in it; give one, or its folder."
        )
    return found


def copy_encoder(name: str, source: nn.Module, target: nn.Module, random: set[str] | None = None) -> None:
    """Copy the weights of an encoder into another one.

    Args:
        name: name of the modality.
        source: the encoder of the checkpoint.
        target: the encoder of the fusion model, which may lack parts of it.
        random: names of weights of the source that no checkpoint gave it.

    Raises:
        ValueError: for weights that the source does not have; the message names one.
    """
    expected, found = target.state_dict(), source.state_dict()
    lacking = sorted(key for key in expected if key not in found or found[key].shape != expected[key].shape)
    if lacking:
        raise ValueError(
            f"{type(source).__name__} of the {name} does not have {len(lacking)} weights of {type(target).__name__}, "
            f"such as {lacking[0]}."
        )
    unread = sorted(expected.keys() & (random or set()))
    if unread:
        raise ValueError(
            f"the {name} checkpoint does not have {len(unread)} weights of {type(target).__name__}, such as "
            f"{unread[0]}, which would start from random numbers. Give the checkpoint of such an encoder."
        )
    target.load_state_dict({key: found[key] for key in expected})
