# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""LAM in the cross-attention of a decoder: a mask `M` of `Lq × Lk`, decoder tokens by encoder tokens.

Source: Barrios & Jin, arXiv 2406.02761. Row `i` is computed from decoder token `i`, as that token enters the
cross-attention of a layer (or as it enters the decoder, with `source="embeddings"`):

    dense      M_i = W2 · relu(W1 · x_i + b1) + b2              one number for each place of the encoder's tokens
    low rank   M_ij = f(x_i) · g(y_j)                           `y_j` the encoder's output, read by layers of its own

No row reads another decoder token, so a text that is generated token by token has the masks that it has in one pass.
The factors `g` are computed once a text: they lie in the key-value cache, behind the features of each key, and go
wherever beam search and the like take that key.

The decoder is one of transformers' own and stays so. What runs when:

    stack     `enter_decoder`      makes the `CrossPass`
    layer     `enter_layer`        what crosses layers is made
    attention `enter_cross`        the pass becomes a `CrossCall`, with the encoder's tokens and the cache
    the attention function         `CrossCall.attend`

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from .attention_hooks_hf_lam import (
    carry_states_through_checkpoints,
    enter_layer,
    refuse_replicas,
    restore_checkpointing,
)
from .attention_pass_hf_lam import MODALITY_TOKENS, attend_changed
from .changes_hf_lam import Changes, drop_hooks, key_of, undo_changes
from .host_attention_hf_lam import (
    find_layers,
    input_width_of,
    needs_stand_in,
    path_between,
    recorded_attentions,
    uses_interface,
)
from .hosts_hf_lam import Host, HostTokens, choose_implementation, make_dispatching_config
from .injection_hf_lam import initialize_weights
from .lam_hf_lam import LamConfig, LearnableAttentionMask, LearnableAttentionMasks, TokenReader
from .layers_hf_lam import all_containers, layers_in, mark_as_initialised, path_of_layers, place_mechanism
from .mechanism_hf_lam import Attended, Attention, MechanismContainer, PassStart, ScoreChange
from .padding_hf_lam import dense_padding
from .stand_ins_hf_lam import PASS, put_stand_in, take_off_stand_in

# The key of the masks in the decoder's container, beside the names of mechanisms.
NAME = "cross_lam"

# What cross-attention modules, and stacks of layers, call their arguments.
_ENCODER_TOKENS = ("encoder_hidden_states", "key_value_states")
_CACHES = ("cache", "past_key_values")


# --- the masks -------------------------------------------------------------------------------------------------------


class CrossAttentionMask(LearnableAttentionMask):
    """The mask network of one cross-attention; of low rank, with layers of its own for the encoder's tokens.

    Arguments as those of `LearnableAttentionMask`; `max_length` is the most tokens of the encoder.
    """

    def __init__(
        self, config: LamConfig, hidden_size: int, num_heads: int, max_length: int, initializer_range: float = 0.02
    ) -> None:
        super().__init__(config, hidden_size, num_heads, max_length, initializer_range)
        if config.rank is not None:
            self.encoder_reader = TokenReader(config, hidden_size, initializer_range)
            self.encoder_reader.reset_parameters()

    def read_encoder(self, encoder_tokens: Tensor) -> Tensor:
        """The factors `g` of the encoder's tokens, `(B, Lk, d)` to `(B, 1 or H, Lk, rank)`."""
        return self.make_columns(self.encoder_reader.read(encoder_tokens))

    def read_decoder(self, hidden_states: Tensor) -> Tensor:
        """The factors `f` of the decoder's tokens, `(B, Lq, d)` to `(B, 1 or H, Lq, rank)`."""
        return self.make_rows(self.read(hidden_states))


class CrossAttentionMasks(LearnableAttentionMasks):
    """The masks of one decoder: one network for each layer, or a single one for all.

    Called through the container of the decoder, for PEFT and FSDP2; see `MechanismContainer`.
    """

    network: ClassVar[type[LearnableAttentionMask]] = CrossAttentionMask

    def of_layer(self, layer: int) -> Any:
        """The network of a layer."""
        return self[0 if self.config.is_shared else layer]

    def read_encoder(self, layer: int, encoder_tokens: Tensor) -> Tensor:
        return self.of_layer(layer).read_encoder(encoder_tokens)

    def read_decoder(self, layer: int, hidden_states: Tensor) -> Tensor:
        return self.of_layer(layer).read_decoder(hidden_states)

    def join(self, layer: int, rows: Tensor, columns: Tensor) -> Tensor:
        """The low-rank mask `(B, 1 or H, Lq, Lk)` of two factors."""
        return self.of_layer(layer).bound(rows @ columns.mT)

    def make_dense(self, layer: int, hidden_states: Tensor, length: int, places: Tensor | None) -> Tensor:
        """The dense mask `(B, 1 or H, Lq, length)`; a `ValueError` for encoder tokens without a place in it."""
        if places is None:
            self.check_grid(length)
        mask = self.of_layer(layer)
        return mask.bound(mask.make_dense(mask.read(hidden_states), length, places))


# --- attaching -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class CrossLam:
    """The masks attached to one decoder: `base._hf_lam_cross`. Plain data, which deepcopy and pickle follow.

    config: the options.
    host: the decoder as a host of masks, with the encoder's tokens.
    base: the decoder without its head, which has the container `base.hf_lam`.
    stack: the module whose forward runs the layers.
    layers, attentions: its layers, and the cross-attention of each.
    layers_path: path of the layers in the stack.
    stack_places, attention_places: where the forwards take the encoder's tokens and the cache.
    undo: records of the changes, in order.
    """

    config: LamConfig
    host: Host
    base: Any
    stack: Any
    layers: tuple[Any, ...]
    attentions: tuple[Any, ...]
    layers_path: str
    stack_places: dict[str, int]
    attention_places: dict[str, int]
    undo: list[Any] = field(default_factory=list)

    @property
    def with_state(self) -> bool:
        """Whether something crosses layers."""
        return self.config.needs_embeddings


def check_cross_lam(options: Any) -> dict[str, Any]:
    """The options of LAM in cross-attention, spelled out as JSON values.

    Args:
        options: a `LamConfig`, or a mapping of its options. A dense mask is as wide as the encoder has tokens;
            `"embeddings"` are the decoder's.

    Raises:
        ValueError: for an unknown option or a value that has no meaning.
    """
    options = options.to_dict() if isinstance(options, LamConfig) else options
    return LamConfig.from_dict(options).to_dict()


def add_cross_lam(decoder: PreTrainedModel, options: Any, tokens: HostTokens | None = None) -> nn.Module:
    """Put learnable attention masks on the cross-attentions of a decoder, in place.

    The masks start as the identity (unless `init="normal"`). They are parameters of the decoder from then on, under
    `hf_lam` in its base model. A model that makes its decoder from a configuration calls this right after; loading
    needs nothing more.

    Args:
        decoder: one of transformers' own with cross-attention, such as `BertLMHeadModel`, `GPT2LMHeadModel` or
            `BartForCausalLM`; other parts of a model around it stay as they are.
        options: a `LamConfig`, or a mapping of its options.
        tokens: facts about the encoder's tokens (`read_tokens`): how many columns a dense mask needs, whether they lie
            on a grid, and to which modalities they belong. A decoder under several modalities gets the
            `ModalityTokens` of each pass as the keyword argument `hf_lam_modality_tokens`.

    Returns:
        The container of the masks, `base.hf_lam`.

    Raises:
        ValueError: for options without a meaning, a decoder without cross-attention, or one whose attention cannot be
            reached. Nothing is changed then.
    """
    config = LamConfig.from_dict(check_cross_lam(options))
    base, attentions = _find_cross_attentions(decoder)
    if "hf_lam" in base._modules:
        raise ValueError(f"{type(base).__name__} has learnable attention masks already; a decoder takes them once.")
    stack, layers = find_layers(base, attentions, len(attentions))
    host = _read_host(base, attentions, tokens or HostTokens("the encoder", None))
    masks = CrossAttentionMasks(config, host)
    place_mechanism(masks, base, attentions)
    container = MechanismContainer({NAME: masks})
    container.train(base.training)
    record = CrossLam(
        config=config,
        host=host,
        base=base,
        stack=stack,
        layers=layers,
        attentions=tuple(attentions),
        layers_path=path_of_layers(stack, layers),
        stack_places=_find_places(stack),
        attention_places=_find_places(attentions[0]),
    )
    _apply(record, container)
    return container


def decoders_with_masks(model: nn.Module) -> list[Any]:
    """The decoders inside a model that have masks on their cross-attention, without their heads.

    Where layers were cut, reordered or copied since, their masks follow them first.
    """
    bases: list[Any] = [m for m in model.modules() if getattr(m.__dict__.get("_hf_lam_cross"), "base", None) is m]
    for base in bases:
        follow_decoder_layers(base)
    return bases


def cross_lam_of(base: Any) -> CrossLam:
    """The record of the masks on one of `decoders_with_masks`."""
    return base._hf_lam_cross


def read_cross_lam(decoder: nn.Module) -> dict[str, Any] | None:
    """The options of the masks that a decoder has, as its model's configuration says them; None for none."""
    options = [cross_lam_of(base).config.to_dict() for base in decoders_with_masks(decoder)]
    return options[0] if options else None


def remove_cross_lam(base: Any) -> None:
    """Take the masks off one of `decoders_with_masks`, in place; its outputs are its own again."""
    record = cross_lam_of(base)
    restore_checkpointing(tuple(base.modules()))
    undo_changes(record.undo)
    # Copies of layers brought along what was attached to these.
    for module in record.stack.modules():
        take_off_stand_in(module)
        if _ENTER in module._forward_pre_hooks:
            module.config = base.config
        drop_hooks(module, (key_of(enter_layer), _ENTER))


def _find_cross_attentions(decoder: PreTrainedModel) -> tuple[Any, list[Any]]:
    """The decoder without its head, and its cross-attention modules in layer order."""
    name = type(decoder).__name__
    # From the inside out: the class of a head says the same as that of the model in it.
    found = [
        (model, attentions)
        for model in reversed([module for module in decoder.modules() if isinstance(module, PreTrainedModel)])
        if (attentions := recorded_attentions(model, "cross_attentions"))
    ]
    if not found:
        raise ValueError(_explain_no_cross_attention(decoder))
    base, attentions = found[0]
    others = [model for model, _ in found if not any(module is base for module in model.modules())]
    if others:
        raise ValueError(
            f"{name} has several decoders with cross-attention ({type(base).__name__}, {type(others[0]).__name__}). "
            "Give the one that the masks are for."
        )
    without = [attention for attention in attentions if not uses_interface(attention)]
    if without:
        raise ValueError(_explain_no_interface(name, without[0]))
    width = input_width_of(attentions[0])
    if width not in (None, base.config.hidden_size):
        raise ValueError(
            f"learnable attention masks read tokens of hidden_size={base.config.hidden_size} features, but the "
            f"cross-attention of {name} gets {width}."
        )
    return base, attentions


def _explain_no_cross_attention(decoder: PreTrainedModel) -> str:
    name = type(decoder).__name__
    parts = ("encoder_attn", "crossattention", "cross_attn", "encdecattention")
    own = [module for path, module in decoder.named_modules() if path.rpartition(".")[2].lower() in parts]
    if own:
        return _explain_no_interface(name, own[0])
    return (
        f"{name} has no cross-attention for learnable attention masks. Make it with config.is_decoder=True and "
        "config.add_cross_attention=True, or leave the masks out."
    )


def _explain_no_interface(name: str, attention: nn.Module) -> str:
    return (
        f"{type(attention).__name__} of {name} does not go through transformers' attention interface, so there is no "
        "place for learnable attention masks in its cross-attention. Take another decoder, such as GPT-2, BERT or "
        "BART, or leave them out."
    )


def _read_host(base: Any, attentions: list[Any], tokens: HostTokens) -> Host:
    config = base.config
    # BART's configuration has the heads of its encoder under the usual name.
    names = ("num_attention_heads", "num_heads")
    heads = next((size for name in names if isinstance(size := getattr(attentions[0], name, None), int)), None)
    heads = heads or config.num_attention_heads
    spread = getattr(config, "initializer_range", None) or getattr(config, "init_std", None) or 0.02
    return Host(tokens.host, config.hidden_size, heads, config.hidden_size // heads, len(attentions), spread, tokens)


def _find_places(module: nn.Module) -> dict[str, int]:
    """Find the positions of the encoder's tokens and the cache among the arguments of a forward, `self` left out."""
    parameters = list(inspect.signature(type(module).forward).parameters)
    return {name: parameters.index(name) - 1 for name in (*_ENCODER_TOKENS, *_CACHES) if name in parameters}


def _apply(record: CrossLam, container: MechanismContainer) -> None:
    """Change the decoder."""
    base, stack = record.base, record.stack
    changes = Changes(record.undo)
    if torch.tensor([]).device.type != "meta":  # in that context weights get their values later, when loaded
        mark_as_initialised(container)
    changes.set(base, "hf_lam", container)
    for module in dict.fromkeys((base, stack)):
        changes.set(module, "_hf_lam_cross", record)
    # Loading builds models without values and then asks `_init_weights` for those the checkpoint lacks.
    changes.set(base, "_init_weights", functools.partial(initialize_weights, base))
    changes.hook_state(base, follow_decoder_layers)
    changes.hook_before(stack, refuse_replicas)
    # Users, and other libraries, call the forward of a decoder; that of a stack in it is called by the decoder.
    (changes.enter if stack is base else changes.hook_before)(stack, enter_decoder)
    if stack is not base and needs_stand_in(stack):
        put_stand_in(stack, record.layers_path.partition(".")[0])
    for index, (layer, attention) in enumerate(zip(record.layers, record.attentions, strict=True)):
        changes.hook_before(layer, enter_layer)
        for module, child in path_between(layer, attention):
            put_stand_in(module, child)
        changes.set(attention, "config", make_dispatching_config(attention.config))
        changes.hook_before(attention, functools.partial(enter_cross, index))


def follow_decoder_layers(base: Any, *args: Any) -> None:
    """Number the layers that a decoder has now, and give each the mask that it had.

    Called before tensors are gathered or loaded: what is saved belongs to the layers 0, 1, … that there are.
    """
    record: CrossLam = base._hf_lam_cross
    hooks = [(module, module._forward_pre_hooks.get(_ENTER)) for module in record.stack.modules()]
    numbers = {module: hook.args[0] for module, hook in hooks if hook is not None}
    if tuple(numbers) == record.attentions:
        return
    for container in all_containers(base):
        masks = getattr(container, NAME)
        if not record.config.is_shared:
            before, taken = list(masks), [*numbers.values()]
            del masks[:]
            masks.extend(
                copy.deepcopy(before[number]) if number in taken[:place] else before[number]
                for place, number in enumerate(taken)
            )
    for index, attention in enumerate(numbers):
        Changes([]).hook_before(attention, functools.partial(enter_cross, index))
    record.attentions = tuple(numbers)
    record.layers = tuple(layers_in(record.stack, record.layers_path))


# --- a pass ----------------------------------------------------------------------------------------------------------


class CrossPass:
    """One forward pass of a decoder, as `ForwardPass` is one of an encoder.

    injection: the decoder's record.
    implementation: `"eager"`, `"flex_attention"` or `"auto"`.
    encoder_tokens: `(B, Lk, d)`, for what is made before the layers; None where the decoder runs without an encoder.
    is_cached: whether the key-value cache has the encoder's keys already.
    places: `(Lk,)`, the column of a dense mask for each encoder token; None if they are in its order.
    want_weights, states, recorded: see `ForwardPass`.
    """

    recorded: ClassVar[str] = "cross_attentions"

    def __init__(self, injection: CrossLam, encoder_tokens: Tensor | None, cache: Any, modalities: Any) -> None:
        self.injection = injection
        self.implementation = choose_implementation(injection.base)
        self.encoder_tokens = encoder_tokens
        self.is_cached = _is_cached(cache, injection.attentions[0].layer_idx)
        self.places = None if modalities is None else self.call("begin", PassStart(None, modalities))
        self.want_weights: bool | None = None
        self.states: dict[str, Tensor] = {}

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the masks."""
        return self.injection.base.hf_lam(NAME, method, *args)

    def make_states(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Make the values that cross layers, from the decoder's embeddings: these, or the only mask of all layers."""
        config, encoder_tokens = self.injection.config, self.encoder_tokens
        if encoder_tokens is None or not config.is_shared:
            return {"embeddings": embeddings}
        if config.is_dense:
            return {"mask": self.call("make_dense", 0, embeddings, encoder_tokens.shape[1], self.places)}
        states = {"rows": self.call("read_decoder", 0, embeddings)}
        return states if self.is_cached else {**states, "columns": self.call("read_encoder", 0, encoder_tokens)}

    def with_states(self, states: dict[str, Tensor]) -> CrossPass:
        """The same pass with other states."""
        twin = copy.copy(self)
        twin.states = states
        return twin


class CrossCall:
    """One cross-attention in one forward pass, on its way to the attention function.

    hidden_states: the decoder's tokens as they enter it, `(B, Lq, d)`.
    encoder_tokens: `(B, Lk, d)`.
    cache: the key-value cache; None without one.
    """

    def __init__(
        self, of_pass: CrossPass, layer: int, hidden_states: Tensor, encoder_tokens: Tensor, cache: Any
    ) -> None:
        self.of_pass = of_pass
        self.layer = layer
        self.hidden_states = hidden_states
        self.encoder_tokens = encoder_tokens
        self.cache = cache

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | BlockMask | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> Attended:
        """Attention with the arguments of transformers' interface: `(B, Lq, H, D)`, and the weights if asked for."""
        of_pass, config = self.of_pass, self.of_pass.injection.config
        size = query.shape[-1]
        columns = key[..., size:] if key.shape[-1] > size else None
        key = key[..., :size]
        if config.is_dense:
            mask = self._make_dense(key.shape[2])
        else:
            mask = self._make_low_rank(self._find_columns(module, key) if columns is None else columns)
        mask = mask.to(query.device)
        if key.shape[1] != query.shape[1]:  # heads that share keys and values
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        attention = Attention(
            of_pass=of_pass,
            layer=self.layer,
            hidden_states=self.hidden_states,
            query=query,
            key=key,
            value=value,
            padding=dense_padding(attention_mask, query, key),
            scaling=scaling,
            dropout=dropout,
            implementation=of_pass.implementation,
            want_weights=bool(of_pass.want_weights),
        )
        change = ScoreChange(addend=mask) if config.adds else ScoreChange(factor=mask)
        context, weights = attend_changed(attention, change)
        return context.transpose(1, 2).contiguous(), weights

    def _make_dense(self, length: int) -> Tensor:
        """The mask for `length` keys, or that of all layers."""
        mask = self.of_pass.states.get("mask")
        return self._call("make_dense", self._rows_from, length, self.of_pass.places) if mask is None else mask

    def _make_low_rank(self, columns: Tensor) -> Tensor:
        """The mask, from the factors of the keys."""
        states = self.of_pass.states
        rows = states["rows"] if "rows" in states else self._call("read_decoder", self._rows_from)
        # In the cache they are there for every head, and in its dtype.
        return self._call("join", rows, columns[:, : rows.shape[1]].to(rows))

    def _find_columns(self, module: Any, key: Tensor) -> Tensor:
        """The factors of the keys, which the cache gets as well."""
        states = self.of_pass.states
        columns = states["columns"] if "columns" in states else self._call("read_encoder", self.encoder_tokens)
        _remember(self.cache, module.layer_idx, key, columns)
        return columns

    @property
    def _rows_from(self) -> Tensor:
        return self.of_pass.states.get("embeddings", self.hidden_states)

    def _call(self, method: str, *args: Any) -> Any:
        return self.of_pass.call(method, self.layer, *args)


def enter_decoder(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    record: CrossLam = stack._hf_lam_cross
    if record.with_state:
        carry_states_through_checkpoints((*record.layers, *layers_in(stack, record.layers_path)))
    kwargs = dict(kwargs)
    modalities = kwargs.pop(MODALITY_TOKENS, None)
    encoder_tokens = _take(record.stack_places, _ENCODER_TOKENS, args, kwargs)
    cache = _take(record.stack_places, _CACHES, args, kwargs)
    return args, {**kwargs, PASS: CrossPass(record, encoder_tokens, cache, modalities)}


def enter_cross(
    index: int, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    of_pass: CrossPass | None = kwargs.get(PASS)
    if of_pass is None:
        raise RuntimeError(
            f"{type(attention).__name__} has a learnable attention mask but was called outside its decoder's forward. "
            "Call the decoder itself."
        )
    places = of_pass.injection.attention_places
    encoder_tokens = _take(places, _ENCODER_TOKENS, args, kwargs)
    cache = _take(places, _CACHES, args, kwargs)
    _forget(cache, attention.layer_idx)
    hidden_states = args[0] if args else kwargs["hidden_states"]
    return args, {**kwargs, PASS: CrossCall(of_pass, index, hidden_states, encoder_tokens, cache)}


_ENTER = key_of(enter_cross)


def _take(places: dict[str, int], names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument of one of these names, however it was given; None without one."""
    given = [kwargs[name] for name in names if kwargs.get(name) is not None]
    given += [args[places[name]] for name in names if places.get(name, len(args)) < len(args)]
    return next((value for value in given if value is not None), None)


# --- the cache -------------------------------------------------------------------------------------------------------


def _is_cached(cache: Any, layer: int | None) -> bool:
    """Whether an `EncoderDecoderCache` has the encoder's keys of a layer."""
    return bool(getattr(cache, "is_updated", {}).get(layer))


def _layer_of(cache: Any, layer: int | None) -> Any:
    """The layer of an `EncoderDecoderCache` for the encoder's keys; None where there is none (yet)."""
    layers = getattr(getattr(cache, "cross_attention_cache", None), "layers", ())
    return None if layer is None or layer >= len(layers) else layers[layer]


def _forget(cache: Any, layer: int | None) -> None:
    """Cut the factors off the keys before those of another text are written over them, in a cache of plain tensors."""
    cached = _layer_of(cache, layer)
    if cached is not None and cached.keys is not None and not _is_cached(cache, layer):
        cached.keys = cached.keys[..., : cached.values.shape[-1]]


def _remember(cache: Any, layer: int | None, key: Tensor, columns: Tensor) -> None:
    """Put the keys' factors behind their features, in a cache of plain tensors."""
    cached = _layer_of(cache, layer)
    if cached is None or getattr(cached.keys, "shape", None) != key.shape:
        return
    batch, heads, length, rank = columns.shape
    if (batch, length) == (key.shape[0], key.shape[2]) and heads in (1, key.shape[1]):
        columns = columns.to(key).expand(batch, key.shape[1], length, rank)
        cached.keys = torch.cat([key, columns], dim=-1).to(cached.keys.device)
