"""The rows of a plan: what each takes over from others, at every point that is varied, and which runs it needs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .placeholders import Run, fill, rows_in
from .plan_options import Options, name_of_point, options_at, points_of, texts_in, varied_options
from .plan_source import Place, PlanSource, check_kind, did_you_mean

# What every run is given; a plan may give other values, or null for an option that its script does not have.
ADDED: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "data_seed": "{seed}",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "log_level": "error",
}

# Options that rows must not set, and where they are given instead.
_NOT_OF_A_PLAN = {
    "output_dir": "it is given for the whole comparison",
    "seed": "give seeds, for all rows",
    "do_predict": "the test data are for the end: ask for them when the plan is run",
    "record_run": "every run is recorded",
    "check_only": "all rows are checked before the first run",
}
_LONGEST_SLUG = 80


@dataclass(frozen=True)
class Row:
    """A row of the comparison: options of the script, run once for every seed.

    name: name of the row and the point at which it is varied: `lam, rank=8, max_train_samples=1000`.
    slug: its name as that of a folder.
    group: its name without what the plan varies of all rows: `lam, rank=8`.
    written: its name in the plan: `lam`.
    point: values of the options that the plan varies for all rows.
    options: options of the script, with placeholders not filled in; null for one of `ADDED` that is left out.
    targets: row at the same point for every name in a `{row:NAME}`.
    line: line of the file that it is written in; None without a file.
    lines: lines of its options, by their dotted names.
    """

    name: str
    slug: str
    group: str
    written: str
    point: Mapping[str, Any]
    options: Mapping[str, Any]
    targets: Mapping[str, str] = field(default_factory=dict)
    line: int | None = None
    lines: Mapping[str, int] = field(default_factory=dict)

    @property
    def uses(self) -> tuple[str, ...]:
        """The names of the rows whose runs of the same seed come first."""
        return tuple(dict.fromkeys(self.targets.values()))

    def line_of(self, option: str) -> int | None:
        """The line of an option by its dotted name, or of the nearest that it is in; None without a file."""
        parts = option.split(".")
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self.lines[name] for name in names if name in self.lines), self.line)


@dataclass(frozen=True)
class _Written:
    """A row as it is written, with what it takes over: its options, what is varied of them, and where that stands."""

    name: str
    own: dict[str, Any]
    options: Options
    vary: Mapping[str, list[Any]]
    vary_place: Place

    @property
    def place(self) -> Place:
        return ("rows", self.name)


def read_rows(source: PlanSource) -> tuple[Row, ...]:
    """All rows of a plan.

    Raises:
        ValueError: for an invalid plan, with the line.
    """
    rows = _map_at(source, ("rows",), "full: {}")
    if not rows:
        raise source.error(("rows",), "there are no rows.")
    for name in rows:
        _check_name(source, name)
    arguments = _map_at(source, ("arguments",), "data_dir: ./data")
    _check_options(source, ("arguments",), arguments)
    vary = _vary_at(source, ("vary",))
    written = _read_written(source, rows, options_at(("arguments",), arguments).over(Options(ADDED, {})))
    expanded = [row for each in written for row in _expand(source, each, vary)]
    _check_unique(source, [row for row, _ in expanded])
    named = _with_slugs([row for row, _ in expanded])
    return _with_targets(source, named, [options for _, options in expanded])


def check_option(source: PlanSource, place: Place, name: str) -> None:
    """Raises a `ValueError` for what cannot be the name of an option in a plan."""
    plain = name.partition(".")[0].replace("-", "_")
    if name.startswith("-"):
        raise source.error(place, f"write {name.lstrip('-')!r}: options are named without dashes before them.")
    if not name or re.search(r"[\s=]", name):
        raise source.error(place, f"{name!r} cannot be the name of an option.")
    if plain in _NOT_OF_A_PLAN:
        raise source.error(place, f"a plan does not say {name!r}: {_NOT_OF_A_PLAN[plain]}.")


def check_values(source: PlanSource, place: Place, values: Any) -> list[Any]:
    """Values that an option takes in turn: a list that is not empty, and none of them twice."""
    values = check_kind(source, place, values, list, "[1, 2]")
    if not values:
        raise source.error(place, "the list is empty; name the values.")
    for number, value in enumerate(values):
        # 1 and true are equal for Python.
        if any(type(value) is type(other) and value == other for other in values[:number]):
            raise source.error((*place, number), f"{value!r} is there twice.")
    return values


# --- As they are written ---------------------------------------------------------------------------------------------


def _map_at(source: PlanSource, place: Place, example: str) -> dict[str, Any]:
    """The map at a place; nothing, or nothing after the colon, is an empty one."""
    value: Any = source.values
    for key in place:
        value = None if value is None else value.get(key)
    return {} if value is None else check_kind(source, place, value, dict, f"{{{example}}}")


def _vary_at(source: PlanSource, place: Place) -> dict[str, list[Any]]:
    vary = _map_at(source, place, "learning_rate: [0.001, 0.0001]")
    for name, values in vary.items():
        if name in ("as", "vary"):
            raise source.error((*place, name), f"{name!r} is no option of the script.")
        check_option(source, (*place, name), name)
        check_values(source, (*place, name), values)
    return vary


def _check_name(source: PlanSource, name: str) -> None:
    if not name or name != name.strip() or re.search(r"[{}\n\r\t]", name):
        raise source.error(
            ("rows", name), f"{name!r} cannot name a row: it has braces, line breaks or blanks at an end."
        )


def _check_options(source: PlanSource, place: Place, options: Mapping[str, Any]) -> None:
    for name in options:
        if place == ("arguments",) and name in ("as", "vary"):
            raise source.error((*place, name), f"{name!r} is said of a row, not of the arguments of all.")
        if name not in ("as", "vary"):
            check_option(source, (*place, name), name)


def _read_written(source: PlanSource, rows: Mapping[str, Any], arguments: Options) -> list[_Written]:
    done: dict[str, _Written] = {}

    def read(name: str, way: tuple[str, ...]) -> _Written:
        place = ("rows", name)
        if name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            raise source.error(("rows", way[-1], "as"), f"these rows begin with each other: {circle}.")
        if name not in done:
            row = _map_at(source, place, "mechanism: lam")
            _check_options(source, place, row)
            base = None
            if row.get("as") is not None:
                other = check_kind(source, (*place, "as"), row["as"], str, repr(next(iter(rows))))
                if other not in rows:
                    raise source.error((*place, "as"), f"there is no row {other!r}{_choice(other, rows)}")
                base = read(other, (*way, name))
            own = {key: value for key, value in row.items() if key not in ("as", "vary")}
            options = options_at(place, own).over(arguments if base is None else base.options)
            vary_place = (*place, "vary") if base is None or "vary" in row else base.vary_place
            vary = _vary_at(source, vary_place)
            done[name] = _Written(name, own, options, vary, vary_place)
        return done[name]

    return [read(name, ()) for name in rows]


# --- At every point --------------------------------------------------------------------------------------------------


def _expand(source: PlanSource, written: _Written, vary: Mapping[str, list[Any]]) -> list[tuple[Row, Options]]:
    """A row at every point of what it varies itself and of what the plan varies of all, with its options there."""
    _check_varied(source, written, vary)
    rows = []
    all_varied = [*written.vary, *vary]
    for own in points_of(written.vary):
        group = name_of_point(written.name, own, all_varied)
        for point in points_of(vary):
            options = _at_point(source, written.options, own, written.vary_place)
            options = _at_point(source, options, point, ("vary",))
            _check_spellings(source, written.place, options)
            _check_placeholders(source, written.place, options)
            places = {".".join(map(str, option)): source.line_of(place) for option, place in options.places.items()}
            row = Row(
                name=name_of_point(group, point, all_varied),
                slug="",
                group=group,
                written=written.name,
                point=point,
                options=_without_added(options.values),
                line=source.line_of(written.place),
                lines={option: line for option, line in places.items() if line is not None},
            )
            rows.append((row, options))
    return rows


def _check_varied(source: PlanSource, written: _Written, vary: Mapping[str, list[Any]]) -> None:
    for name in vary:
        if name in written.vary:
            raise source.error((*written.vary_place, name), f"the plan varies {name!r} of every row already.")
        if _has(written.own, name):
            raise source.error(
                (*written.place, *name.split(".")),
                f"the plan varies {name!r} of every row, so that none can have a value of its own.",
            )
    maps = [name for name, value in written.options.values.items() if isinstance(value, Mapping)]
    for place, name in [*((("vary",), x) for x in vary), *((written.vary_place, x) for x in written.vary)]:
        first, _, rest = name.partition(".")
        # A map that the row does not have begins empty, unless it is a slip of the pen.
        hint = did_you_mean(first, maps, 0.85) if rest and first not in written.options.values else ""
        if hint:
            raise source.error((*place, name), f"the row {written.name!r} has no {first!r}.{hint}")


def _has(options: Mapping[str, Any], name: str) -> bool:
    if name in options:
        return True
    first, _, rest = name.partition(".")
    below = options.get(first)
    return bool(rest) and isinstance(below, Mapping) and _has(below, rest)


def _at_point(source: PlanSource, options: Options, point: Mapping[str, Any], place: Place) -> Options:
    for name, value in point.items():
        try:
            options = varied_options(name, value, (*place, name), options).over(options)
        except ValueError as error:
            raise source.error((*place, name), str(error)) from error
    return options


def _without_added(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without what every run is given, and with null for what of that is left out."""
    changed = {name: value for name, value in options.items() if name not in ADDED or value != ADDED[name]}
    return {**{name: None for name in ADDED if name not in options}, **changed}


def _check_spellings(source: PlanSource, place: Place, options: Options) -> None:
    spelled: dict[str, str] = {}
    for name in options.values:
        other = spelled.setdefault(name.replace("-", "_"), name)
        if other != name:
            where = options.place_of((name,), place)
            raise source.error(where, f"the row has {other!r} too, which is the same option.")


def _check_placeholders(source: PlanSource, place: Place, options: Options) -> None:
    for option, text in texts_in(options.values, ()):
        try:
            fill(text, source.folder, Run(0, str))
        except ValueError as error:
            raise source.error(options.place_of(option, place), str(error)) from error


# --- Together --------------------------------------------------------------------------------------------------------


def _check_unique(source: PlanSource, rows: Sequence[Row]) -> None:
    for name, count in Counter(row.name for row in rows).items():
        if count > 1:
            last = [row for row in rows if row.name == name][-1]
            raise source.error(("rows", last.written), f"two rows would be called {name!r}; rename one.")


def _with_slugs(rows: Sequence[Row]) -> list[Row]:
    """The rows with names for their folders, which tell them apart on every file system."""
    slugs = [re.sub(r"[^\w.+-]+", "-", row.name).strip("-.") for row in rows]
    how_often = Counter(slug.casefold() for slug in slugs)
    named = []
    for row, slug in zip(rows, slugs, strict=True):
        if not slug or how_often[slug.casefold()] > 1 or len(slug.encode()) > _LONGEST_SLUG:
            short = slug.encode()[: _LONGEST_SLUG - 9].decode(errors="ignore")
            slug = f"{short}-{hashlib.sha256(row.name.encode()).hexdigest()[:8]}".lstrip("-")
        named.append(replace(row, slug=slug))
    return named


def _with_targets(source: PlanSource, rows: Sequence[Row], options: Sequence[Options]) -> tuple[Row, ...]:
    """The rows, each with the rows that the placeholders in its options mean."""
    found = []
    for row, its in zip(rows, options, strict=True):
        targets = {}
        for option, text in texts_in(its.values, ()):
            for name in rows_in(text):
                targets[name] = _target(source, its.place_of(option, ("rows", row.written)), row, name, rows)
        found.append(replace(row, targets=targets))
    _check_circles(source, found)
    return tuple(found)


def _target(source: PlanSource, place: Place, row: Row, name: str, rows: Sequence[Row]) -> str:
    """The name of the row that `{row:name}` means in an option of `row`."""
    at_point = [other for other in rows if other.point == row.point]
    exact = [other for other in rows if other.name == name] or [other for other in at_point if other.group == name]
    named = exact or [other for other in at_point if other.written == name]
    if len(named) > 1:
        # Both vary the same, as a row does that begins with another.
        suffix = row.group.removeprefix(row.written)
        named = [other for other in named if other.group == name + suffix] or named
    if not named:
        groups = dict.fromkeys(other.group for other in rows)
        raise source.error(place, f"there is no row {name!r}{_choice(name, groups)}")
    if len(named) > 1:
        raise source.error(place, f"{name!r} is {len(named)} rows; say which of {_list(x.group for x in named)}.")
    return named[0].name


def _check_circles(source: PlanSource, rows: Sequence[Row]) -> None:
    by_name = {row.name: row for row in rows}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            needs = "a row cannot need its own run" if way[-1] == name else "these rows need each other's runs"
            raise source.error(("rows", by_name[way[-1]].written), f"{needs}: {circle}.")
        if name not in done:
            for other in by_name[name].uses:
                walk(other, (*way, name))
            done.add(name)

    for row in rows:
        walk(row.name, ())


def _choice(name: str, names: Any) -> str:
    """The end of an error about a row that is not there."""
    return f"; the rows are {_list(names)}.{did_you_mean(name, names)}"


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
