"""The files of a repository, in a folder or at one commit on the Hub, for checks that run none of them."""

from __future__ import annotations

import functools
import json
import math
import os
import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

# Of one file, of all that are read, and how many there may be, so that no repository fills memory or disk.
MAX_BYTES = 20_000_000
MAX_TOTAL_BYTES = 200_000_000
MAX_FILES = 10_000
# Of the headers of all weights. The client of the Hub has the same limit for one.
MAX_HEADER_BYTES = 25_000_000

# Bits of an element, by the names in safetensors files.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
# Most headers come with this much of the beginning of a file.
_FIRST_BYTES = 100_000

# What clients of the Hub and git keep in a folder, which is no part of the repository.
_NOT_OF_THE_REPOSITORY = (".git", ".cache")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a repository.

    kind: `"code"`, `"foreign"` (code from elsewhere), `"call"`, `"auto_map"`, `"repository"`, `"key"`, `"pickle"`,
        `"binary"`, `"file"`, `"path"`, `"size"`, `"config"`, `"tokenizer"` or `"weights"`.
    file: the path in the repository; of several, the one that shows it; empty for the repository as a whole.
    message: what is wrong and what was expected.
    """

    kind: str
    file: str
    message: str


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in the header of a safetensors file.

    dtype: the name in the file, such as `F32`.
    start, stop: the bytes of the file that hold it.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


class UnreadableError(Exception):
    """A file that cannot be read: the message says why."""


class RepositoryFiles(Protocol):
    """A repository as the checks see it.

    sizes: size of every file in bytes, by its path with forward slashes. No path leaves the repository.
    findings: findings about the listing.
    revision: the commit; None for a folder.
    """

    sizes: dict[str, int]
    findings: list[Finding]
    revision: str | None

    def read(self, name: str, most: int | None = None) -> bytes:
        """The contents of a file of at most so many bytes. Raises an `UnreadableError` for a larger one."""

    def beginning(self, name: str, count: int) -> bytes | None:
        """The first bytes of a file; None where they are not at hand."""

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        """Read the header of a safetensors file. Raises an `UnreadableError` if it is none, or truncated."""

    def part(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file, which may be of any size. Raises an `UnreadableError` if they cannot be had."""


class ModelFiles:
    """The files of one model of a repository: of the root, or of a folder with a configuration of its own.

    Args:
        files: files of the repository.
        folder: folder of the model; empty for the root.
        others: folders of the other models, whose files are not seen.
    """

    def __init__(self, files: RepositoryFiles, folder: str, others: Iterable[str]) -> None:
        self._files, self._prefix = files, f"{folder}/" if folder else ""
        inner = tuple(f"{other}/" for other in others if other and f"{other}/" != self._prefix)
        inner = tuple(other for other in inner if other.startswith(self._prefix))
        self.sizes = {
            name.removeprefix(self._prefix): size
            for name, size in files.sizes.items()
            if name.startswith(self._prefix) and not name.startswith(inner)
        }
        self.findings = files.findings
        self.revision = files.revision
        self._tensors: dict[str, dict[str, StoredTensor]] = {}

    def read(self, name: str, most: int | None = None) -> bytes:
        return self._files.read(self._prefix + name, most)

    def beginning(self, name: str, count: int) -> bytes | None:
        return self._files.beginning(self._prefix + name, count)

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        if name not in self._tensors:
            self._tensors[name] = self._files.tensors(self._prefix + name)
        return self._tensors[name]

    def part(self, name: str, start: int, stop: int) -> bytes:
        return self._files.part(self._prefix + name, start, stop)

    def named(self, name: str) -> str:
        """The path in the repository; empty for the model as a whole."""
        return self._prefix + name if name else self._prefix.rstrip("/")


def models_in(files: RepositoryFiles, parts: Collection[str]) -> list[str]:
    """The folders that hold a model of their own: a configuration beside code or weights.

    The root (empty) is the first, whatever it holds.

    Args:
        files: files of the repository.
        parts: folders that hold a part of another model.
    """
    kinds: dict[str, set[str]] = {}
    for name in files.sizes:
        folder, _, base = name.rpartition("/")
        kinds.setdefault(folder, set()).add(base if base == "config.json" else base.rpartition(".")[2].lower())
    found = {folder for folder, seen in kinds.items() if "config.json" in seen and seen & {"py", "safetensors"}}
    return ["", *sorted(found - {""} - set(parts))]


def leaves_folder(path: str) -> bool:
    """Whether a path is absolute, climbs with `..`, or is an address, on any platform."""
    parts = (*PurePosixPath(path).parts, *PureWindowsPath(path).parts)
    return "://" in path or ".." in parts or "\0" in path or path.startswith(("/", "\\", "~")) or path[1:2] == ":"


class _Budget:
    """The number of bytes that may still be read."""

    def __init__(self) -> None:
        self.left = MAX_TOTAL_BYTES
        self.headers = MAX_HEADER_BYTES

    def spend(self, size: int, most: int | None) -> None:
        most = MAX_BYTES if most is None else min(most, MAX_BYTES)
        if size > most:
            raise UnreadableError(f"is of {size} bytes, more than the {most} that are read of such a file")
        if size > self.left:
            raise UnreadableError(f"is one too many: more than {MAX_TOTAL_BYTES} bytes of code and JSON in all")
        self.left -= size

    def spend_on_header(self, length: int) -> None:
        if length > self.headers:
            raise UnreadableError(
                f"has a header of {length} bytes; verify reads {MAX_HEADER_BYTES} bytes of all headers together"
            )
        self.headers -= length


def _read_tensors(size: int, read: Callable[[int, int], bytes], budget: _Budget) -> dict[str, StoredTensor]:
    """Read the list of tensors in the header of a safetensors file.

    It is checked as safetensors does when it opens the file: the tensors follow one another without gaps, each is as
    long as its shape and kind say, and the last one ends where the file does.

    Args:
        size: size of the file in bytes.
        read: function that gives the bytes from one place to another.
        budget: budget that limits how much may still be read.

    Raises:
        UnreadableError: if it is no such file, or not a whole one.
    """
    if size < 8:
        raise UnreadableError(f"is not a safetensors file: it has {size} bytes")
    first = read(0, min(size, _FIRST_BYTES))
    if first.startswith(b"version https://git-lfs"):
        raise UnreadableError("is not the weights but a pointer to them; `git lfs pull` gets them")
    length = int.from_bytes(first[:8], "little")
    if length > size - 8:
        raise UnreadableError(f"is not a whole safetensors file: its header would be of {length} bytes")
    budget.spend_on_header(length)
    header = first[8 : 8 + length]
    if len(header) < length:
        header += read(8 + len(header), 8 + length)
    try:
        if len(header) != length or header[:1] != b"{":
            raise ValueError("its header is not JSON")
        listed = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repetition)
        return _checked_tensors(listed, 8 + length, size)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        reason = "its header is nested too deep" if isinstance(error, RecursionError) else error
        raise UnreadableError(f"is not a whole safetensors file: {reason}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _checked_tensors(listed: dict[str, Any], begin: int, size: int) -> dict[str, StoredTensor]:
    """The tensors that a header lists, if they fill the file from `begin` on; a `ValueError` if they do not."""
    metadata = listed.pop("__metadata__", None)
    is_text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not is_text:
        raise ValueError("__metadata__ in its header is not made of strings")
    tensors, places = {}, []
    for name, entry in listed.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name!r} in its header is no tensor")
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise ValueError(f"{name!r} is of the kind {dtype!r}, which is not known here")
        if not (_are_sizes(shape) and _are_sizes(place) and len(place) == 2 and len(shape) <= 32):
            raise ValueError(f"{name!r} has no shape and place in the file")
        if place[1] - place[0] != math.prod(shape) * _BITS[dtype] // 8:
            raise ValueError(f"{name!r} has the shape {shape} and the kind {dtype}, but {place[1] - place[0]} bytes")
        tensors[name] = StoredTensor(tuple(shape), dtype, begin + place[0], begin + place[1])
        places.append((place[0], place[1]))
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {end}")
        end = stop
    if end != size - begin:
        raise ValueError(f"its header lists {end} bytes of tensors, and {size - begin} are there")
    return tensors


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


class LocalFiles:
    """The files of a folder. Links that leave it are findings and are not followed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.root = Path(folder).resolve()
        self.revision: str | None = None
        self.sizes: dict[str, int] = {}
        self.findings: list[Finding] = []
        self._budget = _Budget()
        for parent, folders, names in os.walk(self.root):
            if Path(parent) == self.root:
                folders[:] = [name for name in folders if name not in _NOT_OF_THE_REPOSITORY]
            folders.sort()
            for name in sorted(names) + [name for name in folders if Path(parent, name).is_symlink()]:
                self._add(Path(parent, name))
            if len(self.sizes) > MAX_FILES:
                self.findings.append(Finding("size", "", f"holds more than {MAX_FILES} files; the rest is unread"))
                break

    def _add(self, path: Path) -> None:
        name = path.relative_to(self.root).as_posix()
        if path.is_symlink():
            target = path.resolve()
            # A snapshot in the cache of huggingface_hub is made of links to the blobs beside it.
            is_blob = self.root.parent.name == "snapshots" and target.parent == self.root.parents[1] / "blobs"
            if not (target.is_relative_to(self.root) or is_blob):
                self.findings.append(Finding("path", name, f"is a link that leaves the folder, to {target}"))
                return
        try:
            status = path.stat()
        except OSError as error:
            self.findings.append(Finding("path", name, f"cannot be read: {error.strerror}"))
            return
        if stat.S_ISREG(status.st_mode):
            self.sizes[name] = status.st_size
        else:
            what = "a link to a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
            self.findings.append(Finding("path", name, f"is {what}, not a file"))

    def read(self, name: str, most: int | None = None) -> bytes:
        self._budget.spend(self.sizes[name], most)
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error

    def beginning(self, name: str, count: int) -> bytes | None:
        try:
            with open(self.root / name, "rb") as file:
                return file.read(count)
        except OSError as error:
            self.findings.append(Finding("path", name, f"cannot be read: {error.strerror}"))
            return None

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        return _read_tensors(self.sizes[name], functools.partial(self.part, name), self._budget)

    def part(self, name: str, start: int, stop: int) -> bytes:
        try:
            with open(self.root / name, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error


def hub_host() -> str:
    """The host, and the port if it has one, of the Hub that this process talks to."""
    return urlsplit(HfApi().endpoint).netloc


class HubFiles:
    """The files of a model repository at one commit. Only what is read is downloaded, into the usual cache."""

    def __init__(self, repo_id: str, revision: str | None = None, token: str | bool | None = None) -> None:
        self.api = HfApi(token=token)
        self.repo_id = repo_id
        try:
            info = self.api.model_info(repo_id, revision=revision)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"{repo_id!r} is neither a folder here nor a model repository on {self.api.endpoint} that you may "
                "read. Check its name; for a private one log in (`hf auth login`) or pass token=."
            ) from error
        except RevisionNotFoundError as error:
            raise ValueError(
                f"{repo_id!r} has no branch, tag or commit {revision!r} on {self.api.endpoint}."
            ) from error
        self.revision: str | None = info.sha
        self.sizes: dict[str, int] = {}
        self.findings: list[Finding] = []
        self._budget = _Budget()
        for entry in self.api.list_repo_tree(repo_id, recursive=True, revision=self.revision):
            if not isinstance(entry, RepoFile):
                continue
            if leaves_folder(entry.path):
                self.findings.append(Finding("path", entry.path, "is a path that leaves the repository"))
                continue
            self.sizes[entry.path] = entry.size
            if len(self.sizes) > MAX_FILES:
                self.findings.append(Finding("size", "", f"holds more than {MAX_FILES} files; the rest is unread"))
                break

    def read(self, name: str, most: int | None = None) -> bytes:
        self._budget.spend(self.sizes[name], most)
        return Path(self.api.hf_hub_download(self.repo_id, name, revision=self.revision)).read_bytes()

    def beginning(self, name: str, count: int) -> bytes | None:
        return None

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        return _read_tensors(self.sizes[name], functools.partial(self.part, name), self._budget)

    def part(self, name: str, start: int, stop: int) -> bytes:
        url = hf_hub_url(self.repo_id, name, revision=self.revision, endpoint=self.api.endpoint)
        headers = {**build_hf_headers(token=self.api.token), "range": f"bytes={start}-{stop - 1}"}
        response = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        return response.content[: stop - start]
