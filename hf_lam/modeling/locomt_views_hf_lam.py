# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention views (LoCoMT): their grammar, the presets, and what they cost. Plain Python, no tensors.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024,
arXiv 2402.15096. A sequence is made of segments (modalities). A *view* says which segment's queries see which
segment's keys; every head of every layer has one. It is written as terms joined by `+`:

    self      every segment sees itself           self:a     segment a sees itself
    full      every segment sees every segment    a>b        queries of a see keys of b
    cross:a-b a and b see each other

A *global* segment, such as `[CLS]`, sees all segments and is seen by all in every view, and is not one of those that
the terms and presets count.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from itertools import combinations

# Indices of (query segment, key segment) that may look at each other.
View = frozenset[tuple[int, int]]

_TERM = re.compile(r"(?P<name>self|full)|self:(?P<self>\w+)|cross:(?P<a>\w+)-(?P<b>\w+)|(?P<query>\w+)>(?P<key>\w+)")
_PRESET = re.compile(r"(full|self|cross|round_robin|half)|(random|low_self)(?:\((\d+(?:\s*,\s*\d+)?)?\))?")
PRESETS = ("full", "self", "cross", "round_robin", "half", "random(seed)", "low_self(k)", "low_self(k, seed)")


def parse_view(text: str, names: Sequence[str], is_global: Sequence[bool] = ()) -> View:
    """The pairs of segments that a view allows.

    Args:
        text: the view in the grammar above.
        names: the segments, in order.
        is_global: whether each segment sees, and is seen by, all; no segment does unless given.

    Raises:
        ValueError: for a term outside the grammar or an unknown segment.
    """
    if not isinstance(text, str):
        raise ValueError(f"a view must be a string such as 'self' or 'cross:a-b', got {text!r}.")
    everywhere = {i for i, flag in enumerate(is_global) if flag}
    local = [i for i in range(len(names)) if i not in everywhere]
    pairs: set[tuple[int, int]] = set()
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise ValueError(
                f"view {text!r}: {term.strip()!r} is none of self, full, self:a, cross:a-b and a>b; the segments are "
                f"{list(names)}."
            )
        found = {
            key: _index(value, names, text) for key, value in match.groupdict().items() if value and key != "name"
        }
        if match["name"] == "self":
            pairs |= {(i, i) for i in local}
        elif match["name"] == "full":
            pairs |= {(i, j) for i in local for j in local}
        elif "self" in found:
            pairs.add((found["self"], found["self"]))
        elif "a" in found:
            if found["a"] == found["b"]:
                raise ValueError(f"view {text!r}: a cross view needs two different segments; write self:{match['a']}.")
            pairs |= {(found["a"], found["b"]), (found["b"], found["a"])}
        else:
            pairs.add((found["query"], found["key"]))
    pairs |= {(g, i) for g in everywhere for i in range(len(names))}
    pairs |= {(i, g) for g in everywhere for i in range(len(names))}
    return frozenset(pairs)


def _index(name: str, names: Sequence[str], text: str) -> int:
    if name not in names:
        raise ValueError(f"view {text!r} names the segment {name!r}; the segments are {list(names)}.")
    return list(names).index(name)


def cross_views(names: Sequence[str]) -> list[str]:
    """The cross view of every pair of segments, in order."""
    return [f"cross:{a}-{b}" for a, b in combinations(names, 2)]


def check_views(views: str | Sequence[Sequence[str]], names: Sequence[str], is_global: Sequence[bool] = ()) -> None:
    """Raises a `ValueError` for what `resolve_views` could not resolve, whatever the number of layers and heads."""
    if isinstance(views, str):
        if not _PRESET.fullmatch(views.strip()):
            _parse_for_all(views, names, is_global)
        return
    for view in {view for row in views for view in row}:
        parse_view(view, names, is_global)


def _parse_for_all(view: str, names: Sequence[str], is_global: Sequence[bool]) -> None:
    try:
        parse_view(view, names, is_global)
    except ValueError as error:
        raise ValueError(f"{error} The presets are {', '.join(PRESETS)}.") from None


def resolve_views(
    views: str | Sequence[Sequence[str]],
    num_layers: int,
    num_heads: int,
    names: Sequence[str],
    is_global: Sequence[bool] = (),
) -> list[list[str]]:
    """The table of views, layers × heads, behind a preset, one view for all heads, or a table.

    Args:
        views: a preset (`PRESETS`), a view, or a table with one view for every head of every layer.
        num_layers: `N`.
        num_heads: `H`.
        names: the segments, in order.
        is_global: whether each segment is global; none is unless given.

    Returns:
        `N` rows of `H` views, each checked against the segments.

    Raises:
        ValueError: for an unknown view, preset or segment, or a table of another shape.
    """
    check_views(views, names, is_global)
    if not isinstance(views, str):
        return _check_shape(views, num_layers, num_heads)
    local = [name for i, name in enumerate(names) if not (is_global and is_global[i])]
    return _preset_table(views.strip(), num_layers, num_heads, local)


def _check_shape(views: Sequence[Sequence[str]], num_layers: int, num_heads: int) -> list[list[str]]:
    if len(views) != num_layers or any(isinstance(row, str) or len(row) != num_heads for row in views):
        rows = sorted({1 if isinstance(row, str) else len(row) for row in views})
        widths = " or ".join(map(str, rows)) or "no"
        raise ValueError(
            f"the table of views has {len(views)} rows of {widths} views; the model has {num_layers} layers of "
            f"{num_heads} heads."
        )
    return [list(row) for row in views]


def _preset_table(preset: str, num_layers: int, num_heads: int, names: Sequence[str]) -> list[list[str]]:
    match = _PRESET.fullmatch(preset)
    if match is None:  # one view for all heads
        return [[preset] * num_heads for _ in range(num_layers)]
    name = match[1] or match[2]
    numbers = [int(number) for number in (match[3] or "").split(",") if number.strip()]
    if (name == "low_self" and not numbers) or (name == "random" and len(numbers) > 1):
        raise ValueError(f"views={preset!r} is not complete; the presets are {', '.join(PRESETS)}.")
    if len(names) == 1:
        name = "self"  # with one modality there is nothing to cross
    pairs = cross_views(names)
    if name in ("full", "self"):
        row = [name] * num_heads
    elif name == "cross":
        row = _in_turn(pairs, num_heads)
    elif name == "round_robin":
        row = _in_turn(["self", *pairs], num_heads)
    elif name == "half":
        row = ["self"] * (num_heads // 2) + _in_turn(pairs, num_heads - num_heads // 2)
    else:
        low = numbers.pop(0) if name == "low_self" else 0
        if low > num_layers:
            raise ValueError(f"views={preset!r} asks for self views in {low} layers; the model has {num_layers}.")
        draw = random.Random(numbers[0] if numbers else 0)
        above = [[draw.choice(["self", *pairs]) for _ in range(num_heads)] for _ in range(num_layers - low)]
        return [["self"] * num_heads for _ in range(low)] + above
    return [list(row) for _ in range(num_layers)]


def _in_turn(views: Sequence[str], count: int) -> list[str]:
    return [views[i % len(views)] for i in range(count)]


def view_cost(view: Iterable[tuple[int, int]], lengths: Sequence[int]) -> int:
    """Pairs of tokens that a head with this view scores: `Σ_{(i,j)∈V} L_i L_j`. Times `4·D` it is FLOPs."""
    return sum(lengths[i] * lengths[j] for i, j in view)


def bottleneck_cost(lengths: Sequence[int], tokens: int, is_global: Sequence[bool] = ()) -> int:
    """The same for a head of a bottleneck transformer (MBT) with `tokens` of them: `Σ (L_i + b)²`."""
    names = [str(i) for i in range(len(lengths))]
    longer = [length if i < len(is_global) and is_global[i] else length + tokens for i, length in enumerate(lengths)]
    return view_cost(parse_view("self", names, is_global), longer)
