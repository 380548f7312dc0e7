"""The cost of a model, from what was counted in a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..modeling.hosts_hf_lam import head_size_of
from ..modeling.mechanism_hf_lam import SegmentSize
from ..observing import fused_tokens_of
from ..parameters import list_carriers, mechanism_parameters
from .counting import Rectangle, count_attention
from .forward import LayerCount, count_forward
from .inputs import encoder_of, example_inputs
from .report import FLOPS_PER_PAIR, CostReport, LayerCost


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
    holds the encoders of the modalities that the inputs have. Late fusion has no such layers, and attention of 0. An
    embedding model has its layers twice in the report, once for each of its sides.

    What mechanisms do besides comes on top of the products, and is reported beside them (`added`), by the formula of
    each mechanism, too. For a synthetic map it is the `synthesis`: on text, which has one axis, both together can cost
    more than dot products do: at 512 tokens, BERT's sizes and the dense variant 6 % more. What STT saves there are the
    query and key projections, which only `flops` holds.

    Args:
        model: an encoder, or a task model on top of one, with or without mechanisms.
        inputs: arguments of the model. `None` makes a batch of one (`example_inputs`). Where segments follow
            `token_type_ids`, each is padded to its longest in the batch, and these are the lengths that count; `full`
            has the length of the sequence, as in the original model.
        bottleneck_tokens: number `b` of tokens in the kind `bottleneck`.

    Returns:
        The report. The model is left as it was; it runs once, in evaluation mode and without gradients. Its attention
        forms its scores then, one layer after the other, which takes memory for long sequences.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if `bottleneck_tokens` is below 1, the model has mechanisms in several encoders, its attention
            cannot be found, or inputs have to be given.

    Examples:
        >>> from hf_lam import LocomtConfig, convert, cost
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig(views="self"))
        >>> cost(model).agrees  # the formula and what torch counts
        True
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"cost needs a transformers model (a PreTrainedModel), got {type(model).__name__}.")
    if isinstance(bottleneck_tokens, bool) or not isinstance(bottleneck_tokens, int) or bottleneck_tokens < 1:
        raise ValueError(f"bottleneck_tokens must be an integer of at least 1, got {bottleneck_tokens!r}.")
    base = encoder_of(model)
    with fused_tokens_of(base) as fused:
        layers, flops = count_forward(model, base, example_inputs(model) if inputs is None else inputs)
    if not layers and not fused:
        raise ValueError(f"{type(model).__name__} did not run the self-attention of {type(base).__name__} at all.")
    # Both sides of an embedding model go through the fusion layers, one after the other.
    passes = [tuple(map(SegmentSize, base.config.modalities, of_pass.lengths)) for of_pass in fused]
    depth = len(layers) // max(1, len(passes))
    if passes:
        layers = [
            layer if layer.segments else replace(layer, segments=passes[index // depth])
            for index, layer in enumerate(layers)
        ]
    if layers:
        first_layers = layers[::depth]
        batch_size, head_size = layers[0].batch_size, layers[0].head_size
        tokens, segmented = sum(layer.tokens for layer in first_layers), [layer.segments for layer in first_layers]
    else:
        batch_size, head_size = len(fused[0].counts), head_size_of(base.config)
        tokens, segmented = sum(sum(of_pass.lengths) for of_pass in fused), passes
    segments: dict[str, int] = {}
    for segment in (segment for of_pass in segmented for segment in of_pass):
        segments[segment.name] = segments.get(segment.name, 0) + segment.length
    facts: dict[str, Any] = {}
    for of_mechanism in layers[0].facts.values() if layers else ():
        facts |= of_mechanism
    added = mechanism_parameters(model) if list_carriers(model) else []
    return CostReport(
        model=type(model).__name__,
        batch_size=batch_size,
        tokens=tokens,
        head_size=head_size,
        bottleneck_tokens=bottleneck_tokens,
        segments=segments or None,
        synthesizer=facts.get("synthesizer"),
        grid=facts.get("grid"),
        forward_kind=layers[0].kind if layers else "none",
        layers=tuple(_compare(layer, bottleneck_tokens) for layer in layers),
        flops=flops,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        mechanism_parameters=sum(parameter.numel() for parameter in added),
    )


def _compare(layer: LayerCount, bottleneck_tokens: int) -> LayerCost:
    """Compare the cost of one layer with that of other kinds of attention in its place."""
    segments = layer.segments
    kinds: dict[str, tuple[Rectangle, ...]] = {"full": ((layer.tokens, layer.tokens + layer.past),)}
    if segments:
        kinds["self"] = _rectangles_of(segments, layer.past)
        longer = [s if s.is_global else s._replace(length=s.length + bottleneck_tokens) for s in segments]
        kinds["bottleneck"] = _rectangles_of(longer, layer.past)
    batch, heads, size = layer.batch_size, layer.num_heads, layer.head_size
    formula = {
        kind: (batch * FLOPS_PER_PAIR * size * sum(queries * keys for queries, keys in rectangles),) * heads
        for kind, rectangles in kinds.items()
    }
    counted = {kind: (batch * count_attention(rectangles, size),) * heads for kind, rectangles in kinds.items()}
    if layer.own is not None and layer.own_counted is not None:
        formula["own"], counted["own"] = layer.own, layer.own_counted
    return LayerCost(
        views=layer.views,
        formula=formula,
        counted=counted,
        forward=layer.products,
        synthesis=sum(layer.added[name] for name, facts in layer.facts.items() if "synthesizer" in facts),
        added=layer.added,
        added_formula=layer.added_formula,
    )


def _rectangles_of(segments: Sequence[SegmentSize], past: int) -> tuple[Rectangle, ...]:
    """Segments that see themselves and the global ones, which see all, as numbers of queries and keys.

    past: keys before the tokens, which all of them see.
    """
    everything = sum(segment.length for segment in segments)
    of_global = sum(segment.length for segment in segments if segment.is_global)
    return tuple(
        (segment.length, past + (everything if segment.is_global else segment.length + of_global))
        for segment in segments
    )
