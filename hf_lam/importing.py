"""Do something once a module has been imported, whenever that is, without importing it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, do: Callable[[ModuleType], None]) -> None:
    """Call `do` with a module once: now if it has been imported, or else as soon as it has run.

    What waits for a module whose import fails waits for the next attempt; an error in `do` makes it fail, too.
    """
    if name in sys.modules:
        # Waits for another thread that is importing it.
        do(importlib.import_module(name))
    else:
        sys.meta_path.insert(0, _Waiting(name, do))


class _Waiting(MetaPathFinder):
    """Finds the one module that it waits for, as the finders behind it do; leaves when that module has run."""

    def __init__(self, name: str, do: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._do = do

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        # Only those behind: another that waits for the same module asks this one.
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(fullname, path, target) for finder in finders if hasattr(finder, "find_spec"))
        spec = next((found for found in specs if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._has_run)
        return spec

    def _has_run(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            self._do(module)
            sys.meta_path.remove(self)


class _Loader(Loader):
    """Loads as another loader does, and says when the module has run. The module keeps the other loader."""

    def __init__(self, loader: Any, has_run: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._has_run = has_run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._has_run(module)
