"""A plan as it was written: plain values, and the line that each of them is in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

# Where a value is: the keys that lead to it, and numbers of entries of lists.
Place = tuple[str | int, ...]

# A placeholder without quotes is a map with one key, or no YAML at all.
_UNQUOTED = re.compile(r"(plan|package:.*|row:.*)")
_UNQUOTED_VALUE = re.compile(rf"[:\-,\[]\s*\{{{_UNQUOTED.pattern}\}}")


@dataclass(frozen=True)
class PlanSource:
    """The contents of a plan, with the place of everything in it.

    name: name of the file, for messages.
    folder: folder that relative paths in it start from.
    values: maps, lists, texts, numbers, true, false and null.
    lines: line of every key and entry; empty where there is no file.
    """

    name: str
    folder: Path
    values: dict[str, Any]
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line_of(self, place: Place) -> int | None:
        """The line of a value, or of the nearest that it is in."""
        return next((self.lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in self.lines), None)

    def where(self, place: Place) -> str:
        """`plan.yaml, line 12, rows.lam.mechanism`."""
        line = self.line_of(place)
        return ", ".join(
            [self.name, *([] if line is None else [f"line {line}"]), *([name_of(place)] if place else [])]
        )

    def error(self, place: Place, message: str) -> ValueError:
        """An error that says where it is."""
        return ValueError(f"{self.where(place)}: {message}")


def name_of(place: Place) -> str:
    """`rows.lam.seeds[1]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".")


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.7) -> str:
    """` Did you mean 'x'?`, or nothing where no other name is as like as that."""
    by_lower = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), by_lower, 1, likeness)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def read_source(source: str | os.PathLike[str] | Mapping[str, Any]) -> PlanSource:
    """A plan from a YAML file, or from a mapping with the same keys, whose relative paths start where the process is.

    Raises:
        ValueError: for a file that is not there or is no YAML, keys that stand twice or are no text, and values that
            are neither text nor finite numbers.
    """
    if isinstance(source, Mapping):
        values = _plain(source, (), PlanSource("the plan", Path.cwd(), {}))
        return PlanSource("the plan", Path.cwd(), values)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no plan {str(source)!r}: it must be a YAML file.")
    try:
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: the file is not text in UTF-8 ({error.reason}).") from error
    return _read(path.name, path.resolve().parent, text)


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Plain scalars as YAML 1.2 has them, as `no` is a value of options, and `3e-4` a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, _expression, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    # nan and inf by their other spellings, too: nobody means a text.
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.?(inf|Inf|INF|nan|NaN|NAN)",
        list("-+.0123456789iInN"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_expression})$"), _first)


def _read(name: str, folder: Path, text: str) -> PlanSource:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ValueError(f"{name}: the file is empty. A plan has at least script, metric, seeds and rows.")
        reader = _Reader(name, folder, loader)
        values = reader.value(root, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        hint = _hint(str(error.problem), "" if mark is None else text.splitlines()[mark.line : mark.line + 1])
        raise ValueError(f"{name}{line}: not valid YAML: {error.problem or error.context}.{hint}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ValueError(f"{name}: a plan is a map with script, metric, seeds and rows, got {_kind(values)}.")
    return PlanSource(name, folder, values, reader.lines)


def _hint(problem: str, lines: Sequence[str]) -> str:
    """A hint for a line that is no YAML."""
    if "\\t" in problem:
        return " YAML is indented with spaces, never with tabs."
    return " A text that begins with a brace goes in quotes." if any(map(_UNQUOTED_VALUE.search, lines)) else ""


class _Reader:
    """Values from the nodes of a YAML document, with the lines of all keys and entries."""

    def __init__(self, name: str, folder: Path, loader: _Loader) -> None:
        self.lines: dict[Place, int] = {}
        self.source = PlanSource(name, folder, {}, self.lines)
        self.loader = loader

    def value(self, node: yaml.Node, place: Place, within: tuple[yaml.Node, ...]) -> Any:
        """The value of a node.

        place: place of the node.
        within: the nodes that it is in, in which an alias may lead back.
        """
        if any(node is other for other in within):
            raise self.source.error(place, "this alias (*) is within what it stands for.")
        within = (*within, node)
        if isinstance(node, yaml.MappingNode) and node.flow_style:
            self.check_quotes(node, place)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return {key: self.value(child, (*place, key), within) for key, child in self.pairs(node, place)}
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            for number, child in enumerate(node.value):
                self.note((*place, number), child)
            return [self.value(child, (*place, number), within) for number, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int":
            return int(node.value, 16 if "x" in node.value else 10)
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:float":
            # As Python has it: that of PyYAML knows numbers to the base 60.
            return _plain(float(re.sub(r"\.(?=[inIN])", "", node.value)), place, self.source)
        # Of a tag that is not known, which may be one that makes an object: refused.
        return _plain(self.loader.construct_object(node, deep=True), place, self.source)

    def check_quotes(self, node: yaml.MappingNode, place: Place) -> None:
        """Raises a `ValueError` for a map in braces that is a text without its quotes, or has one with a comma."""
        for key, child in node.value:
            text = str(key.value)
            if not child.value and len(node.value) == 1 and _UNQUOTED.fullmatch(text):
                raise self.source.error(place, f'a text that begins with a brace goes in quotes: "{{{text}}}".')
            if not child.value and text.count(")") > text.count("("):
                raise self.source.error(place, f"a text with a comma goes in quotes, or {text!r} is a key.")

    def pairs(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, yaml.Node]]:
        """The keys and nodes of a map, what `<<` merges into it first."""
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.key_of(key, place)
            if name in first:
                self.note((*place, name), key)
                raise self.source.error(
                    (*place, name), f"{name!r} is there already, in line {first[name].start_mark.line + 1}."
                )
            first[name] = key
        self.loader.flatten_mapping(node)
        # An alias leads here again: then a key must not be there twice for having been merged.
        found = {self.key_of(key, place): (key, child) for key, child in node.value}
        node.value = list(found.values())
        for name, (key, child) in found.items():
            self.note((*place, name), key)
            yield name, child

    def key_of(self, node: yaml.Node, place: Place) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        self.note((*place, ""), node)
        if isinstance(node, yaml.ScalarNode):
            raise self.source.error((*place, ""), f"a key must be text; write {node.value!r} in quotes.")
        raise self.source.error((*place, ""), "a key must be text, not a list or a map; put braces in quotes.")

    def note(self, place: Place, node: yaml.Node) -> None:
        """Note in which line a key or an entry is."""
        self.lines[place] = node.start_mark.line + 1


# --- Values ----------------------------------------------------------------------------------------------------------


def _plain(value: Any, place: Place, source: PlanSource) -> Any:
    """A value as JSON has it; a `ValueError` that says where for one that JSON does not have."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise source.error(place, f"{float(value)} is no number to compare or to write; text goes in quotes.")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise source.error((*place, str(key)), f"a key must be text, got {key!r}.")
        return {str(key): _plain(child, (*place, key), source) for key, child in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(child, (*place, number), source) for number, child in enumerate(value)]
    raise source.error(
        place, f"{value!r} is a {type(value).__name__}; possible are text, numbers, true, false, null, lists and maps."
    )


def _kind(value: Any) -> str:
    names = {dict: "a map", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def check_kind(source: PlanSource, place: Place, value: Any, kind: type, example: str) -> Any:
    """The value, if it is of a kind; else an error with an example of what it would be."""
    if type(value) is not kind:
        expected = _kind(kind())
        raise source.error(place, f"expected {expected}, such as {example}, got {_kind(value)}: {value!r}.")
    return value
