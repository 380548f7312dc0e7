"""Mechanisms from a command line: their names, and their options as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .modeling.configuration_hf_lam import MECHANISM_CONFIGS, MechanismConfig


def mechanisms_from(
    option: str, names: Sequence[str], options_option: str, given: str | None
) -> list[MechanismConfig]:
    """The configurations of the mechanisms that were named, in their order.

    Args:
        option: what the names were given with, such as `--mechanism`.
        names: of mechanisms.
        options_option: what their options were given with.
        given: a JSON text or file: options by the names of the mechanisms, or the bare options of the only one.

    Raises:
        ValueError: for an unknown mechanism or option, one that is given twice, or options that belong to none.
    """
    unknown = sorted(set(names) - set(MECHANISM_CONFIGS))
    if unknown:
        raise ValueError(f"{option} {' '.join(unknown)}: choose from {', '.join(MECHANISM_CONFIGS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"{option} {' '.join(names)}: a model takes one of each.")
    options = json_object(options_option, given)
    if not set(options) <= {"version", *MECHANISM_CONFIGS}:
        if len(names) != 1:
            raise ValueError(
                f"{options_option} has the options {sorted(options)}, which need one {option} to belong to; for "
                f'several, give them by name: \'{{"lam": {{…}}, "locomt": {{…}}}}\'. {option} is {list(names)}.'
            )
        options = {names[0]: options}
    unused = sorted(set(options) - {"version", *names})
    if unused:
        raise ValueError(f"{options_option} has options for {unused}, but {option} is {list(names)}.")
    return [MECHANISM_CONFIGS[name].from_dict(options.get(name, {})) for name in names]


def json_object(option: str, value: str | None) -> dict[str, Any]:
    """What a JSON text or a JSON file holds; `{}` for `None`."""
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
