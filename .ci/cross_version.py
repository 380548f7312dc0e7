#!/usr/bin/env python3
"""Models saved by one supported version of transformers load in another, in all four directions.

The two versions are the floor, read from pyproject.toml, and the one installed beside this interpreter. The floor
gets a virtual environment of its own with the same pins otherwise. What is saved, loaded and compared is in
tests/cross_version/make_and_check.py.

    python .ci/cross_version.py [--floor-python PATH] [--work FOLDER]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "cross_version" / "make_and_check.py"


def run(*command):
    """Run a command to its end, wherever this was called from; its output goes to ours."""
    sys.stdout.flush()
    # The models are tiny: more threads only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment)


def make_floor(folder):
    """A virtual environment with hf_lam on the oldest transformers that pyproject.toml allows."""
    floor = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text()).group(1)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [pin for pin in pins if not pin.startswith("transformers==")]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*pins, f"transformers=={floor}", ""]))
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    # With its dependencies: that they can be installed beside the floor is part of the check.
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints, "-e", ROOT)
    return python


def check(pythons, folder):
    """Every step of every direction; returns the failed ones."""
    failed = []

    def step(title, python, command, saved):
        print(f"\n--- {title}", flush=True)
        start = time.monotonic()
        try:
            run(python, SCRIPT, command, saved)
        except subprocess.CalledProcessError:
            failed.append(title)
        print(f"    {time.monotonic() - start:.0f} s")
        return title not in failed

    for saver, saver_python in pythons.items():
        saved = folder / f"saved_by_{saver}"
        if not step(f"save with {saver}", saver_python, "save", saved):
            continue
        for loader, loader_python in pythons.items():
            step(f"saved with {saver}, load with {loader}", loader_python, "load", saved)
            step(f"saved with {saver}, load-stock with {loader}", loader_python, "load-stock", saved)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floor-python", type=Path, help="an interpreter that has the floor; default: made here")
    parser.add_argument("--work", type=Path, help="where to put everything; default: a temporary folder")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        floor_python = arguments.floor_python or make_floor(folder)
        failed = check({"floor": floor_python, "newest": Path(sys.executable)}, folder)
    if failed:
        sys.exit("cross-version check failed: " + "; ".join(failed))
    print("\ncross-version check: all four directions ok")


if __name__ == "__main__":
    main()
