"""The folder that a comparison writes: one process at a time, and files that are written whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out there
    fcntl = None  # type: ignore[assignment]

RUNS = "runs"
# The workers of a process that was killed need a moment to see it.
_SECONDS_FOR_WORKERS = 30.0


@contextmanager
def holding(output: Path) -> Iterator[int | None]:
    """Hold the folder for this process, and for workers that it leaves behind, while this lasts.

    Yields:
        A file descriptor for workers to hold until they have ended; None where the system has no such locks.

    Raises:
        ValueError: if there is something else in the folder, or another process works in it.
    """
    runs = output / RUNS
    _check(output, runs)
    runs.mkdir(parents=True, exist_ok=True)
    locks = []
    try:
        if fcntl is None:
            yield None
            return
        locks.append(_locked(output, f"another process is comparing in {str(output)!r}; wait for it"))
        locks.append(_locked(runs, f"workers of an earlier start still run in {str(output)!r}", _SECONDS_FOR_WORKERS))
        yield locks[-1]
    finally:
        for lock in locks:
            if lock is not None:
                os.close(lock)


def _check(output: Path, runs: Path) -> None:
    if output.is_dir():
        others = sorted(path.name for path in output.iterdir())
        if others and not runs.is_dir():
            raise ValueError(
                f"no comparison was begun in the folder {str(output)!r}, and it holds {', '.join(others[:5])}. Choose "
                "another --output_dir."
            )
    elif os.path.lexists(output):
        raise ValueError(f"--output_dir {str(output)!r} is no folder; choose another.")


def _locked(folder: Path, otherwise: str, seconds: float = 0.0) -> int | None:
    """A lock on a folder, waited for; None on a file system without locks."""
    lock = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() >= until:
                os.close(lock)
                raise ValueError(f"{otherwise}, or choose another --output_dir.") from error
            time.sleep(0.1)
        except OSError:
            os.close(lock)
            return None


def write_json(path: Path, values: Any) -> None:
    """Write a file of JSON whole or not at all. Keys keep their order."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is no such file, or it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
