# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The door for mechanisms: `register_mechanism`, and the `hf_lam` block of `config.json` that goes by it.

Every copy of this code has a table of its own. The mechanisms of hf_lam register like any other, at the end of their
files; `mechanism_list_hf_lam.py` imports these.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from .mechanism_checks_hf_lam import check_behaviour, check_classes, check_imports, find_file
from .mechanism_hf_lam import PATTERN, REPLACEMENT, SCORES, MechanismConfig
from .version_hf_lam import TRAVELLING_FILES, __version__


class Registered(NamedTuple):
    """A mechanism that configurations can name.

    config_class, mechanism_class: its options, and its module.
    file: the file that defines it, which travels with models that have it.
    source: source of the file when it was registered; empty for hf_lam's own.
    """

    config_class: Any
    mechanism_class: Any
    file: Path
    source: str


_REGISTRY: dict[str, Registered] = {}


def register_mechanism(name: str, config_class: Any, mechanism_class: Any) -> None:
    """Make a mechanism known: to `inject`, `convert`, `config.json`, the command line, `cost` and model cards.

    Its file is copied into every saved model that has it, and loads there without hf_lam and without the original
    file. Registering the same classes again, as when a module is reloaded, replaces them.

    Args:
        name: its key in `config.json` and on command lines: letters, digits and underscores.
        config_class: a frozen dataclass, a subclass of `MechanismConfig`, whose options have defaults.
        mechanism_class: a subclass of `Mechanism`.

    Raises:
        TypeError: if one of the classes is of another kind.
        ValueError: if the name is taken or invalid, the file imports what a saved model cannot count on, options are
            no JSON values, a method is missing for the kind of change, or with default options the outputs change
            before any training and `explain_change` does not say so. Nothing is registered then.
    """
    check_classes(name, config_class, mechanism_class)
    file = find_file(config_class)
    known = _REGISTRY.get(name)
    is_same = known is not None and known.file == file and known.config_class.__name__ == config_class.__name__
    if known is not None and not is_same:
        raise ValueError(
            f"the name {name!r} is taken by {known.config_class.__name__} of {known.file}; choose another for "
            f"{config_class.__name__} of {file}."
        )
    others = [key for key, other in _REGISTRY.items() if other.config_class is config_class and key != name]
    if others:
        raise ValueError(f"{config_class.__name__} is registered as {others[0]!r} already; one class has one name.")
    source = ""
    if not is_own_file(file):
        check_imports(file, mechanism_class)
        same_name = [key for key, other in _REGISTRY.items() if other.file.name == file.name and other.file != file]
        if same_name:
            raise ValueError(
                f"{file} has the name of {file_of(same_name[0])}, which registered {same_name[0]!r}, and a model's "
                "folder has room for one of them. Rename it."
            )
        check_behaviour(config_class, mechanism_class)
        source = file.read_text(encoding="utf-8")
    config_class.name = name
    _REGISTRY[name] = Registered(config_class, mechanism_class, file, source)


def is_own_file(file: Path) -> bool:
    """Whether a file is one of hf_lam's own, beside this one."""
    return file.parent == Path(__file__).parent and file.name in TRAVELLING_FILES


def mechanism_names() -> list[str]:
    """The names of all mechanisms, in the order in which they were registered."""
    return list(_REGISTRY)


def config_class_of(name: str) -> Any:
    """The configuration of a mechanism; a `ValueError` that lists the names for an unknown one."""
    return _look_up(name).config_class


def mechanism_class_of(name: str) -> Any:
    """The module of a mechanism; a `ValueError` that lists the names for an unknown one."""
    return _look_up(name).mechanism_class


def file_of(name: str) -> Path:
    """The file that defines a mechanism; a `ValueError` that lists the names for an unknown one."""
    return _look_up(name).file


def source_of(name: str) -> str:
    """The source of that file when it was registered; empty for hf_lam's own."""
    return _look_up(name).source


def _look_up(name: str) -> Registered:
    if name not in _REGISTRY:
        raise ValueError(f"there is no mechanism {name!r}; registered are {', '.join(_REGISTRY)}.")
    return _REGISTRY[name]


# --- the block of config.json ----------------------------------------------------------------------------------------


def mechanism_block(value: Any) -> dict[str, Any] | None:
    """Validate what a user or a `config.json` gives as `hf_lam` and return it as plain JSON.

    Args:
        value: `None`, a mechanism configuration, several of them, the dictionary form
            `{"lam": {...}, "version": "0.1.0"}`, or the bare options of one mechanism.

    Returns:
        `{"version": ..., "lam": {...}}` with the options spelled out, or `None` for no mechanism.

    Raises:
        ValueError: if a key, an option or a value is unknown, or a mechanism is given twice.
    """
    if value is None:
        return None
    if isinstance(value, MechanismConfig):
        value = [value]
    if isinstance(value, (list, tuple)):
        return _block_of_list(value)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"hf_lam must be a mechanism configuration or a dictionary such as {{'lam': {{...}}}}, got "
            f"{type(value).__name__}: {value!r}."
        )
    for name, known in _REGISTRY.items():
        if value and set(value) <= {field.name for field in fields(known.config_class)}:
            value = {name: value}
    written_by = value.get("version", __version__)
    if not is_version(written_by):
        raise ValueError(f"hf_lam block: version must be one of hf_lam, such as {__version__!r}, got {written_by!r}.")
    unknown = sorted(set(value) - set(_REGISTRY) - {"version"}, key=str)
    if unknown:
        raise ValueError(
            f"the hf_lam block has unknown keys {unknown}; hf_lam {__version__} knows {sorted(_REGISTRY)}. "
            f"The block was written by hf_lam {written_by}: if that is newer, upgrade hf_lam. If it is a mechanism of "
            "somebody else, read its file, and then import it (hf_lam.import_mechanism, or `--mechanism FILE.py` "
            "for a command); or load the model with trust_remote_code=True where hf_lam was not imported."
        )
    block: dict[str, Any] = {"version": written_by}
    for name, known in _REGISTRY.items():
        if name in value:
            is_saved = value.get("version") == __version__ and isinstance(value[name], Mapping)
            lost = known.config_class.find_lost(value[name]) if is_saved else None
            if lost:
                raise ValueError(
                    f"hf_lam block: {name!r} lacks {sorted(lost)}, which hf_lam {__version__} writes down; without "
                    "them it would be another model. Give the configuration that was saved. (A block without the key "
                    "'version' may leave options out, which then have their defaults.)"
                )
            try:
                block[name] = known.config_class.from_dict(value[name]).to_dict()
            except ValueError as error:
                raise ValueError(f"hf_lam block written by hf_lam {written_by}: {error}") from error
    return block if len(block) > 1 else None


def is_version(value: Any) -> bool:
    """Whether a value is the text of a version."""
    return isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\w{1,9}){0,9}(\+[\w.]{1,40})?", value) is not None


def _block_of_list(configs: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    given: dict[str, MechanismConfig] = {}
    names = {known.config_class: name for name, known in _REGISTRY.items()}
    for config in configs:
        name = names.get(type(config))
        if name is None:
            expected = [config_class.__name__ for config_class in names]
            raise ValueError(
                f"expected a mechanism configuration ({', '.join(expected)}), got {config!r}. A class of your own "
                "becomes one with hf_lam.register_mechanism."
            )
        if name in given:
            raise ValueError(f"{type(config).__name__} was given twice; a model takes one of each mechanism.")
        given[name] = config
    if not given:
        expected = [known.config_class.__name__ for known in _REGISTRY.values()]
        raise ValueError(f"no mechanism configuration was given; pass one of {', '.join(expected)}.")
    block = block_of({name: given[name] for name in _REGISTRY if name in given})
    assert block is not None
    return block


def block_of(configs: Mapping[str, MechanismConfig]) -> dict[str, Any] | None:
    """The block of `config.json` for these configurations."""
    options = {name: config.to_dict() for name, config in configs.items()}
    return {"version": __version__, **options} if options else None


def configs_in(block: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configurations inside a validated `hf_lam` block, by their names."""
    return {
        name: known.config_class.from_dict(block[name]) for name, known in _REGISTRY.items() if block and name in block
    }


# --- which go together -----------------------------------------------------------------------------------------------


def check_combination(configs: Mapping[str, MechanismConfig]) -> None:
    """Raises a `ValueError` for mechanisms that have no meaning together, by what they say of themselves.

    configs: resolved configurations, by name.
    """
    of_kind = {
        kind: [config for config in configs.values() if config.change == kind]
        for kind in (SCORES, PATTERN, REPLACEMENT)
    }
    for replacement in of_kind[REPLACEMENT]:
        others = [config for config in configs.values() if config is not replacement]
        if others:
            raise ValueError(
                f"{_call(replacement)} has no scores that {' and '.join(type(other).__name__ for other in others)} "
                f"could change. Leave one out, or keep the dot products: {replacement.instead_of_replacement}"
            )
    if len(of_kind[PATTERN]) > 1:
        names = " and ".join(type(config).__name__ for config in of_kind[PATTERN])
        raise ValueError(f"{names} both say which token sees which; a model takes one of them.")
    for appending in (config for config in configs.values() if config.appended_tokens):
        for other in configs.values():
            if other is not appending and other.no_place_for_appended is not None:
                raise ValueError(
                    f"{_call(appending)} appends {appending.appended_tokens} tokens to the sequence, "
                    f"{other.no_place_for_appended}. Leave out {type(other).__name__}, or what appends them."
                )


def _call(config: MechanismConfig) -> str:
    """A configuration as one would write it, with the options that are not the defaults."""
    default = {field.name: field.default for field in fields(config)}  # type: ignore[arg-type]
    options = [f"{key}={value!r}" for key, value in config.to_dict().items() if value != default[key]]
    shown = ", ".join(option for option in options if len(option) <= 60)
    return f"{type(config).__name__}({shown})"


def order_of_changes(configs: Mapping[str, MechanismConfig]) -> list[str]:
    """The names of the mechanisms that change scores, in the order in which they do."""
    changing = (name for name, config in configs.items() if config.change == SCORES)
    return sorted(changing, key=lambda name: (configs[name].order, name))


def find_name(configs: Mapping[str, MechanismConfig], change: str) -> str | None:
    """The name of the one mechanism of a kind, None if there is none."""
    return next((name for name, config in configs.items() if config.change == change), None)
