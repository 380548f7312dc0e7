"""Options of rows: how those of one row go over those of another, and what varying them gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from .plan_source import Place


@dataclass(frozen=True)
class Options:
    """Options of a script, and where in the plan each of them is written.

    values: values by name; maps within them are options of their own.
    places: place of each option in the plan, by the keys that lead to it.
    """

    values: dict[str, Any]
    places: Mapping[Place, Place]

    def over(self, base: Options) -> Options:
        """These options over others: maps are merged, all else is replaced, null removes."""
        return Options(merge(base.values, self.values), {**base.places, **self.places})

    def place_of(self, option: Place, otherwise: Place) -> Place:
        """The place where an option is written, or the nearest one that it is in."""
        ways = (option[:end] for end in range(len(option), 0, -1))
        return next((self.places[way] for way in ways if way in self.places), otherwise)


def options_at(place: Place, values: dict[str, Any]) -> Options:
    """The options that are written at a place."""
    return Options(values, {keys: (*place, *keys) for keys in _keys_within(values)})


def varied_options(name: str, value: Any, place: Place, base: Options) -> Options:
    """One option by its dotted name, to go over `base`; all of it is written at one place.

    Raises:
        ValueError: if it is within an option that is no map.
    """
    values = nested(name, value, base.values)
    return Options(values, {keys: place for keys in _keys_within(values)})


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` over `base`: maps are merged, all else is replaced, null removes.

    Within maps, a null with nothing to remove stays: it may be what an option of the map is set to.
    """
    return {name: value for name, value in _merge_maps(base, over).items() if value is not None}


def _merge_maps(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if value is None and key in result:
            del result[key]
        elif isinstance(value, Mapping):
            result[key] = _merge_maps(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def nested(name: str, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": value}}` for `a.b`; a script may have options whose names have dots, too.

    Raises:
        ValueError: if `a` is among the options, and no map.
    """
    first, _, rest = name.partition(".")
    if not rest or name in options:
        return {name: value}
    below = options.get(first, {})
    if not isinstance(below, Mapping):
        raise ValueError(f"{first!r} is no map here but {below!r}, so it has no {rest!r}.")
    return {first: nested(rest, value, below)}


def points_of(vary: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of values, the last option the quickest; one empty point where nothing is varied."""
    return [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]


def name_of_point(name: str, point: Mapping[str, Any], all_options: Iterable[str]) -> str:
    """`lam, rank=8`: the name of a row at a point.

    all_options: options that are varied for the row. A dotted name is shortened to its last part if no other option
        ends in it.
    """
    last = [option.rpartition(".")[2] for option in all_options]
    parts = []
    for option, value in point.items():
        short = option.rpartition(".")[2]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        parts.append(f"{short if last.count(short) == 1 else option}={text}")
    return ", ".join([name, *parts])


def texts_in(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """All texts in a value, with their places."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, (list, Mapping)):
        for key, child in enumerate(value) if isinstance(value, list) else value.items():
            yield from texts_in(child, (*place, key))


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them: maps, and lists of them, as JSON; null and empty lists are left out."""
    line: list[str] = []
    for name, value in options.items():
        if isinstance(value, list) and all(isinstance(entry, (str, int, float)) for entry in value):
            line += [f"--{name}", *map(_text, value)] if value else []
        elif value is not None:
            # Joined, so that a value that begins with a dash is no option.
            line.append(f"--{name}={_text(value)}")
    return line


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _keys_within(values: Mapping[str, Any], above: Place = ()) -> Iterator[Place]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _keys_within(value, (*above, key))
