"""`.ci/release.py`: whether a tree can be released."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("version_hf_lam.py", "lam_hf_lam.py")


def load_release() -> Any:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load_release()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that can be released as v1.2.0, and was as v1.1.0."""
    modeling, saved = tmp_path / "hf_lam/modeling", tmp_path / "tests/fixtures"
    modeling.mkdir(parents=True)
    (tmp_path / "hf_lam/hub").mkdir()
    (modeling / NAMES[0]).write_text(f'__version__ = "1.2.0"\nTRAVELLING_FILES = {NAMES}\n')
    (modeling / NAMES[1]).write_text("# new\n")
    for version, text in (("1.1.0", "# old\n"), ("1.2.0", "# new\n"), ("0.1.0.dev", "# of no release\n")):
        folder = saved / f"saved_by_{version}" / "bert_lam"
        folder.mkdir(parents=True)
        (folder / NAMES[0]).write_text((modeling / NAMES[0]).read_text().replace("1.2.0", version))
        (folder / NAMES[1]).write_text(text)
        (folder.parent / "vit_lam").mkdir()
    entries = {
        version: release.hashes_in(saved / f"saved_by_{version}" / "bert_lam", NAMES) for version in ("1.1.0", "1.2.0")
    }
    (tmp_path / "hf_lam/hub/manifest.json").write_text(json.dumps(entries))
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n### Added\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    return tmp_path


def test_a_tree_that_can_be_released(tree: Path) -> None:
    assert release.problems(tree, "v1.2.0") == []


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_text(text)


def forget_the_code(tree: Path) -> None:
    for file in (tree / "tests/fixtures/saved_by_1.2.0/bert_lam").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (write("CHANGELOG.md", "## [1.2.0]\n"), "no line '## [1.2.0] - YYYY-MM-DD'"),
        (write("CITATION.cff", "cff-version: 1.2.0\nversion: 1.1.0\n"), "no line 'version: 1.2.0'"),
        (write("hf_lam/modeling/lam_hf_lam.py", "# newer\n"), "other hashes for 1.2.0 than hf_lam/modeling"),
        (forget_the_code, "saved_by_1.2.0 has no folder with code"),
        (
            write("tests/fixtures/saved_by_1.1.0/bert_lam/lam_hf_lam.py", "# renewed\n"),
            "other hashes for 1.1.0 than the code in tests/fixtures/saved_by_1.1.0/bert_lam",
        ),
        (write("tests/fixtures/saved_by_1.2.0/bert_lam/stray_hf_lam.py", ""), "other hashes for 1.2.0 than the code"),
    ],
)
def test_what_is_still_to_be_done(tree: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(tree)
    (found,) = release.problems(tree, "v1.2.0")
    assert message in found


def test_another_tag(tree: Path) -> None:
    (found,) = release.problems(tree, "1.2.0")
    assert "should be 'v1.2.0'" in found


def test_released_code_is_as_it_was() -> None:
    assert release.changed_entries(ROOT) == []
