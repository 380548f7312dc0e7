"""The result of counting FLOPs, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..result_tables import Readable, ResultTable

# For every feature of a head: a multiply-add is two, and there are two products, queries by keys and weights by
# values.
FLOPS_PER_PAIR = 4

# What attention over segments is compared with.
_KINDS_OF_SEGMENTS = ("full", "self", "bottleneck")


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of one layer, for the whole batch; every tuple has one number for each head.

    views: the view of each head; None without attention views.
    formula: FLOPs of the attention products by kind of attention (`full`, `self`, `bottleneck`, `own`), `4 · D ·
        Σ_{(i,j)∈V} L_i L_j` times the batch; for a synthesised map, `2 · D` times the multiply-adds of its mode
        products, or with `D + 1` in place of `D` where padding has to be divided out after the products.
    counted: the same as counted by torch for each head by itself; where heads do the same, or cannot be told apart,
        for all together, of which each has its share.
    forward: all heads, as counted in a forward pass of the model.
    synthesis: FLOPs of making the synthetic map, as counted in a forward pass; part of `added`.
    added: FLOPs of making the change of scores, or what takes their place, by the names of the mechanisms, as counted
        in a forward pass. What crosses layers is made for the first one.
    added_formula: the same by the formulas of the mechanisms.
    """

    views: tuple[str, ...] | None
    formula: dict[str, tuple[int, ...]]
    counted: dict[str, tuple[int, ...]]
    forward: int
    synthesis: int = 0
    added: dict[str, int] = field(default_factory=dict)
    added_formula: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CostReport(Readable):
    """The result of [`cost`]. All FLOPs are for a forward pass of the whole batch.

    model: the model's class.
    batch_size, tokens: sizes of the batch that the encoder got, padding included; both sides' of an embedding model.
    head_size: features `D` of a head.
    bottleneck_tokens: number of tokens in the kind `bottleneck`.
    segments: tokens of each segment, where samples differ those that the batch is padded to; of a fusion model, of
        each modality, 0 for those that the inputs do not have. None without views on other models.
    synthesizer: variant that the synthetic map comes from, that of a mixture too, such as `dense`; None without STT.
    grid: grid of the synthetic map for these inputs, without the prefix tokens before it; None without STT.
    forward_kind: kind of attention that the forward pass computed: `own`, or `full` without views and pure STT, while
        views are annealed, and for views with `output_attentions`; `none` for late fusion, which has no layers.
    layers: one entry for each; of a fusion model, its fusion layers, and of an embedding model, these for either side.
    flops: the whole model, as counted in a forward pass.
    parameters: parameters of the whole model, mechanisms included.
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
    def added(self) -> dict[str, int]:
        """FLOPs that the mechanisms add to the attention products, by their names, as counted in a forward pass."""
        return _sum_by_name(layer.added for layer in self.layers)

    @property
    def added_formula(self) -> dict[str, int]:
        """The same as the mechanisms say it."""
        return _sum_by_name(layer.added_formula for layer in self.layers)

    @property
    def agrees(self) -> bool:
        """Whether formula and counts are equal, for every layer and head, and what the mechanisms add."""
        return all(
            layer.formula == layer.counted
            and layer.forward == sum(layer.formula[self.forward_kind])
            and layer.added == layer.added_formula
            for layer in self.layers
        )

    def tables(self) -> tuple[ResultTable, ...]:
        """The table that it prints, with a row for each layer."""
        from .tables import cost_table

        return (cost_table(self),)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the fields and the properties."""
        totals = {
            "attention": self.attention,
            "forward_attention": self.forward_attention,
            "synthesis": self.synthesis,
            "added": self.added,
            "added_formula": self.added_formula,
            "agrees": self.agrees,
        }
        return {**asdict(self), **totals}


def _sum_by_name(of_layers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for flops in of_layers:
        for name, number in flops.items():
            totals[name] = totals.get(name, 0) + number
    return totals
