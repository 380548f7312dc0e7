"""Results as tables: text for a terminal, HTML for a notebook."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Letters of a column of texts; longer ones are broken into lines.
_LONGEST_TEXT = 48
_STYLE = {
    "table": "border-collapse: collapse; margin: 0.4em 0; font-variant-numeric: tabular-nums",
    "heading": "padding: 2px 10px; border-bottom: 1px solid #888; vertical-align: bottom",
    "cell": "padding: 2px 10px; vertical-align: top",
    "total": "padding: 2px 10px; border-top: 1px solid #888; font-weight: bold",
}


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand at its right."""

    heading: str
    is_number: bool = True


@dataclass(frozen=True)
class ResultTable:
    """A table, with what stands above and below it.

    columns: none where there is nothing but lines.
    rows, totals: a cell for every column; a line parts the two.
    """

    title: str
    columns: Sequence[Column] = ()
    rows: Sequence[Sequence[str]] = ()
    totals: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def to_text(self) -> str:
        """Lines for a terminal."""
        lines = [*map(printable, self.title.splitlines())]
        if self.columns:
            cells = [[_broken(cell) for cell in row] for row in (*self.rows, *self.totals)]
            headings = [column.heading for column in self.columns]
            every = [[[heading] for heading in headings], *cells]
            widths = [max(len(line) for row in every for line in row[place]) for place in range(len(headings))]
            rule = "  ".join("─" * width for width in widths)
            lines += [*self._lines_of(every[0], widths), rule]
            for index, row in enumerate(cells):
                if index == len(self.rows):
                    lines.append(rule)
                lines += self._lines_of(row, widths)
        return "\n".join([*lines, *map(printable, self.notes)])

    def _lines_of(self, row: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
        """The lines of a row, whose cells may have several."""
        lines = []
        for number in range(max(map(len, row))):
            parts = [cell[number] if number < len(cell) else "" for cell in row]
            aligned = [
                part.rjust(width) if column.is_number else part.ljust(width)
                for part, width, column in zip(parts, widths, self.columns, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
        return lines

    def to_html(self) -> str:
        """The same as HTML; texts are escaped."""
        parts = [f"<div><strong>{_html(self.title)}</strong></div>" if self.title else ""]
        if self.columns:
            parts.append(f'<table style="{_STYLE["table"]}"><thead><tr>')
            for column in self.columns:
                parts.append(f'<th style="{_STYLE["heading"]}{_side(column)}">{_html(column.heading)}</th>')
            parts.append("</tr></thead><tbody>")
            for kind, rows in (("cell", self.rows), ("total", self.totals)):
                for row in rows:
                    cells = zip(self.columns, row, strict=True)
                    style = _STYLE[kind]
                    parts.append("<tr>")
                    parts += [f'<td style="{style}{_side(column)}">{_html(cell)}</td>' for column, cell in cells]
                    parts.append("</tr>")
            parts.append("</tbody></table>")
        parts += [f"<div>{_html(note)}</div>" for note in self.notes]
        return "".join(parts)


class Readable(ABC):
    """Results that print as tables, in a notebook too; their `repr` and their values stay what they are."""

    @abstractmethod
    def tables(self) -> Sequence[ResultTable]:
        """The tables that are shown."""

    def __str__(self) -> str:
        return "\n\n".join(table.to_text() for table in self.tables())

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # IPython asks a class for this, then for its `__repr__`, which dataclasses have, and only then what it is of.
        cls._repr_pretty_ = Readable._repr_pretty_  # type: ignore[method-assign]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("…" if cycle else str(self))

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self.tables())


def count_each(texts: Iterable[str]) -> str:
    """Count every text: `6 self, 6 cross:a-b`."""
    return ", ".join(f"{number} {text}" for text, number in Counter(texts).items())


def printable(text: str) -> str:
    """Names may come from anybody's files: they must not give orders to a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _broken(cell: str) -> list[str]:
    return textwrap.wrap(printable(cell), _LONGEST_TEXT) or [""]


def _html(text: str) -> str:
    return "<br>".join(escape(printable(line)) for line in text.splitlines())


def _side(column: Column) -> str:
    return f"; text-align: {'right' if column.is_number else 'left'}"
