"""The checkpoint that is converted: where its model is, and what lies beside it that goes along."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..hub.file_checks import read_configs
from ..hub.known_keys import MODELS, MODULE, ROUTERS
from ..hub.repository_files import LocalFiles
from ..hub.sentence_modules import MODULES_FILE, check_modules, copy_modules, is_read, listed_in, modules_in
from ..loading import loading
from .common import is_local, model_source

# Files of sentence-transformers that lie beside a model, and not in the folder of a module.
_OPTIONS = (MODULES_FILE, "config_sentence_transformers.json", "sentence_*_config.json")
# What a conversion makes anew, weights in whatever format, and what has no use elsewhere.
_MADE_ANEW = (
    *(
        "README.md",
        ".*",
        "config.json",
        "*.safetensors",
        "*.index.json",
        "*.bin",
        "*.h5",
        "*.msgpack",
        "*.ot",
        "*.ckpt",
    ),
    *("*.onnx", "onnx/*", "openvino/*", "coreml/*", "*token*", "vocab.*", "merges.txt", "*.model"),
    *("*_hf_lam*.py", "*processor_config.json", "chat_template.*", "generation_config.json", "LICENSE-hf_lam.txt"),
)
_MOST_NAMED = 5


@dataclass(frozen=True)
class Original:
    """The model to convert.

    source: argument of `from_pretrained`, a folder or an id on the Hub.
    root: the folder with what lies beside the model; None if nothing is known to.
    path: path of the model in `root`; empty for `root` itself.
    """

    source: str
    root: Path | None
    path: str = ""


def find_original(name: str, revision: str | None = None) -> Original:
    """Find the model that a name means. Older folders of sentence-transformers have it in a folder of theirs.

    Raises:
        ValueError: for a folder without a model, or a path where there is no folder; for modules of
            sentence-transformers that are damaged, or that have several models as routes.
    """
    if is_local(name):
        root = Path(os.path.expanduser(name))
        path = _path_of_model(root)
        return Original(model_source(str(root / path)) if path else model_source(name), root, path)
    source = model_source(name)
    root_of_hub = _download_modules(source, revision)
    if root_of_hub is None:
        return Original(source, None)
    path = _path_of_model(root_of_hub)
    return Original(str(root_of_hub / path) if path else source, root_of_hub, path)


def copy_beside(original: Original, folder: Path) -> list[str]:
    """Copy what makes a model one of sentence-transformers to a converted one, which is written already.

    Returns:
        Notes for the user: files that cannot be copied along.
    """
    if original.root is None:
        return []
    notes = copy_modules(original.root, folder)
    if original.path:
        _move_to_root(original, folder)
    if (folder / MODULES_FILE).is_file():
        strange = [kind for kind in _types_in(folder / MODULES_FILE) if MODULE.fullmatch(kind) is None]
        notes += [f"{MODULES_FILE} names {kind}, code from elsewhere, which did not go along" for kind in strange]
    return notes + _left_behind(original, folder)


def _path_of_model(root: Path) -> str:
    """The folder of the model in a folder of sentence-transformers that has it in one of its own; empty elsewhere."""
    if not (root / MODULES_FILE).is_file():
        return ""
    files = LocalFiles(root)
    every, listed, modules = files.sizes, listed_in(files), modules_in(files)
    files.sizes = {name: size for name, size in every.items() if name == MODULES_FILE or is_read(name, modules)}
    configs, findings = read_configs(files)
    files.sizes = every
    for finding in findings or check_modules(files, configs, modules):
        raise ValueError(f"{str(root / finding.file)!r} {finding.message}.")
    content = configs[MODULES_FILE]
    if not isinstance(content, list) or not all(
        isinstance(x, dict) and isinstance(x.get("path"), str) for x in content
    ):
        raise ValueError(f"{str(root / MODULES_FILE)!r} is no list of modules, each with its path.")
    models = [path for path, kind in listed.items() if kind in MODELS]
    if not models and ROUTERS & set(listed.values()):
        routes = ", ".join(repr(str(root / path)) for path, kind in modules.items() if kind in MODELS)
        raise ValueError(
            f"{str(root)!r} has its models in the routes of a Router, and convert takes one: "
            f"{routes or 'download it, and name the folder of a route'}."
        )
    return "" if "" in models or not models else models[0]


def _download_modules(source: str, revision: str | None) -> Path | None:
    """The modules of sentence-transformers, in the cache of the Hub; None if the repository has none."""
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    asked = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with loading(source, revision):
        found = cached_file(source, MODULES_FILE, **asked, **({"revision": revision} if revision else {}))
        if found is None:
            return None
        folders = [path for path in modules_in(LocalFiles(Path(found).parent)) if path]
        patterns = [*_OPTIONS, *(f"{path}/*" for path in folders)]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))


def _types_in(path: Path) -> list[str]:
    return [str(module.get("type")) for module in json.loads(path.read_text(encoding="utf-8"))]


def _left_behind(original: Original, folder: Path) -> list[str]:
    # A model in a folder of its own gets to the root.
    found = {name: name.removeprefix(f"{original.path}/") for name in LocalFiles(str(original.root)).sizes}
    names = sorted(
        name
        for name, place in found.items()
        if not any(fnmatchcase(place, pattern) for pattern in _MADE_ANEW) and not (folder / place).is_file()
    )
    shown = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")
    return [f"left behind, since no model is loaded from it: {shown}"] if names else []


def _move_to_root(original: Original, folder: Path) -> None:
    """Let the list of modules say that the model is in the folder itself, with its options."""
    for path in Path(str(original.root), original.path).glob("sentence_*_config.json"):
        shutil.copyfile(path, folder / path.name)
    listed = folder / MODULES_FILE
    modules = json.loads(listed.read_text(encoding="utf-8"))
    for module in modules:
        if PurePosixPath(module["path"]).as_posix() == original.path:
            module["path"] = ""
    listed.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
