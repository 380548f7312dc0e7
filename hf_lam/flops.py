"""What a model costs: FLOPs of its attention by formula and as counted, layer by layer and head by head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from .modeling.configuration_hf_lam import LocomtConfig, SttConfig
from .modeling.configuration_hf_lam_fusion import INPUT_NAMES
from .modeling.injection_hf_lam import (
    CALL,
    _self_attentions,
    injected_encoders,
    is_pure_stt,
    max_length_of,
    mechanisms_of,
)
from .modeling.locomt_hf_lam import locomt_attention
from .modeling.modeling_hf_lam_fusion import input_shape
from .modeling.segments_hf_lam import bottleneck_segments, has_token_types, is_fusion, leading_lengths
from .modeling.stt_hf_lam import stt_attention
from .modeling.views_hf_lam import View, parse_view, view_cost
from .observing import evaluation_mode, modality_tokens_of
from .parameters import only_injected_encoder

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

# For every feature of a head: a multiply-add is two, and there are two products, queries by keys and weights by
# values.
FLOPS_PER_PAIR = 4

# What attention over segments is compared with.
_KINDS_OF_SEGMENTS = ("full", "self", "bottleneck")

# A synthesised map has one product, weights by values.
FLOPS_PER_WEIGHT = 2


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of one layer's attention products, for the whole batch; every tuple has one number for each head.

    views: the view of each head; None without attention views.
    formula: by kind of attention (`full`, `self`, `bottleneck`, `own`), `4 · D · Σ_{(i,j)∈V} L_i L_j` times the batch;
        for a synthesised map, `2 · D · stt_products(grid, prefix)`, or with `D + 1` in place of `D` where padding has
        to be divided out after the products.
    counted: the same as counted by torch for one head with that view.
    forward: all heads, as counted in a forward pass of the model.
    synthesis: what making the synthetic map took besides, as counted in a forward pass.
    """

    views: tuple[str, ...] | None
    formula: dict[str, tuple[int, ...]]
    counted: dict[str, tuple[int, ...]]
    forward: int
    synthesis: int = 0


@dataclass(frozen=True)
class CostReport:
    """What [`cost`] found. All FLOPs are for a forward pass of the whole batch.

    model: the model's class.
    batch_size, tokens: sizes of the batch that the encoder got, padding included.
    head_size: features `D` of a head.
    bottleneck_tokens: of the kind `bottleneck`.
    segments: tokens of each segment, where samples differ those that the batch is padded to; of a fusion model, of
        each modality, 0 for those that the inputs do not have. None without views on other models.
    synthesizer: where the synthetic map comes from, that of a mixture too, such as `dense`; None without STT.
    grid: of the synthetic map for these inputs, without the prefix tokens before it; None without STT.
    forward_kind: what the forward pass computed: `own`, or `full` without views and pure STT, while views are
        annealed, and for views with `output_attentions`; `none` for late fusion, which has no layers.
    layers: one entry for each; of a fusion model, its fusion layers.
    flops: the whole model, as counted in a forward pass.
    parameters: of the whole model, mechanisms included.
    mechanism_parameters: those that hf_lam added.
    """

    model: str
    batch_size: int
    tokens: int
    head_size: int
    bottleneck_tokens: int
    segments: dict[str, int] | None
    synthesizer: str | None
    grid: tuple[int, ...] | None
    forward_kind: str
    layers: tuple[LayerCost, ...]
    flops: int
    parameters: int
    mechanism_parameters: int

    @property
    def attention(self) -> dict[str, int]:
        """FLOPs of the attention products of all layers by formula, for every kind."""
        kinds = list(self.layers[0].formula) if self.layers else _KINDS_OF_SEGMENTS
        return {kind: sum(sum(layer.formula[kind]) for layer in self.layers) for kind in kinds}

    @property
    def forward_attention(self) -> int:
        """FLOPs of the attention products of all layers, as counted in a forward pass."""
        return sum(layer.forward for layer in self.layers)

    @property
    def synthesis(self) -> int:
        """FLOPs of making the synthetic maps of all layers, as counted in a forward pass."""
        return sum(layer.synthesis for layer in self.layers)

    @property
    def agrees(self) -> bool:
        """Whether formula and counts are equal, for every layer and head."""
        return all(
            layer.formula == layer.counted and layer.forward == sum(layer.formula[self.forward_kind])
            for layer in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the fields and the properties."""
        totals = {
            "attention": self.attention,
            "forward_attention": self.forward_attention,
            "synthesis": self.synthesis,
            "agrees": self.agrees,
        }
        return {**asdict(self), **totals}


def cost(model: PreTrainedModel, inputs: Mapping[str, Any] | None = None, *, bottleneck_tokens: int = 4) -> CostReport:
    """FLOPs of a model, and of its attention for every layer and head, by formula and as counted by torch.

    The attention products `Q Kᵀ` and `A V` of a head with the view `V` over segments of `L_i` tokens cost
    `4 · D · Σ_{(i,j)∈V} L_i L_j` FLOPs a sample, two for a multiply-add (Park & Choi, "LoCoMT", arXiv 2402.15096).
    This is compared for four kinds of attention:

        full         of the original model: every token sees all
        self         every segment sees itself
        bottleneck   and `bottleneck_tokens` more of its own (MBT, arXiv 2107.00135)
        own          the views that the model has, or its synthesised attention (STT, arXiv 2201.01410)

    A model without attention views has no segments, and `full` alone, or with a pure STT `full` and `own`. In a fusion
    model, attention is that of the fusion layers, and the segments are the modalities, also without views; `flops`
    holds the encoders of the modalities that the inputs have. Late fusion has no such layers, and attention of 0.

    What makes a synthetic map comes on top of its products, and is reported beside them (`synthesis`). On text, which
    has one axis, both together can cost more than dot products do: at 512 tokens, BERT's sizes and the dense variant
    6 % more. What STT saves there are the query and key projections, which only `flops` holds.

    Args:
        model: an encoder, or a task model on top of one, with or without mechanisms.
        inputs: what the model is called with. `None` makes a batch of one (`example_inputs`). Where segments follow
            `token_type_ids`, each is padded to its longest in the batch, and these are the lengths that count; `full`
            has the length of the sequence, as in the original model.
        bottleneck_tokens: `b` of the kind `bottleneck`.

    Returns:
        The report. The model is left as it was; it runs once, in evaluation mode and without gradients. Its attention
        forms its scores then, one layer after the other, which takes memory for long sequences.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if `bottleneck_tokens` is below 1, the model has mechanisms in several encoders, its attention
            cannot be found, or inputs have to be given.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"cost needs a transformers model (a PreTrainedModel), got {type(model).__name__}.")
    if isinstance(bottleneck_tokens, bool) or not isinstance(bottleneck_tokens, int) or bottleneck_tokens < 1:
        raise ValueError(f"bottleneck_tokens must be an integer of at least 1, got {bottleneck_tokens!r}.")
    base = _encoder_of(model)
    locomt, stt = _locomt_of(base), _stt_of(base)
    attentions = [] if _is_late(base) else _self_attentions(base) if locomt is None else base._hf_lam_attentions
    with modality_tokens_of(base) as fused:
        calls, flops = _count_forward(model, attentions, example_inputs(model) if inputs is None else inputs)
    if not calls and not fused:
        raise ValueError(f"{type(model).__name__} did not run the self-attention of {type(base).__name__} at all.")
    segments: dict[str, int] | None = None
    if locomt is not None:
        segments = dict(zip(locomt.names, _without(locomt, calls[0].lengths), strict=True))
    elif fused:
        segments = dict(zip(base.config.modalities, fused[0].lengths, strict=True))
    if calls:
        batch_size, tokens = calls[0].hidden_states[0], calls[0].hidden_states[1] - _appended(locomt)
    else:
        assert fused[0].is_present is not None
        batch_size, tokens = len(fused[0].is_present), sum(fused[0].lengths)
    return CostReport(
        model=type(model).__name__,
        batch_size=batch_size,
        tokens=tokens,
        head_size=calls[0].head_size if calls else _head_size(base.config),
        bottleneck_tokens=bottleneck_tokens,
        segments=segments,
        synthesizer=None if stt is None else stt.synthesized_by,
        grid=None if stt is None else calls[0].grid,
        forward_kind=calls[0].kind if calls else "none",
        layers=tuple(_layer_cost(base, call, segments, bottleneck_tokens) for call in calls),
        flops=flops,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        mechanism_parameters=sum(parameter.numel() for parameter in _mechanism_parameters(base)),
    )


def example_inputs(model: PreTrainedModel, batch_size: int = 1) -> dict[str, torch.Tensor]:
    """A batch of the size that the model is configured for, on its device.

    Text is as long as the spans of the model's views add up to, or else as the model can take; where it has token
    types, they divide it evenly. Images, videos and spectrograms are zeros. A fusion model gets all of its modalities.

    Raises:
        ValueError: if `batch_size` is below 1, or the model's configuration does not give the sizes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    base = _encoder_of(model)
    if is_fusion(base.config):
        inputs: dict[str, torch.Tensor] = {}
        for modality in base.config.modalities:
            encoder = base.modality_model(modality)
            if modality == "text":
                inputs |= _example_text(model, encoder, batch_size)
            else:
                inputs[INPUT_NAMES[modality]] = _example_grid(encoder, batch_size)
        return inputs
    if base.main_input_name == "input_ids":
        return _example_text(model, base, batch_size)
    return {base.main_input_name: _example_grid(base, batch_size)}


def _example_grid(base: Any, batch_size: int) -> torch.Tensor:
    """Images, videos or spectrograms."""
    shape = input_shape(base.config) if base.main_input_name in ("pixel_values", "input_values") else None
    if shape is None:
        raise ValueError(
            f"the configuration of {type(base).__name__} does not say how large its {base.main_input_name} is; give "
            "inputs."
        )
    return torch.zeros(batch_size, *shape, dtype=base.dtype, device=base.device)


def _example_text(model: PreTrainedModel, base: Any, batch_size: int) -> dict[str, torch.Tensor]:
    locomt = _locomt_of(base)
    by_token_type = locomt is not None and has_token_types(locomt)
    length = _text_length(base) if locomt is None or by_token_type else sum(leading_lengths(locomt))
    shape: tuple[int, ...] = (batch_size, length)
    if "MultipleChoice" in type(model).__name__:
        shape = (batch_size, 1, length)
    # Not the padding token, from which some hosts make their positions.
    token = 1 if getattr(base.config, "pad_token_id", None) != 1 else 0
    inputs = {"input_ids": torch.full(shape, token, device=base.device)}
    types = getattr(base.config, "type_vocab_size", 0)
    if types >= 2 and "token_type_ids" in inspect.signature(type(base).forward).parameters:
        inputs["token_type_ids"] = (torch.arange(length, device=base.device) * types // length).expand(shape).clone()
    return inputs


def _text_length(base: Any) -> int:
    """The longest text that an encoder and its mechanisms take."""
    length = max_length_of(base)
    if length is None:
        raise ValueError(f"{type(base).__name__} does not say how long its texts get; give inputs.")
    configs = base.__dict__.get("_hf_lam_configs")
    if configs is not None and configs.lam is not None and configs.lam.max_length is not None:
        length = min(length, configs.lam.max_length)
    stt = _stt_of(base)
    if stt is not None:
        assert stt.grid is not None and stt.prefix_tokens is not None
        length = min(length, stt.prefix_tokens + prod(stt.grid))
    return length


# --- what to count ---------------------------------------------------------------------------------------------------


class _Head(NamedTuple):
    """One head: tokens of the segments, and which of them see which."""

    lengths: tuple[int, ...]
    view: View

    @property
    def pairs(self) -> int:
        return view_cost(self.view, self.lengths)


_ALL: View = frozenset({(0, 0)})  # with one segment


def _layer_cost(base: Any, call: _Call, segments: dict[str, int] | None, bottleneck_tokens: int) -> LayerCost:
    locomt = _locomt_of(base)
    batch_size, length = call.hidden_states[:2]
    kinds = {"full": [_Head((length - _appended(locomt),), _ALL)] * call.num_heads}
    if segments is not None:
        is_global = (False,) * len(segments) if locomt is None else locomt.is_global
        itself = parse_view("self", list(segments), is_global)
        plain = tuple(segments.values())
        longer = tuple(n if g else n + bottleneck_tokens for n, g in zip(plain, is_global, strict=True))
        kinds["self"] = [_Head(plain, itself)] * call.num_heads
        kinds["bottleneck"] = [_Head(longer, itself)] * call.num_heads
    if locomt is not None:
        kinds["own"] = [_Head(call.lengths, view) for view in base._hf_lam_views[call.layer]]
    scale = FLOPS_PER_PAIR * call.head_size
    formula = {kind: tuple(batch_size * scale * head.pairs for head in heads) for kind, heads in kinds.items()}
    counted = {
        kind: tuple(batch_size * _counted(head, call.head_size) for head in heads) for kind, heads in kinds.items()
    }
    stt = _stt_of(base)
    if stt is not None and not stt.is_mixture:
        prefix = length - prod(call.grid)
        # On one axis alone padding is part of the softmax; else it is divided out, which takes one more feature.
        is_divided = call.has_padding and (len(call.grid) > 1 or prefix > 0)
        products = FLOPS_PER_WEIGHT * (call.head_size + is_divided) * stt_products(call.grid, prefix)
        formula["own"] = (batch_size * products,) * call.num_heads
        of_head = _counted_stt(call.grid, prefix, call.head_size, is_divided)
        counted["own"] = (batch_size * of_head,) * call.num_heads
    return LayerCost(
        views=None if locomt is None else tuple(locomt.views[call.layer]),
        formula=formula,
        counted=counted,
        forward=call.flops,
        synthesis=call.synthesis,
    )


def stt_products(grid: Sequence[int], prefix: int = 0) -> int:
    """Multiply-adds a feature of a synthesised map: `N · Σ n_a` on the grid, and what `prefix` tokens add.

    A prefix token sums up one axis after the other, `N + N / n_1 + …`. What it gives to the others is no matrix
    product, and not counted.
    """
    places = prod(grid)
    of_prefix, left = 0, places
    for size in grid:
        of_prefix, left = of_prefix + left, left // size
    return places * sum(grid) + prefix * of_prefix


def _appended(locomt: LocomtConfig | None) -> int:
    """How many bottleneck tokens of its own the model appends to the sequence."""
    return 0 if locomt is None else len(bottleneck_segments(locomt))


def _without(locomt: LocomtConfig, lengths: Sequence[int]) -> tuple[int, ...]:
    """The segments' lengths without the model's own bottleneck tokens."""
    return tuple(n if g else n - locomt.bottleneck_tokens for n, g in zip(lengths, locomt.is_global, strict=True))


def _encoder_of(model: PreTrainedModel) -> Any:
    return only_injected_encoder(model) if injected_encoders(model) else model.base_model


def _is_late(base: Any) -> bool:
    return is_fusion(base.config) and base.config.num_hidden_layers == 0


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _locomt_of(base: Any) -> LocomtConfig | None:
    configs = base.__dict__.get("_hf_lam_configs")
    return None if configs is None else configs.locomt


def _stt_of(base: Any) -> SttConfig | None:
    configs = base.__dict__.get("_hf_lam_configs")
    return None if configs is None else configs.stt


def _mechanism_parameters(base: Any) -> list[nn.Parameter]:
    return list(mechanisms_of(base).parameters()) if "_hf_lam_configs" in base.__dict__ else []


# --- counting --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _counted(head: _Head, head_size: int) -> int:
    """FLOPs of one head for one sample, as counted on tensors without values."""
    query = torch.empty(1, 1, sum(head.lengths), head_size, device="meta")
    with _counter() as counter:
        locomt_attention(query, query, query, head.lengths, [head.view], implementation="blocks")
    return counter.get_total_flops()


@lru_cache(maxsize=1024)
def _counted_stt(grid: tuple[int, ...], prefix: int, head_size: int, has_padding: bool) -> int:
    """FLOPs of one head's synthesised map for one sample, as counted on tensors without values."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, 1, *shape, device="meta")

    length = prefix + prod(grid)
    shares = empty(length, 1 + prefix) if prefix else None
    padding = torch.empty(1, 1, 1, length, dtype=torch.bool, device="meta") if has_padding else None
    axes = [empty(prefix + n, n) for n in grid]
    with _counter() as counter:
        stt_attention(empty(length, head_size), axes, prefix_shares=shares, attention_mask=padding)
    return counter.get_total_flops()


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    """Count, with attention in products that the counter sees: it gives 0 for torch's fused kernels on CPU."""
    from torch.utils.flop_counter import FlopCounterMode  # not with the package: it loads more of torch

    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=_ours()) as counter,
    ):
        yield counter


def _ours() -> dict[Any, Any]:
    """How to count the operators of hf_lam, of which every copy of the code has its own."""
    namespaces = [getattr(torch.ops, name) for name in dir(torch.ops) if name.startswith("hf_lam_")]
    return {space.lam_forward: _lam_flops for space in namespaces if hasattr(space, "lam_forward")}


def _lam_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **kwargs: Any) -> int:
    """FLOPs of attention with a mask, from the shapes `(B, H, Lq, D)`, `(B, H, Lk, D)` and `(B, H, Lk, Dv)`."""
    batch, heads, length_q, size = query
    return 2 * batch * heads * length_q * key[2] * (size + value[3])


@dataclass
class _Call:
    """One self-attention in a forward pass: its sizes, and the FLOPs between its projections.

    layer: which of the encoder's layers, where it has mechanisms.
    hidden_states: shape of its input, `(B, L, d)`.
    lengths: tokens of the segments; empty without views.
    kind: `own`, or `full` where all scores are formed.
    grid: of STT, pure or a mixture; empty without.
    has_padding: whether the attention got a mask.
    synthesis: FLOPs of making its map, or that of a mixture; not in `flops`.
    """

    layer: int
    hidden_states: tuple[int, ...]
    lengths: tuple[int, ...]
    kind: str
    num_heads: int
    head_size: int
    grid: tuple[int, ...] = ()
    has_padding: bool = False
    flops: int = 0
    synthesis: int = 0


def _count_forward(
    model: PreTrainedModel, attentions: Sequence[nn.Module], inputs: Mapping[str, Any]
) -> tuple[list[_Call], int]:
    """Every self-attention of a forward pass, in order, and the FLOPs of the whole model."""
    calls: list[_Call] = []

    def enter(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        host = attention.config
        lengths: tuple[int, ...] = ()
        grid: tuple[int, ...] = ()
        kind = "full"
        if CALL in kwargs:
            of_pass = kwargs[CALL].forward_call
            if of_pass.configs.stt is not None:
                grid = kwargs[CALL].sizes
            if is_pure_stt(of_pass.configs):
                kind = "own"
                of_pass.output_attentions = False  # which would form the map
            if of_pass.layout is not None:
                lengths = of_pass.layout.lengths
                kind = "own" if of_pass.penalty is None and not of_pass.output_attentions else "full"
            # The host's implementation may be the reference, which forms all scores. A mask alone always needs all,
            # and the counter sees them there.
            of_pass.implementation = "auto" if lengths or is_pure_stt(of_pass.configs) else "eager"
        layer = getattr(attention, "_hf_lam_layer", 0)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        shape = tuple(hidden_states.shape)
        calls.append(
            _Call(layer, shape, lengths, kind, host.num_attention_heads, _head_size(host), grid, mask is not None)
        )
        calls[-1].flops -= counter.get_total_flops()

    # What the attention does itself is what happens inside of it, but outside of its projections.
    def pause(*_: Any) -> None:
        calls[-1].flops += counter.get_total_flops()

    def go_on(*_: Any) -> None:
        calls[-1].flops -= counter.get_total_flops()

    def begin_synthesis(_: Any, args: tuple[Any, ...]) -> None:
        if args[0] == "synthesis":
            pause()
            calls[-1].synthesis -= counter.get_total_flops()

    def end_synthesis(_: Any, args: tuple[Any, ...], output: Any) -> None:
        if args[0] == "synthesis":
            go_on()
            calls[-1].synthesis += counter.get_total_flops()

    handles = []
    try:
        for base in injected_encoders(model):
            handles.append(base.hf_lam.register_forward_pre_hook(begin_synthesis))
            handles.append(base.hf_lam.register_forward_hook(end_synthesis))
        for attention in attentions:
            # Appended, so that it runs after the hook that computes a learnable mask.
            handles.append(attention.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(attention.register_forward_hook(pause))
            for child in attention.children():
                handles += [child.register_forward_pre_hook(pause), child.register_forward_hook(go_on)]
        with evaluation_mode(model), _counter() as counter:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls, counter.get_total_flops()
