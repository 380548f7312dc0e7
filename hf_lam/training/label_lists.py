"""Lists of labels: class numbers, names, or vectors of 0 and 1, also where they are written as text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any

# How numpy prints texts: without commas, which in Python would be one text.
_PRINTED_TEXTS = re.compile(r"""\[\s*(['"][^'"]*['"]\s*)+\]""")
_PRINTED_TEXT = re.compile(r"""'([^']*)'|"([^"]*)\"""")


def looks_like_list(text: Any) -> bool:
    """Whether a text is written like a list, or is a tuple or a set of Python."""
    if not isinstance(text, str):
        return False
    text = text.strip()
    ends = text[:1] + text[-1:]
    return ends == "[]" or (ends in ("()", "{}") and isinstance(_literal(text), (tuple, set)))


def _literal(text: str) -> Any:
    """Read a text as a Python literal; None for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def read_list(value: Any) -> Any:
    """A label as lists and numbers of Python: arrays, and lists that are written as text.

    `'["a", "b"]'`, `"['a', 'b']"`, `"('a', 'b')"`, `"{'a', 'b'}"`, `"[1, 0]"`, and what numpy prints, `"[1. 0.]"`.
    Other values stay what they are.

    Raises:
        ValueError: for a text that is written like a list, and is none.
    """
    if not isinstance(value, str):
        return value.tolist() if hasattr(value, "tolist") else value
    text = value.strip()
    if not looks_like_list(text):
        return value
    try:
        return json.loads(text)
    except ValueError:
        pass
    if _PRINTED_TEXTS.fullmatch(text):
        return [single or double for single, double in _PRINTED_TEXT.findall(text)]
    try:
        return [_number(word) for word in text[1:-1].split()]
    except ValueError:
        pass
    found = _literal(text)
    if found is None:
        raise ValueError(f"{value!r} is written like a list, and cannot be read as one")
    return list(found)


def _number(word: str) -> int | float:
    return int(word) if re.fullmatch(r"[-+]?\d+", word) else float(word)


def is_multi_hot(lists: Iterable[Any], column: str, classes: int | None, wanted: bool | None) -> bool:
    """Whether lists are vectors of 0 and 1, one entry for each class, and not the numbers or names of classes.

    Args:
        lists: lists of labels; None for those that are missing.
        column: name of their column.
        classes: number of classes, if it is known.
        wanted: choice of the user, where both could be meant.

    Raises:
        ValueError: if both could be meant, with both readings, or neither.
    """
    widths: set[int] = set()
    is_binary, is_float, twice, largest = True, False, None, 0
    try:
        different = {tuple(entries) for entries in lists if entries is not None}
    except TypeError:
        return False  # lists of lists: what is wrong with them is said of their rows
    for entries in different:
        if any(entry is None or isinstance(entry, str) for entry in entries):
            return False  # names; or what is wrong with it is said of its row
        widths.add(len(entries))
        is_binary = is_binary and all(entry in (0, 1) for entry in entries)
        is_float = is_float or any(isinstance(entry, (bool, float)) for entry in entries)
        largest = max(largest, *entries) if entries else largest
        if twice is None and len(set(entries)) < len(entries):
            twice = list(entries)
    if not widths or widths == {0}:
        return False
    width = max(widths)
    is_vector = is_binary and len(widths) == 1
    could_be_hot = is_vector and classes in (None, width)
    could_be_numbers = twice is None and (classes is None or largest < classes) and not (could_be_hot and is_float)
    if width == 1 and could_be_hot and could_be_numbers and wanted is None:
        # One entry a list: a number of a class, as there is no task with one class alone, unless it is said to be one.
        return classes == 1
    if wanted is not None:
        if not (could_be_hot if wanted else could_be_numbers):
            kind = "vectors of 0 and 1, one entry for each class" if wanted else "lists of class numbers"
            raise ValueError(f"--multi_hot {str(wanted).lower()}: the lists in {column!r} are no {kind}.")
        return wanted
    if could_be_hot and could_be_numbers:
        raise ValueError(
            f"the lists in {column!r} can be read in two ways: [0, 1] is the classes 0 and 1 (class numbers), or the "
            "second of two classes alone (a multi-hot vector). Say which: --multi_hot false or --multi_hot true."
        )
    if not could_be_hot and is_vector and twice is not None:
        raise ValueError(
            f"the lists in {column!r} are multi-hot vectors with {width} entries, one for each class, and there are "
            f"{classes} classes."
        )
    if not could_be_hot and twice is not None:
        raise ValueError(
            f"the lists in {column!r} can be read in no way: {twice} has a number twice, so they are no class "
            "numbers, and not all of them have as many entries, all 0 or 1, so they are no multi-hot vectors."
        )
    return could_be_hot
