"""Attach mechanisms to a transformers encoder, in place, and take them off again.

The host keeps its projections, layers and classes. Everything between q, k, v and the context is ours, reached through
three hooks and one attention function. What a forward pass needs to know travels *with that pass*, as the keyword
argument `hf_lam_call` that the host hands from its stack of layers down to the attention function. Nothing is ever
stored on a module during a forward, so threads, recomputation under gradient checkpointing and `torch.compile` all see
their own pass:

    stack of layers      begins a `ForwardCall`                            (`_enter_stack`)
      layer.forward      the first layer fills its `state`, where needed   (`_enter_layer`)
        self-attention   asks the container for the layer's mask           (`_enter_attention`)
          "hf_lam"       `AttentionCall.attend(q, k, v)`                   (`hf_lam_attention_forward`)

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.output_capturing import _active_collector

from .configuration_hf_lam import LamConfig, LocomtConfig, Mechanisms, SttConfig, mechanism_block, mechanisms_in
from .functional_hf_lam import _additive, _softmax_dtype, flex_obstacle, lam_attention, lam_attention_with_weights
from .locomt_hf_lam import Layout, attend_annealed, attend_blocks, attend_eager, attend_with_weights
from .mechanisms_hf_lam import AttentionMechanisms, AttentionViews, LearnableAttentionMask
from .segments_hf_lam import (
    HostTokens,
    bottleneck_segments,
    has_modalities,
    has_token_types,
    host_tokens,
    is_fusion,
    resolve_locomt,
    segment_of_tokens,
)
from .stt_hf_lam import log_synthetic_map, stt_attention, stt_attention_with_weights
from .synthesizers_hf_lam import (
    AttentionSynthesizer,
    DenseAxis,
    DenseShares,
    RandomAxis,
    RandomShares,
    SyntheticLogits,
    resolve_stt,
)
from .views_hf_lam import View, parse_view

logger = logging.get_logger(__name__)

# The keyword arguments that we hand from module to module.
CALL = "hf_lam_call"
TOKEN_TYPES = "hf_lam_token_types"
MODALITY_TOKENS = "hf_lam_modality_tokens"

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


class ModalityTokens(NamedTuple):
    """What the tokens of a fusion model's batch belong to.

    lengths: tokens of each modality, in their order; 0 for one that the batch does not have.
    is_present: `(B, m)` bool, which modalities each sample has; None if all samples have those of the batch.
    """

    lengths: tuple[int, ...]
    is_present: torch.Tensor | None = None


class AttentionCall:
    """One attention layer in one forward pass: what its mechanisms are, and how to compute with them.

    hidden_states: the layer's input, `(B, L, d)`, from which STT synthesises its map.
    mask: LAM's, `(B, 1 or H, L, L)`, or None.
    views: one per head, or None.
    """

    def __init__(
        self,
        forward_call: ForwardCall,
        layer_index: int,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        views: tuple[View, ...] | None,
    ) -> None:
        self.forward_call = forward_call
        self.layer_index = layer_index
        self.hidden_states = hidden_states
        self.mask = mask
        self.views = views

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | BlockMask | None,
        scaling: float | None,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention as transformers' interface wants it: context `(B, L, H, D)`, and the weights if asked for."""
        if is_pure_stt(self.forward_call.configs):
            # Without projections, query and key are the layer's input: good for their sizes, and nothing else.
            padding = _dense_padding_mask(attention_mask, query, key)
            context, weights = self._attend_synthetic(value, padding, dropout)
        else:
            mask, padding = self.modifiers(query, key, attention_mask)
            attend = self._attend_full if self.views is None else self._attend_views
            context, weights = attend(query, key, value, mask, padding, scaling, dropout)
        return context.transpose(1, 2).contiguous(), weights

    def modifiers(
        self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | BlockMask | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What multiplies the raw scores, `(B or 1, 1 or H, L, L)`, and what is added to them; None changes nothing.

        A mixture, `(1 − λ) · QKᵀ/sqrt(D) + λ · log P`, is a mask of `1 − λ` with the rest added to the padding. So LAM
        multiplies, and views cut, the mixed scores as they would any other.
        """
        mask = None if self.mask is None else self.mask.to(query.device)
        padding = _dense_padding_mask(attention_mask, query, key)
        if self.forward_call.configs.stt is None:
            return mask, padding
        logits = self.synthesize(padding)
        assert logits.mixing is not None
        log_map = log_synthetic_map(*logits.log_weights()).to(query.device)
        mixing = logits.mixing.to(log_map).view(-1, 1, 1)
        factor, added = (1 - mixing).expand(1, *log_map.shape[1:]), mixing * log_map
        if mask is not None:
            # LAM multiplies a row's constant, which then does not cancel: it must not depend on what is masked.
            added = mixing * _normalized_over_tokens(log_map, padding)
            factor, added = factor * mask, added * mask
        return factor, _with_padding(added, padding)

    @property
    def sizes(self) -> tuple[int, ...]:
        """STT's grid for the length of this input; a `ValueError` if the input does not fit it."""
        stt = self.forward_call.configs.stt
        assert stt is not None and stt.grid is not None and stt.prefix_tokens is not None
        length = self.hidden_states.shape[1]
        places = length - stt.prefix_tokens
        if len(stt.grid) == 1 and 1 <= places <= stt.grid[0]:
            return (places,)  # a shorter text
        if math.prod(stt.grid) != places:
            most = "at most " if len(stt.grid) == 1 else ""
            raise ValueError(
                f"the grid {stt.grid} with {stt.prefix_tokens} prefix tokens is for "
                f"{most}{stt.prefix_tokens + math.prod(stt.grid)} tokens, but the sequence has {length}. Synthesised "
                "attention needs inputs of the size that it was made for; for others give "
                "SttConfig(grid=..., prefix_tokens=...)."
            )
        return tuple(stt.grid)

    def synthesize(self, padding: torch.Tensor | None) -> SyntheticLogits:
        """STT's map of this layer, as logits."""
        sizes = self.sizes
        is_token = None
        if padding is not None:
            batch, length = self.hidden_states.shape[:2]
            is_token = _valid_tokens(padding, batch, length).to(self.hidden_states.device)
        return self.forward_call.mechanisms("synthesis", self.hidden_states, self.layer_index, sizes, is_token)

    def _attend_synthetic(
        self, value: torch.Tensor, padding: torch.Tensor | None, dropout: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = self.synthesize(padding)
        keys = None
        if padding is not None and len(logits.axes) == 1 and logits.shares is None:
            # On one axis the scores are there, and any mask can be added to them.
            (scores,) = logits.axes
            addend, blocked = _additive(padding.to(scores.device), _softmax_dtype(scores.dtype))
            axes, shares = [(scores + addend).softmax(-1).masked_fill(blocked, 0)], None
        else:
            axes, shares = logits.weights()
            if padding is not None:
                if self.layer_index == 0:
                    _refuse_masks_by_query(padding)
                keys = _valid_tokens(padding, value.shape[0], value.shape[2]).to(value.device)[:, None, None]
        axes = [axis.to(value.device) for axis in axes]
        shares = None if shares is None else shares.to(value.device)
        options: dict[str, Any] = {"prefix_shares": shares, "attention_mask": keys, "dropout_p": dropout}
        if self.forward_call.output_attentions:
            return stt_attention_with_weights(value, axes, **options)
        implementation = "eager" if self.forward_call.implementation == "eager" else "auto"
        return stt_attention(value, axes, implementation=implementation, **options), None

    def _attend_full(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        padding: torch.Tensor | None,
        scaling: float | None,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert mask is not None
        options: dict[str, Any] = {"attention_mask": padding, "scaling": scaling, "dropout_p": dropout}
        if self.forward_call.output_attentions:
            return lam_attention_with_weights(query, key, value, mask, **options)
        implementation = "eager" if self._needs_the_same_dropout(dropout) else self.forward_call.implementation
        # It gives no gradient to what a mixture adds to its scores.
        is_mixture = self.forward_call.configs.stt is not None
        if implementation == "flex_attention" and (is_mixture or flex_obstacle(query, value, dropout)):
            implementation = "auto"
        return lam_attention(query, key, value, mask, implementation=implementation, **options), None

    def _attend_views(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        padding: torch.Tensor | None,
        scaling: float | None,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        call = self.forward_call
        layout, views = call.layout, self.views
        assert layout is not None and views is not None and call.configs.locomt is not None
        if query.shape[2] != layout.length:
            raise ValueError(
                f"the segments {call.configs.locomt.segments} add up to {layout.length} tokens, but the sequence has "
                f"{query.shape[2]}. Attention views need the length that they were made for."
            )
        if padding is not None and padding.shape[-1] < key.shape[2]:
            padding = _padding_with_bottleneck(padding, key.shape[2] - padding.shape[-1])
        layout = layout.to(query.device)  # the layers of one model may lie on several devices
        arguments = (query, key, value, layout, views, mask, padding, scaling, dropout)
        eager = call.implementation == "eager" or self._needs_the_same_dropout(dropout)
        if call.penalty is not None:
            implementation = "eager" if eager else "auto"
            penalty = call.penalty.to(query.device)
            return attend_annealed(*arguments, penalty, call.output_attentions, implementation)
        if call.output_attentions:
            return attend_with_weights(*arguments)
        return (attend_eager if eager else attend_blocks)(*arguments), None

    def _needs_the_same_dropout(self, dropout: float) -> bool:
        """Whether the choice of an implementation must not be left to what needs a gradient.

        A mixture's addend does, which only the eager formula gives. Reentrant checkpointing runs a layer first without
        gradients and then with them, and both runs must draw the same dropout.
        """
        return self.forward_call.configs.stt is not None and dropout > 0


class ForwardCall:
    """One forward pass of an encoder.

    mechanisms: the container.
    configs: which mechanisms there are.
    views: of every layer and head, or None.
    layout: where the views' segments lie in this batch, or None.
    penalty: of attention outside of the views, while annealing; else None.
    tokens: of a fusion model, what they belong to; else None.
    columns: `(L,)`, the column of a dense mask that belongs to each token; None if they are in its order.
    state: what one layer hands to the later ones.
    """

    def __init__(
        self,
        mechanisms: Callable[..., Any],
        configs: Mechanisms,
        implementation: str,
        output_attentions: bool,
        views: list[tuple[View, ...]] | None = None,
        layout: Layout | None = None,
        penalty: torch.Tensor | None = None,
    ) -> None:
        self.mechanisms = mechanisms
        self.configs = configs
        self.implementation = implementation
        self.output_attentions = output_attentions
        self.views = views
        self.layout = layout
        self.penalty = penalty
        self.tokens: ModalityTokens | None = None
        self.columns: torch.Tensor | None = None
        self.state: torch.Tensor | None = None

    @property
    def needs_state(self) -> bool:
        return _needs_state(self.configs)

    def state_of(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What crosses layers when `source="embeddings"`: the shared mask, or what the layers' own masks read."""
        lam = self.configs.lam
        assert lam is not None
        return self.mechanisms("mask", embeddings, 0, self.columns) if lam.scope == "shared" else embeddings

    def with_state(self, state: torch.Tensor | None) -> ForwardCall:
        twin = copy.copy(self)
        twin.state = state
        return twin

    def attention(self, layer_index: int, hidden_states: torch.Tensor) -> AttentionCall:
        """The call of one attention layer whose input is `hidden_states`, `(B, L, d)`."""
        lam = self.configs.lam
        mask = None
        if lam is not None and lam.scope == "shared":
            mask = self.state
        elif lam is not None:
            source = hidden_states if lam.source == "layer_input" else self.state
            mask = self.mechanisms("mask", source, layer_index, self.columns)
        views = None if self.views is None else self.views[layer_index]
        return AttentionCall(self, layer_index, hidden_states, mask, views)


def _needs_state(configs: Mechanisms) -> bool:
    return configs.lam is not None and configs.lam.source == "embeddings"


def hf_lam_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function registered as `"hf_lam"`.

    It only passes on to the mechanism of the call it is given, so that any copy of this code in the process can answer
    for any other. A module without a mechanism gets transformers' SDPA.
    """
    call: AttentionCall | None = kwargs.pop(CALL, None)
    if call is None and hasattr(module, "_hf_lam_layer"):
        raise RuntimeError(
            f"{type(module).__name__} does not hand its keyword arguments to its attention function, so its hf_lam "
            "mechanisms cannot be reached. hf_lam.remove(model) gives the host back."
        )
    if call is None:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    unsupported = [name for name in _UNSUPPORTED if _is_set(kwargs.get(name))]
    if unsupported:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {unsupported}, which the mechanisms of hf_lam do "
            "not have. This host cannot be used with hf_lam; hf_lam.remove(model) gives it back."
        )
    return call.attend(query, key, value, attention_mask, scaling, dropout)


# What a host may ask of its attention, and what would be lost without a word.
_UNSUPPORTED = ("is_causal", "softcap", "s_aux", "position_bias", "cu_seq_lens_q")

AttentionInterface.register("hf_lam", hf_lam_attention_forward)
# Without a mask function of the same name, a padded batch would arrive with no mask at all.
AttentionMaskInterface.register("hf_lam", sdpa_mask)


def inject(model: ModelT, *configs: Any) -> ModelT:
    """Attach mechanisms to a transformers encoder, in place.

    Args:
        model: an encoder, or a task model on top of one, whose attention goes through transformers' attention
            interface (BERT, RoBERTa, ViT, DeiT, VideoMAE, AST and many more).
        *configs: what to attach, one of each kind: `LamConfig()`, `LocomtConfig()`, `SttConfig()`.

    Returns:
        The same model. With the defaults its outputs are unchanged; what changes them at once is logged. A pure STT
        drops the query and key projections for good. Its class stays the stock one, which cannot
        load the new weights again: save them with `save_mechanism`, or use `convert` for a model that saves whole.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if the host cannot take the mechanism, with the reason, or already has one. The model is unchanged.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"inject needs a transformers model (a PreTrainedModel), got {type(model).__name__}.")
    attach(model, mechanism_block(configs))
    say_what_changes(model)
    return model


def attach(
    model: PreTrainedModel, block: dict[str, Any] | None, prepare: Callable[[nn.Module], None] | None = None
) -> None:
    """`inject` with a validated `hf_lam` block in place of configurations.

    prepare: gets the new container before the model is changed; what it raises leaves the model as it was.
    """
    configs = mechanisms_in(block)
    if configs == Mechanisms():
        raise ValueError(f"nothing to attach in the hf_lam block {block!r}; expected {{'lam': {{...}}}}, for example.")
    base: Any = model.base_model
    if injected_encoders(model):
        raise ValueError(
            f"{type(model).__name__} already has hf_lam mechanisms; call hf_lam.remove(model) before injecting others."
        )
    attentions = _self_attentions(base)
    stack, layers = _layers_of(base, attentions)
    _check_combination(base, configs)
    if configs.locomt is not None:
        configs = configs._replace(locomt=_resolved(base, configs.locomt, len(attentions)))
    if configs.stt is not None:
        head_size = base.config.hidden_size // base.config.num_attention_heads
        configs = configs._replace(stt=resolve_stt(configs.stt, _host_tokens_of(base), head_size))
    projections = _query_and_key_of(base, attentions) if is_pure_stt(configs) else []
    masks = None if configs.lam is None else _make_masks(base, configs.lam, attentions)
    views = None if configs.locomt is None else _make_views(base, configs.locomt)
    synthesizers = None if configs.stt is None else _make_synthesizers(base, configs.stt, attentions)
    container = AttentionMechanisms(masks, views, synthesizers)
    container.train(base.training)
    if prepare is not None:
        prepare(container)

    if torch.tensor([]).device.type != "meta":  # in that context weights get their values later, when they are loaded
        mark_as_initialised(container)
    base.hf_lam = container
    drop_projections(projections)
    _set_configs(base, configs)
    # In tuples, so that they do not become submodules once more.
    base._hf_lam_stack, base._hf_lam_layers, base._hf_lam_attentions = (stack,), layers, tuple(attentions)
    stack._hf_lam_base = (base,)
    # Loading builds models without values and then asks `_init_weights` for those the checkpoint lacks.
    base._init_weights = functools.partial(_init_weights, base)
    handles = [stack.register_forward_pre_hook(_enter_stack, with_kwargs=True)]
    if _needs_every_token(configs) and base.config.model_type in ("videomae", "hf_lam_videomae"):
        handles.append(base.register_forward_pre_hook(_refuse_dropped_tokens, with_kwargs=True))
    if configs.stt is not None and tuple(configs.stt.grid or ()) == _host_tokens_of(base).grid:
        handles.append(base.register_forward_pre_hook(_check_image_size, with_kwargs=True))
    if configs.locomt is not None and has_token_types(configs.locomt):
        # Not a hook: sentence-transformers calls `forward` itself. What accelerate may have put there stays beneath.
        host_forward = base.forward
        base._hf_lam_host_forward = base.__dict__.get("forward")
        base.forward = functools.partial(_forward_with_token_types, base)
        base.forward.__signature__ = inspect.signature(host_forward)
    if configs.locomt is not None and configs.locomt.bottleneck_tokens:
        handles.append(layers[0].register_forward_pre_hook(_append_bottleneck, with_kwargs=True))
        handles += [layer.register_forward_hook(_average_bottleneck, with_kwargs=True) for layer in layers[:-1]]
        handles.append(layers[-1].register_forward_hook(_drop_bottleneck, with_kwargs=True))
    handles += [layer.register_forward_pre_hook(_enter_layer, with_kwargs=True) for layer in layers]
    for index, attention in enumerate(attentions):
        attention._hf_lam_layer = index
        attention._hf_lam_host_config = attention.config
        attention.config = _dispatching_config(attention.config)
        if not _takes_kwargs(attention.forward):
            attention.forward = functools.partial(_videomae_forward, attention)
        handles.append(attention.register_forward_pre_hook(_enter_attention, with_kwargs=True))
    base._hf_lam_handles = handles


def mark_as_initialised(module: nn.Module) -> None:
    """Say that all weights have their values: a model built around this one would draw those anew that do not say so.

    `VisionEncoderDecoderModel(encoder=…)` does, for example, as every class does at the end of its `__init__`.
    """
    child: Any
    for child in module.modules():
        child._is_hf_initialized = True


def remove(model: ModelT) -> ModelT:
    """Take all mechanisms off a model again, in place; its outputs are those of the host alone.

    Raises:
        ValueError: if the model has none, or a pure STT, for which it gave up its query and key projections.
    """
    encoders = injected_encoders(model)
    if not encoders:
        raise ValueError(f"{type(model).__name__} has no hf_lam mechanisms to remove.")
    for base in encoders:
        if is_pure_stt(base._hf_lam_configs):
            raise ValueError(
                f"{type(base).__name__} with SttConfig(variant={base._hf_lam_configs.stt.variant!r}) has no query and "
                "key projections any more, without which its own attention cannot run. Load the original checkpoint "
                "again."
            )
    for base in encoders:
        for handle in base._hf_lam_handles:
            handle.remove()
        for layer in base._hf_lam_layers:
            checkpoint = layer.__dict__.get("_gradient_checkpointing_func")
            if _carries_state(checkpoint):
                layer._gradient_checkpointing_func = checkpoint.args[0]
        for attention in base._hf_lam_attentions:
            attention.config = attention._hf_lam_host_config
            if _is_partial_of(attention.__dict__.get("forward"), _videomae_forward):
                del attention.forward
            del attention._hf_lam_layer, attention._hf_lam_host_config
        del base._hf_lam_stack[0]._hf_lam_base
        del base._hf_lam_stack, base._hf_lam_layers, base._hf_lam_attentions, base._hf_lam_handles
        del base.hf_lam, base._hf_lam_configs, base._hf_lam_views, base._init_weights
        base.__dict__.pop("_hf_lam_token_types_position", None)
        if _is_partial_of(base.__dict__.get("forward"), _forward_with_token_types):
            host_forward = base.__dict__.pop("_hf_lam_host_forward")
            del base.forward
            if host_forward is not None:
                base.forward = host_forward
        if getattr(base.config, "hf_lam", None) is not None:
            base.config.hf_lam = None
    return model


def injected_encoders(model: nn.Module) -> list[Any]:
    """The encoders inside `model` that carry mechanisms, by whichever copy of this code they were attached."""
    return [module for module in model.modules() if "_hf_lam_configs" in module.__dict__]


def mechanisms_of(base: Any) -> nn.Module:
    """The container of an encoder; where PEFT's `modules_to_save` wrapped it, the copy that is trained."""
    copies = getattr(base.hf_lam, "modules_to_save", None)
    if copies is None:
        return base.hf_lam
    active = base.hf_lam.active_adapter
    return copies[active if isinstance(active, str) else active[0]]


def _all_containers(base: Any) -> list[Any]:
    """The container of an encoder; where PEFT's `modules_to_save` wrapped it, the original and every copy."""
    copies = getattr(base.hf_lam, "modules_to_save", None)
    return [base.hf_lam] if copies is None else [base.hf_lam.original_module, *copies.values()]


def views_of(base: Any) -> AttentionViews:
    """The module of an encoder's attention views, which it must have."""
    container: Any = mechanisms_of(base)
    return container.locomt


# --- What runs during a forward pass ---------------------------------------------------------------------------------


def _enter_stack(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if getattr(stack, "_is_replica", False):
        raise RuntimeError(
            "hf_lam does not run under torch.nn.DataParallel, whose replicas share one copy of the masks. Start with "
            "`torchrun --nproc_per_node N`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    (base,) = stack._hf_lam_base
    configs: Mechanisms = base._hf_lam_configs
    if _needs_state(configs):
        _carry_state_through_checkpoints(base._hf_lam_layers)
    call = ForwardCall(base.hf_lam, configs, _implementation_of(base), _wants_attentions(base, stack, kwargs))
    kwargs = dict(kwargs)
    call.tokens = kwargs.pop(MODALITY_TOKENS, None)
    if call.tokens is not None and configs.lam is not None and configs.lam.rank is None:
        call.columns = _columns_of(base.max_lengths, call.tokens.lengths, _first_input(args, kwargs).device)
    if configs.locomt is None:
        return args, {**kwargs, CALL: call}
    call.views = base._hf_lam_views
    call.penalty = base.hf_lam("penalty") if configs.locomt.annealing else None
    token_types = None
    if has_token_types(configs.locomt):
        if TOKEN_TYPES not in kwargs:
            raise RuntimeError(
                f"{type(base).__name__} does not pass keyword arguments down to its layers, or they were called "
                "without it, so the token types of this batch are not known. Call the encoder itself."
            )
        token_types = kwargs.pop(TOKEN_TYPES)
        if token_types is None:
            hidden_states = _first_input(args, kwargs)
            token_types = hidden_states.new_zeros(1, hidden_states.shape[1], dtype=torch.long)
    lengths = None if call.tokens is None else call.tokens.lengths
    call.layout = base.hf_lam("layout", token_types, lengths)
    return args, {**kwargs, CALL: call}


def _columns_of(max_lengths: Sequence[int], lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where a dense mask has the tokens of each modality: always in the same place, however long the others are."""
    starts = accumulate(max_lengths, initial=0)
    spans = zip(starts, lengths, strict=False)  # the last start is the end
    return torch.cat([torch.arange(start, start + length, device=device) for start, length in spans])


def _forward_with_token_types(base: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand the token types down to the stack: the host itself uses them for its embeddings only."""
    host_forward = base.__dict__.get("_hf_lam_host_forward")
    run = functools.partial(type(base).forward, base) if host_forward is None else host_forward
    if "_hf_lam_configs" not in base.__dict__:  # removed while something had wrapped this function
        return run(*args, **kwargs)
    position = base._hf_lam_token_types_position
    token_types = args[position] if len(args) > position else kwargs.get("token_type_ids")
    if token_types is None and not torch.compiler.is_compiling():
        logger.warning_once(
            f"{type(base).__name__} was called without token_type_ids, so all tokens belong to one segment, that of "
            "token type 0. Pass what the tokenizer returns for pairs of texts."
        )
    return run(*args, **{**kwargs, TOKEN_TYPES: token_types})


def _append_bottleneck(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    longer = kwargs[CALL].mechanisms("bottleneck", _first_input(args, kwargs))
    return ((longer, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": longer})


def _average_bottleneck(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Every segment has updated the bottleneck's tokens on its own; the next layer starts from their mean.

    Modalities that a sample does not have are no part of it.
    """
    hidden_states = output[0] if isinstance(output, tuple) else output
    call: ForwardCall = kwargs[CALL]
    locomt = call.configs.locomt
    assert locomt is not None
    length = len(bottleneck_segments(locomt))
    copies = length // locomt.bottleneck_tokens
    tokens = hidden_states[:, -length:].unflatten(1, (copies, locomt.bottleneck_tokens))
    if call.tokens is None or call.tokens.is_present is None:
        mean = tokens.mean(1, keepdim=True)
    else:
        weights = call.tokens.is_present.to(tokens)[:, :, None, None]
        mean = (tokens * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    mean = mean.expand_as(tokens).flatten(1, 2)
    return _with_first(output, torch.cat([hidden_states[:, :-length], mean], dim=1))


def _drop_bottleneck(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    hidden_states = output[0] if isinstance(output, tuple) else output
    return _with_first(output, hidden_states[:, : -len(bottleneck_segments(kwargs[CALL].configs.locomt))])


def _with_first(output: Any, hidden_states: torch.Tensor) -> Any:
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


def _wants_attentions(base: PreTrainedModel, stack: nn.Module, kwargs: dict[str, Any]) -> bool:
    if stack is not base:
        # Not every host hands the request down to its stack (VideoMAE does not), but by then transformers' own
        # collector of attention maps is active.
        return "attentions" in (_active_collector.get() or ())
    requested = kwargs.get("output_attentions")
    return bool(getattr(base.config, "output_attentions", False) if requested is None else requested)


def _enter_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    call: ForwardCall | None = kwargs.get(CALL)
    if call is not None and call.needs_state and call.state is None:
        call.state = call.state_of(_first_input(args, kwargs))


def _enter_attention(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    call: ForwardCall | None = kwargs.get(CALL)
    if call is None:
        raise RuntimeError(
            f"{type(attention).__name__} carries an hf_lam mechanism but was called outside its encoder's forward, or "
            "its host does not pass keyword arguments down to it. Call the encoder itself."
        )
    return args, {**kwargs, CALL: call.attention(attention._hf_lam_layer, _first_input(args, kwargs))}


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _implementation_of(base: PreTrainedModel) -> str:
    # The model's own setting is the user's request; the dispatch stays "hf_lam" whatever it says, because attention
    # modules look at a configuration of their own (`_dispatching_config`).
    requested = base.config._attn_implementation
    windowed = getattr(base.config, "sliding_window", None) or getattr(base.config, "local_attention", None)
    if windowed and "flash" in str(requested):
        raise ValueError(
            f"with attn_implementation={requested!r} {type(base).__name__} leaves its attention window to the flash "
            'kernel, which hf_lam replaces. Use attn_implementation="sdpa".'
        )
    return requested if requested in ("eager", "flex_attention") else "auto"


def _carry_state_through_checkpoints(layers: tuple[Any, ...]) -> None:
    # `gradient_checkpointing_enable` may be called on any model around the encoder, at any time, and sets a function
    # on every layer; so it is looked at here, when it is about to be used.
    for layer in layers:
        checkpoint = layer.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is not None and not _carries_state(checkpoint):
            layer._gradient_checkpointing_func = functools.partial(_checkpoint_with_state, checkpoint)


def _carries_state(checkpoint: Any) -> bool:
    return _is_partial_of(checkpoint, _checkpoint_with_state)


def _is_partial_of(value: Any, function: Callable[..., Any]) -> bool:
    # By name: a model may be handled by another copy of this code than the one that attached its mechanisms.
    return isinstance(value, functools.partial) and getattr(value.func, "__name__", None) == function.__name__


def _checkpoint_with_state(checkpoint: Callable[..., Any], run: functools.partial[Any], *args: Any) -> Any:
    """Checkpoint a layer with the state as a tensor argument, so that it is made once, outside, and gets its gradient.

    `run` is transformers' `partial` of the layer's forward with its keyword arguments, the call among them.
    """
    call: ForwardCall = run.keywords[CALL]
    state = call.state if call.state is not None else call.state_of(args[0])
    call.state = state
    return checkpoint(functools.partial(_run_with_state, run, call), state, *args)


def _run_with_state(run: functools.partial[Any], call: ForwardCall, state: torch.Tensor, *args: Any) -> Any:
    return run(*args, **{CALL: call.with_state(state)})


def _dense_padding_mask(
    attention_mask: torch.Tensor | BlockMask | None, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor | None:
    """Padding in any form that transformers' attention implementations use, as a 4-D boolean or additive mask."""
    if isinstance(attention_mask, BlockMask):
        batch, heads = attention_mask.shape[:2]
        # A bottleneck makes the sequence longer than what the host made its mask for.
        rows, columns = map(min, attention_mask.seq_lengths, (query.shape[2], key.shape[2]))
        return create_mask(attention_mask.mask_mod, batch, heads, rows, columns, str(query.device))
    if attention_mask is not None and attention_mask.dim() == 2:
        return attention_mask[:, None, None, :].bool()
    return attention_mask


def _padding_with_bottleneck(padding: torch.Tensor, added: int) -> torch.Tensor:
    """Padding `(…, 1 or L, L)` with `added` tokens more, which are none, and see what any other token sees."""
    is_bool = padding.dtype == torch.bool
    if padding.shape[-2] > 1:
        row = padding.any(-2, keepdim=True) if is_bool else padding.amax(-2, keepdim=True)
        padding = torch.cat([padding, row.expand(*row.shape[:-2], added, -1)], dim=-2)
    return nn.functional.pad(padding, (0, added), value=is_bool)


def _with_padding(added: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """`added` to the padding, in its dtype, with −inf for what the padding blocks."""
    if padding is None:
        return added
    padding = padding.to(added.device)
    if padding.dtype != torch.bool:
        added = added + padding.to(added.dtype)
    return added.masked_fill(~_allowed(padding), -float("inf"))


def _normalized_over_tokens(log_map: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """The logarithms of a map whose rows sum to one over what the padding leaves of them."""
    if padding is None:
        return log_map
    blocked = ~_allowed(padding.to(log_map.device))
    # A finite number instead of −inf: a row without any token has a gradient of 0, not NaN.
    total = log_map.masked_fill(blocked, torch.finfo(log_map.dtype).min / 2).logsumexp(-1, keepdim=True)
    return log_map - total.masked_fill(blocked.all(-1, keepdim=True), 0)


def _valid_tokens(padding: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Which tokens are not padding, bool `(B, L)`: those that some query may see."""
    return _allowed(padding).flatten(1, 2).any(1).expand(batch, length)


def _allowed(padding: torch.Tensor) -> torch.Tensor:
    """Which keys a mask lets through, bool in its shape."""
    return padding if padding.dtype == torch.bool else padding > torch.finfo(padding.dtype).min


def _refuse_masks_by_query(padding: torch.Tensor) -> None:
    if torch.compiler.is_compiling() or padding.is_meta or padding.shape[-2] == 1 or not padding.numel():
        return
    if (padding != padding[..., :1, :]).any():
        raise ValueError(
            "the attention mask differs from query to query, but synthesised attention on a grid never forms its map, "
            "and can only leave out keys. Give a mask (batch, tokens) of padding."
        )


def _refuse_dropped_tokens(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("bool_masked_pos", args[1] if len(args) > 1 else None) is not None:
        raise ValueError(
            "bool_masked_pos drops tokens from VideoMAE's sequence, but the columns of a dense learnable attention "
            "mask, the segments of attention views and the grid of a synthesised attention are absolute positions. "
            "Leave it out, or use a low-rank mask alone: LamConfig(rank=8)."
        )


def _check_image_size(base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """An image of another shape may have as many patches as the grid, which then would not be noticed."""
    pixels, grid = kwargs.get("pixel_values", args[0] if args else None), base._hf_lam_configs.stt.grid
    patch = getattr(base.config, "patch_size", None)
    if not isinstance(pixels, torch.Tensor) or pixels.dim() != 4 or len(grid) != 2 or patch is None:
        return
    height, width = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
    if [rows, columns] != grid:
        raise ValueError(
            f"the images are {pixels.shape[2]} × {pixels.shape[3]} pixels, a grid of {rows} × {columns} patches, but "
            f"the synthesised attention was made for {grid[0]} × {grid[1]}. Resize them, or make the model with "
            f"SttConfig(grid=[{rows}, {columns}], prefix_tokens={base._hf_lam_configs.stt.prefix_tokens})."
        )


def _is_set(value: Any) -> bool:
    return value is not None and value is not False


# --- What is looked up and checked when attaching --------------------------------------------------------------------


def _self_attentions(base: PreTrainedModel) -> list[Any]:
    """The host's self-attention modules in layer order, or a `ValueError` that says why it cannot be a host."""
    name = type(base).__name__
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"{name} is not a transformers encoder.")
    if getattr(base.config, "is_encoder_decoder", False) or getattr(base.config, "is_decoder", False):
        raise ValueError(f"{name} is a decoder or has one; hf_lam works on encoders without a cache.")
    recorded = (getattr(base, "_can_record_outputs", None) or {}).get("attentions")
    recorders = recorded if isinstance(recorded, (list, tuple)) else [recorded]
    attentions = [
        module for path, module in base.named_modules() if any(_is_recorded(r, path, module) for r in recorders)
    ]
    if not attentions and getattr(base.config, "num_hidden_layers", None) == 0:
        raise ValueError(f"{name} has num_hidden_layers=0, so it has no attention to attach a mechanism to.")
    if not attentions:
        raise ValueError(
            f"{name} does not say where its self-attention is (no `_can_record_outputs['attentions']`), so it has no "
            "attention interface to attach to."
        )
    for attention in attentions:
        forward = inspect.unwrap(type(attention).forward)
        if "ALL_ATTENTION_FUNCTIONS" not in forward.__code__.co_names or not hasattr(attention, "config"):
            raise ValueError(
                f"{type(attention).__name__} of {name} does not use transformers' attention interface, so a mechanism "
                "cannot be attached to it."
            )
        if getattr(attention, "is_causal", False):
            raise ValueError(f"{type(attention).__name__} of {name} is causal; hf_lam works on encoders.")
        if _takes_kwargs(forward) and not _hands_kwargs_on(forward):
            raise ValueError(
                f"{type(attention).__name__} of {name} keeps its keyword arguments to itself, through which hf_lam "
                "reaches the attention function."
            )
        if getattr(base.config, "num_key_value_heads", None) not in (None, base.config.num_attention_heads):
            raise ValueError(
                f"{name} has {base.config.num_key_value_heads} key and value heads for "
                f"{base.config.num_attention_heads} query heads; hf_lam needs as many of each."
            )
        if not _takes_kwargs(forward) and not hasattr(attention, "dropout_prob"):
            raise ValueError(f"{type(attention).__name__} of {name} takes no keyword arguments, which hf_lam needs.")
    return attentions


def _is_recorded(recorder: Any, path: str, module: nn.Module) -> bool:
    # transformers writes a recorder as a class, a class name, or an `OutputRecorder` with a part of the module's path.
    target = getattr(recorder, "target_class", recorder)
    by_class = isinstance(target, type) and isinstance(module, target)
    by_name = isinstance(target, str) and path.endswith(target)
    part = getattr(recorder, "layer_name", None)
    return (by_class or by_name) and (part is None or f".{part.strip('.')}." in f".{path}.")


def _layers_of(base: PreTrainedModel, attentions: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """The host's layers, one to each self-attention, and the module whose forward runs them one after the other."""
    name = type(base).__name__
    paths = {
        path: module
        for path, module in base.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and any(child in attentions for child in module.modules())
    }
    expected = getattr(base.config, "num_hidden_layers", len(attentions))
    stacks = {_without_containers(base, path) for path in paths}
    if not len(paths) == len(attentions) == expected or len(stacks) != 1:
        raise ValueError(
            f"{name} runs {expected} layers with {len(attentions)} self-attention modules in {len(paths)} layer "
            "modules; hf_lam needs one of each for every layer, in one stack."
        )
    stack = base.get_submodule(stacks.pop())
    without = [type(module).__name__ for module in (stack, *paths.values()) if not _takes_kwargs(type(module).forward)]
    if without:
        raise ValueError(
            f"{without[0]}.forward takes no keyword arguments, which hf_lam needs to reach the attention."
        )
    return stack, tuple(paths.values())


def _without_containers(base: nn.Module, path: str) -> str:
    parent = path.rpartition(".")[0]
    is_container = isinstance(base.get_submodule(parent), (nn.ModuleList, nn.ModuleDict))
    return _without_containers(base, parent) if is_container else parent


def _takes_kwargs(forward: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def _hands_kwargs_on(forward: Callable[..., Any]) -> bool:
    """Whether any call in a forward gets its keyword arguments; true where the source cannot be read."""
    try:
        source = textwrap.dedent(inspect.getsource(forward))
    except OSError:
        return True
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return any(keyword.arg is None for call in calls for keyword in call.keywords)


def _check_combination(base: PreTrainedModel, configs: Mechanisms) -> None:
    if _needs_every_token(configs) and getattr(base.config, "mask_ratio", None):
        raise ValueError(
            f"{type(base).__name__} drops tokens at random (mask_ratio={base.config.mask_ratio}), but the columns of "
            "a dense learnable attention mask, the segments of attention views and the grid of a synthesised "
            "attention are absolute positions. Use a low-rank mask alone: LamConfig(rank=8)."
        )
    if configs.stt is not None and is_fusion(base.config):
        raise ValueError(
            f"SttConfig needs tokens on one grid, which the sequence of several modalities of {type(base).__name__} "
            "is not. Use LocomtConfig or LamConfig."
        )
    others = [type(other).__name__ for other in (configs.lam, configs.locomt) if other is not None]
    if configs.stt is not None and is_pure_stt(configs) and others:
        raise ValueError(
            f"SttConfig(variant={configs.stt.variant!r}) has no scores that {' and '.join(others)} could multiply or "
            f"cut. Leave one out, or keep the dot products: SttConfig(variant='mixture', "
            f"synthesizer={configs.stt.variant!r})."
        )
    if configs.stt is not None and configs.locomt is not None and configs.locomt.bottleneck_tokens:
        raise ValueError(
            f"bottleneck_tokens={configs.locomt.bottleneck_tokens} appends tokens to the sequence, which have no "
            "place on the grid of a synthesised attention. Leave out SttConfig or the bottleneck."
        )
    if configs.lam is not None and configs.locomt is not None and configs.locomt.bottleneck_tokens:
        raise ValueError(
            f"bottleneck_tokens={configs.locomt.bottleneck_tokens} appends tokens to the sequence, for which a "
            "learnable attention mask has no rows and columns. Leave out LamConfig or the bottleneck."
        )


def _needs_every_token(configs: Mechanisms) -> bool:
    """Whether something is tied to absolute positions."""
    dense_mask = configs.lam is not None and configs.lam.rank is None
    return dense_mask or configs.locomt is not None or configs.stt is not None


def is_pure_stt(configs: Mechanisms) -> bool:
    """Whether attention has no queries and keys."""
    return configs.stt is not None and not configs.stt.is_mixture


def _host_tokens_of(base: PreTrainedModel) -> HostTokens:
    tokens = host_tokens(base, max_length_of(base))
    takes_token_types = "token_type_ids" in inspect.signature(type(base).forward).parameters
    return tokens if takes_token_types else tokens._replace(token_types=0)


def _resolved(base: PreTrainedModel, config: LocomtConfig, num_layers: int) -> LocomtConfig:
    return resolve_locomt(config, _host_tokens_of(base), num_layers, base.config.num_attention_heads)


def _make_views(base: PreTrainedModel, config: LocomtConfig) -> AttentionViews:
    host = base.config
    is_fixed = not has_token_types(config) and not has_modalities(config)
    segment_ids = segment_of_tokens(config, _host_tokens_of(base)) if is_fixed else None
    views = AttentionViews(config, segment_ids, host.hidden_size, getattr(host, "initializer_range", 0.02))
    return views.to(device=next(base.parameters()).device, dtype=base.dtype)


def _set_configs(base: Any, configs: Mechanisms) -> None:
    """Write down what the encoder has, where its forward and its configuration look for it."""
    base._hf_lam_configs = configs
    base._hf_lam_views = None if configs.locomt is None else views_of(base).views
    if configs.locomt is not None and has_token_types(configs.locomt):
        # Without `self`.
        base._hf_lam_token_types_position = (
            list(inspect.signature(type(base).forward).parameters).index("token_type_ids") - 1
        )
    if hasattr(base.config, "hf_lam"):
        base.config.hf_lam = configs.block()


def set_views(model: ModelT, config: LocomtConfig) -> ModelT:
    """Give a model with attention views other ones, in place: a calibrated table, for example.

    Args:
        model: a model with `LocomtConfig` in one encoder.
        config: the new views. Segments left out (`None`) stay as they are.

    Returns:
        The same model. Its other mechanisms stay; a learned bottleneck stays if the new configuration has one of the
        same size.

    Raises:
        ValueError: if the model has no attention views in exactly one encoder, or the new ones do not fit. The model
            is unchanged.
    """
    encoders = [base for base in injected_encoders(model) if base._hf_lam_configs.locomt is not None]
    if len(encoders) != 1:
        raise ValueError(
            f"{type(model).__name__} has attention views in {len(encoders)} encoders, set_views needs one; call "
            "hf_lam.inject(model, LocomtConfig(...)) first."
        )
    (base,) = encoders
    before: LocomtConfig = base._hf_lam_configs.locomt
    if config.segments is None:
        config = replace(config, segments=before.segments)
    config = _resolved(base, config, len(base._hf_lam_attentions))
    if bool(config.bottleneck_tokens) != bool(before.bottleneck_tokens) or has_token_types(config) != has_token_types(
        before
    ):
        raise ValueError(
            "set_views cannot add or take away a bottleneck or token types, which change what the encoder's layers "
            "get; call hf_lam.remove(model) and hf_lam.inject(model, ...)."
        )
    containers = _all_containers(base)
    new = [_make_views(base, config).train(base.training) for _ in containers]
    for container, views in zip(containers, new, strict=True):
        if config.bottleneck_tokens == before.bottleneck_tokens != 0:
            views.bottleneck = container.locomt.bottleneck
        container.locomt = views
    _set_configs(base, base._hf_lam_configs._replace(locomt=config))
    return model


def say_what_changes(model: nn.Module) -> None:
    """Log which of the mechanisms just attached change the model's outputs before any training."""
    for base in injected_encoders(model):
        lam, locomt, stt = base._hf_lam_configs
        if lam is not None and lam.init != "identity":
            logger.warning(
                f"LamConfig(init={lam.init!r}) starts from random masks: the outputs of {type(model).__name__} change "
                "at once. init='identity' starts from the original model."
            )
        if is_pure_stt(base._hf_lam_configs):
            logger.warning(
                f"SttConfig(variant={stt.variant!r}) replaces the query-key products of {type(model).__name__} by "
                "maps that have not been trained yet: its outputs change at once. "
                f"SttConfig(synthesizer={stt.variant!r}) starts from the original model."
            )
        if locomt is None or locomt.annealing:
            continue
        everything = parse_view("full", locomt.names, locomt.is_global)
        sparse = sum(view != everything for row in base._hf_lam_views for view in row)
        if sparse or locomt.bottleneck_tokens:
            heads = sum(len(row) for row in base._hf_lam_views)
            logger.warning(
                f"{sparse} of {heads} heads of {type(model).__name__} get a view that is not full: its outputs change "
                "at once. LocomtConfig(views='full') or annealing=True starts from the original model."
            )


def _make_masks(base: PreTrainedModel, config: LamConfig, attentions: list[Any]) -> nn.ModuleList:
    host = base.config
    max_length = config.max_length or (0 if config.rank is not None else max_length_of(base))
    if max_length is None:
        raise ValueError(
            f"{type(base).__name__} does not say how long its sequences get; give LamConfig(max_length=...), or use a "
            "low-rank mask, which takes any length: LamConfig(rank=8)."
        )
    of_modalities: Any = base.max_lengths if is_fusion(base.config) else []
    if config.rank is None and None in of_modalities:
        name = base.config.modalities[of_modalities.index(None)]
        raise ValueError(
            f"the {name} encoder of {type(base).__name__} does not say how many tokens it makes, so a dense mask has "
            "no columns for them. Use a low-rank mask: LamConfig(rank=8)."
        )
    if config.rank is None and max_length < sum(of_modalities):
        raise ValueError(
            f"LamConfig(max_length={max_length}) is too short for {type(base).__name__}, whose modalities have up to "
            f"{of_modalities} tokens. Leave it out, or use a low-rank mask: LamConfig(rank=8)."
        )
    masks = [
        LearnableAttentionMask(
            config,
            hidden_size=host.hidden_size,
            num_heads=host.num_attention_heads,
            max_length=max_length,
            initializer_range=getattr(host, "initializer_range", 0.02),
        ).to(device=next(attention.parameters()).device, dtype=base.dtype)
        for attention in (attentions[:1] if config.scope == "shared" else attentions)
    ]
    return nn.ModuleList(masks)


def _make_synthesizers(base: PreTrainedModel, config: SttConfig, attentions: list[Any]) -> nn.ModuleList:
    host = base.config
    return nn.ModuleList(
        AttentionSynthesizer(
            config, host.hidden_size, host.num_attention_heads, getattr(host, "initializer_range", 0.02)
        ).to(device=next(attention.parameters()).device, dtype=base.dtype)
        for attention in attentions
    )


# What hosts call the projections of queries, keys and values.
_PROJECTION_NAMES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def _query_and_key_of(base: PreTrainedModel, attentions: list[Any]) -> list[tuple[nn.Module, str]]:
    """The projections that a pure STT does without, as modules and names in them; a `ValueError` if it cannot."""
    found = []
    for attention in attentions:
        children = dict(attention.named_children())
        names = next((names for names in _PROJECTION_NAMES if set(names) <= set(children)), None)
        if names is None:
            raise ValueError(
                f"{type(attention).__name__} of {type(base).__name__} has no query and key projections of its own "
                f"({', '.join(children)}), which a pure STT would drop. It can only be a mixture: SttConfig()."
            )
        size = getattr(children[names[2]], "out_features", None)
        if size != base.config.hidden_size or size % base.config.num_attention_heads:
            raise ValueError(
                f"a pure STT needs heads × head size = hidden size, but the values of {type(base).__name__} have "
                f"{size} features for a hidden size of {base.config.hidden_size} and "
                f"{base.config.num_attention_heads} heads. It can only be a mixture: SttConfig()."
            )
        found += [(attention, name) for name in names[:2]]
    return found


def drop_projections(projections: list[tuple[nn.Module, str]]) -> None:
    """Put the identity in their place: no weights, no work, and the sizes that the host goes on with."""
    for attention, name in projections:
        setattr(attention, name, nn.Identity())


def max_length_of(base: Any) -> int | None:
    """The longest sequence the host is made for, in tokens, prefix tokens included; None if it does not say."""
    if is_fusion(base.config):
        return None if None in base.max_lengths else sum(base.max_lengths)
    text_length = getattr(base.config, "max_position_embeddings", None)
    if text_length is not None and text_length <= 0:
        return None  # XLNet takes any
    if text_length is not None:
        # RoBERTa counts positions from the one after padding.
        offsets = [
            module.padding_idx + 1
            for path, module in base.named_modules()
            if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        ]
        return text_length - max(offsets, default=0)
    for module in base.modules():
        positions = getattr(module, "position_embeddings", getattr(module, "position_embedding", None))
        if isinstance(positions, nn.Embedding):
            return positions.num_embeddings
        if isinstance(positions, torch.Tensor):
            # DINOv2 inserts its registers after the positions have been added.
            return positions.shape[-2] + (getattr(base.config, "num_register_tokens", None) or 0)
    return None


def _dispatching_config(host_config: Any) -> Any:
    """A copy of the host's configuration that sends attention to "hf_lam", for the attention modules alone.

    The model's own configuration keeps saying what the user asked for, so `set_attn_implementation` on any model
    around the encoder selects our kernel and can never drop the mechanism.
    """
    config = copy.copy(host_config)
    config._attn_implementation_internal = "hf_lam"
    return config


def _videomae_forward(
    attention: Any, hidden_states: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`VideoMAESelfAttention.forward`, which is the one host that takes no keyword arguments, with them."""
    shape = (*hidden_states.shape[:-1], -1, attention.attention_head_size)
    query, key, value = (
        projection(hidden_states).view(shape).transpose(1, 2)
        for projection in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout_prob if attention.training else 0.0
    context, weights = hf_lam_attention_forward(
        attention, query, key, value, None, scaling=attention.scaling, dropout=dropout, **kwargs
    )
    return context.flatten(-2), weights


_OWN_MODULES = (
    LearnableAttentionMask,
    AttentionViews,
    AttentionSynthesizer,
    DenseAxis,
    RandomAxis,
    DenseShares,
    RandomShares,
)


def _init_weights(base: PreTrainedModel, module: nn.Module) -> None:
    if isinstance(module, _OWN_MODULES):
        module.reset_parameters()
    else:
        type(base)._init_weights(base, module)
