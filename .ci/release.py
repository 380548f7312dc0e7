#!/usr/bin/env python3
"""Whether the tree can be released as this tag: the version, the changelog, the hashes, the folders that it saved.

python .ci/release.py v0.1.0
"""

import argparse
import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def hashes_in(folder, names):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def changed_entries(root):
    """What the hashes of `manifest.json` say of the code in `tests/fixtures/saved_by_VERSION`, where they differ.

    That code is what people have: the entry of a released version never changes.
    """
    released = json.loads((root / "hf_lam/hub/manifest.json").read_text())
    found = []
    for folder in sorted((root / "tests/fixtures").glob("saved_by_*")):
        version = folder.name.removeprefix("saved_by_")
        codes = sorted({path.parent for path in folder.glob("*/*_hf_lam*.py")}) if version in released else []
        for code in codes:
            if hashes_in(code, [path.name for path in code.glob("*.py")]) != released[version]:
                found.append(f"manifest.json has other hashes for {version} than the code in {code.relative_to(root)}")
    return found


def problems(root, tag):
    """What is to be done before the tag, line by line."""
    modeling = root / "hf_lam/modeling"
    facts = runpy.run_path(str(modeling / "version_hf_lam.py"))
    version = facts["__version__"]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag!r}, but __version__ is {version!r}: it should be 'v{version}'")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text(), re.M):
        found.append(f"CHANGELOG.md has no line '## [{version}] - YYYY-MM-DD'")
    if not re.search(rf"^version: {re.escape(version)}$", (root / "CITATION.cff").read_text(), re.M):
        found.append(f"CITATION.cff has no line 'version: {version}'")
    released = json.loads((root / "hf_lam/hub/manifest.json").read_text())
    if released.get(version) != hashes_in(modeling, facts["TRAVELLING_FILES"]):
        found.append(f"manifest.json has other hashes for {version} than hf_lam/modeling: run `make manifest`")
    if not list((root / f"tests/fixtures/saved_by_{version}").glob("*/*_hf_lam*.py")):
        found.append(f"tests/fixtures/saved_by_{version} has no folder with code: see RELEASE.md")
    return found + changed_entries(root)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", help="such as v0.1.0")
    tag = parser.parse_args().tag
    if found := problems(ROOT, tag):
        sys.exit("\n".join([f"{tag} cannot be released yet:", *(f"  {line}" for line in found)]))
    print(f"{tag} can be released")


if __name__ == "__main__":
    main()
