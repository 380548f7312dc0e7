"""Mechanisms from a command line: their names, or where they are defined, and their options as JSON."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import modeling
from .modeling.mechanism_hf_lam import MechanismConfig

# Registers those of hf_lam.
from .modeling.mechanism_list_hf_lam import __all__ as _registered  # noqa: F401
from .modeling.mechanism_registry_hf_lam import config_class_of, file_of, mechanism_names


def read_mechanisms(
    option: str, given: Sequence[str], options_option: str, options_given: str | None
) -> list[MechanismConfig]:
    """Read the configurations of the mechanisms that were given, in their order.

    Args:
        option: option that the mechanisms were given with, such as `--mechanism`.
        given: their names, or where they are defined (`find_mechanisms`).
        options_option: option that their options were given with.
        options_given: a JSON text or file: options by the names of the mechanisms, or the bare options of the only
            one.

    Raises:
        ValueError: for an unknown mechanism or option, one that is given twice, or options that belong to none.
    """
    names = find_mechanisms(option, given)
    if len(set(names)) < len(names):
        raise ValueError(f"{option} {' '.join(given)}: a model takes one of each.")
    options = json_object(options_option, options_given)
    if not set(options) <= {"version", *mechanism_names()}:
        if len(names) != 1:
            by_name = ", ".join(f'"{name}": {{…}}' for name in names or mechanism_names())
            raise ValueError(
                f"{options_option} has the options {sorted(options)}, which need one {option} to belong to; for "
                f"several, give them by name: '{{{by_name}}}'. {option} is {list(names)}."
            )
        options = {names[0]: options}
    unused = sorted(set(options) - {"version", *names})
    if unused:
        raise ValueError(f"{options_option} has options for {unused}, but {option} is {list(names)}.")
    return [config_class_of(name).from_dict(options.get(name, {})) for name in names]


def import_mechanism(file: str | os.PathLike[str]) -> list[str]:
    """Import the file of a mechanism that is not hf_lam's own, which runs it: read it before.

    Args:
        file: a file of one's own, or the copy that came with a saved model or with `save_mechanism`.

    Returns:
        The names of the mechanisms that it registers, also if it was imported before.

    Raises:
        ValueError: if there is no such file, it cannot be imported, or registers no mechanism.
    """
    return _import_file("import_mechanism", Path(file).expanduser())


def find_mechanisms(option: str, given: Sequence[str]) -> list[str]:
    """The names of the mechanisms that were given.

    Args:
        option: option that they were given with, such as `--mechanism`.
        given: name of each mechanism; or where it is defined, which is imported and must register it:
            `package.module:ConfigClass`, or `path/to/file.py` for all that the file registers.

    Raises:
        ValueError: for an unknown mechanism, or one that cannot be imported.
    """
    return [name for text in given for name in _find(option, text)]


def _find(option: str, text: str) -> list[str]:
    if text in mechanism_names():
        return [text]
    if text.endswith(".py"):
        return _import_file(option, Path(text).expanduser())
    if ":" in text:
        return _import_class(option, text)
    raise ValueError(
        f"{option} {text}: choose from {', '.join(sorted(mechanism_names()))}; or say where a mechanism of your own "
        "is registered, path/to/file.py or package.module:ConfigClass."
    )


def _import_class(option: str, text: str) -> list[str]:
    module, _, class_name = text.partition(":")
    # An installed command does not look where it was called.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        config_class = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} {text}: {error}") from error
    names = [name for name in mechanism_names() if config_class_of(name) is config_class]
    if not names:
        raise ValueError(f"{option} {text}: {module} does not register this class; see hf_lam.register_mechanism.")
    return names


def _import_file(option: str, file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{option} {file}: there is no such file.")
    file = file.resolve()
    names = _registered_in(file)
    if not names:
        _run(option, file)
        names = _registered_in(file)
    if not names:
        raise ValueError(f"{option} {file}: the file registers no mechanism; see hf_lam.register_mechanism.")
    return names


def _registered_in(file: Path) -> list[str]:
    return [name for name in mechanism_names() if file_of(name).resolve() == file]


def _run(option: str, file: Path) -> None:
    """Import a file as a module of its name."""
    name = f"{modeling.__name__}.{file.stem}" if _imports_siblings(file) else file.stem
    if name in sys.modules:
        raise ValueError(f"{option} {file}: there is a module {name!r} already; rename the file.")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where classes are looked up by the name of their module.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (ImportError, SyntaxError)):
            raise ValueError(f"{option} {file}: {error}") from error
        raise


def _imports_siblings(file: Path) -> bool:
    """Whether it is the copy in a model's folder, which imports the files of hf_lam beside it."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return False  # importing it says what is wrong
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def json_object(option: str, value: str | None) -> dict[str, Any]:
    """Read a JSON text or a JSON file that holds an object; `{}` for `None`."""
    if value is None:
        return {}
    text = value.strip()
    if not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{option} must be a JSON object such as '{{\"rank\": 8}}' or a file with one, got {value[:200]!r}."
            ) from error
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{option} is not valid JSON ({error}): {text[:200]!r}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{option} must hold a JSON object, got {found!r}.")
    return found
