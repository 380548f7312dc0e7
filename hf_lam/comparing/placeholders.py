"""Placeholders in the texts of a plan: folders, and variables of the environment."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan_source import did_you_mean

# `{{name}}` stands for `{name}` itself, `$$` for `$`. Braces around anything but a name are text, as in JSON.
_PLACEHOLDER = re.compile(
    r"""
    \$(?P<dollar>\$)
    | \$\{(?P<braced>\w+)\} | \$(?P<variable>[A-Za-z_]\w*)
    | \{\{(?P<literal>\w+(:[^{}]*)?)\}\}
    | \{(?P<kind>\w+)(:(?P<name>[^{}]*))?\}
    """,
    re.VERBOSE,
)
_KNOWN = {"plan": "{plan}", "package": "{package:NAME}", "row": "{row:NAME}", "seed": "{seed}"}


@dataclass(frozen=True)
class Run:
    """The values of a run's placeholders.

    seed: value of `{seed}`.
    folder_of_row: function that gives the value of `{row:NAME}`.
    """

    seed: int
    folder_of_row: Callable[[str], str]


def fill(value: Any, folder: Path, run: Run | None = None) -> Any:
    """Fill in all placeholders in the texts of a value, those within lists and maps too.

    A `~/` at the beginning of a text is the user's folder.

    Args:
        value: JSON value.
        folder: folder of the plan.
        run: run that the value is for; None for a value that all runs share.

    Raises:
        ValueError: for an unknown placeholder, a package that is not installed, or a variable that is not set.
    """
    if isinstance(value, str):
        text = os.path.expanduser(value) if value == "~" or value.startswith("~/") else value
        # In one pass: what is filled in is not looked at again.
        return _PLACEHOLDER.sub(lambda found: _text_for(found, folder, run), text)
    if isinstance(value, list):
        return [fill(child, folder, run) for child in value]
    if isinstance(value, dict):
        return {key: fill(child, folder, run) for key, child in value.items()}
    return value


def rows_in(value: Any) -> list[str]:
    """The names in all `{row:NAME}` of a value, in their order."""
    if isinstance(value, str):
        return [found["name"] for found in _PLACEHOLDER.finditer(value) if found["kind"] == "row" and found["name"]]
    children = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return [name for child in children for name in rows_in(child)]


def _text_for(found: re.Match[str], folder: Path, run: Run | None) -> str:
    kind, name = found["kind"], found["name"]
    if found["dollar"]:
        return "$"
    if found["literal"]:
        return f"{{{found['literal']}}}"
    if kind is None:
        return _variable(found["braced"] or found["variable"])
    if kind == "plan" and name is None:
        return str(folder)
    if kind == "package" and name:
        return _folder_of_package(name)
    if (kind == "row" and name) or (kind == "seed" and name is None):
        if run is None:
            raise ValueError(f"{found[0]!r} is for options of rows.")
        return run.folder_of_row(name) if name else str(run.seed)
    hint = did_you_mean(kind, _KNOWN) if kind not in _KNOWN else ""
    raise ValueError(
        f"there is no placeholder {found[0]!r}, only {', '.join(_KNOWN.values())}; for the text itself, double the "
        f"braces.{hint}"
    )


def _variable(name: str) -> str:
    if name not in os.environ:
        raise ValueError(f"the environment variable {name} is not set; for a dollar sign itself, write $$.")
    return os.environ[name]


def _folder_of_package(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no package {name!r} that is installed.")
    return str(Path(next(iter(spec.submodule_search_locations))))
