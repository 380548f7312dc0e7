#!/usr/bin/env python3
"""What `make build` left in dist/: its files, and whether a bare machine can use it.

1. The sdist holds the files of the repository, and the wheel those of `hf_lam/`.
2. The wheel, with the versions of constraints.txt, in an environment that has nothing else, away from the repository:
   `hf-lam --version`, the first Python block of the README, and the demo.
3. The unpacked sdist: pytest finds its tests there, and some of them pass.

    python .ci/dist.py [--quick]
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
# A few that read what only the repository has: workflows, pages, saved folders, hashes.
SDIST_TESTS = (
    "tests/project",
    "tests/hosts/test_table.py",
    "tests/hub/test_manifest.py",
    "tests/regression/test_saved_folders.py::test_a_saved_model_gives_what_it_gave",
)


def only(pattern):
    """The one file of this kind in dist/."""
    found = sorted(DIST.glob(pattern))
    if len(found) != 1:
        sys.exit(f"dist/ has {len(found)} files {pattern}, and should have one: run `make build`.")
    return found[0]


def files_of_the_repository(*more):
    """The files that git tracks, and with `--others` those that it would."""
    command = ["git", "ls-files", "-z", "--cached", "--exclude-standard", *more]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def compare(title, found, needed, allowed):
    """End with the names, unless all that is needed is there, and nothing that is not allowed."""
    lines = [f"  is missing: {name}" for name in sorted(needed - found)]
    lines += [f"  should not be there: {name}" for name in sorted(found - allowed)]
    if lines:
        sys.exit("\n".join([f"{title}:", *lines]))
    print(f"{title}: {len(found)} files", flush=True)


def check_files(sdist, wheel):
    if not (ROOT / ".git").exists():
        print("not a clone of the repository: the files are not compared with it", flush=True)
        return
    tracked, known = files_of_the_repository(), files_of_the_repository("--others")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    compare(sdist.name, names - made, tracked, known)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    described = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    tracked, known = ({name for name in files if name.startswith("hf_lam/")} for files in (tracked, known))
    compare(wheel.name, names - described, tracked, known)


def run(*command, cwd):
    print(f"\n$ {' '.join(map(str, command))[:100]}", flush=True)
    # Away from the repository, and with neither its packages nor its data.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL, cwd=cwd, env=environment)


def check_wheel(wheel, python, folder, is_quick):
    pip = (python, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check")
    pip += ("-c", ROOT / "constraints.txt")
    run(*pip, wheel, cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    run(python.with_name("hf-lam"), "--version", cwd=folder)
    first_block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    run(python, "-c", first_block.group(1), cwd=folder)
    run(*pip, f"{wheel}[test]", cwd=folder)
    if not is_quick:
        run(python.with_name("hf-lam"), "demo", cwd=folder)


def check_sdist(sdist, python, folder, is_quick):
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
    if not is_quick:
        run(*pytest, "--collect-only", "--no-header", "-qq", cwd=unpacked)
    run(*pytest, *SDIST_TESTS, cwd=unpacked)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the demo, and finding every test")
    is_quick = parser.parse_args().quick

    sdist, wheel = only("*.tar.gz"), only("*.whl")
    check_files(sdist, wheel)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        check_wheel(wheel, python, elsewhere, is_quick)
        check_sdist(sdist, python, folder, is_quick)
    print("\ndist: the files are complete, the wheel works on its own, tests of the sdist pass")


if __name__ == "__main__":
    main()
