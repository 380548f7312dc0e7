"""Tables in files: csv and tsv as people write them, json and parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError

from .arguments import FILE_BUILDERS, DataArguments
from .columns import without_decoding
from .sources import Sources, numbered_stream, rows_in, with_sources

# A text may be "null" or "NA"; only an empty field is a missing one.
_MISSING: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}

# How much of a file is decoded at a time, to see whether its encoding is the right one.
_DECODED = 1 << 20


def load_tables(
    files: Sequence[str], data: DataArguments, cache_dir: str | None
) -> tuple[Dataset | IterableDataset, Sources]:
    """The rows of files of one kind, one file after the other, and where they come from.

    Raises:
        ValueError: for a file that cannot be read, whose encoding is another one, or with a row that has too many
            fields.
    """
    names = [_name_of(file, files) for file in files]
    read = _read_stream if data.streaming else _read
    parts: list[Any] = [None] * len(files)
    for options, indices in _alike([_options(file, name, data) for file, name in zip(files, names, strict=True)]):
        try:
            found = read([files[index] for index in indices], options, data, cache_dir)
        except (DatasetsError, OSError, ValueError, StopIteration) as error:
            named = " or ".join(repr(names[index]) for index in indices)
            raise ValueError(f"{named}: {reason_of(error)}") from error
        for index, part in zip(indices, found, strict=True):
            parts[index] = part
    if data.streaming:
        return numbered_stream(parts), Sources(names, count=lambda part: rows_in(parts[part]))
    sources = Sources(names, [len(part) for part in parts])
    return with_sources(parts, parts[0] if len(parts) == 1 else concatenate_datasets(parts)), sources


def reason_of(error: BaseException) -> str:
    """Why data cannot be loaded: `datasets` says that something went wrong, and why in the cause; at times nothing."""
    reason = str((isinstance(error, DatasetsError) and error.__cause__) or error)
    return "there are no samples" if not reason or "corresponds to no data" in reason else reason


def _name_of(file: str, files: Sequence[str]) -> str:
    """The name of a file without its folder, unless others have the same."""
    name = Path(file).name
    return name if [Path(other).name for other in files].count(name) == 1 else file


def _alike(options: Sequence[dict[str, Any] | None]) -> Iterator[tuple[dict[str, Any] | None, list[int]]]:
    """The different options, and which files have them."""
    seen: list[dict[str, Any] | None] = []
    for chosen in options:
        if chosen not in seen:
            seen.append(chosen)
    for chosen in seen:
        yield chosen, [index for index, other in enumerate(options) if other == chosen]


def _read(
    files: Sequence[str], options: dict[str, Any] | None, data: DataArguments, cache_dir: str | None
) -> list[Dataset]:
    if options is None:
        return [_read_whole(file, data) for file in files]
    # Every file as a split: of several files in one, `datasets` does not say where one ends.
    splits = {f"part{index}": [file] for index, file in enumerate(files)}
    loaded = load_dataset(_builder_of(files[0]), data_files=splits, cache_dir=cache_dir, **options)
    return [without_decoding(loaded[name]) for name in splits]


def _read_stream(
    files: Sequence[str], options: dict[str, Any] | None, data: DataArguments, cache_dir: str | None
) -> list[IterableDataset]:
    if options is None:
        return [_read_whole(file, data).to_iterable_dataset() for file in files]
    splits = {f"part{index}": [file] for index, file in enumerate(files)}
    builder = _builder_of(files[0])
    loaded = load_dataset(builder, data_files=splits, cache_dir=cache_dir, streaming=True, **options)
    return [without_decoding(loaded[name]) for name in splits]


def _builder_of(file: str) -> str:
    return FILE_BUILDERS[Path(file).suffix[1:]]


# --- csv and tsv -----------------------------------------------------------------------------------------------------


def _options(file: str, name: str, data: DataArguments) -> dict[str, Any] | None:
    """Options for `datasets` to read a file; None for one that it would read wrongly."""
    kind = _builder_of(file)
    if kind == "parquet":
        return {}
    encoding = data.encoding or "utf-8"
    has_quotes = _check_encoding(Path(file), name, encoding, is_given=data.encoding is not None)
    if kind == "json":
        return {} if data.encoding is None and not _begins_with_mark(file) else None
    options: dict[str, Any] = {**_MISSING, "sep": delimiter_of(file, data), "encoding": encoding}
    if not has_quotes:
        return options
    text = Path(file).read_bytes().decode(encoding)
    delimiter = options["sep"]
    if delimiter != "\t" and _is_well_quoted(text, delimiter):
        return options
    table = split_rows(text, delimiter)
    if not table.quoted:
        return {**options, "quoting": csv.QUOTE_NONE}
    return None if table.has_bare_marks else options


def delimiter_of(file: str, data: DataArguments) -> str:
    """The character between the fields of a csv or tsv file."""
    return data.delimiter or ("\t" if Path(file).suffix == ".tsv" else ",")


def _check_encoding(path: Path, name: str, encoding: str, is_given: bool) -> bool:
    """Whether a file has a quotation mark; a `ValueError` if its encoding is another one."""
    decoder = codecs.getincrementaldecoder(encoding)()
    lines, has_quotes = 1, False
    with path.open("rb") as file:
        try:
            while block := file.read(_DECODED):
                text = decoder.decode(block)
                has_quotes = has_quotes or '"' in text
                lines += text.count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            bad = error.object[error.start]
            lines += error.object[: error.start].count(b"\n")
            raise ValueError(
                f"{name!r} cannot be read as {encoding}: byte 0x{bad:02x} in line {lines}. Say its encoding with "
                f"--encoding, such as {'utf-8' if is_given else 'latin-1, cp1252'} or utf-16."
            ) from error
    return has_quotes


def _is_well_quoted(text: str, delimiter: str) -> bool:
    """Whether all quotation marks of a csv file begin or end a whole field, or are doubled."""
    around = (delimiter, "\n", "\r")
    # What lies around quoted fields. A field with doubled marks is one still without them.
    outside = f"\n{text}\n".replace("\ufeff", "", 1).replace('""', "").split('"')[::2]
    is_paired = text.count('"') % 2 == 0
    return is_paired and all(piece and piece[0] in around and piece[-1] in around for piece in outside)


@dataclass
class Table:
    """The fields of a csv or tsv file.

    rows: rows as lists of fields, the header first.
    quoted: fields that are quoted, as numbers of row and column.
    has_bare_marks: whether a field that is not quoted begins with a quotation mark.
    """

    rows: list[list[str]] = field(default_factory=list)
    quoted: set[tuple[int, int]] = field(default_factory=set)
    has_bare_marks: bool = False


def split_rows(text: str, delimiter: str) -> Table:
    """Read a csv or tsv file where some quotation marks quote and others are text.

    A field is quoted if a quotation mark begins it, and another one, not doubled, ends it. All others are text as they
    stand. Between tabs, quotation marks that nothing asks for (the field has no tab, line break or quotation mark) are
    text as well, unless the whole column has them, and a field does not go on in the next line where both lines have
    as many fields as the header: two lines with a bare quotation mark would swallow those between them.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    closing = re.compile(rf'"((?:[^"]|"")*)"(?={re.escape(delimiter)}|\n|\Z)')
    table = Table()
    unneeded: list[tuple[int, int]] = []  # fields that are quoted and need not be
    number = 0
    while number < len(lines):
        line, number = lines[number], number + 1
        if not line:
            continue
        if '"' not in line:
            table.rows.append(line.split(delimiter))
            continue
        row: list[str] = []
        width = len(table.rows[0]) if table.rows else 0
        start = 0
        while start <= len(line):
            match, end = None, line.find(delimiter, start)
            if line.startswith('"', start):
                match = closing.match(line, start)
                # Between tabs, a line that is whole by itself is not taken for the beginning of a longer row.
                is_whole = delimiter == "\t" and width > 1 and line.count(delimiter) == width - 1
                if match is None and not is_whole:
                    match, line, number = _over_lines(closing, line, start, lines, number)
                table.has_bare_marks |= match is None
            if match is None:
                end = len(line) if end < 0 else end
                row.append(line[start:end])
            else:
                end = match.end()
                row.append(match[1].replace('""', '"'))
                place = (len(table.rows), len(row) - 1)
                table.quoted.add(place)
                if delimiter == "\t" and match[1] and not any(mark in match[1] for mark in (delimiter, "\n", '""')):
                    unneeded.append(place)
            start = end + 1
        table.rows.append(row)
    if unneeded:
        _unquote(table, unneeded)
    return table


def _over_lines(
    closing: re.Pattern[str], line: str, start: int, lines: Sequence[str], number: int
) -> tuple[re.Match[str] | None, str, int]:
    """A quoted field that ends in a later line: what was found, and the line and the number of the next one."""
    rest, read = [line], number
    while read < len(lines):
        rest.append(lines[read])
        read += 1
        if '"' in rest[-1]:
            longer = "\n".join(rest)
            match = closing.match(longer, start)
            if match is not None:
                return match, longer, read
            if not longer[start:].count('"') % 2:
                break  # a mark that ends the quotation, and not the field
    return None, line, number


def _unquote(table: Table, unneeded: Sequence[tuple[int, int]]) -> None:
    """Give fields their quotation marks back, unless the header or their whole column has them."""
    width = len(table.rows[0])
    if sum(row == 0 for row, _ in unneeded) == width:
        return
    quoted, filled = [0] * width, [0] * width
    for _, column in table.quoted - {(0, column) for column in range(width)}:
        quoted[min(column, width - 1)] += 1
    for row in table.rows[1:]:
        for column, text in enumerate(row[:width]):
            filled[column] += bool(text)
    for row_number, column in unneeded:
        if row_number == 0 or column >= width or quoted[column] < filled[column]:
            table.rows[row_number][column] = f'"{table.rows[row_number][column]}"'
            table.quoted.discard((row_number, column))
            table.has_bare_marks = True


def _begins_with_mark(file: str) -> bool:
    with open(file, "rb") as opened:
        return opened.read(3) == codecs.BOM_UTF8


def _read_whole(file: str, data: DataArguments) -> Dataset:
    """A file that `datasets` would read wrongly: csv and tsv with bare quotation marks, json in another encoding."""
    text = Path(file).read_bytes().decode(data.encoding or "utf-8").removeprefix("\ufeff")
    if _builder_of(file) == "json":
        is_list = text.lstrip().startswith("[")
        return Dataset.from_list(
            json.loads(text) if is_list else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    rows = split_rows(text, delimiter_of(file, data)).rows
    width = len(rows[0])
    for number, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(
                f"row {number - 1} has {len(row)} fields, the header {width}: "
                f"{json.dumps(row[: width + 1], ensure_ascii=False)}."
            )
    content = io.StringIO(newline="")
    csv.writer(content, quoting=csv.QUOTE_ALL).writerows(row + [""] * (width - len(row)) for row in rows)
    content.seek(0)
    return Dataset.from_pandas(pd.read_csv(content, **_MISSING), preserve_index=False)
