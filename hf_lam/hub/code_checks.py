"""Checks of the Python files of a repository, which are compared and parsed, never run."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..modeling.travelling_hf_lam import ADDED, list_mechanisms
from ..modeling.version_hf_lam import LIST_FILE
from .buildable import class_names_of, config_class_of
from .file_checks import entries, suffix_of
from .repository_files import Finding, RepositoryFiles, UnreadableError, leaves_folder

# Code that is not released and uses one of these, or anything inside of them, is worth a look.
_SUSPICIOUS = re.compile(
    r"(eval|exec|compile|open|input|breakpoint|__import__|builtins|importlib|runpy|code|codeop|pty|subprocess"
    r"|multiprocessing|socket|ssl|asyncio|http|urllib|ftplib|smtplib|xmlrpc|requests|httpx2?|aiohttp|webbrowser"
    r"|ctypes|cffi|_?pickle|dill|cloudpickle|marshal|shelve|joblib|zipimport|tempfile"
    r"|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*|kill|remove|unlink|rename|environ|getenv|putenv)"
    r"|shutil\.(rmtree|move)|huggingface_hub|transformers\.dynamic_module_utils"
    r"|torch\.(load|hub|jit\.load|ops\.load_library|utils\.cpp_extension|package)|(numpy|np)\.(load|fromfile))(\..*)?"
)
# Code that is not released is parsed if it is of such a size, one file and all of them together: parsing takes time
# and memory. hf_lam's largest file has 26 kB.
_MOST_PARSED = 200_000
_MOST_PARSED_IN_ALL = 1_000_000
_LONGEST_NAME = 100
_ADDRESS = re.compile(r"(?:https?|wss?|ftp)://([^/\s\"'<>\\]+)")


# Kept by `manifest.py`.
MANIFEST = Path(__file__).with_name("manifest.json")
# Files of hf_lam before its first release, which lie about in folders and repositories and are in no entry.
UNRELEASED = frozenset(
    f"{name}_hf_lam.py" for name in ("functional", "mechanisms", "segments", "synthesizers", "views")
)


def released_code(manifest: Path = MANIFEST) -> dict[str, dict[str, str]]:
    """The SHA-256 of the travelling files of every version of hf_lam, by name."""
    return json.loads(manifest.read_text(encoding="utf-8"))


class Module(NamedTuple):
    """The contents of a Python file.

    classes: classes that it defines.
    makes_classes: whether it makes further ones when they are asked for.
    imports: the packages that it imports.
    siblings: relative imports, each as the number of dots and the path.
    uses: imports and uses of names that are worth a look, with the line.
    hosts: hosts of the addresses in its texts.
    mechanisms: the names of those that it registers.
    """

    classes: frozenset[str]
    imports: frozenset[str]
    siblings: frozenset[tuple[int, str]]
    uses: tuple[tuple[int, str], ...]
    hosts: frozenset[str]
    mechanisms: tuple[str, ...] = ()
    makes_classes: bool = False


@dataclass
class Code:
    """The Python files of a repository.

    version: the release of hf_lam that all of them are of, but for those from elsewhere; None if there is none.
    hashes: the SHA-256 of each file.
    modules: contents of each file that is Python.
    imports: the packages that they import, those of Python too.
    hosts: hosts of the addresses in files that are of no release.
    foreign: the files from elsewhere that the list of mechanisms imports.
    """

    version: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    foreign: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)

    def file_of(self, mechanism: str) -> str | None:
        """The file from elsewhere that registers a mechanism; None if there is none."""
        registering = (name for name in self.foreign if name in self.modules)
        return next((name for name in registering if mechanism in self.modules[name].mechanisms), None)


def split_list(text: str) -> tuple[str, list[str]]:
    """The list of mechanisms in a model's folder as it was released, and the files that were added to it.

    Whatever else was changed is left in the first.
    """
    own, _, added = text.partition(ADDED)
    files = [Path(f"{name}.py") for name in re.findall(r"from \.([^\W\d]\w*) import ", added)]
    if not files or list_mechanisms(own, files) != text:
        return text, []
    return own, [file.name for file in files]


def check_code(files: RepositoryFiles, released: Mapping[str, Mapping[str, str]], expected: str | None) -> Code:
    """Compare every Python file, in whatever folder, with those of the releases.

    Args:
        files: files of the repository.
        released: SHA-256 of the files of every version, by name.
        expected: the version that the configuration names, which is what changed files are compared with.
    """
    code = Code()
    parsed = 0
    known = {digest for hashes in released.values() for digest in hashes.values()}
    names = {name for hashes in released.values() for name in hashes}
    # What is compared, where that is not the file as it is.
    own: dict[str, str] = {}
    for name in files.sizes:
        if suffix_of(name) not in (".py", ".pyw", ".pyi"):
            continue
        try:
            source = files.read(name)
        except UnreadableError as error:
            code.hashes[name] = ""
            code.findings.append(Finding("size", name, str(error)))
            continue
        code.hashes[name] = digest = hashlib.sha256(source).hexdigest()
        if name == LIST_FILE and digest not in known:
            text, foreign = split_list(source.decode("utf-8", "replace"))
            digest = hashlib.sha256(text.encode()).hexdigest()
            if foreign and digest in known and names.isdisjoint(foreign):
                own[name], code.foreign = digest, tuple(foreign)
        is_known = name in own or digest in known
        if not is_known:
            if len(source) > min(_MOST_PARSED, _MOST_PARSED_IN_ALL - parsed):
                code.findings.append(
                    Finding("size", name, f"is unknown code of {len(source)} bytes, too long to parse")
                )
                continue
            parsed += len(source)
        try:
            digest = code.hashes[name]
            module = _parse_released(digest, source) if digest in known else _parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            code.findings.append(Finding("code", name, f"is not Python: {error}"))
            continue
        code.modules[name] = module
        code.imports |= module.imports
        if not is_known:
            code.findings += [Finding("call", name, f"line {line} {what}") for line, what in module.uses]
            code.hosts |= module.hosts
    if not code.hashes:
        code.findings.append(Finding("code", "", "has no code of hf_lam, so there is nothing to be verified"))
        return code
    compared = {name: digest for name, digest in (code.hashes | own).items() if name not in code.foreign}
    code.version, changed = _version_of(compared, released, expected)
    elsewhere = [_name_foreign(name, code) for name in code.foreign if name in code.hashes]
    code.findings = changed + elsewhere + code.findings
    return code


def _name_foreign(name: str, code: Code) -> Finding:
    mechanisms = code.modules[name].mechanisms if name in code.modules else ()
    what = f"mechanism {' and '.join(map(repr, mechanisms))}" if mechanisms else "no mechanism is found in it"
    message = (
        f"is code from elsewhere ({what}), not released by hf_lam: read it before you load the repository with "
        "trust_remote_code=True"
    )
    return Finding("foreign", name, message)


def _parse_released(digest: str, source: bytes) -> Module:
    if digest not in _RELEASED:
        _RELEASED[digest] = _parse(source)
    return _RELEASED[digest]


# The files of the releases by their hashes: nearly every repository has those of one.
_RELEASED: dict[str, Module] = {}


def _parse(source: bytes) -> Module:
    nodes = list(ast.walk(tree := ast.parse(source)))
    classes = frozenset(node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return Module(
        classes,
        frozenset(_packages(nodes)),
        frozenset(_siblings(nodes)),
        tuple(_uses(nodes)),
        frozenset(_hosts(nodes)),
        tuple(dict.fromkeys(_mechanisms(nodes))),
        any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body),
    )


def _version_of(
    hashes: Mapping[str, str], released: Mapping[str, Mapping[str, str]], expected: str | None
) -> tuple[str | None, list[Finding]]:
    matches = {
        version: sum(names.get(name) == digest for name, digest in hashes.items())
        for version, names in released.items()
    }
    complete = [version for version, count in matches.items() if count == len(hashes)]
    if complete:
        return (expected if expected in complete else complete[-1]), []
    if not matches:
        return None, [Finding("code", "", "no release of hf_lam is known to compare with")]
    nearest = max(matches, key=lambda version: (matches[version], version == expected))
    findings = []
    for name, digest in sorted(hashes.items()):
        others = [version for version, names in released.items() if names.get(name) == digest]
        if released[nearest].get(name) == digest:
            continue
        if others:
            message = f"is that of hf_lam {' and '.join(others)}, while other files are of {nearest}"
        elif name in UNRELEASED:
            message = "has the name of code before the first release; save the model again, into an empty folder"
        elif any(name in names for names in released.values()):
            message = f"is not that of a released hf_lam; most of the code is of {nearest}"
            if not matches[nearest]:
                message = f"is not that of a released hf_lam; {', '.join(released)} are known here"
        else:
            message = "is no file of a released hf_lam"
        findings.append(Finding("code", name, message))
    return None, findings


def check_auto_maps(files: RepositoryFiles, configs: Mapping[str, Any], code: Code) -> list[Finding]:
    """Findings for classes that configurations name and that are not in the code of this repository."""
    findings = []
    targets = set()
    for config_name, config in configs.items():
        family = _family_of(config)
        for reference in _references(config):
            if not isinstance(reference, str):
                findings.append(Finding("auto_map", config_name, f"names {reference!r}, which is no class"))
                continue
            if "--" in reference:
                other = reference.partition("--")[0]
                findings.append(
                    Finding("repository", config_name, f"{reference!r} takes code from the repository {other!r}")
                )
                continue
            file, _, class_name = reference.rpartition(".")
            if leaves_folder(reference) or not re.fullmatch(r"[^\W\d]\w*\.[^\W\d]\w*", reference):
                kind = "path" if set("/\\") & set(reference) else "auto_map"
                findings.append(Finding(kind, config_name, f"names {reference!r}, which is not module.Class"))
                continue
            file = f"{file}.py"
            if file not in files.sizes:
                findings.append(Finding("auto_map", config_name, f"names {reference!r}, but there is no {file}"))
                continue
            targets.add(file)
            module = code.modules.get(file)
            if module is None or class_name not in (module.classes | (family if module.makes_classes else set())):
                findings.append(Finding("auto_map", config_name, f"names {reference!r}, which {file} does not define"))
    # Without a configuration that can be read, that is the finding.
    if code.hashes and not targets and isinstance(configs.get("config.json"), dict):
        findings.append(Finding("auto_map", "config.json", "names none of the code that is here"))
    _, missing = closure(targets, code)
    return findings + missing


def _family_of(config: Any) -> frozenset[str]:
    """The classes that belong to a configuration of ours, which our code makes when they are asked for."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    names = class_names_of(kind)
    return names | {config_class_of(kind).__name__} if names else names


def _references(config: Any) -> Iterator[Any]:
    """The classes that `auto_map` and `custom_pipelines` name, wherever they stand."""
    for key, value in entries(config):
        if key == "auto_map":
            waiting = [value]
            while waiting:
                current = waiting.pop()
                if isinstance(current, (dict, list)):
                    waiting += current.values() if isinstance(current, dict) else current
                elif current is not None:
                    yield current
        elif key == "custom_pipelines" and isinstance(value, dict):
            yield from (pipeline.get("impl") for pipeline in value.values() if isinstance(pipeline, dict))


def targets_of(configs: Mapping[str, Any]) -> set[str]:
    """The files of the classes that configurations name."""
    references = [reference for config in configs.values() for reference in _references(config)]
    return {f"{ref.rpartition('.')[0]}.py" for ref in references if isinstance(ref, str) and "--" not in ref}


def closure(targets: set[str], code: Code) -> tuple[set[str], list[Finding]]:
    """The files that loading `targets` reads: they and what they import from beside them; and what is missing."""
    found: set[str] = set()
    findings = []
    waiting = sorted(targets & set(code.modules))
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for level, sibling in sorted(code.modules[name].siblings):
            if level > 1:
                findings.append(Finding("path", name, f"imports from {'.' * level}{sibling}, outside of its folder"))
            elif f"{sibling}.py" not in code.hashes:
                findings.append(Finding("code", name, f"imports {sibling}.py, which is not here"))
            elif f"{sibling}.py" in code.modules:
                waiting.append(f"{sibling}.py")
    return found, findings


def _siblings(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name.replace(".", "/")) for name in names)


def _packages(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            yield (node.module or "").partition(".")[0]


def _hosts(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            text = node.value if isinstance(node.value, str) else node.value.decode("utf-8", "replace")
            yield from _ADDRESS.findall(text)


def _mechanisms(nodes: list[ast.AST]) -> Iterator[str]:
    """The names that are registered, where they stand in the call."""
    for node in nodes:
        if isinstance(node, ast.Call) and (_dotted(node.func) or "").rpartition(".")[2] == "register_mechanism":
            named = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            yield from (x.value for x in named if isinstance(x, ast.Constant) and isinstance(x.value, str))


def _uses(nodes: list[ast.AST]) -> list[tuple[int, str]]:
    """Imports and uses of what reaches out of a model, with their lines: processes, network, files, pickles."""
    full_names = {}
    found: dict[str, int] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                full_names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                if _SUSPICIOUS.fullmatch(alias.name):
                    found.setdefault(f"imports {alias.name}", node.lineno)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                full_names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if _SUSPICIOUS.fullmatch(f"{node.module}.{alias.name}"):
                    found.setdefault(f"imports {node.module}.{alias.name}", node.lineno)
    # The names inside of a longer one, as `os.path` in `os.path.join`, are no uses of their own.
    inner: set[int] = set()
    for node in nodes:  # from the outside in
        if isinstance(node, ast.Attribute):
            inner.add(id(node.value))
        if id(node) in inner or not isinstance(node, (ast.Name, ast.Attribute)):
            continue
        dotted = _dotted(node)
        if dotted is None or (isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)):
            continue
        first, _, rest = dotted.partition(".")
        # A name that is not imported here is a local one or one of Python's own, such as eval.
        full = f"{full_names[first]}{'.' * bool(rest)}{rest}" if first in full_names else first
        if _SUSPICIOUS.fullmatch(full):
            what = f"uses {full if len(full) <= _LONGEST_NAME else full[:_LONGEST_NAME] + '…'}"
            found[what] = min(node.lineno, found.get(what, node.lineno))
    return sorted((line, what) for what, line in found.items())


def _dotted(node: ast.AST) -> str | None:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None
