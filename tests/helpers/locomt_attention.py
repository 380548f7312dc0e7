"""The formula of locomt_attention in fp64, its inputs, and the views and layouts that its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.attention import assert_same, make_inputs
from hf_lam.modeling import locomt_blocks_hf_lam as blocks
from hf_lam.modeling.locomt_attention_hf_lam import attend_annealed, locomt_attention
from hf_lam.modeling.locomt_layout_hf_lam import Layout
from hf_lam.modeling.locomt_views_hf_lam import View, parse_view

NAMES = ("query", "key", "value", "mask")

SEGMENTS = ["a", "b", "c"]
LENGTHS = [5, 3, 5]  # as long as PADDINGS
LENGTH = sum(LENGTHS)
# The heads of one view lie irregularly; `cross:a-b` leaves c without keys, and the directed one leaves b without.
VIEWS = [parse_view(view, SEGMENTS) for view in ("self", "cross:a-b", "self", "self", "a>c+c>a+self:c")]
HEADS = len(VIEWS)
BATCH, SIZE = 2, 4


def spans(lengths: Sequence[int]) -> Tensor:
    """The segment of every token, `(1, L)`."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))[None]


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_ids: Tensor,
    views: Sequence[View],
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    scaling: float | None = None,
    combine: str = "multiply",
) -> Tensor:
    """Independent of the code under test: fp64, one softmax over the keys of the segments seen, zeros without any."""
    query, key, value = (x.double() for x in (query, key, value))
    batch, heads, length, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    segment_ids = segment_ids.expand(batch, -1)
    mask = None if mask is None else mask.double().expand(batch, heads, length, length)
    allowed = None if allowed is None else allowed.expand(batch, heads, length, length)
    out = torch.zeros(batch, heads, length, value.shape[-1], dtype=torch.float64, device=query.device)
    for b in range(batch):
        for h, view in enumerate(views):
            for segment in segment_ids[b].unique().tolist():
                rows = (segment_ids[b] == segment).nonzero()[:, 0]
                seen = [j for i, j in view if i == segment]
                columns = torch.tensor([k for k, s in enumerate(segment_ids[b].tolist()) if s in seen]).long()
                columns = columns.to(rows)
                scores = query[b, h, rows] @ key[b, h, columns].T * scaling
                if mask is not None:
                    part = mask[b, h][rows][:, columns]
                    scores = scores * part if combine == "multiply" else scores + part
                exponentials = scores.exp()
                if allowed is not None:
                    exponentials = exponentials * allowed[b, h][rows][:, columns]
                weights = exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300)
                out[b, h, rows] = weights @ value[b, h, columns]
    return out


@contextmanager
def composed() -> Iterator[None]:
    """Take the path of differentiable operators where the CPU operator would run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_fits_operator", lambda *_: False)
        yield


def attend(implementation: str, *args: Any, **options: Any) -> Tensor:
    if implementation == "composed":
        with composed():
            return locomt_attention(*args, implementation="blocks", **options)
    return locomt_attention(*args, implementation=implementation, **options)


def inputs_of(lengths: Sequence[int] = LENGTHS, heads: int = HEADS, **options: Any) -> list[Tensor]:
    """Query, key, value and mask, leaves with gradients."""
    length = sum(lengths)
    return make_inputs(**{"batch": BATCH, "size": SIZE, **options}, heads=heads, length_q=length, length_k=length)


def assert_gradients_same(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    grad_out = torch.randn_like(actual)
    found, wanted = (gradients(out, inputs, grad_out.to(out.dtype)) for out in (actual, expected))
    for name, a, e in zip(NAMES, found, wanted, strict=False):
        assert a.dtype == e.dtype
        assert_same(a, e, f"gradient of {name}")


def gradients(out: Tensor, inputs: Sequence[Tensor], grad_out: Tensor) -> list[Tensor]:
    """Zeros for an input that took no part: no query may see a key."""
    if not out.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(out, inputs, grad_out, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


def as_padding(allowed: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    if form == "bool":
        return allowed
    lowest = -float("inf") if form == "-inf" else torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest)


def random_ids(kind: str, length: int = LENGTH, batch: int = BATCH) -> Tensor:
    """`(B, L)` segments of 3, as token types have them."""
    ids = torch.randint(3, (batch, length))
    if kind == "a segment absent from a sample":
        ids[0] = ids[0] % 2
    elif kind == "a segment absent from all":
        ids = ids % 2
    elif kind == "one segment":
        ids = torch.full_like(ids, 1)
    elif kind == "one segment a sample":
        ids = torch.arange(batch)[:, None].expand(-1, length) % 3
    elif kind == "same for all":
        ids = ids[:1].expand(batch, -1)
    elif kind == "one row":
        ids = ids[:1]
    return ids


KINDS_OF_IDS = (
    "random",
    "a segment absent from a sample",
    "a segment absent from all",
    "one segment",
    "one segment a sample",
    "same for all",
    "one row",
)


def layout_call(
    inputs: Sequence[Tensor],
    layout: Layout,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    p: float = 0.0,
    combine: str = "multiply",
) -> Callable[..., Any]:
    """What runs an attention function with these arguments, and others by name."""
    change = "factor" if combine == "multiply" else "addend"
    options: dict[str, Any] = {change: mask, "attention_mask": padding, "dropout_p": p}
    return lambda function, **others: function(*inputs, layout, VIEWS, **options, **others)


def annealed(
    call: Callable[..., Any], penalty: float, want_weights: bool = False, implementation: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    options: dict[str, Any] = {"want_weights": want_weights, "implementation": implementation}
    return call(attend_annealed, penalty=torch.tensor(penalty), **options)
