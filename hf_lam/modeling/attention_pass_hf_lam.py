# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""One forward pass of an encoder with mechanisms.

What a pass needs to know travels *with that pass*: as a keyword argument from the stack of layers to each layer, and
from there to the attention function with the stand-ins of `stand_ins_hf_lam.py`. Nothing is ever stored on a module
during a forward, so threads, recomputation under gradient checkpointing and `torch.compile` all see their own pass:

    stack of layers      begins a `ForwardPass`                      it goes to the layers
      layer              the first one makes the states, if needed
        self-attention   makes an `AttentionCall` with its input X   it goes to the attention function
          the function   `AttentionCall.attend(module, q, k, v, …)`  (`attend_for_stand_in`)
            `attend`     the pass's slot, which tools wrap to look at attention

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .hosts_hf_lam import DISPATCH, Host
from .lam_attention_hf_lam import changed_attention, changed_attention_with_weights, flex_obstacle
from .mechanism_hf_lam import (
    PATTERN,
    REPLACEMENT,
    Attended,
    Attention,
    Dispatch,
    LayerInput,
    PassStart,
    Replacement,
    ScoreChange,
    compose,
    extend_change,
)
from .mechanism_registry_hf_lam import find_name, order_of_changes
from .padding_hf_lam import add_padding, dense_padding, extend_padding
from .stand_ins_hf_lam import handed_to

# The keyword arguments that the stack of layers is called with.
TOKEN_TYPES = "hf_lam_token_types"
MODALITY_TOKENS = "hf_lam_modality_tokens"
GRID = "hf_lam_grid"


class Observer(Protocol):
    """Looks at, or changes, the attention of one layer: it gets the layer's attention and what computes it."""

    def __call__(self, attention: Attention, attend: Callable[[Attention], Attended]) -> Attended: ...


@dataclass(eq=False)
class Injection:
    """Everything attached to one encoder, and how to take it off: `base._hf_lam`, read with `injection_of`.

    Plain data, which deepcopy and pickle follow. It is read by attribute and never by class: several copies of this
    code may live in one process.

    configs: resolved configurations of the mechanisms, by name.
    host: the encoder, as mechanisms know it.
    base: the encoder.
    stack: the module whose forward runs the layers.
    layers, attentions: its layers, and the self-attention of each.
    begins: names of the mechanisms that compute something at the beginning of a pass.
    token_types_position: position of `token_type_ids` among the arguments of the encoder's forward; None if no
        mechanism needs them.
    layers_path: path of the layers in the stack.
    seen: the layers, or what somebody has wrapped around them, as they were at the last look.
    has_other_layers: whether layers were cut, reordered or copied since.
    input_places: positions of the arguments of the stack's forward that tell the grid of the input; empty if it gets
        tokens.
    undo: records of the changes, in order; `remove` undoes them backwards.
    observers: functions that observe the attention of the layers at the moment; the last one stands in front.
    """

    configs: dict[str, Any]
    host: Host
    base: Any
    stack: Any
    layers: tuple[Any, ...]
    attentions: tuple[Any, ...]
    begins: tuple[str, ...]
    token_types_position: int | None = None
    layers_path: str = ""
    seen: tuple[nn.Module, ...] = ()
    has_other_layers: bool = False
    input_places: dict[str, int] = field(default_factory=dict)
    undo: list[Any] = field(default_factory=list)
    observers: tuple[Observer, ...] = ()

    def __post_init__(self) -> None:
        self.set_configs(self.configs)

    def set_configs(self, configs: dict[str, Any]) -> None:
        """Have other configurations of the same mechanisms."""
        self.configs = configs
        self.order = order_of_changes(configs)
        self.pattern = find_name(configs, PATTERN)
        self.replacement = find_name(configs, REPLACEMENT)
        self.with_state = [name for name, config in configs.items() if config.needs_embeddings]
        self.needs_places = any(config.needs_places for config in configs.values())
        self.appending = next((name for name, config in configs.items() if config.appended_tokens), None)


class ForwardPass:
    """One forward pass of an encoder.

    injection: the encoder's mechanisms.
    dispatch: their methods.
    implementation: `"eager"`, `"flex_attention"` or `"auto"`.
    want_weights: whether attention weights are asked for; None until the first layer.
    attend: computes one layer's attention; observers may stand in front of it.
    begun: result of every mechanism's `begin`, by name.
    states: values that mechanisms carry from layer to layer, by name; empty until the first layer.
    recorded: name under which transformers records the attention weights of these layers.
    """

    recorded: ClassVar[str] = "attentions"

    def __init__(self, injection: Injection, implementation: str) -> None:
        self.injection = injection
        self.dispatch = Dispatch(injection.base.hf_lam)
        self.implementation = implementation
        self.want_weights: bool | None = None
        self.attend: Callable[[Attention], Attended] = attend
        for observer in injection.observers:
            self.attend = partial(observer, attend=self.attend)
        self.begun: dict[str, Any] = {}
        self.states: dict[str, Tensor] = {}

    def begin(self, start: PassStart) -> None:
        """Let the mechanisms begin that have something to begin with."""
        self.begun = {name: self.dispatch.begin(name, start) for name in self.injection.begins}

    def make_states(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Make the values that cross layers, from the input of the first one."""
        names = self.injection.with_state
        return {name: self.dispatch.make_state(name, embeddings, self.begun.get(name)) for name in names}

    def with_states(self, states: dict[str, Tensor]) -> ForwardPass:
        """The same pass with other states."""
        twin = copy.copy(self)
        twin.states = states
        return twin

    # --- one layer ---

    def read_layer(self, name: str, attention: Attention) -> LayerInput:
        """Collect what the mechanism `name` reads in a layer."""
        return LayerInput(
            attention.layer,
            attention.hidden_states,
            self.begun.get(name),
            self.states.get(name),
            attention.padding_of_tokens,
            is_last=name == self.injection.order[-1] if self.injection.order else True,
        )

    def change_scores(self, attention: Attention, names: Sequence[str] | None = None) -> ScoreChange:
        """Compute the factor of the raw scores and the addend to them, without padding.

        names: mechanisms to apply, in their order; all that change scores unless given.
        """
        names = self.injection.order if names is None else names
        changes = [self.dispatch.change_scores(name, self.read_layer(name, attention)) for name in names]
        # The layers of one model, and what is shared between them, may lie on several devices.
        device = attention.query.device
        return compose([ScoreChange(*(x if x is None else x.to(device) for x in change)) for change in changes])

    def replace_scores(self, attention: Attention) -> Replacement:
        """Make the replacement of the scores, in a model without scores."""
        name = self.injection.replacement
        assert name is not None
        return self.dispatch.replace_scores(name, self.read_layer(name, attention))


def attend(attention: Attention) -> Attended:
    """One layer's attention with everything that its mechanisms change."""
    of_pass: ForwardPass = attention.of_pass
    injection = of_pass.injection
    if injection.replacement is not None:
        replacement = attention.replacement
        return (of_pass.replace_scores(attention) if replacement is None else replacement).attend(attention)
    change = of_pass.change_scores(attention) if attention.change is None else attention.change
    change = extend_change(change, attention.past)
    if injection.pattern is not None:
        return of_pass.begun[injection.pattern].attend(attention, change)
    return attend_changed(attention, change)


def attend_changed(attention: Attention, change: ScoreChange) -> Attended:
    """`softmax( (Q Kᵀ · scaling) ⊙ factor + addend + padding ) V` over all tokens."""
    query, key, value, padding = attention.query, attention.key, attention.value, attention.padding
    options: dict[str, Any] = {
        "factor": change.factor,
        "addend": change.addend,
        "attention_mask": padding,
        "scaling": attention.scaling,
        "dropout_p": attention.dropout,
    }
    if attention.want_weights:
        return changed_attention_with_weights(query, key, value, **options)
    implementation = attention.implementation
    # It gives no gradient to what is added to the scores.
    is_added = change.addend is not None or (padding is not None and padding.requires_grad)
    if implementation == "flex_attention" and (is_added or flex_obstacle(query, value, attention.dropout)):
        implementation = "auto"
    return changed_attention(query, key, value, implementation=implementation, **options), None


# --- the attention function ------------------------------------------------------------------------------------------


class AttentionCall:
    """One attention layer in one forward pass, on its way to the attention function.

    hidden_states: the layer's input, `(B, L, d)`.
    """

    def __init__(self, of_pass: ForwardPass, layer: int, hidden_states: Tensor) -> None:
        self.of_pass = of_pass
        self.layer = layer
        self.hidden_states = hidden_states

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | BlockMask | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> Attended:
        """Attention with the arguments of transformers' interface; several copies of this code agree on no others.

        Returns:
            The context `(B, L, H, D)`, and the weights if asked for.
        """
        of_pass = self.of_pass
        unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
        if unsupported:
            raise ValueError(
                f"{type(module).__name__} asks its attention for {unsupported}, which the mechanisms of hf_lam do not "
                "have. Leave it out; hf_lam.remove(model) gives the host back."
            )
        if query.shape[2] != self.hidden_states.shape[1]:
            raise ValueError(
                f"{type(module).__name__} attends piece by piece ({query.shape[2]} of {self.hidden_states.shape[1]} "
                "tokens at once), but mechanisms need the whole sequence. Pass several inputs as a batch."
            )
        if key.shape[1] != query.shape[1]:  # heads that share keys and values
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        # As in transformers' SDPA, a mask that is there says what is causal; that of a flash kernel is padding alone.
        is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        has_all = isinstance(attention_mask, BlockMask) or (attention_mask is not None and attention_mask.dim() > 2)
        padding = dense_padding(attention_mask, query, key)
        if is_causal and not has_all and query.shape[2] > 1:
            earlier = query.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
            padding = earlier if padding is None else padding & earlier
        if padding is not None and of_pass.injection.appending is not None:
            padding = extend_padding(padding, key.shape[2] - padding.shape[-1])
        if position_bias is not None:
            added = key.shape[2] - position_bias.shape[-1]  # tokens that have no place
            if added:  # without any, it would be copied in every layer
                position_bias = pad(position_bias, (0, added, 0, added))
            padding = add_padding(position_bias, padding)
        past = key.shape[2] - query.shape[2]
        if past:
            refuse_past(of_pass.injection.configs, past)
        attention = Attention(
            of_pass=of_pass,
            layer=self.layer,
            hidden_states=self.hidden_states,
            query=query,
            key=key,
            value=value,
            padding=padding,
            scaling=scaling,
            dropout=dropout,
            implementation=of_pass.implementation,
            want_weights=bool(of_pass.want_weights),
            past=past,
        )
        context, weights = of_pass.attend(attention)
        return context.transpose(1, 2).contiguous(), weights


# What a host may ask of its attention, and what would be lost without a word.
_UNSUPPORTED = ("softcap", "s_aux", "cu_seq_lens_q")


def refuse_past(configs: dict[str, Any], past: int) -> None:
    """Raises a `ValueError` for mechanisms without a place for keys that come before the tokens."""
    for config in configs.values():
        if config.no_place_for_past is not None:
            raise ValueError(
                f"{past} keys and values come before the tokens (a cache, or past_key_values, as of prefix tuning), "
                f"{config.no_place_for_past}, so {type(config).__name__} cannot be used with them. Train something "
                "else instead, such as LoRA or prompt tuning."
            )


def attend_for_stand_in(module: Any, *args: Any, **kwargs: Any) -> Attended:
    """The attention function of attention modules with mechanisms.

    It only passes on to the call that the module was handed, so that any copy of this code in the process can answer
    for any other.
    """
    call: Any = handed_to(module)
    if call is None:
        raise RuntimeError(
            f"{type(module).__name__} was not called by its encoder, or does not give itself to its attention "
            "function, so its hf_lam mechanisms cannot be reached. Call the encoder itself, or hf_lam.remove(model)."
        )
    return call.attend(module, *args, **kwargs)


def attend_without_mechanisms(module: nn.Module, *args: Any, **kwargs: Any) -> Attended:
    """The attention function `"hf_lam"`, for whoever asks a model for it by its name: transformers' SDPA."""
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)


AttentionInterface.register(DISPATCH, attend_for_stand_in)
# Without a mask function of the same name, a padded batch would arrive with no mask at all.
AttentionMaskInterface.register(DISPATCH, sdpa_mask)
if "hf_lam" not in ALL_ATTENTION_FUNCTIONS:  # older copies of this code send their own modules there
    AttentionInterface.register("hf_lam", attend_without_mechanisms)
    AttentionMaskInterface.register("hf_lam", sdpa_mask)
