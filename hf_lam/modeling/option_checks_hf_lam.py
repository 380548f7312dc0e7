# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Checks of the options of a mechanism's configuration, for its `__post_init__`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from typing import Any


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless the option is one of the choices."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{type(config).__name__}: {name} must be one of {list(choices)}, got {value!r}.")


def check_bool(config: Any, name: str) -> None:
    """Raises a `ValueError` unless the option is True or False."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ValueError(f"{type(config).__name__}: {name} must be True or False, got {value!r}.")


def check_positive_or_none(config: Any, name: str) -> None:
    """Raises a `ValueError` unless the option is None or a positive integer."""
    value = getattr(config, name)
    if value is not None and not is_count(value, 1):
        raise ValueError(f"{type(config).__name__}: {name} must be None or an integer of at least 1, got {value!r}.")


def is_count(value: Any, least: int) -> bool:
    """Whether a value is an integer, which True is not, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
