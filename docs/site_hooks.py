"""What the documentation site has besides the pages in `docs/`.

mkdocs calls these functions while it builds the site (`make docs`). They add the pages that live elsewhere in the
repository, the pictures that pages show from there, and the page of the command line, and they turn links between
files of the repository into links between pages, or to GitHub where a file is no page.
"""

from __future__ import annotations

import posixpath
import re
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/hf-lam/hf-lam"
# How README.md, which PyPI shows too, names files of the repository: pages, and pictures.
ABSOLUTE = (
    f"{REPOSITORY}/blob/main/",
    f"{REPOSITORY}/tree/main/",
    "https://raw.githubusercontent.com/hf-lam/hf-lam/main/",
)

# The page of the site for a file of the repository; those of `docs/` have their own name.
ELSEWHERE = {"README.md": "index.md"} | {
    name: name
    for name in (
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benchmarks/README.md",
        "examples/README.md",
        "examples/mechanisms/README.md",
    )
}
CODE = re.compile(r"^( *)```.*?^\1```$|^ {4}.*?$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\](\(|: )([^()\s]+)(\)?)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "cli.md", content=command_line_page()))
    pictures = set()
    for file in files.documentation_pages():
        source = source_of(file.src_uri)
        for mark, _, _, target, _ in LINK.findall(without_code(file.content_string)):
            path = path_in_repository(source, target.partition("#")[0])
            if mark and path is not None and not path.startswith("docs/"):
                pictures.add(path)
    for path in sorted(pictures):
        files.append(File.generated(config, path, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    uri = page.file.src_uri
    return rewrite_links(markdown, source_of(uri), uri, {file.src_uri for file in files})


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    # Docstrings name functions as those of transformers do, [`name`].
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html)


def source_of(uri: str) -> str:
    """The file of the repository that a page of the site is made from."""
    return next((source for source, page in ELSEWHERE.items() if page == uri), f"docs/{uri}")


def path_in_repository(source: str, target: str) -> str | None:
    """The path that a link leads to, from the root of the repository; None for the rest of the web."""
    for prefix in ABSOLUTE:
        if target.startswith(prefix):
            return target.removeprefix(prefix).rstrip("/")
    if not target or "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return None if path.startswith("..") else path


def rewrite_links(markdown: str, source: str, uri: str, known: set[str]) -> str:
    def rewrite(match: re.Match[str]) -> str:
        mark, text, opening, target, closing = match.groups()
        address, hash_, anchor = target.partition("#")
        path = path_in_repository(source, address)
        if path is None:
            return match[0]
        page = ELSEWHERE.get(path, path.removeprefix("docs/"))
        if page in known:
            page = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        else:
            page = f"{REPOSITORY}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
        return f"{mark}[{text}]{opening}{page}{hash_}{anchor}{closing}"

    pieces, end = [], 0
    for code in CODE.finditer(markdown):
        pieces += [LINK.sub(rewrite, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, LINK.sub(rewrite, markdown[end:])])


def without_code(markdown: str) -> str:
    return CODE.sub("", markdown)


# --- The command line ------------------------------------------------------------------------------------------------


def command_line_page() -> str:
    """Every command of `hf-lam` with its arguments, options, examples and exit codes, as `--help` has them."""
    import typer.main

    from hf_lam.cli import app

    group: Any = typer.main.get_command(app)
    parts = ["# The command line", _plain(group.help), _plain(group.epilog)]
    parts += [_section(name, command) for name, command in group.commands.items()]
    return "\n\n".join(parts) + "\n"


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    pieces = [
        re.sub(r"^\{(.*)\}$", lambda one: one[1].upper(), piece) for piece in command.collect_usage_pieces(context)
    ]
    usage = " ".join(["hf-lam", name, *pieces])
    parts = [f"## hf-lam {name}", f"```text\n{usage}\n```", _plain(command.help)]
    rows = [
        f"| {_names_of(parameter)} | {_cell(parameter.help or '')}{_default_of(parameter)} |"
        for parameter in command.params
    ]
    parts += ["\n".join(["| argument or option | what it does |", "| --- | --- |", *rows]), _plain(command.epilog)]
    return "\n\n".join(parts)


def _names_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    # In a code span, the backslash before a bar would be seen.
    metavar = escape(parameter.metavar or "").replace("|", "&#124;")
    return names + (f" <code>{metavar}</code>" if metavar else "")


def _default_of(parameter: Any) -> str:
    default = parameter.default
    is_shown = isinstance(default, (int, float, str)) and not isinstance(default, bool) and default != ""
    return f" Default: `{default}`." if is_shown else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str) -> str:
    """Help for terminals as markdown: bold headings, and examples and lists as blocks."""
    text = re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**\n", text or "")
    lines = [f"    {line.strip()}" if line.startswith("  ") else line for line in text.split("\n")]
    return "\n".join(lines)
