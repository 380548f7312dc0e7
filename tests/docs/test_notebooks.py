"""The notebooks: they are those of their pages, what is shown in them is fit to be shown, and they run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from helpers.documents import blocks_of, make_stand_ins
from helpers.notebooks import BADGE, COLAB, INSTALL, NOTEBOOKS, code_cells, local_hub, make_notebook, run_notebook
from helpers.processes import ROOT

# What a run leaves: files in its folder, and the repositories that it has pushed.
LEAVES = {
    "docs/tutorials/hub.md": (["minilm-lam/model.safetensors", "masks/mechanism_config.json"], ["you/minilm-lam"]),
    "docs/tutorials/modalities.md": (["two-senses/model.safetensors", "cache/train/dataset_info.json"], []),
    "docs/tutorials/takeover.md": ([], ["you/minilm-lam"]),
}
# Paths, addresses, tokens, and how long something took.
MACHINE = re.compile(
    r"/(?:tmp|home|root|work|Users|usr|var)/[\w.-]+|127\.0\.0\.1|site-packages|hf_[A-Z]\w{20}|\b\d\d:\d\d\b"
)
every_page = pytest.mark.parametrize("page", NOTEBOOKS)


def read(page: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS[page], as_version=4)


def test_every_tutorial_has_a_notebook_and_every_notebook_a_page() -> None:
    assert set(NOTEBOOKS) == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/tutorials/*.md")}
    assert set(NOTEBOOKS) == set(LEAVES)
    assert set(NOTEBOOKS.values()) == set(ROOT.glob("notebooks/*.ipynb"))


@every_page
def test_a_notebook_says_what_its_page_says(page: str) -> None:
    notebook = read(page)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        cell["outputs"] = []
    assert notebook == make_notebook(page), "run `make notebooks`"


@every_page
def test_a_notebook_has_the_code_of_its_page(page: str) -> None:
    notebook = make_notebook(page)
    code = [cell["source"] for cell in code_cells(notebook)]
    assert code == [INSTALL, *(block.text for block in blocks_of(page) if block.language == "python")]
    for source in code:
        ast.parse(TransformerManager().transform_cell(source))
    prose = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    path = NOTEBOOKS[page].relative_to(ROOT).as_posix()
    assert f"[![Open in Colab]({BADGE})]({COLAB}{path})" in prose
    assert prose.count("\n## ") + prose.startswith("## ") == prose.count("## ") == len(re.findall("^## ", prose, re.M))
    # Relative ones lead nowhere in Colab.
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert len(links) > 3 and all(link.startswith("https://") for link in links)


@every_page
def test_outputs_are_small_and_of_no_machine(page: str) -> None:
    assert NOTEBOOKS[page].stat().st_size < 300_000
    check_outputs(read(page))


def check_outputs(notebook: NotebookNode) -> None:
    """All of our tables and figures are shown, and neither errors nor what the next run would change."""
    install, *cells = code_cells(notebook)
    assert install["outputs"] == []
    for cell in cells:
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        last = cell["source"].splitlines()[-1]
        if re.match(r"hf_lam\.(inspect|cost|verify)\(|check$", last) or "trainer.train()" in cell["source"]:
            assert "text/html" in kinds, last
        if re.match(r"plot_\w+\(", last):
            assert "image/png" in kinds, last
        if re.match(r"print\(|hf_lam\.print_", last):
            assert "stdout" in {output.get("name") for output in cell["outputs"]}, last
        assert cell["execution_count"] is None
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            assert output.get("execution_count") is None
            for kind, shown in output.get("data", {"text": output.get("text")}).items():
                assert kind.startswith("image/") or not MACHINE.search(shown), last


@pytest.mark.slow
@every_page
def test_a_notebook_runs(page: str, tmp_path: Path) -> None:
    make_stand_ins(tmp_path)
    notebook = make_notebook(page)
    with local_hub() as hub:
        run_notebook(notebook, tmp_path, hub)
    nbformat.validate(notebook)
    check_outputs(notebook)
    files, repositories = LEAVES[page]
    assert [name for name in files if not (tmp_path / name).is_file()] == []
    assert [*hub.repos] == repositories
    for name in repositories:
        assert {"README.md", "model.safetensors", "modeling_hf_lam.py", "masks.png"} <= {*hub.repos[name].files()}
    passed = [cell for cell in code_cells(notebook) if "verify(" in cell["source"]]
    assert all("you/minilm-lam: passed" in str(cell["outputs"]) for cell in passed)
