"""Tables in files: quotation marks, delimiters, encodings, and where every row comes from."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, disable_progress_bars

from hf_lam.training.arguments import DataArguments
from hf_lam.training.sources import SOURCE
from hf_lam.training.tables import load_tables, split_rows


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(*files: str, streaming: bool = False, **options: Any) -> Any:
    """The rows of files, without what says where they come from; and the sources."""
    data = DataArguments(train_file=files[0], streaming=streaming, **options)
    return load_tables(list(files), data, "cache")


def texts(*files: str, **options: Any) -> list[Any]:
    return [row["text"] for row in loaded(*files, **options)[0]]


ROWS = [[f"word {i}", f"{i % 3}"] for i in range(40)]


def with_marks(delimiter: str, *marked: int, at_end: bool = False) -> tuple[str, list[str]]:
    """A table with a bare quotation mark in some rows, and its texts."""
    rows = [list(row) for row in ROWS]
    for number, index in enumerate(marked):
        rows[index][0] = rows[index][0] + '"' if at_end and number % 2 else '"' + rows[index][0]
    lines = [delimiter.join(row) for row in [["text", "label"], *rows]]
    return "\n".join(lines) + "\n", [row[0] for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("marked", "at_end"), [((5, 30), False), ((5, 30), True), ((5,), False), ((5, 6), True), ((39,), False)]
)
def test_bare_quotation_marks_between_tabs(marked: tuple[int, ...], at_end: bool, streaming: bool) -> None:
    text, expected = with_marks("\t", *marked, at_end=at_end)
    Path("a.tsv").write_text(text)
    assert texts("a.tsv", streaming=streaming) == expected


@pytest.mark.parametrize("marked", [(5, 30), (5,), (0, 39)])
def test_bare_quotation_marks_between_commas(marked: tuple[int, ...]) -> None:
    text, expected = with_marks(",", *marked)
    # A row whose text is quoted, as it has a comma.
    Path("a.csv").write_text(text + '"yes, quoted",1\n')
    assert texts("a.csv") == [*expected, "yes, quoted"]


@pytest.mark.parametrize(
    ("delimiter", "line", "expected"),
    [
        ("\t", '"Great" movie\t1', '"Great" movie'),
        ("\t", 'a 5" screen\t1', 'a 5" screen'),
        ("\t", '"\t1', '"'),
        ("\t", '"a whole sentence"\t1', '"a whole sentence"'),
        ("\t", '"He said ""hi"""\t1', 'He said "hi"'),
        ("\t", '"with\ta tab"\t1', "with\ta tab"),
        ("\t", '"two\nlines"\t1', "two\nlines"),
        (",", '"Great" movie,1', '"Great" movie'),
        (",", 'a 5" screen,1', 'a 5" screen'),
        (",", '"He said "hi" there",1', '"He said "hi" there"'),
        (",", '"a whole sentence",1', "a whole sentence"),
        (",", '"He said ""hi"", twice",1', 'He said "hi", twice'),
        (",", '"two, long\nlines, both",1', "two, long\nlines, both"),
        (",", '"",1', None),
        (";", '"a; b",1'.replace(",", ";"), "a; b"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_one_field_among_others(delimiter: str, line: str, expected: str, newline: str) -> None:
    plain = [f"plain{delimiter}0"] * 2
    content = "\n".join([f"text{delimiter}label", *plain, line, *plain]) + "\n"
    Path("a.csv").write_bytes(content.replace("\n", newline).encode())
    found = [text and text.replace("\r\n", "\n") for text in texts("a.csv", delimiter=delimiter)]
    assert found == ["plain", "plain", expected, "plain", "plain"]


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_a_writer_has_quoted_is_read_back(quoting: Any, delimiter: str) -> None:
    written = ["a\tb", "a,b", "a;b|c", 'x "y" z', '"', '""', "", "two\nlines", "plain", '"whole"', " blank ", 'end"']
    content = io.StringIO(newline="")
    writer = csv.writer(content, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerows([["text", "label"], *([text, 3] for text in written)])
    Path("a.csv").write_text(content.getvalue(), newline="")
    assert texts("a.csv", delimiter=delimiter) == [text or None for text in written]


def test_a_column_that_is_quoted_as_a_whole() -> None:
    Path("a.tsv").write_text('text\tlabel\n"one"\t0\n"two"\t1\n')
    assert texts("a.tsv") == ["one", "two"]
    Path("b.tsv").write_text('text\tlabel\n"one"\t0\ntwo\t1\n')
    assert texts("b.tsv") == ['"one"', "two"]


def test_a_file_with_marks_is_typed_as_others_are() -> None:
    text, _ = with_marks("\t", 5, 30)
    Path("a.tsv").write_text(text + '"a\tb"\t2\nNA\t\n')
    rows = list(loaded("a.tsv")[0])
    assert [row["label"] for row in rows[:3]] == [0, 1, 2] and rows[-1]["label"] is None
    assert rows[-1]["text"] == "NA" and rows[-2]["text"] == "a\tb"


def test_a_row_with_too_many_fields() -> None:
    Path("a.tsv").write_text('text\tlabel\n"a\tb"\t0\n"bare\t0\nc\td\t1\n')
    with pytest.raises(ValueError, match=r"'a.tsv': row 2 has 3 fields, the header 2"):
        loaded("a.tsv")


@pytest.mark.parametrize("content", ["", "text,label\n", "text,label\na,0\nb,c,d,1\n"])
def test_a_file_that_cannot_be_read_is_named(content: str) -> None:
    Path("a.csv").write_text("text,label\nx,0\n")
    Path("b.csv").write_text(content)
    with pytest.raises(ValueError, match=r"^'b.csv': (No columns|there are no samples|Error tokenizing)"):
        loaded("b.csv")
    with pytest.raises(ValueError, match=r"^'a.csv' or 'b.csv': (No columns|there are no samples|Error tokenizing)"):
        loaded("a.csv", "b.csv")


def test_a_long_file_is_split_in_time_that_grows_with_its_length() -> None:
    # Every row opens a quotation that nothing closes.
    assert len(split_rows("text,label\n" + '"word,0\n' * 20_000, ",").rows) == 20_001


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl"])
def test_encodings(suffix: str) -> None:
    rows = Dataset.from_dict({"text": ["café", "naïve", "plain"], "label": [0, 1, 0]})
    if suffix in ("csv", "tsv"):
        rows.to_csv("utf8", index=False, sep="\t" if suffix == "tsv" else ",")
    else:
        rows.to_json("utf8", lines=suffix == "jsonl", force_ascii=False)
    content = Path("utf8").read_text(encoding="utf-8")
    expected = ["café", "naïve", "plain"]
    Path(f"a.{suffix}").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"'a.{suffix}' cannot be read as utf-8: byte 0xe9 in line [12].*--encoding"):
        loaded(f"a.{suffix}")
    assert texts(f"a.{suffix}", encoding="latin-1") == expected
    assert texts(f"a.{suffix}", encoding="latin-1", streaming=True) == expected
    for encoding in ("utf-8-sig", "utf-16"):
        Path(f"b.{suffix}").write_text(content, encoding=encoding)
        assert texts(f"b.{suffix}", encoding=None if encoding == "utf-8-sig" else encoding) == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_row_knows_its_file(suffix: str, streaming: bool) -> None:
    files = []
    for number, rows in enumerate((3, 1, 4)):
        dataset = Dataset.from_dict({"text": [f"{number}-{row}" for row in range(rows)], "label": [0] * rows})
        files.append(f"train-{number}.{suffix}")
        if suffix == "parquet":
            dataset.to_parquet(files[-1])
        elif suffix == "jsonl":
            dataset.to_json(files[-1])
        else:
            dataset.to_csv(files[-1], index=False, sep="\t" if suffix == "tsv" else ",")
    dataset, sources = loaded(*files, streaming=streaming)
    if not streaming:
        dataset = dataset.shuffle(seed=1)
    rows = list(dataset)
    for is_complete in (True, False):
        places = sources.places([row[SOURCE] for row in rows], is_complete)
        for place, row in zip(places, rows, strict=True):
            number, index = map(int, row["text"].split("-"))
            assert (place.file, place.file_row) == (files[number], index)
            assert place.row == [0, 3, 4][number] + index
    # Where the last rows of a file are left out, its length is looked up.
    (place,) = sources.places([row[SOURCE] for row in rows if row["text"] == "2-1"])
    assert (place.row, place.file_row) == (5, 1)
    (name,) = {sources.name(row[SOURCE]) for row in rows if row["text"] == "2-1"}
    assert name == f"row 1 of 'train-2.{suffix}'"
