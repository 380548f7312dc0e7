# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Changes of somebody else's modules that can be taken back: attributes, and hooks.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import CodeType, MethodType
from typing import Any, NamedTuple

from torch import nn

from .stand_ins_hf_lam import find_forward, place_of_forward, put_forward_back

# The beginning of the names of our hooks.
_PREFIX = "hf_lam."
_TABLES = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
_STATE_TABLES = ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


class Replaced(NamedTuple):
    """An attribute of a module before and after."""

    module: nn.Module
    name: str
    existed: bool
    before: Any
    after: Any

    def take_back(self) -> None:
        """Undo the change. A value that something else has set since stays."""
        if not self._is_ours():
            return
        if self.existed:
            setattr(self.module, self.name, self.before)
        else:
            delattr(self.module, self.name)

    def _is_ours(self) -> bool:
        """Whether an attribute is still what it was changed to, as far as it would do harm without us."""
        now = getattr(self.module, self.name, None)
        # PEFT puts a wrapper in the container's place; a copy of the configuration sends attention to us, too.
        return now is self.after or self.name == "hf_lam" or getattr(now, "hf_lam_dispatches", False)


class Hooked(NamedTuple):
    """A hook of ours on a module."""

    module: nn.Module
    key: str

    def take_back(self) -> None:
        drop_hooks(self.module, [self.key])


class EnteredForward:
    """A module's forward behind hooks that run also where it is called without its module: `module.forward(...)`.

    Args:
        module: the module.
        before: a forward that the instance had already; None without one.
    """

    def __init__(self, module: nn.Module, before: Callable[..., Any] | None) -> None:
        self.module = module
        self.before = before
        self.hooks: dict[str, Callable[..., Any]] = {}

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(MethodType(type(self.module).forward, self.module))

    @property
    def __code__(self) -> CodeType:
        """The code of the original forward, which `torch.export` writes down."""
        return inspect.unwrap(type(self.module).forward).__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self.module:
            args = args[1:]  # accelerate has bound it, to give back a model that it had prepared
        for hook in self.hooks.values():
            entered = hook(self.module, args, kwargs)
            if entered is not None:
                args, kwargs = entered
        if self.before is None:
            return type(self.module).forward(self.module, *args, **kwargs)
        return self.before(*args, **kwargs)


class Entered(NamedTuple):
    """A hook of ours in front of a module's forward."""

    module: nn.Module
    key: str
    forward: EnteredForward

    def take_back(self) -> None:
        """Undo the change. A forward that something else has put around it since stays."""
        self.forward.hooks.pop(self.key, None)
        place = find_forward(self.module, self.forward)
        if not self.forward.hooks and place is not None:
            put_forward_back(self.module, place, self.forward.before)


class Changes:
    """Changes modules and writes down how to undo it.

    undo: list to which a record of each change is appended.
    """

    def __init__(self, undo: list[Any]) -> None:
        self.undo = undo

    def set(self, module: Any, name: str, value: Any) -> None:
        """Give a module an attribute."""
        before = module.__dict__
        self.undo.append(Replaced(module, name, name in before, before.get(name), value))
        setattr(module, name, value)

    def hook_before(self, module: Any, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs)` before each forward."""
        self._hook(module, hook, *_TABLES[:2])

    def enter(self, module: Any, hook: Callable[..., Any]) -> None:
        """The same, and also where `module.forward` is called, as sentence-transformers does."""
        place = place_of_forward(module)
        forward = module.__dict__.get(place)
        if type(forward).__name__ != EnteredForward.__name__:
            forward = EnteredForward(module, forward)
            setattr(module, place, forward)
        forward.hooks[key_of(hook)] = hook
        self.undo.append(Entered(module, key_of(hook), forward))

    def hook_after(self, module: Any, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs, output)` after each forward."""
        self._hook(module, hook, *_TABLES[2:])

    def hook_state(self, module: Any, hook: Callable[..., Any]) -> None:
        """Call `hook(module, …)` before `state_dict` gathers tensors, and before `load_state_dict` looks for them."""
        self._hook_tables(module, hook, _STATE_TABLES)

    def hook_load(self, module: Any, hook: Callable[..., Any]) -> None:
        """Call `hook(module, state_dict, prefix, …)` before `load_state_dict` looks for tensors."""
        self._hook_tables(module, hook, _STATE_TABLES[1:])

    def _hook_tables(self, module: Any, hook: Callable[..., Any], tables: Iterable[str]) -> None:
        key = key_of(hook)
        for table in tables:
            getattr(module, table)[key] = functools.partial(hook, module)
        self.undo.append(Hooked(module, key))

    def _hook(self, module: Any, hook: Callable[..., Any], table: str, with_kwargs: str) -> None:
        # Under a name. `register_forward_hook` numbers all hooks of a process, so that a model would have another
        # pickle, and another hash in `Dataset.map`, each time it is loaded.
        key = key_of(hook)
        getattr(module, table)[key] = hook
        getattr(module, with_kwargs)[key] = True
        self.undo.append(Hooked(module, key))


def key_of(hook: Callable[..., Any]) -> str:
    """The name under which a function, or a partial of one, hangs on a module."""
    function: Any = hook.func if isinstance(hook, functools.partial) else hook
    return _PREFIX + function.__name__


def drop_hooks(module: nn.Module, keys: Iterable[str]) -> None:
    """Take hooks off a module, by their names."""
    for table in (*_TABLES, *_STATE_TABLES):
        for key in keys:
            getattr(module, table).pop(key, None)


def undo_changes(undo: list[Any], modules: Iterable[nn.Module] | None = None) -> None:
    """Take back what was written down, last first: all of it, or what was changed in some modules."""
    chosen = None if modules is None else {id(module) for module in modules}
    kept = []
    for entry in reversed(undo):
        if chosen is None or id(entry.module) in chosen:
            entry.take_back()
        else:
            kept.append(entry)
    undo[:] = reversed(kept)
