"""Results as tables: markdown for people, LaTeX for papers."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..result_tables import Column, ResultTable
from .statistics import FEWEST_SEEDS, NOT_TOLD_APART, TOO_FEW_SEEDS, note_on_chance
from .summaries import Metric, RowSummary, Summary, failures, summarize, unit_of_flops, where_timed

_MINUS, _NOTHING = "−", "–"
# Failures that are named; further ones are counted.
_MOST_FAILURES = 20


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: Mapping[str, str]  # by the name of the row; rows without a value are missing
    is_text: bool = False


@dataclass(frozen=True)
class _Document:
    """The contents that both kinds of tables are written from.

    sections: title and rows for every point that varies, the rows as cells in the order of the columns.
    bold: names of rows whose metric is told apart from all others of their section.
    """

    title: str | None
    columns: Sequence[_Column]
    sections: Sequence[tuple[str, Sequence[RowSummary]]]
    bold: frozenset[str]
    notes: Sequence[str]


def markdown_table(results: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """Write the results as markdown: one table for every value of what varies, and notes below.

    Every row has its metric as mean ± standard deviation (number of seeds), bold if the row is told apart from all
    others; the difference from the baseline, seed by seed, with an interval of 95 %; and parameters, FLOPs and times.
    The metric is that of the test data once they were used, and that of the validation data before. Columns without
    values are left out. Failed runs are named with their reasons.

    Args:
        results: contents of `results.json`.
        times: contents of `times.json`; an empty mapping where nothing was measured.
    """
    document = _document(results, times)
    lines = [f"## {_markdown(document.title)}", ""] if document.title else []
    for title, rows in document.sections:
        if title:
            lines += [f"### {_markdown(title)}", ""]
        lines.append(_markdown_line(["", *(column.heading for column in document.columns)]))
        lines.append("| --- |" + "".join(" --- |" if column.is_text else " ---: |" for column in document.columns))
        for row in rows:
            cells = [_markdown(column.cells.get(row.name, _NOTHING)) for column in document.columns]
            if row.name in document.bold:
                cells[0] = f"**{cells[0]}**"
            lines.append("| " + " | ".join([_markdown(row.group), *cells]) + " |")
        lines.append("")
    lines += [f"- {_markdown(note)}" for note in document.notes]
    return "\n".join(lines) + "\n"


def result_tables(results: Mapping[str, Any], times: Mapping[str, Any]) -> list[ResultTable]:
    """The same for a terminal and for a notebook; the row that is told apart from all others has an asterisk."""
    document = _document(results, times)
    columns = [Column("", is_number=False), *(Column(x.heading, not x.is_text) for x in document.columns)]
    tables = []
    for title, rows in document.sections:
        cells = [[row.group, *(column.cells.get(row.name, _NOTHING) for column in document.columns)] for row in rows]
        for row, its in zip(rows, cells, strict=True):
            its[1] += " *" if row.name in document.bold else ""
        tables.append(ResultTable(": ".join(filter(None, (document.title, title))), columns, cells))
    winner = ["* told apart from all other rows"] if document.bold else []
    return [*tables[:-1], replace(tables[-1], notes=[*winner, *document.notes])] if tables else []


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_markdown, cells)) + " |"


def _markdown(text: str) -> str:
    """The text with what markdown would read otherwise escaped; an underscore within a word it leaves alone."""
    return re.sub(r"[\\`*|<~]|(?<!\w)_|_(?!\w)|\](?=\()", r"\\\g<0>", " ".join(text.split()))


def latex_table(results: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    r"""The results as a LaTeX `table`, with what the markdown shows; it needs `\usepackage{booktabs,graphicx}`."""
    document = _document(results, times)
    columns = "l" + "".join("l" if column.is_text else "r" for column in document.columns)
    width = len(document.columns) + 1
    lines = [r"\begin{table}", r"\centering"]
    if document.title:
        lines.append(rf"\caption{{{_latex(document.title)}}}")
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(_latex_line(["", *(column.heading for column in document.columns)]))
    for title, rows in document.sections:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_latex(title)}}}}} \\")
        for row in rows:
            cells = [_latex(column.cells.get(row.name, _NOTHING)) for column in document.columns]
            if row.name in document.bold:
                cells[0] = rf"\textbf{{{cells[0]}}}"
            lines.append(" & ".join([_latex(row.group), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if document.notes:
        notes = r" \\ ".join(map(_latex, document.notes))
        lines.append(rf"\par\medskip\parbox{{\linewidth}}{{\footnotesize {notes}}}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    _MINUS: "$-$",
    _NOTHING: "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}


def _latex(text: str) -> str:
    # A bracket that begins a cell would be read as an option of the `\\` before it.
    escaped = "".join(_LATEX.get(sign) or _greek(sign) or sign for sign in " ".join(text.split()))
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped


def _greek(sign: str) -> str | None:
    """The command of a small Greek letter, which pdflatex has no glyph for; None for anything else."""
    words = unicodedata.name(sign, "").split()
    if words[:3] != ["GREEK", "SMALL", "LETTER"] or len(words) != 4:
        return None
    return rf"$\{words[3].lower().replace('lamda', 'lambda')}$"


def _document(results: Mapping[str, Any], times: Mapping[str, Any]) -> _Document:
    summary = summarize(results, times)
    return _Document(
        summary.title,
        [column for column in _columns(summary) if column.cells],
        [(point.title, point.rows) for point in summary.points],
        frozenset(point.winner for point in summary.points if point.winner is not None),
        list(_notes(summary, results)),
    )


def _columns(summary: Summary) -> Iterator[_Column]:
    metric, rows = summary.metric, summary.rows
    decimals = _decimals(metric, rows)
    yield _Column(f"{metric.name} (n)", _cells(rows, _mean_and_deviation, decimals))
    yield _Column(f"difference from {summary.baseline}", _cells(rows, _difference, decimals))
    verdicts = _cells(rows, _verdict)
    # Where it is the same for all, a note says so.
    yield _Column("verdict", verdicts if set(verdicts.values()) - {TOO_FEW_SEEDS} else {}, is_text=True)
    for option in dict.fromkeys(option for row in rows for option in row.found):
        yield _Column(option, _cells(rows, _found, option))
    yield _Column("parameters", _cells(rows, _count, "parameters"))
    for heading, name, ordinary in (
        ("trained", "trainable_parameters", "parameters"),
        ("added", "mechanism_parameters", ""),
    ):
        says = any(row.costs[name] != row.costs.get(ordinary, 0) for row in rows if name in row.costs)
        yield _Column(heading, _cells(rows, _count, name) if says else {})
    unit, divisor = unit_of_flops(rows)
    for heading, name in ((f"{unit} of attention", "attention_flops"), (unit, "flops")):
        yield _Column(heading, _cells(rows, _cost, name, divisor))
    for heading, name in (("inference, ms", "inference_ms"), ("training step, ms", "step_ms")):
        yield _Column(heading, _cells(rows, _milliseconds, name))
    yield _Column("training, s", _cells(rows, _cost, "train_seconds", 1))


def _cells(rows: Sequence[RowSummary], say: Callable[..., str | None], *of: Any) -> dict[str, str]:
    return {row.name: said for row in rows if (said := say(row, *of)) is not None}


def _decimals(metric: Metric, rows: Sequence[RowSummary]) -> int:
    """Digits after the point: two in percent, otherwise so that the largest mean has four digits."""
    largest = max((abs(row.mean) for row in rows if row.mean is not None), default=0.0)
    if metric.is_percent or not largest:
        return 2
    return min(max(3 - math.floor(math.log10(largest)), 0), 8)


def _number(value: float, decimals: int, sign: str = "") -> str:
    return f"{value:{sign},.{decimals}f}".replace("-", _MINUS)


def _mean_and_deviation(row: RowSummary, decimals: int) -> str | None:
    if row.mean is None:
        return None
    spread = "" if row.deviation is None else f" ± {_number(row.deviation, decimals)}"
    return f"{_number(row.mean, decimals)}{spread} ({len(row.values)})"


def _difference(row: RowSummary, decimals: int) -> str | None:
    difference = row.difference
    if difference is None or difference.mean is None:
        return None
    said = _number(difference.mean, decimals, "+")
    if difference.low is None or difference.high is None:
        return said
    return f"{said} [{_number(difference.low, decimals, '+')}, {_number(difference.high, decimals, '+')}]"


def _verdict(row: RowSummary) -> str | None:
    return row.difference.says if row.difference is not None and row.values else None


def _found(row: RowSummary, option: str) -> str | None:
    value = row.found.get(option)
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(row: RowSummary, name: str) -> str | None:
    value = row.cost(name)
    return None if value is None else f"{value:,.0f}"


def _significant(value: float) -> str:
    """A number with three significant digits, and without an exponent from 1e-4 on."""
    if not value or abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def _cost(row: RowSummary, name: str, divisor: float) -> str | None:
    value = row.cost(name)
    return None if value is None else _significant(value / divisor)


def _milliseconds(row: RowSummary, name: str) -> str | None:
    measured = row.times.get(name)
    if not measured:
        return None
    low, high = (_significant(measured[end]) for end in ("low", "high"))
    return f"{_significant(measured['median'])} ({low}–{high})"


def _notes(summary: Summary, results: Mapping[str, Any]) -> Iterator[str]:
    rows = summary.rows
    if not results["plan"]["tested"]:
        touched, of = results["plan"]["tested_runs"], sum(len(row.runs) for row in rows)
        used = f"were used for {touched} of {of} runs: --test does the others" if touched else "have not been touched"
        yield f"Of the validation data; the test data {used}."
    if any(row.deviation is not None for row in rows):
        less = "" if summary.metric.greater_is_better else "; less is better"
        yield f"The metric is mean ± standard deviation over n seeds{less}."
    yield from _notes_on_differences(summary)
    if results.get("search"):
        yield _note_on_search(results["search"], rows)
    if any(row.cost(name) is not None for row in rows for name in ("flops", "attention_flops")):
        yield "FLOPs are of a forward pass of one sample."
    if any(row.times.get(name) for row in rows for name in ("inference_ms", "step_ms")):
        yield f"Milliseconds are the median (lowest–highest) of rounds, rows in turn{where_timed(summary)}."
    stepless = [row.name for row in rows if row.times.get("inference_ms") and not row.times.get("step_ms")]
    if stepless:
        names = ", ".join(stepless)
        yield f"No training step of {names} is timed: what was saved is not what was trained, but merged of it."
    untimed: dict[str, list[str]] = {}
    for row in rows:
        if row.times.get("error"):
            untimed.setdefault(str(row.times["error"]), []).append(row.name)
    for reason, its in untimed.items():
        yield f"Not timed: {', '.join(its)}: {reason}"
    yield from _notes_on_failures(rows)


def _notes_on_differences(summary: Summary) -> Iterator[str]:
    compared = [row.difference for row in summary.rows if row.difference and row.difference.mean is not None]
    if not compared:
        return
    few = [difference for difference in compared if difference.says == TOO_FEW_SEEDS]
    unit = " in percentage points," if summary.metric.is_percent else ""
    kind = "Student's" if len(few) == len(compared) else "paired bootstrap"
    has_interval = any(difference.low is not None for difference in compared)
    interval = f", with an interval of 95 % ({kind})" if has_interval else ""
    yield f"Differences are from {summary.baseline},{unit} seed by seed{interval}."
    if few and len(few) == len(compared):
        yield f"{TOO_FEW_SEEDS.capitalize()}: a verdict needs {FEWEST_SEEDS}."
    elif few:
        yield f"{TOO_FEW_SEEDS.capitalize()}: fewer than {FEWEST_SEEDS} in common; the interval is Student's."
    if any(difference.says == NOT_TOLD_APART for difference in compared):
        yield f"{NOT_TOLD_APART.capitalize()}: the interval holds 0."
    chance = note_on_chance(compared)
    if chance is not None:
        yield chance


def _note_on_search(search: Sequence[Mapping[str, Any]], rows: Sequence[RowSummary]) -> str:
    options = ", ".join(dict.fromkeys(option for row in rows for option in row.found)) or "What was searched"
    values = ", ".join(dict.fromkeys(_text(entry["value"]) for entry in search))
    seeds = ", ".join(map(str, dict.fromkeys(seed for entry in search for seed in entry["seeds"])))
    said = f"{options}: chosen for each row among {values} on validation data, with seeds {seeds}."
    ends = _at_an_end(search, rows)
    if not ends:
        return said
    of = "all rows" if len(ends) == len(rows) else ", ".join(ends)
    return f"{said} Of {of} it is the smallest or the largest of these: what lies beyond may be better."


def _at_an_end(search: Sequence[Mapping[str, Any]], rows: Sequence[RowSummary]) -> list[str]:
    """The rows for which a search between numbers, three of them or more, has found the least or the greatest."""
    values = [entry["value"] for entry in search]
    if len(set(map(repr, values))) < 3 or not all(type(value) in (int, float) for value in values):
        return []
    return [row.name for row in rows if any(value in (min(values), max(values)) for value in row.found.values())]


def _notes_on_failures(rows: Sequence[RowSummary]) -> Iterator[str]:
    found = list(failures(rows))
    if not found:
        return
    failed = sum(len(seeds) for _, seeds, _ in found)
    yield f"{failed} of {sum(len(row.runs) for row in rows)} runs failed, and are not counted:"
    for name, seeds, reason in found[:_MOST_FAILURES]:
        yield f"{name}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {reason}"
    if len(found) > _MOST_FAILURES:
        yield f"and {sum(len(seeds) for _, seeds, _ in found[_MOST_FAILURES:])} more."
