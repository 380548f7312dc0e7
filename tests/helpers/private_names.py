"""What we rely on of transformers' private names, and whether the installed version has it."""

from __future__ import annotations

import importlib
import inspect
from functools import reduce

from hf_lam.modeling.hosts_facts_hf_lam import PrivateName


def exists(private: PrivateName) -> bool:
    """Whether the module or class has the name, or sets it somewhere in its source."""
    module, _, path = private.where.partition(":")
    owner = reduce(getattr, filter(None, path.split(".")), importlib.import_module(module))
    return hasattr(owner, private.name) or private.name in inspect.getsource(owner)
