"""Worker processes: tasks are given to those that are free, and one that dies fails its task alone."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

# How often processes are looked at whose output somebody else may hold open.
_SECONDS_BETWEEN_LOOKS = 0.5
# A worker ends within this when it is told to; one that has started a command needs time to end that.
_SECONDS_TO_END = 20.0
_MOST_CHARACTERS = 2000
_DEVICES = Path("/proc/driver/nvidia/gpus")
# How argparse and the scripts begin what they say before they end; of several processes each line may have its rank.
_RANK = r"^(?:\[rank\d+\]:\s?)?"
_ERROR = re.compile(_RANK + r"(?:[\w./-]+: )?error: ", re.MULTILINE)
_EXCEPTION = re.compile(_RANK + r"((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", re.MULTILINE)
# Said by what has started the process that failed, after it.
_OF_THE_LAUNCHER = re.compile(r"\b(ChildFailedError|CalledProcessError)\b")
_NEXT_MESSAGE = re.compile(r"^(Traceback \(|[WEI]\d{4} |\[rank\d+\]:|(?:[\w./-]+: )?error: )", re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """A task for a worker.

    key: the folder that it is known by.
    label: name of the task for messages.
    log: the file that takes what it prints.
    arguments: arguments that the script's `main` is called with; or
    command: command that is run.
    seed: seed of the random generators.
    needs: keys of tasks that must have succeeded before.
    """

    key: Path
    label: str
    log: Path
    arguments: Sequence[str] = ()
    command: Sequence[str] = ()
    seed: int = 0
    needs: Sequence[Path] = ()

    def request(self) -> dict[str, Any]:
        what = {"command": list(self.command)} if self.command else {"arguments": list(self.arguments)}
        return {"log": str(self.log), "seed": self.seed, **what}


class Worker:
    """A process that waits for requests, and ends when this process does."""

    def __init__(self, script: Path, environment: Mapping[str, str], lock: int | None) -> None:
        """lock: a file descriptor that stays open until the worker has ended."""
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_lam.comparing.worker_process", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            pass_fds=() if lock is None else (lock,),
            # An interrupt at the keyboard is for this process, which then ends the worker and all it has started.
            start_new_session=True,
        )

    def give(self, request: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # seen when its reply is asked for
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    @property
    def replies(self) -> Any:
        return self.process.stdout

    def reply(self) -> dict[str, Any] | None:
        """Wait for its answer; None if it died."""
        line = self.replies.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def end(self) -> None:
        """End it, with what it does and what it has started."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # what is left of its group
                os.killpg(self.process.pid, signal.SIGKILL)
        self.replies.close()


@dataclass
class Pool:
    """Workers for the runs of one script.

    environments: environment variables of each worker.
    lock: see `Worker`.
    """

    script: Path
    environments: Sequence[Mapping[str, str]]
    lock: int | None = None
    _idle: list[Worker] = field(default_factory=list, init=False)
    _busy: dict[Worker, tuple[Task, float]] = field(default_factory=dict, init=False)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for worker in [*self._busy, *self._idle]:
            worker.end()
        self._busy.clear()
        self._idle.clear()

    def run(
        self,
        tasks: Sequence[Task],
        before: Callable[[Task], None],
        after: Callable[[Task, str | None, float | None], str | None],
    ) -> dict[Path, str]:
        """Do tasks, each after those that it needs, otherwise in their order.

        Args:
            tasks: those that are needed come before those that need them. What is needed and is none of them was done
                before.
            before: called when one begins.
            after: called when one has ended, with its error and its seconds (None if it never began); returns the
                error that counts.

        Returns:
            The errors of those that failed, by key.
        """
        waiting = list(tasks)
        open_keys = {task.key for task in tasks}
        errors: dict[Path, str] = {}

        def end(task: Task, error: str | None, seconds: float | None) -> None:
            error = after(task, error, seconds)
            open_keys.discard(task.key)
            if error is not None:
                errors[task.key] = error

        while waiting or self._busy:
            for task in list(waiting):
                failed = next((need for need in task.needs if need in errors), None)
                if failed is not None:
                    label = next(other.label for other in tasks if other.key == failed)
                    waiting.remove(task)
                    end(task, f"{label}, which it uses, failed: {errors[failed]}", None)
                elif len(self._busy) < len(self.environments) and not open_keys.intersection(task.needs):
                    waiting.remove(task)
                    before(task)
                    worker = self._idle.pop() if self._idle else self._start()
                    self._busy[worker] = (task, time.perf_counter())
                    worker.give(task.request())
            for worker in self._ready():
                task, began = self._busy[worker]
                error = self._collect(worker, task)
                end(task, error, time.perf_counter() - began)
        return errors

    def _start(self) -> Worker:
        taken = [worker.environment for worker in self._busy]
        free = next(environment for environment in self.environments if not any(x is environment for x in taken))
        return Worker(self.script, free, self.lock)

    def _ready(self) -> list[Worker]:
        """Workers that have answered or died; waits for one, unless none is busy."""
        with selectors.DefaultSelector() as selector:
            for worker in self._busy:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            while self._busy:
                # Asked first: one that has ended may have answered just before.
                ended = [worker for worker in self._busy if worker.process.poll() is not None]
                ready = [key.data for key, _ in selector.select(0 if ended else _SECONDS_BETWEEN_LOOKS)]
                if ready or ended:
                    return list(dict.fromkeys([*ready, *ended]))
        return []

    def _collect(self, worker: Worker, task: Task) -> str | None:
        """The error of the task of a worker that has answered or died."""
        reply = _reply_or_death(worker)
        del self._busy[worker]
        if reply is None or reply["is_spent"]:
            worker.end()
        else:
            self._idle.append(worker)
        if reply is None:
            return _death_of(worker.process.returncode)
        if reply["error"] == "":
            return error_in(task.log, reply["status"])
        return None if reply["error"] is None else _short(reply["error"])


def _reply_or_death(worker: Worker) -> dict[str, Any] | None:
    """The answer of a worker; None if it died, also where a process that it left behind holds its output open."""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.replies, selectors.EVENT_READ)
        return worker.reply() if selector.select(0) else None


def _death_of(status: int) -> str:
    if status >= 0:
        return f"the process ended with exit status {status} in the middle of the run"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = "; is there enough memory?" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{hint}"


def error_in(log: Path, status: int) -> str:
    """The error of a script that ended with a status: its message, or its exception, or its last line."""
    if status < 0:
        return _death_of(status)
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    begun = list(_ERROR.finditer(text))
    if begun:
        message = text[begun[-1].end() :]
        after = _NEXT_MESSAGE.search(message)
        return _short(message[: after.start()] if after else message)
    raised = [found[1] for found in _EXCEPTION.finditer(text) if not _OF_THE_LAUNCHER.search(found[1])]
    last = text.rpartition("\n")[2]
    said = f"it ended with exit status {status}" + (f": {last}" if last else ", and said nothing")
    return _short(raised[-1] if raised else said)


def _short(message: str) -> str:
    message = message.strip()
    return message if len(message) <= _MOST_CHARACTERS else message[:_MOST_CHARACTERS] + " …"


def worker_environments(jobs: int) -> list[dict[str, str]]:
    """The environments of workers: that of this process, with its cores and GPUs divided among several.

    One worker is left what it would have by itself, so that a run of it is one of the script by itself.
    """
    # Sets of words come in the same order in every process.
    common = {"PYTHONHASHSEED": "0", **os.environ}
    if jobs == 1:
        return [common]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environments = [{"OMP_NUM_THREADS": str(max(1, cores // jobs)), **common} for _ in range(jobs)]
    devices = _devices()
    if len(devices) > 1:  # with all of them, a run would be spread over all, with batches as many times larger
        for number, environment in enumerate(environments):
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return environments


def _devices() -> list[str]:
    """The GPUs that CUDA sees, by number or name; found without loading anything for it."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    return [str(number) for number, _ in enumerate(_DEVICES.iterdir())] if _DEVICES.is_dir() else []


def find_command(name: str) -> str:
    """The path of a command: beside this Python, whose packages it then has, or else on the path.

    Raises:
        ValueError: if there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        raise ValueError(f"launch: there is no command {name!r}, neither in {str(beside)!r} nor on the path.")
    return found
