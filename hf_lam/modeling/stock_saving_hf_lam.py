# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Save models of stock classes that carry mechanisms whole: those that `hf_lam.inject` was given, and parts of ours.

Such a model keeps its stock class, which could not load the mechanisms again. What is written is therefore the
`HfLam…` class of the same kind, which is a subclass of it: for the time of saving, the model is one of these.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from .attention_pass_hf_lam import Injection
from .host_attention_hf_lam import encoder_side_of, find_encoder
from .hosts_facts_hf_lam import is_composed
from .injection_hf_lam import injected_encoders, injection_of

# Held while a model is saved, which may be of another class meanwhile.
SAVING = threading.RLock()


def watch_saving(travelling_class_of: Callable[[type[Any]], Any]) -> None:
    """Let `save_pretrained` of every transformers model see the mechanisms inside of it, from now on.

    On the class of all of them, because what is saved may be a model around the one that mechanisms were attached to,
    or a part of it.

    travelling_class_of: the `HfLam…` class of a stock one, or None.
    """
    stock = PreTrainedModel.save_pretrained

    @functools.wraps(stock)
    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        # With an adapter, nothing but the adapter is saved. What other copies of this code have attached, they save.
        encoders = [] if getattr(self, "_hf_peft_config_loaded", False) else injected_encoders(self)
        own = [base for base in encoders if isinstance(injection_of(base), Injection)]
        # A model around one of ours has the configuration of ours inside its own. That is no help without our code,
        # which only classes of ours bring along: there is one for what is made of an encoder and a decoder.
        is_around = all(hasattr(base.config, "hf_lam") and base.config is not self.config for base in own)
        if is_around and not (is_composed(self.config) and _is_made_here(encoder_side_of(self), travelling_class_of)):
            return stock(self, save_directory, *args, **kwargs)
        with SAVING:
            # A model of ours has seen to its mechanisms before it comes here.
            if hasattr(type(self), "host_class"):
                return stock(self, save_directory, *args, **kwargs)
            with _as_travelling(self, travelling_class_of):
                return self.save_pretrained(save_directory, *args, **kwargs)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


def _is_made_here(model: Any, travelling_class_of: Callable[[type[Any]], Any]) -> bool:
    """Whether a model is of an `HfLam…` class, and not that of another copy of this code."""
    stock = getattr(type(model), "host_class", None)
    return stock is not None and travelling_class_of(stock) is type(model)


@contextmanager
def _as_travelling(model: Any, travelling_class_of: Callable[[type[Any]], Any]) -> Iterator[None]:
    """Let a model be of the `HfLam…` class of its kind while this lasts, and its configuration, too.

    Raises:
        ValueError: if there is no such class, or it would not load the mechanisms of the model again.
    """
    parts = list_stock_parts(model)
    elsewhere = [base for base in injected_encoders(model) if base is not _encoder_of(model)]
    if elsewhere or None in map(travelling_class_of, map(type, parts)):
        raise ValueError(_explain_unsaved(model))
    before = [(part, type(part), part.config, type(part.config), dict(vars(part.config))) for part in parts]
    try:
        become_travelling(model, travelling_class_of)
        yield
    finally:
        for part, stock_class, config, stock_config_class, options in before:
            part.__class__ = stock_class
            config.__class__ = stock_config_class
            vars(config).clear()
            vars(config).update(options)


def list_stock_parts(model: Any) -> list[Any]:
    """The parts of a model that have to be of `HfLam…` classes for it to be of one, and are not: it, and its encoder.

    That is a part of its own in a model that is made of two.
    """
    parts = dict.fromkeys((encoder_side_of(model), model))
    return [part for part in parts if not hasattr(type(part), "host_class")]


def become_travelling(model: Any, travelling_class_of: Callable[[type[Any]], Any]) -> None:
    """Let a model of a stock class, and its configuration, be of the `HfLam…` class of its kind.

    Its mechanisms are not written into the configuration.

    Raises:
        ValueError: if there is no such class.
    """
    classes = {part: travelling_class_of(type(part)) for part in list_stock_parts(model)}
    for part, made in classes.items():
        if made is None:
            raise ValueError(f"there is no HfLam class for {type(part).__name__}.")
    for part, made in classes.items():
        config = part.config
        # Keys that are about the stock class. A configuration that was inside of another one has the type itself, too.
        for name in ("architectures", "auto_map", "model_type"):
            vars(config).pop(name, None)
        part.__class__, config.__class__ = made, made.config_class
        if encoder_side_of(part) is part:
            config.hf_lam = None  # until it is written down what there is
        else:
            config.encoder = part.encoder.config  # which has them
        # transformers notes by the name of a class what it can return besides, in the `__init__` that was not run.
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(made), part._can_record_outputs)


def _encoder_of(model: Any) -> Any:
    try:
        return find_encoder(model)
    except ValueError:  # it has several
        return None


def _explain_unsaved(model: Any) -> str:
    bases = injected_encoders(model)
    inner = ", ".join(dict.fromkeys(type(base).__name__ for base in bases if base is not model))
    names = ", ".join(dict.fromkeys(name for base in bases for name in injection_of(base).configs))
    alone = f" The {inner} alone saves whole, with its own save_pretrained." if inner else ""
    return (
        f"there is no HfLam class for this {type(model).__name__} that could load the mechanisms of hf_lam in it "
        f"({names}) again, so nothing was saved. Keep them with hf_lam.save_mechanism(model, folder), and save the "
        "rest after hf_lam.remove(model); hf_lam.load_mechanism(model, folder) attaches them to what is loaded "
        f"then.{alone}"
    )
