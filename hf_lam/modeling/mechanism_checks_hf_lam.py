# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Checks of a mechanism when it is registered.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .hosts_hf_lam import Host, HostTokens, ModalityTokens
from .mechanism_hf_lam import (
    CHANGES,
    PATTERN,
    REPLACEMENT,
    SCORES,
    Attention,
    LayerInput,
    Mechanism,
    MechanismConfig,
    MechanismContainer,
    PassStart,
    ScoreChange,
)
from .version_hf_lam import LIST_FILE, TRAVELLING_FILES

# The method without which a kind of change does nothing.
_METHODS = {SCORES: "change_scores", PATTERN: "begin", REPLACEMENT: "replace_scores"}

_TOLERANCE = 1e-5

# Modules of hf_lam that the file of a mechanism may import: those before the list, which imports that file in turn.
_SIBLINGS = tuple(name.removesuffix(".py") for name in TRAVELLING_FILES[: TRAVELLING_FILES.index(LIST_FILE)])


def check_classes(name: str, config_class: Any, mechanism_class: Any) -> None:
    """The name and the two classes, without running anything but the configuration's own checks."""
    for given, wanted in ((config_class, MechanismConfig), (mechanism_class, Mechanism)):
        if not inspect.isclass(given) or not issubclass(given, wanted):
            raise TypeError(f"register_mechanism needs a subclass of {wanted.__name__}, got {given!r}.")
    reserved = {"version", *dir(MechanismContainer({}))}
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in reserved:
        raise ValueError(
            f"a mechanism's name is its key in config.json, such as 'temperature': lower-case letters, digits and _, "
            f"and nothing that a torch module has already; got {name!r}."
        )
    parameters = getattr(config_class, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"{config_class.__name__} must be a dataclass that does not change: @dataclass(frozen=True).")
    without = [f.name for f in fields(config_class) if f.default is MISSING and f.default_factory is MISSING]
    if without:
        raise ValueError(f"the options {without} of {config_class.__name__} need defaults.")
    default = config_class()
    try:
        same = config_class.from_dict(json.loads(json.dumps(default.to_dict())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the options of {config_class.__name__} must be JSON values: {error}") from error
    if same != default:
        raise ValueError(
            f"{config_class.__name__} is not what its JSON says: {default} becomes {same}. Use numbers, strings, "
            "lists and dictionaries as options."
        )
    if default.change not in CHANGES:
        raise ValueError(f"{config_class.__name__}.change must be one of {list(CHANGES)}, got {default.change!r}.")
    method = _METHODS[default.change]
    if not overrides_class(mechanism_class, method):
        raise ValueError(
            f"{config_class.__name__} says that it changes {default.change}, for which {mechanism_class.__name__} "
            f"must have its own {method}."
        )


def overrides_class(mechanism_class: type[Mechanism], method: str) -> bool:
    """Whether a class has its own version of a method of `Mechanism`."""
    return getattr(mechanism_class, method) is not getattr(Mechanism, method)


# --- its file --------------------------------------------------------------------------------------------------------


def find_file(kind: Any) -> Path:
    """The file that defines a class, which need not be there: one from a notebook has none."""
    try:
        return Path(inspect.getfile(kind)).absolute()
    except (OSError, TypeError):
        return Path(f"<{kind.__module__}>")


def check_imports(file: Path, mechanism_class: Any) -> None:
    """Whether a file can travel: it lies in one piece, and imports what is there wherever a model is loaded."""
    if not file.is_file():
        raise ValueError(
            f"{mechanism_class.__name__} is defined in no file ({file}), so saved models could not take it along. Put "
            "it into a Python file of its own and import that."
        )
    if find_file(mechanism_class) != file:
        raise ValueError(
            f"{mechanism_class.__name__} is defined in {find_file(mechanism_class)}, and its configuration in "
            f"{file}; put both into one file, which travels with saved models."
        )
    if not file.stem.isidentifier() or file.name in TRAVELLING_FILES:
        raise ValueError(f"{file.name} cannot lie beside the files of hf_lam in a model's folder; rename it.")
    source = file.read_text(encoding="utf-8")
    for statement, problem in find_import_problems(source):
        raise ValueError(
            f"{file}, line {statement.lineno}: {ast.unparse(statement)!r} {problem}. The file travels with saved "
            "models, where there are torch, transformers, the standard library, and of hf_lam its public names of "
            "mechanisms and hf_lam.modeling."
        )
    _check_lines(file, source)


def _check_lines(file: Path, source: str) -> None:
    """Whether imports are found where they are looked for: by lines when the file is copied, and by transformers."""
    lines = source.splitlines()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        around = lines[node.lineno - 1][: node.col_offset] + lines[(node.end_lineno or 0) - 1][node.end_col_offset :]
        if around.partition("#")[0].strip():
            raise ValueError(f"{file}, line {node.lineno}: {ast.unparse(node)!r} needs lines of its own.")
    # transformers looks for the files that belong to one with a regular expression, in docstrings, too.
    in_code = {node.lineno for node in imports}
    for number, line in enumerate(lines, 1):
        if re.match(r"\s*(from|import)\s+\.", line) and number not in in_code:
            raise ValueError(f"{file}, line {number}: {line.strip()!r} reads like an import, but is part of a text.")


def find_import_problems(source: str) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a source that a saved model cannot count on, and why."""
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                problem = _problem_of(alias.name.partition(".")[0], [])
                if problem:
                    yield statement, problem
        elif isinstance(statement, ast.ImportFrom) and statement.level:
            if statement.level > 1 or statement.module not in _SIBLINGS:
                yield statement, "imports a file that does not travel, or that imports all mechanisms itself"
        elif isinstance(statement, ast.ImportFrom):
            module, names = str(statement.module), [alias.name for alias in statement.names]
            package, _, stem = module.rpartition(".")
            is_sibling = package == "hf_lam.modeling" and stem in _SIBLINGS
            problem = None if is_sibling else _problem_of(module, names)
            if problem:
                yield statement, problem


def _problem_of(module: str, names: list[str]) -> str | None:
    root = module.partition(".")[0]
    if root in ("torch", "transformers") or root in sys.stdlib_module_names:
        return None
    if root != "hf_lam":
        return f"needs {root}"
    if module != "hf_lam" or not names:
        return "needs hf_lam itself; write: from hf_lam import the names you use"
    unknown = [name for name in names if travelling_module_of(name) is None]
    if not unknown:
        return None
    return f"imports {', '.join(unknown)}, which does not travel, or needs all mechanisms itself"


def travelling_module_of(name: str) -> str | None:
    """The file, without its ending, that defines a public name of hf_lam, if a mechanism's file may import it."""
    public = getattr(sys.modules.get("hf_lam"), name, None)
    stem = str(getattr(public, "__module__", "")).removeprefix("hf_lam.modeling.")
    return stem if stem in _SIBLINGS else None


# --- what it does ----------------------------------------------------------------------------------------------------


def _toys() -> Iterator[tuple[Host, PassStart, Tensor]]:
    """Small encoders of an image, a video, a text and several modalities, what they begin with, and their tokens."""
    lengths = (3, 4)
    tokens = (
        HostTokens("an image encoder", 7, 1, (2, 3)),
        HostTokens("a video encoder", 8, 0, (2, 2, 2), 2),
        HostTokens("a text encoder", 7, token_types=2),
        HostTokens("a fusion model", 7, modalities=("text", "image"), modality_lengths=lengths),
    )
    for made in tokens:
        hidden_states = torch.randn(2, made.length or 0, 8)
        types = (torch.arange(made.length or 0) > 2).long()[None] if made.token_types else None
        modalities = ModalityTokens(lengths, torch.ones(2, 2, dtype=torch.bool)) if made.modalities else None
        yield Host(made.host, 8, 2, 4, 2, 0.02, made), PassStart(types, modalities, made.grid or None), hidden_states


def check_behaviour(config_class: Any, mechanism_class: Any) -> None:
    """Run a mechanism with its defaults on a small encoder that it fits: does it do what it says?"""
    misfits = []
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        for host, start, hidden_states in _toys():
            try:
                config = config_class().resolve(host)
            except ValueError as error:
                misfits.append(f"{host.name}: {error}")
                continue
            _check_on(config, mechanism_class(config, host).eval(), host, start, hidden_states)
            return
    raise ValueError(f"the defaults of {config_class.__name__} fit no encoder: {'; '.join(misfits)}")


# Parts of names that transformers renames in checkpoints, wherever in a name they stand.
_RENAMED = {"attention", "layer", "layers", "query", "key", "value", "output", "dense", "intermediate", "mlp"}


def _check_on(config: Any, mechanism: Mechanism, host: Host, start: PassStart, hidden_states: Tensor) -> None:
    name = type(mechanism).__name__
    renamed = sorted(key for key in mechanism.state_dict() if _RENAMED & set(key.split(".")))
    if renamed:
        raise ValueError(
            f"{name} has a weight {renamed[0]!r}, and transformers renames {sorted(_RENAMED)} in checkpoints. Give "
            "the attribute another name."
        )
    unwritten = _reset(mechanism)
    if unwritten:
        raise ValueError(
            f"{name} has a weight {unwritten[0]!r} that no reset_parameters writes, so in a model that is loaded it "
            "could hold any number. Write it with a function of transformers.initialization."
        )
    try:
        layers = range(host.num_layers)
        difference = max(_measure_change(config, mechanism, host, start, hidden_states, layer) for layer in layers)
    except Exception as error:
        raise ValueError(f"{name} fails on {host.name} with its defaults: {type(error).__name__}: {error}") from error
    if not difference <= _TOLERANCE and config.explain_change("the model") is None:
        raise ValueError(
            f"with its defaults {type(config).__name__} changes attention before any training, by up to "
            f"{difference:.3g} on {host.name}. Start from a factor of 1 and an addend of 0, or say in explain_change "
            "why it does not."
        )


def _reset(mechanism: Mechanism) -> list[str]:
    """Give all weights their values anew, as loading does; the names of those that stay as they were."""
    tensors = {**dict(mechanism.named_parameters()), **dict(mechanism.named_buffers())}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    module: Any
    # Children first, as loading does: a parent may write what its `nn.Linear`s drew.
    for module in reversed(list(mechanism.modules())):
        # transformers passes over modules that have none themselves.
        has_own = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if has_own and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return [name for name, tensor in tensors.items() if tensor.isnan().any()]


def _measure_change(
    config: Any, mechanism: Mechanism, host: Host, start: PassStart, hidden_states: Tensor, layer: int
) -> float:
    """The distance of attention with a mechanism from attention without."""
    batch, length, _ = hidden_states.shape
    query, key, value = torch.randn(3, batch, host.num_heads, length, host.head_size)
    plain = scaled_dot_product_attention(query, key, value)
    begun = mechanism.begin(start)
    state = mechanism.make_state(hidden_states, begun) if config.needs_embeddings else None
    given = LayerInput(layer, hidden_states, begun, state, None)
    attention = Attention(None, layer, hidden_states, query, key, value, None, None, 0.0, "eager", False)
    if config.change == PATTERN:
        context = begun.attend(attention, ScoreChange())[0]
    elif config.change == REPLACEMENT:
        context = mechanism.replace_scores(given).attend(attention)[0]
    else:
        context = _attend_changed(query, key, value, mechanism.change_scores(given))
    if context.shape != plain.shape:
        raise ValueError(f"the context must be {tuple(plain.shape)}, got {tuple(context.shape)}")
    if not isinstance(mechanism.count_flops(layer, batch, length), int):
        raise ValueError("count_flops must return an integer")
    return float((context - plain).abs().max())


def _attend_changed(query: Tensor, key: Tensor, value: Tensor, change: ScoreChange) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    shape = scores.shape
    for part in (change.factor, change.addend):
        if part is not None and torch.broadcast_shapes(part.shape, shape) != shape:
            raise ValueError(f"factor and addend must be broadcastable to {tuple(shape)}, got {tuple(part.shape)}")
    scores = scores if change.factor is None else scores * change.factor
    scores = scores if change.addend is None else scores + change.addend
    return scores.softmax(-1) @ value
