"""Facts that the mechanisms of a model tell of themselves, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .modeling.injection_hf_lam import InjectedEncoder, injection_of, mechanism_of
from .modeling.layers_hf_lam import container_of
from .modeling.mechanism_hf_lam import Attended, Attention, overrides
from .observing import evaluation_mode, observing, run_batches, tokens_of

# The facts of a layer: by the names of its mechanisms, and by their own.
LayerFacts = dict[str, dict[str, Any]]


def list_facts(base: InjectedEncoder) -> list[LayerFacts]:
    """List the facts of every layer of an encoder that need no input."""
    injection, container = injection_of(base), container_of(base)
    return [
        {name: getattr(container, name).list_facts(layer) for name in injection.configs}
        for layer in range(len(injection.attentions))
    ]


def list_facts_of(model: torch.nn.Module, base: InjectedEncoder, inputs: Mapping[str, Any]) -> list[LayerFacts]:
    """The facts about every layer's change of scores for a batch; those of a shared one are in the first layer.

    Args:
        model: model around the encoder. It is left as it was.
        base: the encoder.
        inputs: arguments that the model is called with.
    """
    injection = injection_of(base)
    names = [name for name in injection.order if overrides(mechanism_of(base, name), "list_facts_of")]
    found: list[LayerFacts] = [{} for _ in injection.attentions]

    def note(attention: Attention, attend: Callable[[Attention], Attended]) -> Attended:
        for name in names:
            if attention.layer == 0 or not injection.configs[name].is_shared:
                change = attention.of_pass.change_scores(attention, [name])
                facts = mechanism_of(base, name).list_facts_of(change, tokens_of(attention))
                found[attention.layer][name] = facts
        return attend(attention)

    if names:
        with torch.no_grad(), evaluation_mode(model), observing(base, note):
            run_batches(model, base, [inputs])
    return found
