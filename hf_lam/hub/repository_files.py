"""The files of a repository, in a folder or at one commit on the Hub, for checks that run none of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from safetensors import SafetensorError, safe_open

# Of one file, of all that are read, and how many there may be, so that no repository fills memory or disk.
MAX_BYTES = 20_000_000
MAX_TOTAL_BYTES = 200_000_000
MAX_FILES = 10_000

# What clients of the Hub and git keep in a folder, which is no part of the repository.
_NOT_OF_THE_REPOSITORY = (".git", ".cache")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a repository.

    kind: `"code"`, `"call"`, `"auto_map"`, `"repository"`, `"pickle"`, `"binary"`, `"file"`, `"path"`, `"size"`,
        `"config"` or `"weights"`.
    file: the path in the repository; of several, the one that shows it; empty for the repository as a whole.
    message: what it is and what was expected.
    """

    kind: str
    file: str
    message: str


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a safetensors file says of a tensor. `dtype` is the name in the file, such as `F32`."""

    shape: tuple[int, ...]
    dtype: str


class UnreadableError(Exception):
    """A file that cannot be read: the message says why."""


class RepositoryFiles(Protocol):
    """What the checks see of a repository.

    sizes: of every file, in bytes, by its path with forward slashes. No path leaves the repository.
    findings: what is wrong with the listing.
    revision: the commit; None for a folder.
    """

    sizes: dict[str, int]
    findings: list[Finding]
    revision: str | None

    def read(self, name: str) -> bytes:
        """The contents of a small file. Raises an `UnreadableError` for a large one."""

    def beginning(self, name: str, count: int) -> bytes | None:
        """The first bytes of a file; None where they are not at hand."""

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        """What the header of a safetensors file lists. Raises an `UnreadableError` if it is none, or truncated."""


def leaves_folder(path: str) -> bool:
    """Whether a path is absolute, climbs with `..`, or is an address, on any platform."""
    parts = (*PurePosixPath(path).parts, *PureWindowsPath(path).parts)
    return "://" in path or ".." in parts or "\0" in path or path.startswith(("/", "\\", "~")) or path[1:2] == ":"


class _Budget:
    """How much may still be read."""

    def __init__(self) -> None:
        self.left = MAX_TOTAL_BYTES

    def spend(self, size: int) -> None:
        if size > MAX_BYTES:
            raise UnreadableError(f"is of {size} bytes, more than the {MAX_BYTES} that are read of such a file")
        if size > self.left:
            raise UnreadableError(f"is one too many: more than {MAX_TOTAL_BYTES} bytes of code and JSON in all")
        self.left -= size


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

    def read(self, name: str) -> bytes:
        self._budget.spend(self.sizes[name])
        return (self.root / name).read_bytes()

    def beginning(self, name: str, count: int) -> bytes | None:
        with open(self.root / name, "rb") as file:
            return file.read(count)

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        try:
            # It compares the offsets in the header with the shapes, and their end with the length of the file.
            with safe_open(self.root / name, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
                return {key: StoredTensor(tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise UnreadableError(f"is not a whole safetensors file: {error}") from error


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

    def read(self, name: str) -> bytes:
        self._budget.spend(self.sizes[name])
        return Path(self.api.hf_hub_download(self.repo_id, name, revision=self.revision)).read_bytes()

    def beginning(self, name: str, count: int) -> bytes | None:
        return None

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        try:
            header: Any = self.api.parse_safetensors_file_metadata(self.repo_id, name, revision=self.revision)
            end = max((tensor.data_offsets[1] for tensor in header.tensors.values()), default=0)
        except HfHubHTTPError:
            raise
        except (SafetensorsParsingError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise UnreadableError(f"is not a safetensors file: {error}") from error
        length = 8 + self._header_length(name) + end
        if self.sizes[name] != length:
            raise UnreadableError(f"is not whole: it has {self.sizes[name]} bytes, but its header says {length}")
        return {key: StoredTensor(tuple(tensor.shape), tensor.dtype) for key, tensor in header.tensors.items()}

    def _header_length(self, name: str) -> int:
        """The number at the very beginning of a safetensors file, which the parsed header no longer has."""
        url = hf_hub_url(self.repo_id, name, revision=self.revision, endpoint=self.api.endpoint)
        headers = {**build_hf_headers(token=self.api.token), "range": "bytes=0-7"}
        response = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        return int.from_bytes(response.content[:8], "little")
