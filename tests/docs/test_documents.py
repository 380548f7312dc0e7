"""What README and docs show: blocks run and print what they show, commands parse, links lead somewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import typer.testing

from helpers import hub_server
from helpers.documents import (
    PAGES,
    RUN,
    Block,
    anchors_of,
    blocks_of,
    commands_of,
    links_of,
    make_stand_ins,
    messages,
    same_output,
)
from helpers.processes import ROOT
from helpers.scripts import script_module
from hf_lam.cli import app
from hf_lam.training.arguments import RunArguments

PROJECT = "https://github.com/hf-lam/hf-lam/"
RAW = "https://raw.githubusercontent.com/hf-lam/hf-lam/main/"
GROUP: Any = typer.main.get_command(app)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        for prefix in (f"{PROJECT}blob/main/", f"{PROJECT}tree/main/", RAW):
            path = path.removeprefix(prefix)
        if path.startswith(("http", "mailto:")):
            continue
        target = (ROOT if link.startswith("http") else (ROOT / page).parent) / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target.resolve().relative_to(ROOT).as_posix()), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    for block in blocks_of(page):
        if block.language in ("bash", "sh", "indented", ""):
            for command in commands_of(block):
                assert not (wrong := what_is_wrong(command)), f"{page}, line {block.line}: {command}: {wrong}"


def what_is_wrong(command: list[str]) -> set[str]:
    """Of a command: options, extras, targets and files that there are not."""
    program, *arguments = command
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    if program == "make":
        return {*arguments[:1]} - set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    if program == "pip":
        extras = ",".join(re.findall(r"\[([\w,]+)\]", " ".join(arguments)))
        known = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.M)
        return {*filter(None, extras.split(","))} - set(known)
    if program == "hf-lam":
        if arguments[0] not in GROUP.commands:
            return {arguments[0]} - {"--version", "--help", "COMMAND"}
        parameters = GROUP.commands[arguments[0]].params
        return options - {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    at = next((index for index, word in enumerate(arguments) if word.endswith(".py")), len(arguments))
    script = (*arguments[at : at + 1], "")[0].replace("../", "examples/")
    if Path(script).stem.startswith("run_"):
        given = {word[2:].partition("=")[0] for word in arguments[at:] if word.startswith("--")}
        return given - options_of(Path(script).stem)
    return {script} - {"script.py", "SCRIPT.py"} if not (ROOT / script).exists() else set()


def options_of(script: str) -> set[str]:
    with script_module(script) as module:
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        return {field.name for kind in (RunArguments, *kinds) for field in dataclasses.fields(kind)}


def test_troubleshooting_has_the_errors_as_they_are() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## From other packages")[0]
    headings = re.findall(r"^### `(.+)`$", page, flags=re.M)
    assert len(headings) > 25
    known = messages()
    for heading in headings:
        for piece in heading.split("…"):
            assert piece.strip(" ()") in known, f"no error says {piece!r}"


def test_the_page_of_installation_has_every_extra_and_the_lowest_versions() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^([\w-]+) = \[", table, flags=re.M)
    assert len(extras) > 5 and not [name for name in extras if f"`{name}`" not in page]
    for name in ("torch", "transformers", "accelerate"):
        lowest = re.search(rf'^    "{name}>=([\d.]+)', project, flags=re.M)
        assert lowest is not None and f"| {name} | {lowest[1]}" in page, name


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    make_stand_ins(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_blocks_run(page: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for entry in stand_ins.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.setattr(hub_server, "NAMESPACES", ("you",))
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict[str, Any] = {"__name__": "page"}
    with hub_server.HubServer() as hub:
        hub.serve(monkeypatch, tmp_path / "hub")
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        for block in blocks_of(page):
            if block.language in ("python", "bash"):
                printed = run(page, block, namespace)
                if block.printed is not None:
                    assert same_output(printed, block.printed), f"{page}, line {block.line}, printed\n{printed}"


def run(page: str, block: Block, namespace: dict[str, Any]) -> str:
    """What a block prints, in this process."""
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # With as many lines before it as on the page, for the traceback.
            exec(compile("\n" * block.line + block.text, page, "exec"), namespace)
        return printed.getvalue()
    outputs = []
    for command in commands_of(block):
        assert command[0] == "hf-lam", f"{page}, line {block.line}: only hf-lam is run here, not {command[0]}"
        result = typer.testing.CliRunner().invoke(app, command[1:], env={"COLUMNS": "100"})
        assert result.exit_code == 0, f"{page}, line {block.line}: {command}\n{result.output}"
        outputs.append(result.stdout)
    return "".join(outputs)


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("91% of 297 are right\n", "90% of 297 are right", True),
        ("50% of 297 are right\n", "90% of 297 are right", False),
        ("a  \nb 3", "a\nb 3", True),
        ("model: 1.0e-06 and more", "model: 9.0e-07 …", True),
        ("['label']", "['score']", False),
    ],
)
def test_outputs_are_the_same_but_for_a_tenth_of_a_number(printed: str, shown: str, same: bool) -> None:
    assert same_output(printed, shown) is same
