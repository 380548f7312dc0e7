"""The notebooks in `notebooks/`: made from the pages that link to them, and run in a kernel of their own."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import hub_server
from helpers.documents import PAGES
from helpers.processes import ROOT, fresh_environment

REPOSITORY = "https://github.com/hf-lam/hf-lam/blob/main/"
COLAB = "https://colab.research.google.com/github/hf-lam/hf-lam/blob/main/"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

INSTALL = """\
from importlib.util import find_spec

if find_spec("hf_lam") is None:
    %pip install -q "hf-lam[viz,image]\""""

# What a `text` block shows of a block's output, the notebook has below the cell.
_PYTHON = re.compile(r"^```python\n(.*?)\n```\n(?:\n*```text\n.*?\n```\n)?", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^()\s#]+)")
# How long something took, as progress bars show it.
_DURATION = re.compile(r"(?<=\d) (?:\d+:)?\d\d:\d\d\b")


def _colab_links(page: str) -> list[str]:
    return re.findall(re.escape(COLAB) + r"(\S+\.ipynb)\)", (ROOT / page).read_text(encoding="utf-8"))


# The pages that link to a notebook in Colab, and its path.
NOTEBOOKS = {page: ROOT / link for page in PAGES for link in _colab_links(page)}


def make_notebook(page: str) -> NotebookNode:
    """The notebook of a page, without outputs: its prose, and its Python blocks as cells."""
    title, *sections = _PYTHON.split((ROOT / page).read_text(encoding="utf-8"))
    first, *prose = _markdown_of(title, page)
    heading, _, introduction = first.partition("\n\n")
    notebook = NOTEBOOKS[page].relative_to(ROOT).as_posix()
    badge = f"[![Open in Colab]({BADGE})]({COLAB}{notebook})"
    outputs = (
        f"*[This page]({REPOSITORY}{page}) as a notebook. The outputs are of a run on a CPU, with a small Hub on the "
        "same machine, where the user is called `you`.*"
    )
    cells = [new_markdown_cell("\n\n".join(filter(None, (heading, badge, introduction, outputs))))]
    cells += [new_code_cell(INSTALL), *map(new_markdown_cell, prose)]
    for index, text in enumerate(sections):
        cells += map(new_markdown_cell, _markdown_of(text, page)) if index % 2 else [new_code_cell(text)]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    metadata = {
        "accelerator": "GPU",  # Colab starts with one
        "colab": {"provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return new_notebook(cells=cells, metadata=metadata)


def _markdown_of(text: str, page: str) -> Iterator[str]:
    """Prose between two blocks of code, a cell for each section that begins there; links lead to the repository."""

    def absolute(link: re.Match[str]) -> str:
        return f"]({REPOSITORY}{posixpath.normpath(posixpath.join(posixpath.dirname(page), link[1]))}"

    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        paragraphs = [part for part in section.strip().split("\n\n") if COLAB not in part]
        if paragraphs != [""]:
            yield _LINK.sub(absolute, "\n\n".join(paragraphs))


@contextmanager
def local_hub() -> Iterator[hub_server.HubServer]:
    """A Hub whose only user is `you`."""
    with mock.patch.object(hub_server, "NAMESPACES", ("you",)), hub_server.HubServer() as hub:
        yield hub


def run_notebook(notebook: NotebookNode, folder: Path, hub: hub_server.HubServer) -> None:
    """Run all cells in `folder`, and keep of their outputs what every other run gives as well.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    cache = folder / "hub"
    kernel = fresh_environment({**hub.environment(cache), "IPYTHONDIR": str(folder / "ipython")})
    resources = {"metadata": {"path": str(folder)}}
    metadata = notebook["metadata"].copy()
    NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources=resources, record_timing=False, coalesce_streams=True
    ).execute(env=kernel)
    notebook["metadata"] = metadata
    # As it is on a reader's machine.
    usual = {hub.url.removeprefix("http://"): "huggingface.co", str(cache): "~/.cache/huggingface"}
    for cell in code_cells(notebook):
        cell["execution_count"] = None
        cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = None
            shown = output.get("data", output)
            for kind in {"text", "text/plain", "text/html"} & {*shown}:
                shown[kind] = _DURATION.sub("", shown[kind])
                for found, name in usual.items():
                    shown[kind] = shown[kind].replace(found, name)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
