"""The page that says how to write a mechanism: what it quotes is in the file, and what it runs prints what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_lam
from helpers.door import DISTANCE, TEMPERATURE
from helpers.processes import ROOT, fresh_environment

PAGE = TEMPERATURE.parent / "README.md"


def blocks() -> list[tuple[str, str]]:
    """The language and the text of every block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def steps() -> Iterator[tuple[str, str, str | None]]:
    """What is run, and what it should print; None where the page does not say."""
    found = [block for block in blocks() if block[0] != "py"]
    for (language, text), (following, said) in zip(found, [*found[1:], ("", "")], strict=True):
        if language != "text":
            yield language, text, said if following == "text" else None


def normalized(printed: str) -> str:
    """Without spaces at the end of lines, versions, and a difference that is rounding."""
    printed = re.sub(r"(from the original: )\S+", r"\1#", printed.replace(hf_lam.__version__, "0.1.0"))
    return "\n".join(line.rstrip() for line in printed.strip().splitlines())


def test_what_it_quotes_is_in_the_file() -> None:
    quoted = [text for language, text in blocks() if language == "py"]
    assert len(quoted) == 4
    for text in quoted:
        # What is in the middle of a class has its first line above it.
        first, _, rest = text.partition("\n")
        assert text in TEMPERATURE.read_text() or (first.startswith("class ") and rest in TEMPERATURE.read_text())


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGE.read_text())
    assert len(links) >= 4
    for link in links:
        assert (PAGE.parent / link).is_file(), link


@pytest.mark.slow
def test_what_it_runs_prints_what_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "examples" / "mechanisms"
    folder.mkdir(parents=True)
    for path in (TEMPERATURE, DISTANCE):
        shutil.copy(path, folder)
    shutil.copy(ROOT / "examples" / "run_text_classification.py", folder.parent)
    environment = fresh_environment(
        {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
            "COLUMNS": "100",
        }
    )
    ran = 0
    for language, text, said in steps():
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", text]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
        if said is not None:
            assert normalized(done.stdout) == normalized(said), text
        ran += 1
    assert ran == 8
    assert (folder / "trained" / "head_temperature.png").is_file()
