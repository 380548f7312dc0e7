"""The hashes of the code that travels with models, for every release of hf_lam.

`manifest.json` has, for every version, the SHA-256 of each travelling file. The entry of a version that is released
never changes: repositories out there have that code. Until its release, the entry of a version follows the code:

    make manifest

which is `python -m hf_lam.hub.manifest`, writes the entry of the version in `version_hf_lam.py` anew and leaves
the others as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..modeling.version_hf_lam import TRAVELLING_FILES, __version__
from .code_checks import MANIFEST, released_code

CODE = Path(__file__).parent.parent / "modeling"


def current_code() -> dict[str, str]:
    """The SHA-256 of the travelling files of this copy of hf_lam, by name."""
    return {name: hashlib.sha256((CODE / name).read_bytes()).hexdigest() for name in sorted(TRAVELLING_FILES)}


def renew() -> bool:
    """Write the entry of the current version anew. Returns whether it was another before."""
    versions = released_code(MANIFEST) if MANIFEST.is_file() else {}
    if versions.get(__version__) == current_code():
        return False
    versions[__version__] = current_code()
    partial = MANIFEST.with_name(f".{MANIFEST.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(partial, MANIFEST)
    return True


if __name__ == "__main__":
    print(f"{MANIFEST.name}: {__version__} {'is renewed' if renew() else 'is up to date'}")
