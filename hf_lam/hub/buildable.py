"""The models that `verify` may build: those that are made of their configuration and of nothing else.

A configuration from elsewhere names its class by `model_type`. Only types that transformers itself lists are looked
up, and none whose code loads something while a model is made: weights of a backbone, a model of timm, or an encoder of
whatever type a nested configuration names.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..modeling import configuration_hf_lam, modeling_hf_lam, modeling_hf_lam_fusion
from ..modeling.configuration_hf_lam import PREFIX
from ..modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from ..modeling.families_hf_lam import list_heads
from ..modeling.hosts_facts_hf_lam import COMPOSED
from .names import heads_of

# Names in the code of a model that load what its configuration says. (`cached_file` stands in `load_adapter` of
# Wav2Vec2, which making a model does not call for any configuration.)
_LOADING = frozenset(
    ["load_backbone", "AutoBackbone", "timm", "from_pretrained", "from_config", "hub", "import_module", "eval", "exec"]
)


def config_class_of(kind: Any) -> Any:
    """The class of a configuration by its `model_type`; None if it is of no model that may be built here."""
    if kind == HfLamFusionConfig.model_type:
        return HfLamFusionConfig
    if isinstance(kind, str) and kind.removeprefix(PREFIX) in COMPOSED:
        # Whether its parts may be built depends on their types, which are in the configuration.
        return configuration_hf_lam.config_class_of(kind) if is_ours(kind) else None
    if not isinstance(kind, str) or not is_self_contained(kind.removeprefix(PREFIX)):
        return None
    return configuration_hf_lam.config_class_of(kind) if is_ours(kind) else CONFIG_MAPPING[kind]


def class_names_of(kind: Any) -> frozenset[str]:
    """The names of the classes of models that a configuration of ours may be of, by its `model_type`."""
    config_class = config_class_of(kind) if is_ours(kind) else None
    return frozenset() if config_class is None else frozenset(heads_of(config_class))


def model_class_of(name: str) -> Any:
    """The class of a model of ours; its name is one of `class_names_of`."""
    return getattr(modeling_hf_lam_fusion, name, None) or getattr(modeling_hf_lam, name)


def saved_class_of(config: Any) -> Any:
    """The class that a model was saved from, by the name in its configuration; the encoder's where it has none.

    What a repository names may be anything: only a class for this configuration is called.
    """
    ours = heads_of(type(config))
    for name in config.architectures or ():
        if name in ours:
            return model_class_of(name)
        stock = getattr(transformers, name, None)
        if getattr(stock, "config_class", None) is type(config):
            return stock
    return model_class_of(config.auto_classes["AutoModel"]) if ours else AutoModel


def is_ours(kind: Any) -> bool:
    """Whether a `model_type` is one of ours, or would be if there were such a family."""
    return isinstance(kind, str) and kind.startswith(PREFIX)


@functools.cache
def is_self_contained(kind: str) -> bool:
    """Whether models of a type of transformers are made of their configuration alone."""
    # The table itself: what was registered besides may be anybody's.
    if kind not in CONFIG_MAPPING_NAMES:
        return False
    config_class = CONFIG_MAPPING[kind]
    parts = (getattr(config_class, "sub_configs", None) or {}).values()
    # A part without a type, of one model alone, is used in the file of that model.
    if any(part is AutoConfig or (part.model_type and not is_self_contained(part.model_type)) for part in parts):
        return False
    spec = importlib.util.find_spec(config_class.__module__.replace(".configuration_", ".modeling_"))
    if spec is None or spec.origin is None:
        return False
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    heads = {name for names in list_heads(kind).values() for name in names}
    decoder = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    heads |= set() if decoder is None else {decoder}
    return bool(heads) and _LOADING.isdisjoint(_names_reached(tree, heads))


def _names_reached(tree: ast.Module, names: set[str]) -> set[str]:
    """Every name in the definitions of these, and of those of the same file that they use."""
    definitions: dict[str, ast.AST] = {node.name: node for node in tree.body if hasattr(node, "name")}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            definitions |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        found |= waiting
        nodes = [node for name in waiting if name in definitions for node in ast.walk(definitions[name])]
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        waiting = used - found
    return found


@contextmanager
def few_modules(most: int) -> Iterator[None]:
    """Raise a `ValueError` for a model that this thread makes of more modules than `most` while this lasts."""
    count = 0
    thread = threading.get_ident()

    def count_module(parent: torch.nn.Module, name: str, module: torch.nn.Module | None) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise ValueError(f"it has more than {most} modules, far more than there are tensors for")

    handle = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        handle.remove()
