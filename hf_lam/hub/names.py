"""Names on the Hub: repositories by their ids, contents by their hashes, classes by their names."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def looks_like_hub_id(name: str) -> bool:
    """Whether a checkpoint's name is an id on the Hub, and no folder of this machine."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None
    return is_id and not os.path.exists(name) and ".." not in name and "--" not in name


def heads_of(config_class: type[Any]) -> dict[str, str]:
    """The Auto class of every model class of a configuration of ours, by its name; empty for one of transformers."""
    heads = {name: auto for auto, name in getattr(config_class, "auto_classes", {}).items()}
    further = getattr(config_class, "alternatives", {})
    return heads | {name: auto for auto, names in further.items() for name in names}


def sha256_of(path: Path) -> str:
    """The hash that names a large file on the Hub."""
    return _hash_of(path, hashlib.sha256())


def git_name_of(path: Path) -> str:
    """The hash that names a plain file in git, and so on the Hub."""
    return _hash_of(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


def _hash_of(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
