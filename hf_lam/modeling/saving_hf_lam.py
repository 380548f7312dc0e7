# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Folders that are written whole: what a process writes takes its place at the end, and the process may die any time.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .version_hf_lam import LIST_FILE

try:
    import fcntl
except ImportError:  # Windows: what dead processes leave stays there
    fcntl = None  # type: ignore[assignment]

# The beginning of the names of folders that models are saved to first; they lie in the model's own folder.
PARTIAL = ".saving."
# A key of config.json that transformers reads and never saves: the file of the weights.
_WEIGHTS_KEY = "transformers_weights"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """A folder to save a model to, whose files take their place in `folder` if nothing fails.

    If the process dies, `folder` loads as before or as after.
    """
    in_the_way = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if os.path.lexists(in_the_way) and not in_the_way.is_dir():
        raise ValueError(
            f"cannot save to the folder {str(folder)!r}: {str(in_the_way)!r} is none. Give another place."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder, PARTIAL, keep=_weights_in_use(folder)) as partial:
        yield partial
        _publish(partial, folder)
    remove_leftovers(folder, PARTIAL)


@contextmanager
def staging(parent: Path, prefix: str, keep: str | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, and delete it at the end. First, remove what dead processes left of its kind.

    Args:
        parent: an existing folder.
        prefix: beginning of the new folder's name, and of those that dead processes may have left.
        keep: name of a folder that is left alone.
    """
    remove_leftovers(parent, prefix, keep)
    folder, lock = _make(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(parent: Path, prefix: str, keep: str | None = None) -> None:
    """Remove the folders of `staging` whose processes have died."""
    for folder in list_staged(parent, prefix):
        # Held until it is gone, so that nobody takes it for one of a living process.
        with _trying_lock(folder) as lock:
            if lock is not None and folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)


def list_staged(parent: Path, prefix: str) -> list[Path]:
    """The folders of `staging` that are there, of living processes and of dead ones."""
    name = re.compile(re.escape(prefix) + "[0-9a-f]{32}")
    return [path for path in parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def is_alive(folder: Path) -> bool:
    """Whether the process still runs that a folder of `staging` belongs to; True where the system cannot tell."""
    with _trying_lock(folder) as lock:
        return lock is None


@contextmanager
def _trying_lock(folder: Path) -> Iterator[int | None]:
    """The lock of a folder, held meanwhile; None if another process holds it, or the system has no such locks."""
    lock = None
    try:
        lock = _lock(folder)
    except OSError:
        yield None
    else:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def _make(parent: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        folder = parent / f"{prefix}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # another process takes it for one that was left: once more
            continue
        except OSError:  # a file system without locks
            return folder, None
        if lock is None or folder.is_dir():
            return folder, lock
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, of which the system lets go when the process ends; None where there are no such locks."""
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


# --- a model's files take their place --------------------------------------------------------------------------------


def _publish(partial: Path, folder: Path) -> None:
    """Move a saved model to its place.

    Several files cannot be replaced at once, but one can. Over an earlier model, that one is the configuration: first
    it names the new weights where they were written, then they get their own names, then it names them no longer.
    """
    blocked = sorted(name for name in os.listdir(partial) if (folder / name).is_dir())
    if blocked:
        raise ValueError(
            f"{str(folder)!r} has a folder {blocked[0]!r} where a file goes. Move it away, or save elsewhere."
        )
    weights = _weights_in(partial)
    # The list of mechanisms imports others of these files.
    for name in sorted(os.listdir(partial), key=lambda name: (name == LIST_FILE, name)):
        if name not in weights and name != CONFIG_NAME:
            os.replace(partial / name, folder / name)
    config = partial / CONFIG_NAME
    if weights and config.is_file() and (folder / CONFIG_NAME).is_file():
        _name_weights(partial, folder)
        for name in weights:
            _copy(partial / name, folder / name)
    else:
        for name in weights:
            os.replace(partial / name, folder / name)
    if weights:
        for name in _weights_in(folder) - weights:
            (folder / name).unlink(missing_ok=True)
    if config.is_file():
        os.replace(config, folder / CONFIG_NAME)


def _weights_in(folder: Path) -> set[str]:
    """The files of the weights that `from_pretrained` loads unless it is asked for others."""
    whole = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return {name for name in os.listdir(folder) if name in whole or _SHARD.fullmatch(name)}


def _name_weights(partial: Path, folder: Path) -> None:
    """Let the new configuration take its place, with the weights where they are now."""
    entry = SAFE_WEIGHTS_NAME
    index = partial / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        entry = f"here.{SAFE_WEIGHTS_INDEX_NAME}"
        content = _read(index)
        # Seen from the folder of the model.
        content["weight_map"] = {key: f"{partial.name}/{name}" for key, name in content["weight_map"].items()}
        (partial / entry).write_text(json.dumps(content), encoding="utf-8")
    named = _read(partial / CONFIG_NAME) | {_WEIGHTS_KEY: f"{partial.name}/{entry}"}
    path = partial / f"here.{CONFIG_NAME}"
    path.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(path, folder / CONFIG_NAME)


def _weights_in_use(folder: Path) -> str | None:
    """The folder that a configuration names weights in, because its process died while it saved."""
    try:
        name = str(_read(folder / CONFIG_NAME).get(_WEIGHTS_KEY, ""))
    except (OSError, ValueError, AttributeError):
        return None
    return name.partition("/")[0] if name.startswith(PARTIAL) else None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _copy(source: Path, target: Path) -> None:
    """Let `target` be what `source` is, which stays, at once and where possible without writing it again."""
    partial = source.with_name(f"copy.{source.name}")
    try:
        os.link(source, partial)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, partial)
    os.replace(partial, target)
