"""FLOPs as torch counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

# So many queries that see so many keys.
Rectangle = tuple[int, int]


class Meter:
    """The FLOPs of what runs, and of parts of it.

    Args:
        counter: torch's counter, while it counts.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.ignored = 0

    @property
    def total(self) -> int:
        """FLOPs so far, without those that are ignored."""
        return int(self.counter.get_total_flops()) - self.ignored

    def measure(self, compute: Callable[..., Any], *args: Any) -> tuple[Any, int]:
        """Run a function, and return its result and its FLOPs."""
        before = self.total
        result = compute(*args)
        return result, self.total - before

    def measure_aside(self, compute: Callable[..., Any], *args: Any) -> int:
        """The FLOPs of a function that is called to count them and for nothing else: they are no part of the total."""
        _, flops = self.measure(compute, *args)
        self.ignored += flops
        return flops


@contextmanager
def count_flops() -> Iterator[Meter]:
    """Count, with attention in products that the counter sees: it gives 0 for torch's fused kernels on CPU."""
    from torch.utils.flop_counter import FlopCounterMode  # not with the package: it loads more of torch

    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _without_modules(FlopCounterMode(display=False, custom_mapping=_own_operators())) as counter,
    ):
        yield Meter(counter)


class _NoModules:
    """Replaces the tracker of modules, which only says where FLOPs are, and fails on DeBERTa's positions."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...


def _without_modules(counter: Any) -> FlopCounterMode:
    counter.mod_tracker = _NoModules()
    return counter


def _own_operators() -> dict[Any, Any]:
    """Functions that count the operators of hf_lam, of which every copy of the code has its own."""
    namespaces = [getattr(torch.ops, name) for name in dir(torch.ops) if name.startswith("hf_lam_")]
    return {space.lam_forward: _masked_attention_flops for space in namespaces if hasattr(space, "lam_forward")}


def _masked_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **kwargs: Any
) -> int:
    """FLOPs of attention with a mask, from the shapes `(B, H, Lq, D)`, `(B, H, Lk, D)` and `(B, H, Lk, Dv)`."""
    batch, heads, length_q, size = query
    return 2 * batch * heads * length_q * key[2] * (size + value[3])


@lru_cache(maxsize=1024)
def count_attention(rectangles: tuple[Rectangle, ...], head_size: int) -> int:
    """FLOPs of one head for one sample, as counted on tensors without values."""
    with count_flops() as meter:
        for queries, keys in rectangles:
            query, key = (torch.empty(1, 1, length, head_size, device="meta") for length in (queries, keys))
            scaled_dot_product_attention(query, key, key)
    return meter.total
