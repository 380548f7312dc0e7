"""The map of stt_attention in fp64, and the inputs that its tests share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.attention import assert_same

# Several axes in bf16 round in between, once an axis on the fast path, once for the map in the reference.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}
IMPLEMENTATIONS = ["eager", "modes"]
BATCH, HEADS, SIZE = 3, 2, 4


def make_inputs(
    grid: Sequence[int],
    prefix: int = 0,
    batch: int = BATCH,
    heads: int = HEADS,
    size: int = SIZE,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = None,
    weights_batches: Sequence[int] | None = None,
    device: str = "cpu",
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Value, the matrices of the axes and shares, leaves with gradients; the value is laid out as an encoder's."""
    length = prefix + math.prod(grid)
    batches = [batch] * (len(grid) + 1) if weights_batches is None else weights_batches
    options: dict[str, Any] = {"dtype": dtype if weights_dtype is None else weights_dtype, "device": device}
    value = torch.randn(batch, length, heads, size, dtype=dtype, device=device).transpose(1, 2)
    axes = [torch.randn(b, heads, prefix + n, n, **options).softmax(-1) for b, n in zip(batches, grid, strict=False)]
    shares = torch.randn(batches[-1], heads, length, 1 + prefix, **options).softmax(-1) if prefix else None
    return (
        value.requires_grad_(),
        [x.requires_grad_() for x in axes],
        None if shares is None else shares.requires_grad_(),
    )


def whole_map(axes: Sequence[Tensor], shares: Tensor | None) -> Tensor:
    """Independent of the code under test: fp64, every entry by the coordinates of its query and of its key."""
    prefix = 0 if shares is None else shares.shape[3] - 1
    places = list(itertools.product(*(range(x.shape[3]) for x in axes)))
    device = axes[0].device
    entries = torch.ones((), dtype=torch.float64, device=device)
    for axis, weights in enumerate(axes):
        columns = [place[axis] for place in places]
        rows = [*range(prefix), *(prefix + column for column in columns)]
        query, key = (torch.tensor(x, dtype=torch.long, device=device) for x in (rows, columns))
        entries = entries * weights.double()[:, :, query[:, None], key[None, :]]
    if shares is None:
        return entries
    shares = shares.double()
    batch = max(len(entries), len(shares))
    whole = [shares[..., 1 + token].expand(batch, -1, -1) for token in range(prefix)]
    whole += [(shares[..., 0] * entries[..., key]).expand(batch, -1, -1) for key in range(len(places))]
    return torch.stack(whole, dim=3)


def formula(value: Tensor, axes: Sequence[Tensor], shares: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """The map times the values; without the padding's columns, and renormalised by hand."""
    weights = whole_map(axes, shares)
    if allowed is not None:
        weights = torch.where(allowed, weights, 0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.einsum("bhij,bhjd->bhid", weights.expand(len(value), -1, -1, -1), value.double())


def assert_gradients_same(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor], tolerance: float) -> None:
    grad_out = torch.randn_like(actual)
    found = torch.autograd.grad(actual, inputs, grad_out)
    # In the formula, an empty grid has no entries that its matrices could reach.
    options = {"allow_unused": True, "materialize_grads": True}
    wanted = torch.autograd.grad(expected, inputs, grad_out.to(expected.dtype), **options)
    for number, (a, e, x) in enumerate(zip(found, wanted, inputs, strict=True)):
        assert a.dtype == x.dtype
        assert_same(a, e, f"gradient of input {number}, {tuple(x.shape)}", tolerance)


def assert_is(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor | None]) -> None:
    """The same values and gradients."""
    tolerance = TOLERANCE[actual.dtype]
    assert_same(actual, expected, tolerance=tolerance)
    assert_gradients_same(actual, expected, [x for x in inputs if x is not None], tolerance)


def right_padding(batch: int, length: int) -> Tensor:
    """The last sample has half the tokens, and at least one."""
    allowed = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    allowed[-1:, ..., (length + 1) // 2 :] = False
    return allowed


def as_padding(allowed: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    if form == "bool":
        return allowed
    lowest = -float("inf") if form == "-inf" else torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest)
