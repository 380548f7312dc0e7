"""One forward pass of a model, and what every self-attention in it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling.host_attention_hf_lam import find_attentions
from ..modeling.hosts_facts_hf_lam import is_fusion
from ..modeling.hosts_hf_lam import head_size_of
from ..modeling.injection_hf_lam import InjectedEncoder, injected_encoders, injection_of, mechanism_of
from ..modeling.mechanism_hf_lam import Attended, Attention, ScoreChange, SegmentSize, compose
from ..observing import evaluation_mode, observing
from .counting import Meter, count_flops
from .report import FLOPS_PER_PAIR


@dataclass(frozen=True)
class LayerCount:
    """One self-attention in a forward pass; FLOPs are for the whole batch.

    batch_size, tokens: sizes of its input, without tokens that a mechanism appended.
    num_heads, head_size: `H` and `D`.
    products: FLOPs of the attention products, as counted.
    kind: kind of attention that was computed: `own`, or `full` where all scores are formed.
    own, own_counted: FLOPs of every head's products with what the model has in place of full attention, by formula
        and as counted; None if it has nothing in its place.
    views: names of the views of the heads; None where there are none.
    segments: segments that a pattern cuts the sequence into.
    added, added_formula: FLOPs of making what changes the scores or takes their place, by the names of mechanisms.
    facts: further facts that these tell (`Mechanism.list_cost_facts`).
    past: keys before the tokens (`past_key_values`), which every token sees.
    """

    batch_size: int
    tokens: int
    num_heads: int
    head_size: int
    products: int
    kind: str = "full"
    own: tuple[int, ...] | None = None
    own_counted: tuple[int, ...] | None = None
    views: tuple[str, ...] | None = None
    segments: tuple[SegmentSize, ...] = ()
    added: dict[str, int] = field(default_factory=dict)
    added_formula: dict[str, int] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    past: int = 0


def count_forward(model: PreTrainedModel, base: Any, inputs: Mapping[str, Any]) -> tuple[list[LayerCount], int]:
    """Every self-attention of the encoder `base` in a forward pass of `model`, and the FLOPs of the whole model."""
    make_watch: Any = _MechanismWatch if base in injected_encoders(model) else _HostWatch
    with evaluation_mode(model), count_flops() as meter:
        watch = make_watch(base, meter)
        with watch.watching():
            model(**inputs)
        return watch.layers, meter.total


# --- with mechanisms -------------------------------------------------------------------------------------------------


class _MechanismWatch:
    """Stands in front of the pass's `attend`: what it needs is made and measured first, and then what it does.

    Args:
        base: the encoder.
        meter: meter that counts.
    """

    def __init__(self, base: InjectedEncoder, meter: Meter) -> None:
        self.base = base
        self.injection = injection_of(base)
        self.meter = meter
        self.layers: list[LayerCount] = []
        self.of_heads: dict[tuple[Any, ...], int | None] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Watch a forward pass while this lasts."""
        return observing(self.base, self.look)

    def look(self, attention: Attention, attend: Callable[[Attention], Attended]) -> Attended:
        """Count one layer, and do what it does."""
        made, added = self.make_change(attention)
        attended, products = self.meter.measure(attend, made)
        self.layers.append(self.describe(made, products, added))
        return attended

    def make_change(self, attention: Attention) -> tuple[Attention, dict[str, int]]:
        """The attention with what changes its scores or takes their place, and what making that took."""
        of_pass, injection, measure = attention.of_pass, self.injection, self.meter.measure
        if injection.replacement is not None:
            replacement, flops = measure(of_pass.replace_scores, attention)
            # To form a map, for those who ask for it or in the reference, is not what a replacement costs.
            made = attention._replace(replacement=replacement, want_weights=False, implementation="auto")
            return made, {injection.replacement: flops}
        changes: list[ScoreChange] = []
        added: dict[str, int] = {}
        for name in injection.order:
            change, added[name] = measure(of_pass.change_scores, attention, [name])
            changes.append(change)
        # The reference forms all scores, which a pattern need not. Without one all are needed, and counted there.
        implementation = "eager" if injection.pattern is None else "auto"
        return attention._replace(change=compose(changes), implementation=implementation), added

    def describe(self, attention: Attention, products: int, added: dict[str, int]) -> LayerCount:
        """Describe one layer."""
        injection, layer = self.injection, attention.layer
        batch, length, _ = attention.hidden_states.shape
        mechanisms = {name: mechanism_of(self.base, name) for name in added}
        if layer == 0:
            added = {name: flops + self.count_state(name, attention) for name, flops in added.items()}
        appended = 0 if injection.appending is None else injection.configs[injection.appending].appended_tokens
        count = LayerCount(
            batch_size=batch,
            tokens=length - appended,
            num_heads=attention.value.shape[1],
            head_size=attention.value.shape[3],
            products=products,
            added=added,
            added_formula={name: made.count_flops(layer, batch, length) for name, made in mechanisms.items()},
            facts={name: made.list_cost_facts(length) for name, made in mechanisms.items()},
            past=attention.past,
        )
        if attention.replacement is not None:
            own = attention.replacement.count_flops(attention)
            return replace(count, kind="own", own=own, own_counted=_share(products, own))
        return count if injection.pattern is None else self.describe_pattern(attention, count)

    def count_state(self, name: str, attention: Attention) -> int:
        """FLOPs of what crosses layers, which was made before the first one, and is made once more to be counted."""
        of_pass = attention.of_pass
        if name not in self.injection.with_state:
            return 0
        begun = of_pass.begun.get(name)
        return self.meter.measure_aside(of_pass.dispatch.make_state, name, attention.hidden_states, begun)

    def describe_pattern(self, attention: Attention, count: LayerCount) -> LayerCount:
        """Describe one layer with a pattern."""
        name = str(self.injection.pattern)
        mechanism, pattern = mechanism_of(self.base, name), attention.of_pass.begun[name]
        views = mechanism.list_facts(attention.layer).get("views")
        pairs = pattern.count_pairs(attention.layer, attention.past)
        own = tuple(FLOPS_PER_PAIR * count.head_size * count.batch_size * number for number in pairs)
        counted = [self.count_head(attention, head, views) for head in range(count.num_heads)]
        is_full = attention.want_weights or mechanism.scores_all(pattern)
        return replace(
            count,
            kind="full" if is_full else "own",
            own=own,
            own_counted=tuple(flops for flops in counted if flops is not None) or _share(count.products, own),
            views=None if views is None else tuple(views),
            segments=tuple(mechanism.list_segments(pattern)),
        )

    def count_head(self, attention: Attention, head: int, views: Sequence[str] | None) -> int | None:
        """FLOPs of what one head sees, by itself; None if the pattern cannot be taken apart."""
        of_pass, name = attention.of_pass, str(self.injection.pattern)
        # Those with the same view, of any layer, are counted once.
        key = (of_pass, attention.layer, head) if views is None else (of_pass, views[head])
        if key not in self.of_heads:
            alone = mechanism_of(self.base, name).take_head(of_pass.begun[name], head)
            given = (_take_head(attention, head), ScoreChange())
            self.of_heads[key] = None if alone is None else self.meter.measure_aside(alone.attend, *given)
        return self.of_heads[key]


def _share(total: int, parts: Sequence[int]) -> tuple[int, ...]:
    """Divide what was counted for all heads together in the proportions of the formula."""
    whole = max(1, sum(parts))
    return tuple(total * part // whole for part in parts)


def _take_head(attention: Attention, head: int) -> Attention:
    """One head of an attention, as tensors without values."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor[:, head : head + 1], device="meta")

    query, key, value = map(empty, (attention.query, attention.key, attention.value))
    return attention._replace(
        query=query, key=key, value=value, padding=None, dropout=0.0, implementation="auto", want_weights=False
    )


# --- without ---------------------------------------------------------------------------------------------------------


class _HostWatch:
    """Counts the work that attention modules do themselves, outside of their projections.

    Args:
        base: the encoder.
        meter: meter that counts.
    """

    def __init__(self, base: Any, meter: Meter) -> None:
        is_late = is_fusion(base.config) and base.config.num_hidden_layers == 0
        self.attentions = [] if is_late else find_attentions(base)
        self.meter = meter
        self.layers: list[LayerCount] = []
        self.entered: list[int] = []
        self.of_projections = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch a forward pass while this lasts."""
        handles = []
        try:
            for attention in self.attentions:
                handles.append(attention.register_forward_pre_hook(self.enter))
                handles.append(attention.register_forward_hook(self.leave_attention, with_kwargs=True))
                for child in attention.children():
                    handles.append(child.register_forward_pre_hook(self.enter))
                    handles.append(child.register_forward_hook(self.leave_projection))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.entered.append(self.meter.total)

    def leave_projection(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.of_projections += self.meter.total - self.entered.pop()

    def leave_attention(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        products = self.meter.total - self.entered.pop() - self.of_projections
        self.of_projections = 0
        hidden_states = args[0] if args else kwargs["hidden_states"]
        batch, length, _ = hidden_states.shape
        host = attention.config
        # The tokens are in it by now. transformers called it past_key_values up to 5.23.
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        past = 0 if cache is None else cache.get_seq_length(attention.layer_idx) - length
        self.layers.append(
            LayerCount(batch, length, host.num_attention_heads, head_size_of(host), products, past=past)
        )
