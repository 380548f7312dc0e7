"""A mechanism from elsewhere, known to the test that asks for it and to no other."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from hf_lam.modeling import mechanism_registry_hf_lam as registry


@pytest.fixture
def foreign_mechanism(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `helpers.foreign_mechanism`, imported, which registers `head_factor`."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.delitem(sys.modules, "helpers.foreign_mechanism", raising=False)
    return importlib.import_module("helpers.foreign_mechanism")
