"""From a stock checkpoint to the `HfLam…` model of the same kind."""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .modeling import modeling_hf_lam
from .modeling.configuration_hf_lam import PREFIX, config_class_of
from .modeling.injection_hf_lam import (
    Plan,
    initialize_weights,
    injected_encoders,
    injection_of,
    list_changes,
    plan_injection,
)
from .modeling.mechanism_hf_lam import REPLACEMENT
from .modeling.mechanism_registry_hf_lam import block_of, mechanism_block
from .modeling.modeling_hf_lam import travelling_class_of
from .modeling.stock_saving_hf_lam import become_travelling
from .modeling.weight_names_hf_lam import has_fused_weights

logger = logging.get_logger(__name__)


def convert(
    model_or_id: PreTrainedModel | str | os.PathLike[str],
    *configs: Any,
    auto_class: Any = None,
    **from_pretrained_kwargs: Any,
) -> Any:
    """Turn an encoder of transformers, or a head on one, into the matching `HfLam…` model with the same weights.

    What lies beside a model (its tokenizer or processor, the modules of sentence-transformers) is no part of it; the
    command `hf-lam convert` takes that along, too.

    Args:
        model_or_id: a loaded transformers model, a local folder, or a Hub id.
        *configs: the mechanisms, one of each kind: `LamConfig()`, `LocomtConfig()`, `SttConfig()`. A loaded model that
            mechanisms were injected into has them already, and none is given.
        auto_class: head to load from a folder or an id: an Auto class or its name, for example
            `AutoModelForSequenceClassification`. The default is the encoder alone (`AutoModel`); for a model with a
            decoder (Whisper), that is its encoder. A model that is made of an encoder and a decoder
            (`VisionEncoderDecoderModel`) stays whole, and its encoder gets the mechanisms.
        **from_pretrained_kwargs: further arguments of `from_pretrained` for a folder or an id (`revision`, `dtype`,
            `num_labels`, …).

    Returns:
        The converted model. Made from a loaded model, it shares its parameters with it: there are never two copies,
        and training one trains the other. With the defaults its outputs are those of the original; what changes them
        at once (sparse views, pure STT, random masks) is logged.

    Raises:
        TypeError: if `model_or_id` is neither a model nor a name.
        ValueError: if mechanisms cannot be attached to the model, with the reason, if there is no `HfLam…` class for
            it, or it was converted before.
        RuntimeError: if the checkpoint lacks host weights, or their shapes differ.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> model = convert("bert-base-uncased", LamConfig(), auto_class="AutoModelForMaskedLM")
        >>> type(model).__name__
        'HfLamBertForMaskedLM'
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
    """Convert as `convert` does, without logging what changes the outputs: `list_changes` says it."""
    if isinstance(model_or_id, PreTrainedModel):
        keeps = not configs and injected_encoders(model_or_id)
        block = None if keeps else mechanism_block(configs)
        if auto_class is not None or from_pretrained_kwargs:
            given = sorted(from_pretrained_kwargs) + (["auto_class"] if auto_class is not None else [])
            raise ValueError(
                f"{given} only have a meaning for a folder or a Hub id; a loaded model is taken as it is."
            )
        return _convert_loaded(model_or_id, block)
    block = mechanism_block(configs)
    if not isinstance(model_or_id, (str, os.PathLike)):
        raise TypeError(
            f"convert takes a transformers model, a folder or a Hub id, got {type(model_or_id).__name__}. (Convert "
            "first and add a PEFT adapter afterwards.)"
        )
    taken = sorted({"config", "hf_lam"} & from_pretrained_kwargs.keys())
    if taken:
        raise ValueError(f"convert sets {taken} itself; give the mechanisms as configurations.")
    of_hub = {key: from_pretrained_kwargs[key] for key in modeling_hf_lam.HUB_OPTIONS if key in from_pretrained_kwargs}
    # The class that this chooses makes a configuration of it.
    saved, _ = PreTrainedConfig.get_config_dict(model_or_id, **of_hub)
    if config_class_of(str(saved.get("model_type"))) is None:
        AutoConfig.from_pretrained(model_or_id, **of_hub)  # says what is wrong with a type that is none
    model_class = _find_class(saved["model_type"], saved.get("architectures"), _name_auto_class(auto_class))
    if any(config.change == REPLACEMENT for config in configs) and has_fused_weights(model_class):
        # The queries and keys that it does without are one tensor with the values in the file.
        loaded = model_class.from_pretrained(model_or_id, hf_lam=None, **from_pretrained_kwargs)
        converted = loaded[0] if isinstance(loaded, tuple) else loaded
        _plan(converted, block).apply()
        return loaded
    try:
        return model_class.from_pretrained(model_or_id, hf_lam=block, **from_pretrained_kwargs)
    except ValueError as error:
        # The error is about the stock class.
        message = str(error).replace(model_class.__name__, model_class.host_class.__name__)
        raise ValueError(message) from error


def _name_auto_class(auto_class: Any) -> str:
    if auto_class is None:
        return "AutoModel"
    return auto_class if isinstance(auto_class, str) else getattr(auto_class, "__name__", repr(auto_class))


def _find_class(model_type: str, architectures: list[str] | None, auto: str) -> Any:
    """The class of ours that an Auto class loads for a stock configuration that says this."""
    _check_stock(model_type)
    config_class = config_class_of(model_type)
    if config_class is None:
        raise ValueError(
            f"transformers has no encoder of type {model_type!r} that an Auto class loads, so there is no "
            "HfLam class for it. Code of a repository's own is not converted; load the model and try "
            "hf_lam.inject(model, ...)."
        )
    if auto not in config_class.auto_classes:
        raise ValueError(
            f"there is no {auto} for a {config_class.host_model_type} with hf_lam; choose one of "
            f"{sorted(config_class.auto_classes)}."
        )
    names = [config_class.auto_classes[auto], *config_class.alternatives.get(auto, ())]
    wanted = [f"HfLam{name}" for name in architectures or ()]
    found = getattr(modeling_hf_lam, next((name for name in names if name in wanted), names[0]), None)
    if found is None:
        raise ValueError(f"{names[0].removeprefix('HfLam')} needs a package that is not installed.")
    return found


def _check_stock(model_type: str) -> None:
    if model_type.startswith(PREFIX):
        raise ValueError(
            f"this model is already a {model_type}; load it with from_pretrained. To change its mechanisms "
            "call hf_lam.remove(model) and then hf_lam.inject(model, ...)."
        )


def _convert_loaded(model: Any, block: dict[str, Any] | None) -> PreTrainedModel:
    _check_stock(model.config.model_type)
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ValueError(
            "convert cannot take a loaded model that is spread over several devices. Give it the folder or Hub id "
            "together with device_map=."
        )
    if injected_encoders(model) and block is not None:
        raise ValueError(
            f"this {type(model).__name__} has mechanisms that were injected. Convert it with these, by giving none, "
            "or call hf_lam.remove(model) before."
        )
    model_class = travelling_class_of(type(model))
    if model_class is None:
        if block is not None:
            plan_injection(model, block)  # a reason of the model itself comes first
        known = config_class_of(model.config.model_type)
        stock = sorted({name.removeprefix("HfLam") for name in known.auto_classes.values()}) if known else []
        one_of = f"; there is one for each of {stock}" if stock else ""
        raise ValueError(
            f"there is no HfLam class for {type(model).__name__}{one_of}. hf_lam.inject(model, ...) attaches "
            "mechanisms in place, where the encoder lets it, and hf_lam.save_mechanism keeps them."
        )
    converted = _share_tensors(model)
    plan = None if block is None else _plan(converted, block)
    become_travelling(converted, travelling_class_of)
    if plan is not None:
        plan.apply()
    for base in injected_encoders(converted):
        converted.config.hf_lam = block_of(injection_of(base).configs)
    return converted


def _plan(model: Any, block: Any) -> Plan:
    """Plan what `apply` will do, with weights drawn as loading draws them, so that a seed gives the same."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        plan = plan_injection(model, block)
    # Children first, since a parent may write what its `nn.Linear`s drew.
    plan.container.apply(partial(initialize_weights, plan.base))
    return plan


def _share_tensors(model: Any) -> Any:
    """A copy of a model with the same tensors in other modules: parameters, buffers, and what else modules keep."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *kept)})
