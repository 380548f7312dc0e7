"""The process that runs a script: it imports it once, and calls its `main` again and again.

    python -m hf_lam.comparing.worker_process SCRIPT

Requests come as lines of JSON on standard input, and replies go as such to standard output. The script sees neither:
what it prints goes to the log of its run. When the input ends, because the process at its other end closed it or has
died, this process ends too, with all that it has started.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from .process_state import ProcessState, seed_all

# How long a command may take to end what it has started on other machines or in other sessions, as torchrun does.
_SECONDS_TO_END = 10.0


class _Worker:
    def __init__(self, script: Path) -> None:
        self.script = script
        self.main: Callable[[list[str]], Any] | None = None
        self.state: ProcessState | None = None
        self.command: subprocess.Popen[bytes] | None = None
        self.requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.unanswered = 0

    def listen(self, control: int) -> None:
        """Take requests until their source is gone; what is being done then is given up."""
        with open(control, encoding="utf-8") as lines:
            for line in lines:
                self.unanswered += 1
                self.requests.put(json.loads(line))
        if self.unanswered:
            self.end_all()
        self.requests.put(None)

    def end_all(self) -> None:
        if self.command is not None and self.command.poll() is None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                _signal(self.command.pid, signal.SIGTERM)
                self.command.wait(_SECONDS_TO_END)
            with suppress(ProcessLookupError):
                _signal(self.command.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        with _printing_to(Path(request["log"])):
            if "command" in request:
                return self._launch(request["command"])
            return self._call(request["arguments"], request["seed"])

    def _launch(self, command: Sequence[str]) -> dict[str, Any]:
        """Run a command; its error is in its log."""
        # In a session of its own, so that it can be asked to end while this process still waits for it.
        self.command = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        status = self.command.wait()
        return {"error": None if status == 0 else "", "status": status, "is_spent": False}

    def _call(self, arguments: list[str], seed: int) -> dict[str, Any]:
        try:
            if self.main is None:
                self.main = _main_of(_import(self.script))
                self.state = ProcessState()
            sys.argv[:] = [str(self.script), *arguments]
            seed_all(seed)
            self.main(list(arguments))
            error, status, failed = None, 0, False
        except SystemExit as end:
            error, status, failed = *_message_of(end), False
        except BaseException as problem:
            traceback.print_exc()
            error, status, failed = _said(problem), 1, True
        is_whole = self.state is not None and self.state.put_back()
        return {"error": error, "status": status, "is_spent": failed or not is_whole}


def _said(problem: BaseException) -> str:
    """An exception as the last line of a traceback has it; some, such as `MemoryError`, have no message."""
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")


def _message_of(end: SystemExit) -> tuple[str | None, int]:
    """An error and an exit status: None for an end without fault; empty where the message was printed before."""
    if end.code is None or end.code == 0:
        return None, 0
    if isinstance(end.code, int):
        return "", end.code
    print(end.code, file=sys.stderr)
    return str(end.code), 1


def _import(script: Path) -> ModuleType:
    """The script as a module, which sees what it would see as `python script.py`, but for its name."""
    if sys.path[0] in ("", os.getcwd()):  # of `python -m`
        del sys.path[0]
    sys.path.insert(0, str(script.parent))
    name = script.stem if script.stem not in sys.modules else f"{script.stem}_script"
    spec = importlib.util.spec_from_file_location(name, script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(script)!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _main_of(module: ModuleType) -> Callable[[list[str]], Any]:
    main = getattr(module, "main", None)
    if not callable(main):
        raise TypeError(f"{module.__file__} has no function main(arguments: list[str]).")
    return main


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Append to a file whatever this process and those it starts print while this lasts."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError, OSError):  # closed by the script
                stream.flush()
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(file)
        os.close(null)


def _signal(leader: int, number: int) -> None:
    """Send a signal to a process that leads a group, and to the group."""
    if hasattr(os, "killpg"):
        os.killpg(leader, number)
    else:
        os.kill(leader, number)


def main() -> None:
    control, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    worker = _Worker(Path(sys.argv[1]))
    threading.Thread(target=worker.listen, args=(control,), daemon=True).start()
    while (request := worker.requests.get()) is not None:
        reply = worker.answer(request)
        worker.unanswered -= 1
        with suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
