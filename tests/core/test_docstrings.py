"""How the house documents arguments: an entry can be read by itself, and does not start in the middle of a phrase."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_lam

PACKAGE = Path(hf_lam.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# `rank: of the mask` makes a reader put the name and the text together; `rank: rank of the mask` can be read alone.
FRAGMENT = re.compile(r"(of|in|on|by|for|with|to|from|as)\b", re.IGNORECASE)
SECTION = re.compile(r"(\w[\w ]*):$")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.+)")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def names_in(node: Documented) -> set[str]:
    """The arguments of a function, or the annotated fields of a class."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = node.args
        kinds = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        return {argument.arg for argument in kinds if argument is not None}
    return {
        field.target.id
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def entries(node: Documented) -> Iterator[tuple[str, str]]:
    """The names and texts of the entries under `Args:` and `Attributes:`, and of those without a heading."""
    section, known = "", names_in(node)
    for line in (ast.get_docstring(node) or "").splitlines():
        if heading := SECTION.fullmatch(line):
            section = heading[1]
        elif entry := ENTRY.fullmatch(line.strip()):
            names = {name.lstrip("*") for name in entry[1].split(", ")}
            if section.endswith(("Args", "ttributes", "attributes")) or (not section and names <= known):
                yield entry[1], entry[2]


def fragments(source: str) -> list[str]:
    """The entries of a module that start with a preposition."""
    return [
        f"{name}: {text}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Documented)
        for name, text in entries(node)
        if FRAGMENT.match(text)
    ]


def test_what_is_a_fragment() -> None:
    source = '''
class Options(NamedTuple):
    """Options.

    rank: of the mask.
    size: size of the mask.
    note: of no field.
    """

    rank: int
    size: int


def make(name, *others, **options):
    """Make one.

    In short: by hand.

    Args:
        name: name of the model,
            of any kind: with weights.
        *others: For messages.
        **options: options for loading.

    Raises:
        ValueError: for a bad name.
    """
'''
    assert fragments(source) == ["rank: of the mask.", "*others: For messages."]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_entry_starts_with_a_preposition(path: Path) -> None:
    assert not fragments(path.read_text(encoding="utf-8"))
