"""transformers' Auto classes find the `HfLam…` classes where hf_lam is imported, with none of them made before.

This module runs in the middle of an import of transformers, and imports neither torch nor transformers itself.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from .importing import when_imported

_CONFIGS = "hf_lam.modeling.configuration_hf_lam"
_MODELS = "hf_lam.modeling.modeling_hf_lam"
_FUSION_CONFIGS = f"{_CONFIGS}_fusion"
_FUSION_MODELS = f"{_MODELS}_fusion"
_AUTO = "transformers.models.auto"


def register() -> None:
    """Let `AutoConfig`, `AutoModel` and the like find the classes of hf_lam, from when they are imported."""
    when_imported(f"{_AUTO}.configuration_auto", _register_configs)
    when_imported(f"{_AUTO}.modeling_auto", _register_models)
    when_imported(f"{_AUTO}.processing_auto", _register_processors)


def _register_configs(module: ModuleType) -> None:
    _extend(module.CONFIG_MAPPING, _Configs)


def _register_models(module: ModuleType) -> None:
    for name, auto in list(vars(module).items()):
        if name.startswith("AutoModel"):
            _extend(auto._model_mapping, _Models, name)  # noqa: SLF001


def _register_processors(module: ModuleType) -> None:
    _extend(module.PROCESSOR_MAPPING, _Processors)


def _extend(mapping: Any, kind: type[_Made], *args: Any) -> None:
    mapping._extra_content = kind(mapping._extra_content, *args)  # noqa: SLF001


class _Made(dict[Any, Any]):
    """The classes registered with a table of transformers, which hf_lam makes when they are asked for.

    transformers cannot register a class that is not made yet. It looks here before it looks into its own tables, and
    goes through these values where it lists what was registered.
    """

    def make(self, key: Any) -> Any:
        """The value of a key that was not registered; None if it is not one of ours."""
        raise NotImplementedError

    def list_made(self) -> list[Any]:
        """The values that are there by now without having been registered."""
        return []

    def __missing__(self, key: Any) -> Any:
        value = self.make(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(key) or self.make(key) is not None

    def values(self) -> Any:
        return [*super().values(), *self.list_made()]


class _Configs(_Made):
    """Configuration classes by model type."""

    def make(self, key: Any) -> Any:
        if not isinstance(key, str) or not key.startswith("hf_lam_"):
            return None
        if key == "hf_lam_fusion":
            return import_module(_FUSION_CONFIGS).HfLamFusionConfig
        return import_module(_CONFIGS).config_class_of(key)


class _Models(_Made):
    """The model classes of one Auto class by configuration class: one, or several that it chooses from."""

    def __init__(self, registered: dict[Any, Any], auto: str) -> None:
        super().__init__(registered)
        self.auto = auto

    def make(self, key: Any) -> Any:
        # Other copies of this code in the process register their own classes.
        module = {_CONFIGS: _MODELS, _FUSION_CONFIGS: _FUSION_MODELS}.get(getattr(key, "__module__", ""))
        if module is None or self.auto not in key.auto_classes:
            return None
        names = [key.auto_classes[self.auto], *key.alternatives.get(self.auto, ())]
        classes = [getattr(import_module(module), name, None) for name in names]
        made = tuple(model for model in classes if model is not None)
        return made if len(made) > 1 else next(iter(made), None)

    def list_made(self) -> list[Any]:
        modules = [sys.modules[name] for name in (_MODELS, _FUSION_MODELS) if name in sys.modules]
        configs = {getattr(value, "config_class", None) for module in modules for value in list(vars(module).values())}
        return [model for config in configs if (model := self.make(config)) is not None]


class _Processors(_Made):
    """Processors by configuration class."""

    def make(self, key: Any) -> Any:
        if getattr(key, "__module__", None) != _FUSION_CONFIGS:
            return None
        return import_module("hf_lam.modeling.processing_hf_lam").HfLamFusionProcessor

    def list_made(self) -> list[Any]:
        # transformers looks for the name of a processor here once it is in no table of its own.
        return [import_module("hf_lam.modeling.processing_hf_lam").HfLamFusionProcessor]
