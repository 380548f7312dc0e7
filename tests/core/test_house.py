"""How the house is laid out: who may import whom, and that what is common names no mechanism."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_lam
from hf_lam.modeling.travelling_hf_lam import LIST_FILE
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

PACKAGE = Path(hf_lam.__file__).parent
MODELING = PACKAGE / "modeling"
LICENCE = "# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0."
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))

# --- the core names no mechanism -------------------------------------------------------------------------------------

CORE = [
    *(
        MODELING / f"{name}_hf_lam.py"
        for name in (
            "attention_hooks",
            "attention_pass",
            "changes",
            "configuration",
            "hosts",
            "hosts_facts",
            "injection",
            "layers",
            "mechanism",
            "mechanism_checks",
            "mechanism_registry",
            "modeling",
            "numerics",
            "option_checks",
            "padding",
            "travelling",
        )
    ),
    *(path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"),
    *(
        path
        for folder in ("flops", "cli", "hub", "comparing", "exporting")
        for path in sorted((PACKAGE / folder).glob("*.py"))
    ),
    *(
        PACKAGE / "training" / f"{name}.py"
        for name in ("arguments", "finetuning", "mechanism_logging", "models", "parsing", "trainer")
    ),
    *(PACKAGE / "visualization" / f"{name}.py" for name in ("_drawing", "_samples", "pictures")),
]


def _words(text: str) -> list[str]:
    """The words of a text, parts of names, too: `HostTokens` is two, and so is `host_tokens`."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)]


def _names_a_mechanism(text: str) -> bool:
    """Whether a name or a text has LoCoMT, STT or LamConfig in it.

    What follows `hf` is not LAM: `HfLamConfigMixin` is what all configurations of hf_lam have in common. And LAM by
    itself is as good a word for hf_lam: it counts where it stands alone, as the name of the mechanism.
    """
    words = _words(text)
    follows = zip(["", *words], words, [*words[1:], ""], strict=False)
    return (
        text == "lam"
        or bool({"locomt", "stt"} & set(words))
        or any(before != "hf" and (word, after) == ("lam", "config") for before, word, after in follows)
    )


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every identifier and every string of a module, docstrings left out, with its line."""
    documentation = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield line, node.value
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield line, node.name
        elif isinstance(node, ast.arg):
            yield line, node.arg
        elif isinstance(node, (ast.keyword, ast.MatchAs)):
            yield line, getattr(node, "arg", None) or getattr(node, "name", None) or ""
        elif isinstance(node, ast.alias):
            yield line, node.name
            yield line, node.asname or ""
        elif isinstance(node, ast.ImportFrom):
            yield line, node.module or ""


def test_the_words_of_names() -> None:
    assert _words("HostTokens.host_tokens HFLamConfig") == ["host", "tokens", "host", "tokens", "hf", "lam", "config"]
    named = ("LamConfig", "lam_config", "LocomtConfig", "views_of_locomt", "use --mechanism stt", "is_stt", "lam")
    assert all(map(_names_a_mechanism, named))
    harmless = (
        "HostTokens",
        "FastTokenizer",
        "HfLamConfigMixin",
        "HfLamBertConfig",
        "hf_lam",
        "hf-lam",
        "first_thing",
    )
    assert not any(map(_names_a_mechanism, harmless))


def test_all_of_the_core_is_there() -> None:
    assert not [str(path) for path in CORE if not path.is_file()]
    assert {path.parent.name for path in CORE} == {
        "modeling",
        "hf_lam",
        "flops",
        "cli",
        "hub",
        "training",
        "comparing",
        "exporting",
        "visualization",
    }


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_names_no_mechanism(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(line, text) for line, text in _texts(tree) if _names_a_mechanism(text)]
    # Examples in the help of a command are documentation, as those in docstrings are.
    found = [f"line {line}: {text}" for line, text in sorted(found) if not text.startswith("hf-lam ")]
    assert not found


# --- what is imported ------------------------------------------------------------------------------------------------

# Each part may import those before its own line, and of its own line what does not lead back.
LAYERS = (
    ("importing",),
    ("modeling",),
    ("result_tables",),
    ("parameters", "observing", "facts", "loading", "conversion", "injecting", "mechanism_files", "mechanism_options"),
    ("output",),
    ("registering",),
    ("locomt", "stt", "flops", "visualization"),
    ("hub", "inspecting"),
    ("training", "exporting"),
    ("comparing",),
    ("",),  # `hf_lam/__init__.py`, of which commands are users like any other
    ("cli", "demo"),
)
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def _module_of(path: Path) -> str:
    """The name of a module below hf_lam; that of hf_lam itself is empty."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {_module_of(path): path for path in SOURCES}


def _imports_of(module: str, for_types: bool = True) -> Iterator[tuple[str, str, int]]:
    """Of every import within hf_lam: the module, the name that is imported from it, and the line.

    for_types: those under `if TYPE_CHECKING`, too, which nobody runs.
    """
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    not_run = [
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.body
    ]
    for node in ast.walk(tree):
        if node in not_run and not for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "hf_lam":
                    yield alias.name.removeprefix("hf_lam").removeprefix("."), "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                base = parts[: len(parts) - node.level + 1]
                source = ".".join([*base, *([source] if source else [])])
            elif source.partition(".")[0] == "hf_lam":
                source = source.removeprefix("hf_lam").removeprefix(".")
            else:
                continue
            for alias in node.names:
                submodule = f"{source}.{alias.name}".removeprefix(".")
                yield (submodule, "", node.lineno) if submodule in MODULES else (source, alias.name, node.lineno)


def _part_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_part_has_a_layer() -> None:
    assert {_part_of(module) for module in MODULES} == set(LAYER_OF)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upward(module: str) -> None:
    upward = [
        f"line {line}: {source}"
        for source, _, line in _imports_of(module)
        if LAYER_OF[_part_of(source)] > LAYER_OF[_part_of(module)]
    ]
    assert not upward


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Ways through a graph that come back to where they began; one for each that is found."""
    done: set[str] = set()
    found: list[list[str]] = []

    def walk(node: str, way: list[str]) -> None:
        if node in way:
            found.append([*way[way.index(node) :], node])
        elif node not in done:
            for other in sorted(graph[node]):
                walk(other, [*way, node])
            done.add(node)

    for node in graph:
        walk(node, [])
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {source for source, _, _ in _imports_of(module, for_types=False)} - {module} for module in MODULES
    }
    assert not _circles(graph)


def test_no_part_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {part: set() for part in LAYER_OF}
    for module in MODULES:
        graph[_part_of(module)] |= {_part_of(source) for source, _, _ in _imports_of(module)} - {_part_of(module)}
    assert not _circles(graph)


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_what_travels_imports_only_files_before_it(name: str) -> None:
    before = TRAVELLING_FILES[: TRAVELLING_FILES.index(name)]
    tree = ast.parse((MODELING / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "hf_lam"]
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and f"{node.module}.py" in before, node.module
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).partition(".")[0] != "hf_lam"


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_is_imported(module: str) -> None:
    """Neither a name with an underscore, nor a module with one from outside of its folder."""
    private = [
        f"line {line}: {name} of {source}"
        for source, name, line in _imports_of(module)
        if re.match(r"_(?!_)", name)
        or (re.search(r"\._(?!_)", f".{source}") and source.rpartition(".")[0] != module.rpartition(".")[0])
    ]
    # The list of mechanisms has those of a model's folder under names of its own.
    assert not private


# --- what travels ----------------------------------------------------------------------------------------------------


def test_the_files_that_travel_are_those_of_modeling() -> None:
    assert len(TRAVELLING_FILES) == len(set(TRAVELLING_FILES))
    assert set(TRAVELLING_FILES) == {path.name for path in MODELING.glob("*_hf_lam*.py")}
    assert LIST_FILE in TRAVELLING_FILES


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_what_travels_carries_the_licence_line(name: str) -> None:
    assert (MODELING / name).read_text(encoding="utf-8").startswith(f'{LICENCE}\n"""')
