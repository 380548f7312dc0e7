"""The scripts of `examples/`, as processes and as modules."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from helpers.processes import ROOT, fresh_environment

EXAMPLES = ROOT / "examples"


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `examples/{name}.py` in a process of its own."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    environment = fresh_environment({"HF_HUB_OFFLINE": "1"})
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@contextmanager
def script_module(name: str) -> Iterator[ModuleType]:
    """`examples/{name}.py` as a module, with its folder on the path as when it runs."""
    path = EXAMPLES / f"{name}.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop(path.stem, None)
