"""From a stock checkpoint to the `HfLam…` model of the same kind."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from .modeling import modeling_hf_lam
from .modeling.configuration_hf_lam import HfLamBertConfig, HfLamVideoMAEConfig, HfLamViTConfig
from .modeling.hosts_facts_hf_lam import read_structure
from .modeling.hosts_hf_lam import read_implementation
from .modeling.injection_hf_lam import initialize_weights, injected_encoders, list_changes
from .modeling.layers_hf_lam import container_of, mark_as_initialised
from .modeling.mechanism_registry_hf_lam import mechanism_block

logger = logging.get_logger(__name__)

CONFIGS = {config.host_model_type: config for config in (HfLamBertConfig, HfLamViTConfig, HfLamVideoMAEConfig)}


def convert(
    model_or_id: PreTrainedModel | str | os.PathLike[str],
    *configs: Any,
    auto_class: Any = None,
    **from_pretrained_kwargs: Any,
) -> Any:
    """Turn a BERT, ViT or VideoMAE model into the matching `HfLam…` model with the same weights.

    What lies beside a model (its tokenizer or processor, the modules of sentence-transformers) is no part of it; the
    command `hf-lam convert` takes that along, too.

    Args:
        model_or_id: a loaded transformers model, a local folder, or a Hub id.
        *configs: the mechanisms, one of each kind: `LamConfig()`, `LocomtConfig()`, `SttConfig()`.
        auto_class: for a folder or an id, which head to load: an Auto class or its name, for example
            `AutoModelForSequenceClassification`. The default is the encoder alone (`AutoModel`).
        **from_pretrained_kwargs: for a folder or an id, passed to `from_pretrained` (`revision`, `dtype`,
            `num_labels`, …).

    Returns:
        The converted model. Made from a loaded model, it shares its parameters with it: there are never two copies,
        and training one trains the other. With the defaults its outputs are those of the original; what changes them
        at once (sparse views, pure STT, random masks) is logged.

    Raises:
        TypeError: if `model_or_id` is neither a model nor a name.
        ValueError: if there is no `HfLam…` class for the model, or it was converted before.
        RuntimeError: if the checkpoint lacks host weights, or their shapes differ.
    """
    converted = convert_silently(model_or_id, *configs, auto_class=auto_class, **from_pretrained_kwargs)
    # With `output_loading_info` it is a tuple.
    for change in list_changes(converted[0] if isinstance(converted, tuple) else converted):
        logger.warning(change)
    return converted


def convert_silently(
    model_or_id: PreTrainedModel | str | os.PathLike[str],
    *configs: Any,
    auto_class: Any = None,
    **from_pretrained_kwargs: Any,
) -> Any:
    """As `convert`, without a word about what changes the outputs: `list_changes` says it."""
    block = mechanism_block(configs)
    if isinstance(model_or_id, PreTrainedModel):
        if auto_class is not None or from_pretrained_kwargs:
            given = sorted(from_pretrained_kwargs) + (["auto_class"] if auto_class is not None else [])
            raise ValueError(
                f"{given} only have a meaning for a folder or a Hub id; a loaded model is taken as it is."
            )
        return _convert_loaded(model_or_id, block)
    if not isinstance(model_or_id, (str, os.PathLike)):
        raise TypeError(
            f"convert takes a transformers model, a folder or a Hub id, got {type(model_or_id).__name__}. (Convert "
            "first and add a PEFT adapter afterwards.)"
        )
    taken = sorted({"config", "hf_lam"} & from_pretrained_kwargs.keys())
    if taken:
        raise ValueError(f"convert sets {taken} itself; give the mechanisms as configurations.")
    config = AutoConfig.from_pretrained(
        model_or_id,
        **{key: from_pretrained_kwargs[key] for key in modeling_hf_lam.HUB_OPTIONS if key in from_pretrained_kwargs},
    )
    config_class = _find_config_class(config)
    name = _name_auto_class(auto_class)
    if name not in config_class.auto_classes:
        raise ValueError(
            f"there is no {name} for a {config_class.host_model_type} with hf_lam; choose one of "
            f"{sorted(config_class.auto_classes)}."
        )
    model_class = getattr(modeling_hf_lam, config_class.auto_classes[name])
    return model_class.from_pretrained(model_or_id, hf_lam=block, **from_pretrained_kwargs)


def _name_auto_class(auto_class: Any) -> str:
    if auto_class is None:
        return "AutoModel"
    return auto_class if isinstance(auto_class, str) else getattr(auto_class, "__name__", repr(auto_class))


def _find_config_class(config: Any) -> type[Any]:
    if config.model_type.startswith("hf_lam_"):
        raise ValueError(
            f"this model is already a {config.model_type}; load it with from_pretrained. To change its mechanisms "
            "call hf_lam.remove(model) and then hf_lam.inject(model, ...)."
        )
    if config.model_type not in CONFIGS:
        raise ValueError(
            f"convert knows models of type {sorted(CONFIGS)}, got {config.model_type!r}. For other encoders use "
            "hf_lam.inject(model, ...), which works on any of them in place."
        )
    return CONFIGS[config.model_type]


def _convert_loaded(model: Any, block: dict[str, Any] | None) -> PreTrainedModel:
    config_class = _find_config_class(model.config)
    if getattr(model, "is_quantized", False) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ValueError(
            "convert cannot take a loaded model that is quantized or spread over several devices. Give it the folder "
            "or Hub id together with quantization_config= or device_map=."
        )
    if injected_encoders(model):
        raise ValueError(
            f"this {type(model).__name__} has mechanisms that were injected; call hf_lam.remove(model) before "
            "converting it."
        )
    stock = type(model).__name__
    model_class = getattr(modeling_hf_lam, f"HfLam{stock}", None)
    if model_class is None or type(model) not in model_class.__mro__:
        known = [name.removeprefix("HfLam") for name in config_class.auto_classes.values()]
        raise ValueError(f"there is no HfLam class for {stock}; there is one for each of {known}.")
    options = model.config.to_dict()
    for key in ("model_type", "auto_map", "architectures"):
        options.pop(key, None)
    config = config_class(**options, hf_lam=block, attn_implementation=read_implementation(model.config))
    config.name_or_path = model.config.name_or_path
    with torch.device("meta"):
        converted = model_class(config, **read_structure(model))
    _share_tensors(model, converted)
    converted.tie_weights()
    converted.train(model.training)
    return converted


def _share_tensors(source: PreTrainedModel, target: Any) -> None:
    """Put every parameter and buffer of `source` into `target`, and give the new ones of `target` values.

    Gradient checkpointing, which transformers keeps on the modules, stays on where it is on.
    """
    for path, module in source.named_modules():
        twin = target.get_submodule(path)
        if type(twin) is not type(module) and isinstance(twin, nn.Identity):
            continue  # a projection that attention without scores does without
        checkpointing = ("gradient_checkpointing", "_gradient_checkpointing_func")
        twin.__dict__.update({key: value for key, value in module.__dict__.items() if key in checkpointing})
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            setattr(twin, name, parameter)
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            setattr(twin, name, buffer)
    reference = next(source.base_model.parameters())
    mechanisms = container_of(target.base_model)
    mechanisms.to_empty(device=reference.device).to(reference.dtype)
    # `apply` goes to children first, as loading does: a parent may write what its `nn.Linear`s drew.
    mechanisms.apply(partial(initialize_weights, target.base_model))
    mark_as_initialised(target)
