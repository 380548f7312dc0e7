"""The modules of a model of sentence-transformers: which folders they are in, what is read there, and copying them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .file_checks import READ, check_name
from .known_keys import FILES, MODELS, MODULE, ROUTERS
from .repository_files import Finding, LocalFiles, RepositoryFiles, UnreadableError, leaves_folder

MODULES_FILE = "modules.json"
ROUTER_FILE = "router_config.json"
# Modules may be routes of modules; nobody nests them deeper.
_DEEPEST = 8
_MOST_BYTES = 2_000_000
# Modules that cannot be made without their `config.json`, and those that have weights.
_WITH_OPTIONS = frozenset(
    ["Pooling", "Dense", "LayerNorm", "WeightedLayerPooling", "BoW", "WordWeights", "SparseAutoEncoder", "LogitScore"]
)
_WITH_WEIGHTS = frozenset(["Dense", "LayerNorm", "CNN", "LSTM", "StaticEmbedding", "SparseAutoEncoder"])
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def modules_in(files: RepositoryFiles) -> dict[str, str]:
    """The classes of the modules of sentence-transformers, by their folders; the root is empty.

    Errors in the files that list them are passed over; they are reported where their keys are checked.
    """
    found: dict[str, str] = {}
    for folder, kind in listed_in(files).items():
        _add(files, found, folder, kind, 0)
    return found


def listed_in(files: RepositoryFiles) -> dict[str, str]:
    """The modules of `modules_in` that are in a list of modules, and not routes of another one."""
    found: dict[str, str] = {}
    for name in files.sizes:
        parent, _, base = name.rpartition("/")
        if base != MODULES_FILE:
            continue
        for module in _entries(_read(files, name)):
            path, kind = module.get("path"), _class_of(module.get("type"))
            if isinstance(path, str) and kind is not None and not leaves_folder(path):
                found.setdefault(_joined(parent, path), kind)
    return found


def check_modules(files: RepositoryFiles, configs: Mapping[str, Any], modules: Mapping[str, str]) -> list[Finding]:
    """Findings for modules whose options or weights are absent, or do not fit each other.

    Args:
        files: files of the repository.
        configs: its JSON files that can be read, by their paths.
        modules: the classes of the modules, by their folders.
    """
    findings = []
    for folder, kind in modules.items():
        options = _joined(folder, "config.json")
        if kind in _WITH_OPTIONS and options not in files.sizes:
            findings.append(Finding("config", options, f"is missing, without which there is no {kind}"))
        stored = [name for base in _WEIGHTS if (name := _joined(folder, base)) in files.sizes]
        if kind in _WITH_WEIGHTS and not stored:
            findings.append(Finding("weights", _joined(folder, _WEIGHTS[0]), f"is missing, the weights of the {kind}"))
        elif kind == "Dense" and options in configs and stored[0].endswith(_WEIGHTS[0]):
            findings += _check_dense(files, stored[0], configs[options])
    return findings


def _check_dense(files: RepositoryFiles, name: str, options: Any) -> list[Finding]:
    try:
        tensor = files.tensors(name).get("linear.weight")
    except UnreadableError:  # which is told where headers are read
        return []
    wanted = tuple(options.get(key) for key in ("out_features", "in_features")) if isinstance(options, dict) else ()
    if tensor is None or tensor.shape == wanted:
        return []
    return [Finding("weights", name, f"has a layer of the shape {tensor.shape}, but its config.json says {wanted}")]


def parts_in(modules: dict[str, str]) -> set[str]:
    """The folders of modules that are no models of transformers."""
    return {folder for folder, kind in modules.items() if kind not in MODELS}


def is_read(name: str, modules: Mapping[str, str]) -> bool:
    """Whether loading a model reads a file of JSON or text, by itself or as one of sentence-transformers."""
    folder, _, base = name.rpartition("/")
    if folder not in modules:
        return READ.fullmatch(name) is not None
    return READ.fullmatch(base) is not None or any(fnmatchcase(base, pattern) for pattern in FILES)


def copy_modules(source: Path, folder: Path) -> list[str]:
    """Copy what sentence-transformers has beside a model: the list of modules, their folders and their options.

    Args:
        source: the folder of the model, which its first module reads.
        folder: folder of the model and its tokenizer, which may be written later.

    Returns:
        Notes for the user: files that were left out, since they hold pickles or programs.
    """
    if not (source / MODULES_FILE).is_file():
        return []
    files = LocalFiles(source)
    parts = sorted(parts_in(modules_in(files)) - {""})
    options = ("config_sentence_transformers.json", "sentence_*_config.json", MODULES_FILE)
    notes = []
    for name in sorted(files.sizes):
        is_option = any(fnmatchcase(name, option) for option in options) and "/" not in name
        if not is_option and not any(name.startswith(f"{part}/") for part in parts):
            continue
        if found := check_name(name):
            notes.append(f"{name} was left out: {found.message}.")
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    return notes


def _add(files: RepositoryFiles, found: dict[str, str], folder: str, kind: str, depth: int) -> None:
    if folder in found or depth > _DEEPEST:
        return
    found[folder] = kind
    if kind not in ROUTERS:
        return
    names = [_joined(folder, ROUTER_FILE), _joined(folder, "config.json")]
    config = next((_read(files, name) for name in names if name in files.sizes), None)
    types = config.get("types") if isinstance(config, dict) else None
    for path, reference in types.items() if isinstance(types, dict) else ():
        inner = _class_of(reference)
        if inner is not None and not leaves_folder(path):
            _add(files, found, _joined(folder, path), inner, depth + 1)


def _entries(content: Any) -> Iterator[dict[str, Any]]:
    yield from (entry for entry in content if isinstance(entry, dict)) if isinstance(content, list) else ()


def _class_of(reference: Any) -> str | None:
    match = MODULE.fullmatch(reference) if isinstance(reference, str) else None
    return None if match is None else reference.rpartition(".")[2]


def _joined(folder: str, path: str) -> str:
    parts = [part for part in (*folder.split("/"), *path.split("/")) if part not in ("", ".")]
    return "/".join(parts)


def _read(files: RepositoryFiles, name: str) -> Any:
    try:
        return json.loads(files.read(name, _MOST_BYTES).decode("utf-8"))
    except (UnreadableError, ValueError, RecursionError, MemoryError):
        return None
