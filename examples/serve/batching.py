"""Batches out of requests that come one by one: whatever waits when the model is free runs together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


class FullError(Exception):
    """As many requests wait as may wait."""


class ClosedError(Exception):
    """The server is about to end."""


@dataclass(frozen=True)
class Sample:
    """The inputs of a model for one sample.

    inputs: by name, without an axis for the batch.
    size: its length, in tokens or values.
    group: samples of one group can be in a batch together.
    """

    inputs: dict[str, Any]
    size: int = 1
    group: Hashable = None


@dataclass
class Batch:
    """The facts about a batch that ran, for the metrics."""

    rows: int
    waited_s: list[float]
    took_s: float


@dataclass
class _Waiting:
    sample: Sample
    answer: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs samples in batches, one batch at a time, in a thread of its own.

        async with Batcher(run) as batcher:
            answer = await batcher(sample)

    No request waits for others to come: when the model is free, it takes the oldest request and those of its group
    that are nearest to it in length. So nothing starves, little is padded, and batches grow with the load by
    themselves.

    Args:
        run: makes answers, one a sample, of a list of samples. Called in a thread.
        max_batch_size: samples that run together.
        max_batch_tokens: what they have together at most, padding included; one sample alone may be longer. `None` for
            no limit.
        max_padding: how much of a batch may be padding.
        max_waiting: requests that wait; any more raise a `FullError`.
        on_batch: called after every batch.
    """

    def __init__(
        self,
        run: Callable[[list[Sample]], Sequence[Any]],
        *,
        max_batch_size: int = 32,
        max_batch_tokens: int | None = 8192,
        max_padding: float = 0.2,
        max_waiting: int = 1024,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        for name, value in (
            ("max_batch_size", max_batch_size),
            ("max_batch_tokens", max_batch_tokens),
            ("max_waiting", max_waiting),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0 <= max_padding < 1:
            raise ValueError(f"max_padding must be from 0 to below 1, got {max_padding}.")
        self.run = run
        self.max_batch_size = max_batch_size
        self.max_batch_tokens = max_batch_tokens
        self.max_padding = max_padding
        self.max_waiting = max_waiting
        self.on_batch = on_batch or (lambda _: None)
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def __aenter__(self) -> Batcher:
        self._loop = asyncio.create_task(self._run_all())
        return self

    async def __aexit__(self, *_: Any) -> None:
        """Answers what waits, and ends."""
        self._is_closed = True
        self._arrived.set()
        assert self._loop is not None
        await self._loop
        self._thread.shutdown()

    async def __call__(self, sample: Sample) -> Any:
        """The answer for one sample. Cancelled while it waits, it is never run.

        Raises:
            FullError: if too many wait.
            ClosedError: at the end.
        """
        if self._is_closed:
            raise ClosedError
        if len(self._waiting) >= self.max_waiting:
            # Some of them may have been given up.
            self._waiting = deque(each for each in self._waiting if not each.answer.done())
            if len(self._waiting) >= self.max_waiting:
                raise FullError
        entry = _Waiting(sample, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._arrived.set()
        return await entry.answer

    async def _run_all(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                await self._run_batch(batch)
            elif self._is_closed:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _next_batch(self) -> list[_Waiting]:
        waiting = [each for each in self._waiting if not each.answer.done()]
        if not waiting:
            self._waiting.clear()
            return []
        oldest = waiting[0]
        alike = [each for each in waiting[1:] if each.sample.group == oldest.sample.group]
        alike.sort(key=lambda each: abs(each.sample.size - oldest.sample.size))
        batch, longest, tokens = [oldest], oldest.sample.size, oldest.sample.size
        for each in alike:
            if len(batch) == self.max_batch_size:
                break
            size = each.sample.size
            padded = max(longest, size) * (len(batch) + 1)
            fits = self.max_batch_tokens is None or padded <= self.max_batch_tokens
            if fits and tokens + size >= (1 - self.max_padding) * padded:
                batch.append(each)
                longest, tokens = max(longest, size), tokens + size
        taken = {id(each) for each in batch}
        self._waiting = deque(each for each in waiting if id(each) not in taken)
        return batch

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        answers = await self._answers([each.sample for each in batch])
        for each, answer in zip(batch, answers, strict=True):
            if each.answer.done():
                continue
            if isinstance(answer, Exception):
                each.answer.set_exception(answer)
            else:
                each.answer.set_result(answer)
        waited = [began - each.since for each in batch]
        self.on_batch(Batch(len(batch), waited, time.monotonic() - began))

    async def _answers(self, samples: list[Sample]) -> Sequence[Any]:
        """One a sample; an exception for each that fails, which does not take those beside it along."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.run, samples)
        except Exception as error:
            if len(samples) == 1:
                return [error]
            return [answer for sample in samples for answer in await self._answers([sample])]
