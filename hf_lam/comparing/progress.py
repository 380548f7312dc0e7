"""The progress of a comparison: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn


class Reporter:
    """Says on stderr what begins and what has ended."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._console = Console(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None
        self._left: list[str] = []
        self._total = 0
        self._done: list[tuple[str, float]] = []

    def __enter__(self) -> Reporter:
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, title: str, kinds: Sequence[str], done: int = 0) -> None:
        """Begin a phase of several parts.

        Args:
            title: title of the phase.
            kinds: kind of every part that is to be done; parts of one kind take about the same time.
            done: number of parts that an earlier start has done.
        """
        self._left, self._total, self._done = list(kinds), len(kinds) + done, []
        before = f", {done} done before" if done else ""
        if self._bar is not None:
            if self._bar_task is not None:
                self._bar.remove_task(self._bar_task)
            self._bar_task = self._bar.add_task(title, total=self._total, completed=done, left="")
        elif kinds:
            self.note(f"{title}: {len(kinds)}{before}")

    def started(self, label: str) -> None:
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, description=escape(label))

    def ended(self, label: str, kind: str, seconds: float | None, error: str | None) -> None:
        """seconds: None for what never began."""
        self._left.remove(kind)
        if seconds is not None and error is None:
            self._done.append((kind, seconds))
        left = time_left(self._done, self._left, self._jobs)
        text = "" if left is None or not self._left else f"about {duration(left)} left"
        number = self._total - len(self._left)
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=number, left=text)
        if error is not None:
            self.note(f"[{number}/{self._total}] {label} failed: {error}")
        elif self._bar is None:
            took = "" if seconds is None else f": {duration(seconds)}"
            self.note(f"[{number}/{self._total}] {label}{took}{f', {text}' if text else ''}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def time_left(done: Sequence[tuple[str, float]], left: Sequence[str], jobs: int) -> float | None:
    """Seconds, from what was done of each kind, for a kind of which nothing was done from all; None if nothing was."""
    if not done:
        return None
    of_kind: dict[str, list[float]] = {}
    for kind, seconds in done:
        of_kind.setdefault(kind, []).append(seconds)
    means = {kind: statistics.fmean(seconds) for kind, seconds in of_kind.items()}
    usual = statistics.fmean(means.values())
    return sum(means.get(kind, usual) for kind in left) / min(jobs, max(1, len(left)))


def duration(seconds: float) -> str:
    """A duration for readers: `0.4 s`, `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
