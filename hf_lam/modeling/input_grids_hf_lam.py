# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The grid of what an encoder is called with: where it is read, how it gets to the layers, and what it may be.

An encoder is configured for one size of images, and takes others. What is tied to places learns the grid of each input
from the module that gets it, which hands it down as a keyword argument, or with stand-ins where the host keeps keyword
arguments to itself; the layers themselves see nothing but tokens.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .attention_pass_hf_lam import GRID, Injection
from .hosts_facts_hf_lam import read_input_grid, takes_patches
from .hosts_hf_lam import Host, input_name_of
from .mechanism_hf_lam import MechanismConfig
from .stand_ins_hf_lam import PASS

# As `PassStart.grid`.
Grid = tuple[int, ...] | Tensor

# The rows and columns of every sample, where images come as patches.
_SHAPES = "spatial_shapes"


def find_arguments(module: Any) -> dict[str, int]:
    """The places of those arguments of a forward that tell the grid."""
    arguments = list(inspect.signature(type(module).forward).parameters)[1:]  # without `self`
    return {name: arguments.index(name) for name in (input_name_of(module), _SHAPES) if name in arguments}


def watch_input(injection: Injection, module: Any, keyword: str) -> Callable[..., Any]:
    """The hook for a module that gets the input, where that is not the stack of layers itself.

    keyword: name of the keyword argument that carries the grid on.
    """
    return functools.partial(enter_input, injection, find_arguments(module), keyword)


def enter_input(
    injection: Injection,
    places: Mapping[str, int],
    keyword: str,
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check the grid of the input before the module that gets it, and hand it down.

    places: positions of the arguments that tell the grid.
    keyword: name of the keyword argument that carries the grid on.
    """
    grid = _read_grid(injection, places, module, args, kwargs)
    return args, kwargs if grid is None else {**kwargs, keyword: grid}


def _read_grid(
    injection: Injection, places: Mapping[str, int], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Grid | None:
    """The grid of what a module is called with, which is checked; None if that does not tell."""
    given = {name: args[place] for name, place in places.items() if place < len(args)} | kwargs
    name = next(iter(places))
    values, shapes = given.get(name), given.get(_SHAPES)
    if not isinstance(values, Tensor):
        return None
    if takes_patches(module.config) and isinstance(shapes, Tensor):
        _check_grid(injection, name, values, shapes)
        return shapes
    grid = read_input_grid(module.config, tuple(values.shape))
    if not grid:
        return None
    _check_grid(injection, name, values, grid)
    return grid


def _check_grid(injection: Injection, name: str, values: Tensor, grid: Grid) -> None:
    """An image of another shape may have as many patches as the right one, which then would not be noticed."""
    for config in injection.configs.values():
        wanted = config.input_grid(injection.host)
        if not wanted:
            continue
        made_for = f"{type(config).__name__} was made for {_describe(wanted)}"
        if isinstance(grid, tuple):
            if not _fits(grid, wanted):
                raise ValueError(
                    f"{name} of shape {tuple(values.shape)} has a grid of {_describe(grid)} patches, but {made_for}. "
                    f"{config.explain_input_grid(grid, injection.host)}"
                )
            continue
        columns = zip(grid.unbind(1), wanted, strict=True)
        are_right = torch.stack([(column == size).all() for column, size in columns if size is not None]).all()
        if torch.compiler.is_compiling():
            torch._assert_async(are_right, f"the images have other grids of patches, but {made_for}")
        elif not are_right:
            found = next(tuple(sizes) for sizes in grid.tolist() if not _fits(sizes, wanted))
            raise ValueError(
                f"an image of {name} has a grid of {_describe(found)} patches, but {made_for}. "
                f"{config.explain_input_grid(found, injection.host)}"
            )


def _fits(grid: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    pairs = zip(grid, wanted, strict=False)
    return len(grid) == len(wanted) and all(size in (None, found) for found, size in pairs)


def _describe(grid: tuple[int | None, ...]) -> str:
    return " × ".join("any" if size is None else str(size) for size in grid)


def check_one_grid(configs: Mapping[str, MechanismConfig], host: Host) -> None:
    """Raises a `ValueError` for mechanisms that were made for inputs of different sizes."""
    made = [(type(config).__name__, grid) for config in configs.values() if (grid := config.input_grid(host))]
    for (first, one), (second, other) in combinations(made, 2):
        if len(one) != len(other) or any(a != b for a, b in zip(one, other, strict=True) if None not in (a, b)):
            raise ValueError(
                f"{first} was made for a grid of {_describe(one)} patches, but {second} for {_describe(other)}, and "
                f"no input of {host.name} has both. Make them for inputs of one size."
            )


def take_grid(
    injection: Injection, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor | None
) -> tuple[Grid | None, int | None]:
    """The grid of a pass and its number of tokens, before the layers.

    It is what the module that gets the input has handed down, or what the stack of layers is called with; where both
    are not to be had, as far as the number of tokens says it.

    args, kwargs: what the stack is called with; what was handed down is taken from it.
    tokens: tokens that the stack is called with; None if they are not among its arguments.

    Raises:
        ValueError: if a mechanism cannot do without the grid, or was made for another one.
    """
    grid: Grid | None = next((kwargs.pop(name) for name in (GRID, PASS) if name in kwargs), None)
    host = injection.host.tokens
    length = None if tokens is None else tokens.shape[1]
    if not host.grid or not injection.needs_places:
        return None, None
    if grid is None and injection.input_places:
        grid = _read_grid(injection, injection.input_places, injection.stack, args, kwargs)
        length = None
    if grid is None and length is not None:
        grid = host.grid_of(length) or None
    needing = [config for config in injection.configs.values() if config.needs_input_grid]
    if grid is None and needing:
        raise ValueError(
            f"{host.host} was called with {'embeddings' if length is None else f'{length} tokens'}, and "
            f"{type(needing[0]).__name__} needs to know their grid, which is {_describe(host.grid)} for inputs of the "
            "size that the encoder is configured for. Call the model with its input, from which the grid is read."
        )
    return grid, length
