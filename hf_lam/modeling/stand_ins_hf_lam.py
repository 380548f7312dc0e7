# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Hands something from a layer to the attention inside it, past modules that take no keyword arguments.

Hosts differ in what their modules pass on: BERT hands every keyword argument down to the attention function, SigLIP's
attention takes them and drops them, and V-JEPA 2's takes none. So none of them is asked to. On the way from a layer to
its self-attention every module, these two included, runs its own forward with a *stand-in* for `self`:

    layer(X, hf_lam_pass=p)    takes p off, and runs   type(layer).forward(stand_in, X)
      stand_in.attention       is the layer's attention, called with `hf_lam_pass=p` added
      stand_in.anything_else   is the layer's own, read and written through

A stack of layers that takes no keyword arguments gets one as well, whose list of layers hands on. So do the modules
between what gets the input and that stack, where they keep keyword arguments to themselves: there the grid of the
input is handed on, as far as the stack.

What the host's forward gives to the attention function as its module is a stand-in, too, with what was handed to it
(`handed_to`). A stand-in lives as long as one call, so threads, recomputation under gradient checkpointing and
`torch.compile` each see their own.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, NamedTuple

from torch import nn

# The keyword argument with which something is handed from module to module.
PASS = "hf_lam_pass"

# Where a module's forward is: that of the instance, if it has one; accelerate puts its own there and keeps this one.
_PLACES = ("_old_forward", "forward")


class StandIn:
    """A module during one call of its forward.

    Args:
        module: the module.
        child: name in this module of the next one on the way to the attention; None in the attention itself.
        handed: values that are handed on.
    """

    def __init__(self, module: nn.Module, child: str | None, handed: Any) -> None:
        own = self.__dict__
        own["_hf_lam_module"] = module
        own["_hf_lam_child"] = child
        own["_hf_lam_handed"] = handed

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__["_hf_lam_module"]
        value = getattr(module, name)
        if name == self._hf_lam_child:
            return _Child(value, self._hf_lam_handed)
        if isinstance(value, MethodType) and value.__self__ is module:
            # `__get__`, since Dynamo does not make a `MethodType`.
            return value.__func__.__get__(self)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._hf_lam_module, name, value)


class _Child:
    """The next module on the way to the attention, called with what is handed to it; or a list of such modules."""

    def __init__(self, module: Any, handed: Any) -> None:
        own = self.__dict__
        own["_hf_lam_module"] = module
        own["_hf_lam_handed"] = handed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._hf_lam_module(*args, **{**kwargs, PASS: self._hf_lam_handed})

    def __len__(self) -> int:
        return len(self._hf_lam_module)

    def __iter__(self) -> Iterator[Any]:
        for module in self._hf_lam_module:
            yield _Child(module, self._hf_lam_handed)

    def __getitem__(self, index: Any) -> Any:
        return _Child(self._hf_lam_module[index], self._hf_lam_handed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_hf_lam_module"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._hf_lam_module, name, value)


# A class of stand-ins for each class of modules. Only in its own class a layer finds what it looks for before it
# checkpoints: `type(self).forward`.
_KINDS: dict[type, type[StandIn]] = {}


def _kind_of(host: type) -> type[StandIn]:
    if host not in _KINDS:
        # Under its name transformers has written down what a model can give out besides.
        names = {name: getattr(host, name) for name in ("forward", "__module__", "__qualname__")}
        _KINDS[host] = type(host.__name__, (StandIn,), names)
    return _KINDS[host]


def handed_to(module: Any) -> Any:
    """Read what was handed to the module that a host gave to the attention function; None if it is no stand-in."""
    # By name: another copy of this code may have made it.
    return getattr(module, "_hf_lam_handed", None)


def hand_again(stand_in: Any, handed: Any) -> Any:
    """A stand-in for the same module with something else to hand on."""
    return type(stand_in)(stand_in._hf_lam_module, stand_in._hf_lam_child, handed)


# --- on modules ------------------------------------------------------------------------------------------------------


class ForwardWithStandIn:
    """A module's forward with a stand-in for `self`, if something is handed to it.

    Args:
        module: the module.
        child: name of the next module on the way to the attention; see `StandIn`.
        before: a forward that the instance had already, its class's own as accelerate keeps it; None without one.
    """

    def __init__(self, module: nn.Module, child: str | None, before: Callable[..., Any] | None) -> None:
        self.module = module
        self.child = child
        self.before = before
        _kind_of(type(module))  # now, and not while a program is traced

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _kind_of(type(self.module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        handed = kwargs.pop(PASS, None)
        forward = type(module).forward if self.before is None else self.before.__func__  # type: ignore[attr-defined]
        if handed is None:
            return forward(module, *args, **kwargs)
        return forward(_kind_of(type(module))(module, self.child, handed), *args, **kwargs)


def put_stand_in(module: nn.Module, child: str | None) -> None:
    """Let a module run with a stand-in, whose next one is `child`."""
    take_off_stand_in(module)
    place = place_of_forward(module)
    setattr(module, place, ForwardWithStandIn(module, child, module.__dict__.get(place)))


def take_off_stand_in(module: nn.Module) -> None:
    """Give a module its own forward back, wherever it lies by now."""
    for place in _PLACES:
        forward: Any = module.__dict__.get(place)
        if _is_ours(forward):
            put_forward_back(module, place, forward.before)


def place_of_forward(module: nn.Module) -> str:
    """The attribute in whose place a forward of ours goes."""
    return _PLACES[0] if hasattr(module, "_hf_hook") and _PLACES[0] in module.__dict__ else _PLACES[1]


def find_forward(module: nn.Module, forward: Any) -> str | None:
    """The attribute where a forward of ours lies by now; None if something has replaced it."""
    return next((place for place in _PLACES if module.__dict__.get(place) is forward), None)


def put_forward_back(module: nn.Module, place: str, before: Callable[..., Any] | None) -> None:
    """Put what was there before in the place of a forward of ours."""
    if before is None and place == "forward":
        del module.forward
    else:
        # Where accelerate came later, it goes on with what it would have found.
        setattr(module, place, MethodType(type(module).forward, module) if before is None else before)


class StoodIn(NamedTuple):
    """A module in which some run with stand-ins, as an entry of what is taken back (`changes_hf_lam.undo_changes`)."""

    module: nn.Module

    def take_back(self) -> None:
        for module in self.module.modules():
            take_off_stand_in(module)


def _is_ours(forward: Any) -> bool:
    # By name: another copy of this code may have put it there.
    return type(forward).__name__ == ForwardWithStandIn.__name__


def explain_no_stand_in(module: nn.Module) -> str | None:
    """Why a module cannot run with a stand-in; None if it can."""
    name = type(module).__name__
    before = module.__dict__.get(place_of_forward(module))
    if not (before is None or _is_ours(before) or getattr(before, "__self__", None) is module):
        return (
            f"something has replaced the forward of {name} ({before!r}), so that hf_lam cannot reach the attention in "
            "it. Attach the mechanisms before that is done."
        )
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return "it lies in a list of modules, of which hf_lam cannot tell the others."
    forward = inspect.unwrap(type(module).forward)
    if "__class__" in forward.__code__.co_freevars:
        return f"{name}.forward calls super(), which hf_lam cannot stand in for."
    return None
