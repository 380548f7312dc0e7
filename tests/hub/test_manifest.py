"""The hashes of the code that travels."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from hf_lam import __version__
from hf_lam.hub import manifest
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES


def test_the_entry_of_this_version_is_that_of_the_code() -> None:
    entry = manifest.released_code().get(__version__)
    assert entry == manifest.current_code(), (
        f"manifest.json has other hashes for hf_lam {__version__} than its code: run `make manifest` if it is not "
        "released yet; otherwise raise __version__ in version_hf_lam.py first."
    )


def test_hashes_are_those_of_the_files_as_they_travel() -> None:
    hashes = manifest.current_code()
    assert set(hashes) == set(TRAVELLING_FILES)
    for name, digest in hashes.items():
        data = (manifest.CODE / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert b"\r" not in data


def test_renewing_changes_only_the_entry_of_this_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "manifest.json"
    monkeypatch.setattr(manifest, "MANIFEST", file)
    older = {"locomt_views_hf_lam.py": "0" * 64}
    file.write_text(json.dumps({"0.0.1": older, __version__: {"gone.py": "1" * 64}}))
    assert manifest.renew()
    assert json.loads(file.read_text()) == {"0.0.1": older, __version__: manifest.current_code()}
    assert not manifest.renew()
    file.unlink()
    assert manifest.renew()
    assert json.loads(file.read_text()) == {__version__: manifest.current_code()}
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_git_keeps_the_line_ends_of_the_code() -> None:
    root = manifest.CODE.parent.parent
    if not (root / ".git").exists():
        pytest.skip("not a clone of the repository")
    names = [f"hf_lam/modeling/{name}" for name in TRAVELLING_FILES]
    printed = subprocess.run(
        ["git", "check-attr", "eol", "--", *names], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines() == [f"{name}: eol: lf" for name in names]
