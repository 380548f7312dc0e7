# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Independent parts of one computation: all threads in each part, or a thread for each part.

torch runs one operator after the other, each on all threads, which wait for the slowest of them every time. On an idle
machine that is the fastest way. Where other processes want the cores too, most of the time goes into the waiting:
attention of several operators then takes ten times as long, relative to a fused one. There, every thread takes a part,
computes all of it alone, and takes the next one; only the end is waited for. Why not always: torch's own threads go on
spinning for some milliseconds after every operator, and would be in the way.

Which of both it is shows in the results no more than the number of threads does: in the last bits of a sum.
`torch.use_deterministic_algorithms(True)` keeps to the first way.

Written for this package. This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from .numerics_hf_lam import has_dispatch_mode, needs_plain_operators

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PartT = TypeVar("PartT")

# A machine is busy if every thread of this process loses its core that often a second while it computes, and for that
# share of the time. On two idle cores that was 30 to 70 times a second and at most 6 % of the time; beside one process
# that computes, 97 to 105 times and 35 % to 46 %, beside four, 75 to 89 times and 67 % to 69 %.
_SWITCHES_PER_SECOND = 55
_SHARE_LOST = 0.2
# Seconds of computing that are enough to tell, and seconds after which it is asked again.
_ENOUGH = 0.1
_REMEMBERED = 5.0
# Bytes of the largest buffer that a thread keeps; there are up to three of each dtype.
_KEPT = 2**22


def parts_at_once(device: torch.device) -> int:
    """How many parts of a computation to run at once: 1, or on a busy CPU as many as torch has threads."""
    if device.type != "cpu" or not load.is_high() or torch.are_deterministic_algorithms_enabled():
        return 1
    threads = torch.get_num_threads()
    return threads if threads > 1 and _pool(threads) is not None else 1


def run_parts(run: Callable[[PartT], None], parts: Sequence[PartT], at_once: int) -> None:
    """Call `run` with every part.

    Args:
        run: computes one part and writes its result where no other part writes. On threads it runs without autograd
            and without autocast, and in inference mode if the caller does.
        parts: arguments of `run`.
        at_once: what `parts_at_once` said.

    Raises:
        Exception: the first error of a part, when no part runs any more.
    """
    pool = _pool(at_once) if at_once > 1 and len(parts) > 1 else None
    if pool is not None:
        return _run_on_threads(run, parts, pool, min(at_once, len(parts)))
    with load.watched():
        for part in parts:
            run(part)


def run_alone(compute: Callable[[], PartT], device: torch.device) -> PartT:
    """What `compute` returns: small operators, which on a busy CPU one thread computes without waiting for others.

    Only where neither autograd nor autocast nor a mode of torch is at work, which belong to the thread that asks.
    """
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(device.type)
        or needs_plain_operators()
        or has_dispatch_mode()
        or parts_at_once(device) == 1
    ):
        return compute()
    found: list[PartT] = []
    pool = _pool(torch.get_num_threads())
    assert pool is not None
    _run_on_threads(lambda _: found.append(compute()), [None], pool, 1)
    return found[0]


def enough_parts(at_once: int) -> int:
    """Into how many parts to cut a computation: more than run at once, since not all threads are equally fast."""
    return 1 if at_once == 1 else 2 * at_once


def even_slices(total: int, wanted: int) -> list[slice]:
    """Cut `total` places into nearly equal slices, at most `wanted`, none of them empty."""
    size = -(-total // wanted)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


class Scratch:
    """Uninitialised buffers for one computation, which every step of it uses again.

    On CPU a thread keeps its small ones for later computations: fresh pages cost up to a third of the time.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor in the buffer of that name; what was there before is lost."""
        size, key = math.prod(shape), (name, dtype)
        is_kept = device.type == "cpu" and size * dtype.itemsize <= _KEPT
        buffers = _kept.buffers if is_kept else self.buffers
        if key not in buffers or buffers[key].numel() < size:
            with torch.inference_mode(False):  # whose tensors nothing else may write to
                buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffers[key][:size].view(shape)


class _Kept(threading.local):
    """The buffers that one thread keeps."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_kept = _Kept()


class _Load:
    """Whether other processes want the cores, as seen while this one computes."""

    def __init__(self) -> None:
        self.until = 0.0
        self._seconds, self._computed, self._switches = 0.0, 0.0, 0

    def is_high(self) -> bool:
        return time.monotonic() < self.until

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What runs in this context, by all threads in each operator, tells the load."""
        threads = torch.get_num_threads()
        if threads == 1:  # which waits for no other
            yield
            return
        seconds, computed, switches = _now()
        yield
        now, computed_now, switched = _now()
        self._seconds += now - seconds
        self._computed += computed_now - computed
        self._switches += switched - switches
        if self._seconds > _ENOUGH:
            seconds = self._seconds * threads
            is_slowed = self._computed < (1 - _SHARE_LOST) * seconds
            if is_slowed and self._switches > _SWITCHES_PER_SECOND * seconds:
                self.until = now + _REMEMBERED
            self._seconds, self._computed, self._switches = 0.0, 0.0, 0


def _now() -> tuple[float, float, int]:
    """The time, the seconds that threads of this process have computed, and how often they have lost their core."""
    if resource is None:
        return time.monotonic(), 0.0, 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic(), used.ru_utime + used.ru_stime, used.ru_nivcsw


load = _Load()
_pools: dict[int, ThreadPoolExecutor | None] = {}
_lock = threading.Lock()


def _run_on_threads(
    run: Callable[[PartT], None], parts: Sequence[PartT], pool: ThreadPoolExecutor, threads: int
) -> None:
    waiting = deque(parts)
    is_inference = torch.is_inference_mode_enabled()

    def work() -> None:
        # Both are settings of a thread, as autocast is, which is off in a new one.
        with torch.inference_mode(is_inference), torch.no_grad():
            while True:
                try:
                    part = waiting.popleft()
                except IndexError:
                    return
                run(part)

    try:
        futures = [pool.submit(work) for _ in range(threads)]
    except RuntimeError:  # the interpreter is about to end, and takes no new work
        return work()
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error


def _pool(threads: int) -> ThreadPoolExecutor | None:
    """That many threads, each of which computes alone; None where torch has no such setting."""
    if threads not in _pools:
        with _lock:
            if threads not in _pools:
                _pools[threads] = _make_pool(threads)
    return _pools[threads]


def _make_pool(threads: int) -> ThreadPoolExecutor | None:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="hf_lam")
    everyone = threading.Barrier(threads)

    def compute_alone() -> int:
        # The number is one of the thread's own, once it was asked for.
        torch.get_num_threads()
        torch.set_num_threads(1)
        everyone.wait()
        return torch.get_num_threads()

    futures = [pool.submit(compute_alone) for _ in range(threads)]
    numbers = [future.result() for future in futures]
    # Threads that begin later take the number that was set last.
    torch.set_num_threads(threads)
    if numbers == [1] * threads and torch.get_num_threads() == threads:
        return pool
    pool.shutdown()
    return None


def _forget() -> None:
    """In a process that was forked, none of the threads exists."""
    global _lock
    _pools.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
