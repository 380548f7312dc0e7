"""The reference: every public name is on a page, and functions have examples that run."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any

import pytest

import hf_lam
import hf_lam.training
import hf_lam.visualization
from helpers import hub_server
from helpers.documents import make_stand_ins
from helpers.processes import ROOT

MODULES: tuple[Any, ...] = (hf_lam, hf_lam.training, hf_lam.visualization)
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))

# Functions that still have no example of their own. The pages of the site show most of them at work; a new function
# has an example, and this list only gets shorter.
WITHOUT = {
    *("compare", "import_mechanism", "register_mechanism"),
    *("cache_features", "load_trained_fusion"),
}


def functions() -> dict[str, Any]:
    found = {name: getattr(module, name) for module in MODULES for name in module.__all__}
    return {name: value for name, value in found.items() if callable(value) and not isinstance(value, type)}


def examples_of(function: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(function.__doc__ or "")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_on_a_page(module: Any) -> None:
    missing = [name for name in module.__all__ if not re.search(rf"\b{name}\b", PAGES) and name != "__version__"]
    assert not missing


def test_functions_have_examples() -> None:
    without = {name for name, function in functions().items() if not examples_of(function)}
    assert without == WITHOUT


@pytest.mark.slow
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    failed = []
    with hub_server.HubServer() as hub:
        hub.serve(monkeypatch, tmp_path / "hub")
        for name, function in functions().items():
            test = doctest.DocTest(examples_of(function), {}, name, None, None, function.__doc__)
            said = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()):
                result = doctest.DocTestRunner(verbose=False).run(test, out=said.write)
            if result.failed:
                failed.append(f"{name}:\n{said.getvalue()}")
    assert not failed, "\n".join(failed)
