"""Times of calls on a GPU, by its own clock, with contenders that take turns; the same on a CPU, by the wall clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Step = Callable[[], Any]
Figure = dict[str, float]

OUT_OF_MEMORY = "out of memory"
# The flush writes so many times the size of the L2 cache, so that nothing of the call before is left in it.
_FLUSHED_CACHES = 4


class Stopwatch:
    """Milliseconds of one call, as one that waits for the result sees them.

    On CUDA, the L2 cache is flushed and the queue is empty before every call, as in Triton's `do_bench`. The time is
    that between two events around the call. A call that launches kernels more slowly than the GPU runs them is
    therefore as slow here as where it is used.
    """

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"
        if self.on_cuda:
            self.cache_bytes = torch.cuda.get_device_properties().L2_cache_size
            self.flushed = torch.empty(_FLUSHED_CACHES * self.cache_bytes // 4, dtype=torch.int32, device=device)

    def __call__(self, step: Step) -> float:
        if not self.on_cuda:
            start = time.perf_counter()
            step()
            return (time.perf_counter() - start) * 1e3
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self.flushed.zero_()
        before.record()
        step()
        after.record()
        torch.cuda.synchronize()
        return before.elapsed_time(after)

    def describe(self) -> str:
        if not self.on_cuda:
            return "the wall clock; caches of a CPU are not flushed"
        return f"CUDA events; an L2 cache of {self.cache_bytes / 2**20:.0f} MiB is flushed before every call"


def time_in_turn(
    steps: Mapping[str, Step], watch: Stopwatch, rounds: int, warmup: int
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Time every step once in every round.

    Returns:
        By step, its `median`, `low` and `high`, the quartiles, in milliseconds; and for those that have none, the
        reason.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    skipped: dict[str, str] = {}
    for round_ in range(-warmup, rounds):
        for name, step in steps.items():
            if name in skipped:
                continue
            try:
                elapsed = watch(step)
            except Exception as error:  # the other contenders may do well
                skipped[name] = describe_error(error)
                continue
            if round_ >= 0:
                times[name].append(elapsed)
    return {name: quartiles(values) for name, values in times.items() if name not in skipped}, skipped


def describe_error(error: Exception) -> str:
    """One line."""
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {error}".splitlines()[0]


def quartiles(values: list[float]) -> Figure:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def spread_of(figure: Figure) -> float:
    """The distance between the quartiles, relative to the median."""
    return (figure["high"] - figure["low"]) / figure["median"]


def peak_memory(step: Step) -> float | None:
    """MiB by which a call on CUDA raises the peak above what is allocated before; None if there is not enough.

    The call runs twice, since libraries take their workspaces in the first.
    """
    try:
        step()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
