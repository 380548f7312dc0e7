# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The code that goes with a model: hf_lam's own files, those of mechanisms from elsewhere, and the licence.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from pathlib import Path

from .license_hf_lam import LICENSE, LICENSE_FILE
from .mechanism_checks_hf_lam import travelling_module_of
from .mechanism_registry_hf_lam import file_of, is_own_file, source_of
from .version_hf_lam import LIST_FILE, TRAVELLING_FILES

# What stands above the lines that import mechanisms from elsewhere, in a model's copy of their list.
ADDED = "\n# Changed when the model was saved: mechanisms from elsewhere, which came with it.\n"
# Stands at the top of a mechanism's file that imports siblings where the original imports hf_lam.
MADE_RELATIVE = "# Changed when the model was saved: what this file imports of hf_lam lies beside it.\n"


def copy_code(source: Path, folder: Path, mechanisms: Iterable[str] = ()) -> None:
    """Write the code of a model to `folder`, each file whole or not at all.

    Args:
        source: folder with the files of hf_lam.
        folder: folder of the model; it is made if there is none.
        mechanisms: names of the mechanisms that the model has.

    Raises:
        ValueError: if `folder` is a file.
    """
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file; save_pretrained needs a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    # As they were when they were imported, whatever has become of them since.
    foreign = {file_of(name): source_of(name) for name in mechanisms if not is_own_file(file_of(name))}
    for name in TRAVELLING_FILES:
        # A process that loaded a configuration alone has only some of them.
        if not (source / name).is_file():
            continue
        text = (source / name).read_text(encoding="utf-8")
        _write(folder / name, list_mechanisms(text, foreign) if name == LIST_FILE else text)
    for file, text in foreign.items():
        _write(folder / file.name, make_relative(text))
    _write(folder / LICENSE_FILE, LICENSE)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
    os.replace(partial, path)


def list_mechanisms(text: str, foreign: Iterable[Path]) -> str:
    """The text of the list of mechanisms with those in other files."""
    lines = [f"from .{file.stem} import __name__ as _{file.stem}\n" for file in foreign]
    own = text.partition(ADDED)[0]
    return own + ADDED + "".join(lines) if lines else own


def make_relative(source: str) -> str:
    """The text of a mechanism's file as it travels: what it imports of hf_lam are siblings then."""
    lines = source.splitlines(keepends=True)
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and not node.level]
    for statement in sorted(statements, key=lambda node: node.lineno, reverse=True):
        module = str(statement.module)
        if module.partition(".")[0] != "hf_lam":
            continue
        of_module: dict[str, list[str]] = {}
        for alias in statement.names:
            sibling = (
                module.removeprefix("hf_lam.modeling.") if module != "hf_lam" else travelling_module_of(alias.name)
            )
            of_module.setdefault(str(sibling), []).append(ast.unparse(alias))
        indent = " " * statement.col_offset
        written = [f"{indent}from .{sibling} import {', '.join(names)}\n" for sibling, names in of_module.items()]
        lines[statement.lineno - 1 : statement.end_lineno] = written
    changed = "".join(lines)
    return changed if changed == source else MADE_RELATIVE + changed
