"""Mechanisms from files that are not hf_lam's: registered for a while, and forgotten again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from helpers.processes import ROOT, TESTS
from hf_lam.modeling import mechanism_registry_hf_lam

TEMPERATURE = ROOT / "examples" / "mechanisms" / "head_temperature.py"
DISTANCE = ROOT / "examples" / "mechanisms" / "distance_bias.py"
WINDOW = TESTS / "door" / "mechanisms" / "local_window.py"
AVERAGE = TESTS / "door" / "mechanisms" / "uniform_average.py"

# Imports a file by its path, which registers the mechanisms in it.
LoadFile = Callable[[Path], ModuleType]


@contextmanager
def open_door() -> Iterator[LoadFile]:
    """Gives a function that loads files; afterwards only the mechanisms are registered that were so before."""
    registry = mechanism_registry_hf_lam._REGISTRY
    before = dict(registry)
    names: list[str] = []

    def load_file(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        names.append(path.stem)
        spec.loader.exec_module(module)
        return module

    try:
        yield load_file
    finally:
        registry.clear()
        registry.update(before)
        for name in names:
            sys.modules.pop(name, None)
