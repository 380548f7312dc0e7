"""Choose attention views from where a model looks: the table that keeps the most attention within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.attention_pass_hf_lam import attend_changed
from ..modeling.hosts_facts_hf_lam import takes_patches
from ..modeling.injection_hf_lam import InjectedEncoder, encoders_with, injection_of
from ..modeling.locomt_hf_lam import LocomtConfig
from ..modeling.locomt_views_hf_lam import View, parse_view
from ..modeling.mechanism_hf_lam import Attended, Attention, ScoreChange, extend_change
from ..observing import evaluation_mode, observing, run_batches, tokens_of
from .knapsack import choose

# Most attention weights that the measurement forms at once.
_CHUNK = 2**22


@dataclass(frozen=True)
class CalibrationReport:
    """The measurements of [`calibrate_views`] and its choice. Lists by layer and head are `[layer][head]`.

    Attributes:
        segments: names of the segments, in order.
        is_global: whether each segment sees, and is seen by, all; such segments are no part of the mass.
        budget: the fraction of FLOPs that was allowed.
        samples: number of samples that were measured.
        views: the view chosen for each head.
        mass_kept: attention mass on the pairs of segments inside that view, from 0 to 1: a mean over all query rows
            that are neither padding nor global.
        mass_total: the same for the full view; what is missing to 1 lies on global segments, and on keys before
            the tokens (`past_key_values`), which every view shows.
        mass_of_pairs: `[layer][head][i][j]`, what queries of segment `i` contribute to the total on keys of `j`.
        cost: pairs of a query and a key that the head scores in its view, as a mean over the samples. Times `4·D` it
            is FLOPs.
        full_cost: the same for a head with the full view.
        flops_fraction: attention FLOPs of the table, as a fraction of those of full views in the whole model.
        kept: `mass_kept`, as a mean over all heads.
        total: `mass_total`, as a mean over all heads.
        upper_bound: value of `kept` that no table of these candidates within the budget can exceed.
        gap: `1 − kept / upper_bound`; the table is at most this fraction short of the best one.
    """

    segments: list[str]
    is_global: list[bool]
    budget: float
    samples: int
    views: list[list[str]]
    mass_kept: list[list[float]]
    mass_total: list[list[float]]
    mass_of_pairs: list[list[list[list[float]]]]
    cost: list[list[float]]
    full_cost: float
    flops_fraction: float
    kept: float
    total: float
    upper_bound: float
    gap: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        counts = Counter(view for row in self.views for view in row)
        keys = {view: _letters(index) for index, (view, _) in enumerate(counts.most_common())}
        width = max(len(key) for key in keys.values()) + 4
        lines = [
            f"{100 * self.kept:.1f} % of the attention mass kept (full views: {100 * self.total:.1f} %) with "
            f"{100 * self.flops_fraction:.1f} % of the attention FLOPs (budget {100 * self.budget:.1f} %)",
            f"at most {100 * self.gap:.3f} % less than the best table; measured on {self.samples} samples",
            "",
            *(f"{key} = {view}, {counts[view]} heads" for view, key in keys.items()),
            "",
            "layer " + " ".join(f"{f'h{head}':>{width}}" for head in range(len(self.views[0]))) + "   (view, % kept)",
        ]
        for layer, (views, kept) in enumerate(zip(self.views, self.mass_kept, strict=True)):
            cells = (f"{f'{keys[v]} {100 * mass:.0f}':>{width}}" for v, mass in zip(views, kept, strict=True))
            lines.append(f"{layer:>5} " + " ".join(cells))
        return "\n".join(lines)


def _letters(index: int) -> str:
    return ("" if index < 26 else _letters(index // 26 - 1)) + chr(ord("A") + index % 26)


def calibrate_views(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    budget: float = 0.5,
    *,
    candidates: Sequence[str] | None = None,
) -> tuple[LocomtConfig, CalibrationReport]:
    """Pick the table of views that keeps the most attention mass within a budget of FLOPs.

    Runs the model on the batches with full attention, whatever its views are now, and measures the attention mass that
    each head puts on each pair of segments. The mass of a view is the mean over all query rows that are not padding of
    what they put on the keys in the view; a query that sees no keys counts 0. Global segments such as `[CLS]` are left
    out, as queries and as keys: every view has them.

    One view for every head is a multiple-choice knapsack. It is solved near-exactly, with a proof: the optimum of its
    linear relaxation is computed exactly and bounds every table from above; the table is that solution rounded down
    and improved by exchanges of views between heads. `report.gap` certifies how far from the best table it can be at
    most (below 0.5 % for 12 layers of 12 heads, as a rule).

    Args:
        model: a model with `LocomtConfig` in one encoder, with any views. It is not changed.
        batches: arguments of the model, as a tokenizer returns or a `DataLoader` yields them; labels may be among
            them. Tensors are moved to the model's device. A few hundred samples are enough, as a rule.
        budget: attention FLOPs of the table as a fraction of those of full views, over the whole model; in (0, 1].
            Where samples differ in their segments (token types, grids of their own), costs are means over the samples,
            without padding.
        candidates: the views to choose from, in the grammar of `LocomtConfig`; `full`, `self` and the cross view of
            every pair of segments unless given. `["full", "self", "a>b"]` adds directed views, for example.

    Returns:
        The configuration, with the segments of the model and the table of views: `hf_lam.set_views(model, config)`
        applies it. And the report.

    Raises:
        TypeError: if a batch is not a mapping, or `candidates` is a single string.
        ValueError: if the model does not have attention views in exactly one encoder or has a bottleneck, for a budget
            outside (0, 1] or one that no table can meet, for an unknown candidate, or without any tokens to measure.

    Examples:
        >>> import torch
        >>> from hf_lam import LocomtConfig, calibrate_views, convert, set_views
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig())
        >>> config, report = calibrate_views(model, [{"pixel_values": torch.randn(2, 3, 224, 224)}], budget=0.5)
        >>> report.flops_fraction <= 0.5
        True
        >>> model = set_views(model, config)
    """
    check_budget(budget)
    return measure_views(model, batches, candidates).choose_within(budget)


def check_budget(budget: Any) -> None:
    """Raises a `ValueError` for what is no fraction of the attention FLOPs."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise ValueError(f"budget must be a fraction of the attention FLOPs in (0, 1], got {budget!r}.")


@dataclass(frozen=True)
class MeasuredViews:
    """The attention that every candidate keeps in every head, and its cost.

    Attributes:
        config: the views of the model, whose segments the candidates are about.
        candidates: the views to choose from.
        pairs: attention mass by pair of segments, `[layer][head][i][j]`, a mean over the query rows.
        products: pairs of a query and a key by pair of segments, `[i][j]`, summed over the samples.
        past: the same for the keys before the tokens, which every view shows.
        samples: number of samples that were measured.
    """

    config: LocomtConfig
    candidates: list[str]
    pairs: list[list[list[list[float]]]]
    products: list[list[int]]
    past: int
    samples: int

    @cached_property
    def full_cost(self) -> int:
        """The cost of one head with the full view, summed over the samples."""
        return self.past + sum(map(sum, self.products))

    @cached_property
    def costs(self) -> list[int]:
        """The same with every candidate."""
        return [self.cost_of(view) for view in self._views]

    @cached_property
    def values(self) -> list[list[float]]:
        """`[layer · heads + head][candidate]`, the mass that is kept."""
        return [[self.mass_in(view, head) for view in self._views] for head in self.heads]

    @cached_property
    def heads(self) -> list[list[list[float]]]:
        """`pairs`, of all layers in one list."""
        return [head for row in self.pairs for head in row]

    @property
    def least(self) -> float:
        """The attention FLOPs of the cheapest table, as a fraction of those of full views."""
        return min(self.costs) / self.full_cost

    @cached_property
    def _views(self) -> list[View]:
        return [parse_view(candidate, self.config.names, self.config.is_global) for candidate in self.candidates]

    def cost_of(self, view: View) -> int:
        return self.past + sum(self.products[i][j] for i, j in view)

    def mass_in(self, view: View, head: list[list[float]]) -> float:
        """The mass that one head puts on the pairs of a view; global segments are no part of it."""
        is_global = self.config.is_global
        return sum(head[i][j] for i, j in view if not (is_global[i] or is_global[j]))

    def can_meet(self, budget: float) -> bool:
        """Whether some table takes no more than this fraction of the attention FLOPs of full views."""
        return min(self.costs) * len(self.heads) <= self._capacity(budget)

    def _capacity(self, budget: float) -> int:
        """The costs of all heads together that a budget allows."""
        return int(budget * self.full_cost * len(self.heads) * (1 + 1e-9))

    def choose_within(self, budget: float) -> tuple[LocomtConfig, CalibrationReport]:
        """The table that keeps the most within a budget, see [`calibrate_views`]."""
        heads = len(self.heads)
        if not self.can_meet(budget):
            raise ValueError(
                f"no table meets budget={budget}: the cheapest of the candidates {self.candidates} takes "
                f"{self.least:.4f} of the attention FLOPs of full views. Raise the budget or give cheaper candidates."
            )
        choices, upper_bound = choose(self.values, self.costs, self._capacity(budget))
        local = [i for i, everywhere in enumerate(self.config.is_global) if not everywhere]
        totals = [sum(head[i][j] for i in local for j in local) for head in self.heads]
        table = self._by_layer([self.candidates[choice] for choice in choices])
        kept = [head[choice] for head, choice in zip(self.values, choices, strict=True)]
        report = CalibrationReport(
            segments=self.config.names,
            is_global=self.config.is_global,
            budget=float(budget),
            samples=self.samples,
            views=table,
            mass_kept=self._by_layer(kept),
            mass_total=self._by_layer(totals),
            mass_of_pairs=self.pairs,
            cost=self._by_layer([self.costs[choice] / self.samples for choice in choices]),
            full_cost=self.full_cost / self.samples,
            flops_fraction=sum(self.costs[choice] for choice in choices) / (self.full_cost * heads),
            kept=sum(kept) / heads,
            total=sum(totals) / heads,
            upper_bound=upper_bound / heads,
            gap=max(0.0, 1 - sum(kept) / upper_bound) if upper_bound > 0 else 0.0,
        )
        return replace(self.config, views=[list(row) for row in table], annealing=False), report

    def _by_layer(self, flat: list[Any]) -> list[list[Any]]:
        per_layer = len(self.pairs[0])
        return [flat[start : start + per_layer] for start in range(0, len(flat), per_layer)]


def measure_views(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], candidates: Sequence[str] | None
) -> MeasuredViews:
    """Run the model on the batches once, see [`calibrate_views`]."""
    base = _encoder_with_views(model)
    config: LocomtConfig = injection_of(base).configs[LocomtConfig.name]
    if isinstance(candidates, str):
        raise TypeError(f"candidates must be a list of views, got the string {candidates!r}; write [{candidates!r}].")
    candidates = ["full", *config.views_of_the_paper] if candidates is None else list(dict.fromkeys(candidates))
    if not candidates:
        raise ValueError("candidates is empty; give at least one view, such as 'self'.")
    for candidate in candidates:
        parse_view(candidate, config.names, config.is_global)
    mass = _measure(model, base, config, batches)
    pairs = (mass.pairs / mass.rows).tolist()
    return MeasuredViews(config, candidates, pairs, mass.products, mass.past, mass.samples)


def _encoder_with_views(model: nn.Module) -> Any:
    encoders = encoders_with(model, LocomtConfig.name)
    if len(encoders) != 1:
        raise ValueError(
            f"{type(model).__name__} has attention views in {len(encoders)} encoders, calibrate_views needs one; call "
            "hf_lam.inject(model, LocomtConfig(...)) or hf_lam.convert first."
        )
    tokens = injection_of(encoders[0]).configs[LocomtConfig.name].bottleneck_tokens
    if tokens:
        raise ValueError(
            f"{type(model).__name__} has bottleneck_tokens={tokens}, which only go with views='self'. Calibrate the "
            "model with LocomtConfig(views='full')."
        )
    return encoders[0]


# --- measuring -------------------------------------------------------------------------------------------------------


class _Mass:
    """Sums over all samples.

    pairs: attention weights by pair of segments, `(layers, heads, m, m)`; 0 for global ones.
    rows: query rows that were counted.
    products: `L_i · L_j`, summed over the samples.
    past: the same for all tokens and the keys before them, which every view shows.
    """

    def __init__(self, config: LocomtConfig, takes_patches: bool) -> None:
        segments = len(config.names)
        self.is_local = torch.tensor([not everywhere for everywhere in config.is_global])
        self.counts_padding = not (config.has_token_types or (config.needs_input_grid and takes_patches))
        self.pairs = torch.zeros(len(config.views), len(config.views[0]), segments, segments, dtype=torch.float64)
        self.rows = 0
        self.samples = 0
        self.products = [[0] * segments for _ in range(segments)]
        self.past = 0

    def count(self, segment_of: Tensor, is_valid: Tensor, past: int) -> None:
        """One batch: `(B, L, m)` one-hot, which tokens are not padding, `(B, L)`, and how many keys come before."""
        valid = (segment_of * is_valid.unsqueeze(-1)).sum(1).long().cpu()
        # Segments that are the same for all samples are computed whole, padding and all.
        lengths = segment_of.sum(1).long().cpu() if self.counts_padding else valid
        self.rows += int(valid[:, self.is_local].sum())
        self.samples += len(lengths)
        self.past += past * int(lengths.sum())
        products = (lengths.T @ lengths).tolist()
        self.products = [
            [a + b for a, b in zip(*rows, strict=True)] for rows in zip(self.products, products, strict=True)
        ]


def _measure(
    model: nn.Module, base: InjectedEncoder, config: LocomtConfig, batches: Iterable[Mapping[str, Any]]
) -> _Mass:
    mass = _Mass(config, takes_patches(base.config))

    def add_up(attention: Attention, attend: Callable[[Attention], Attended]) -> Attended:
        return _attend_to_all(attention, mass), None

    with torch.no_grad(), evaluation_mode(model), observing(base, add_up):
        run_batches(model, base, batches)
    if mass.rows == 0:
        raise ValueError(
            f"batches held {mass.samples} samples without any token to measure; give at least one that is not padding."
        )
    return mass


def _attend_to_all(attention: Attention, mass: _Mass) -> Tensor:
    """The context of full attention, whatever the views are; its weights, some rows at a time, go to `mass`."""
    batch, heads, length, _ = attention.query.shape
    padding, device = attention.padding, attention.query.device
    change = extend_change(attention.of_pass.change_scores(attention), attention.past)
    segment_of = _segments_of(attention)
    is_token = tokens_of(attention)
    is_valid = torch.ones(batch, length, dtype=torch.bool, device=device) if is_token is None else is_token
    if attention.layer == 0:
        mass.count(segment_of, is_valid, attention.past)
    counted_keys = segment_of * mass.is_local.to(device)
    counted_rows = counted_keys * is_valid.unsqueeze(-1)
    total = segment_of.new_zeros(heads, *mass.pairs.shape[2:])
    contexts = []
    step = max(1, _CHUNK // max(1, batch * heads * length))
    for start in range(0, length, step):
        rows = slice(start, start + step)
        part = attention._replace(
            query=attention.query[:, :, rows], padding=_cut(padding, rows), dropout=0.0, want_weights=True
        )
        context, weights = attend_changed(part, ScoreChange(_cut(change.factor, rows), _cut(change.addend, rows)))
        assert weights is not None
        contexts.append(context)
        on_segments = weights[..., attention.past :].float() @ counted_keys.unsqueeze(1)  # (B, H, rows, m)
        total += torch.einsum("bri,bhrj->hij", counted_rows[:, rows], on_segments)
    mass.pairs[attention.layer] += total.double().cpu()
    return torch.cat(contexts, dim=2)


def _cut(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """Some query rows of what is the same for all of them, or has one for each."""
    return tensor if tensor is None or tensor.shape[-2] == 1 else tensor[..., rows, :]


def _segments_of(attention: Attention) -> Tensor:
    """The segment of every token, `(B, L, m)` one-hot."""
    batch, _, length, _ = attention.query.shape
    pattern = attention.of_pass.begun[LocomtConfig.name]
    layout, device = pattern.layout, attention.query.device
    if layout.length != length:
        raise ValueError(
            f"the segments {pattern.config.segments} add up to {layout.length} tokens, but the sequence has {length}. "
            "Calibrate on batches of the length that the segments were made for."
        )
    segments = torch.arange(len(layout.lengths), device=device)
    return (layout.ids().to(device).unsqueeze(-1) == segments).float().expand(batch, -1, -1)
