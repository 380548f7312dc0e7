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

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PartT = TypeVar("PartT")

# A machine is busy if every thread of this process loses its core that often while it computes. On two idle cores that
# was about 20 times a second; beside one process that computes, 65 to 115 times, beside four, 75 to 90 times.
_SWITCHES_PER_SECOND = 55
# Seconds of computing that are enough to tell, and seconds after which it is asked again.
_ENOUGH = 0.1
_REMEMBERED = 5.0


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


def enough_parts(at_once: int) -> int:
    """Into how many parts to cut a computation: more than run at once, since not all threads are equally fast."""
    return 1 if at_once == 1 else 2 * at_once


def even_slices(total: int, wanted: int) -> list[slice]:
    """Cut `total` places into nearly equal slices, at most `wanted`, none of them empty."""
    size = -(-total // wanted)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


class _Load:
    """Whether other processes want the cores, as seen while this one computes."""

    def __init__(self) -> None:
        self.until = 0.0
        self._seconds, self._switches = 0.0, 0

    def is_high(self) -> bool:
        return time.monotonic() < self.until

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What runs in this context, by all threads in each operator, tells the load."""
        threads = torch.get_num_threads()
        if threads == 1:  # which waits for no other
            yield
            return
        seconds, switches = _now()
        yield
        now, switched = _now()
        self._seconds += now - seconds
        self._switches += switched - switches
        if self._seconds > _ENOUGH:
            if self._switches > _SWITCHES_PER_SECOND * self._seconds * threads:
                self.until = now + _REMEMBERED
            self._seconds, self._switches = 0.0, 0


def _now() -> tuple[float, int]:
    """The time, and how often threads of this process have lost their core to others."""
    return time.monotonic(), 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


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
