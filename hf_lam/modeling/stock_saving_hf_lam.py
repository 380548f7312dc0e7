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
from .host_attention_hf_lam import find_encoder
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
        # A captioner around one of ours, for example, has the configuration of ours inside its own.
        if all(hasattr(base.config, "hf_lam") and base.config is not self.config for base in own):
            return stock(self, save_directory, *args, **kwargs)
        with SAVING:
            # A model of ours has seen to its mechanisms before it comes here.
            if hasattr(type(self), "host_class"):
                return stock(self, save_directory, *args, **kwargs)
            with _as_travelling(self, travelling_class_of(type(self))):
                return self.save_pretrained(save_directory, *args, **kwargs)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


@contextmanager
def _as_travelling(model: Any, model_class: Any) -> Iterator[None]:
    """While this lasts, a model is of the `HfLam…` class of its kind, and so is its configuration.

    Raises:
        ValueError: if there is no such class, or it would not load the mechanisms of the model again.
    """
    if model_class is None or injected_encoders(model) != [_encoder_of(model)]:
        raise ValueError(_explain_unsaved(model))
    config, stock_class, stock_config_class = model.config, type(model), type(model.config)
    options = dict(vars(config))
    try:
        become_travelling(model, model_class)
        yield
    finally:
        model.__class__ = stock_class
        config.__class__ = stock_config_class
        vars(config).clear()
        vars(config).update(options)


def become_travelling(model: Any, model_class: Any) -> None:
    """Let a model of a stock class, and its configuration, be of the `HfLam…` class of its kind."""
    config = model.config
    # What is said of the stock class. A configuration that was inside of another one has the type itself, too.
    for name in ("architectures", "auto_map", "model_type"):
        vars(config).pop(name, None)
    model.__class__, config.__class__ = model_class, model_class.config_class
    config.hf_lam = None  # until it is written down what there is
    # transformers notes by the name of a class what it can return besides, in the `__init__` that was not run.
    dict.__setitem__(_CAN_RECORD_REGISTRY, str(model_class), model._can_record_outputs)


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
