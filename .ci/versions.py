#!/usr/bin/env python3
"""What pyproject.toml promises of versions: the lowest of every package together, and the newest of every package.

In environments of their own:

1. the lowest version of everything, but torch, which is that of constraints.txt (of others, pip finds only builds of
   several GB): a small set of tests, and models saved there load here, and the other way round, in all four directions
   (tests/cross_version/make_and_check.py);
2. the newest version of everything but torch: the same small set.

Where pip is told of the index that has torch without CUDA (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu),
torch is no exception: its lowest version is in the first, its newest in the second. And with Python 3.10, if there is
one, the lowest version of everything is installed once more, for the tests of the core and the command line.

While tests run, the next environment is made.

    python .ci/versions.py [--work FOLDER]
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "cross_version" / "make_and_check.py"
EXTRA = "test"
# What each package is needed for: converting, saving, loading, training, the command line, media, pictures, checks,
# serving. (Export needs a newer torch than the lowest.)
SMALL_SET = (
    "tests/core/test_private_names.py",
    "tests/core/test_saving.py",
    "tests/core/test_peft.py",
    "tests/cli/test_cli.py",
    "tests/cli/test_cli_convert.py",
    "tests/training/test_trainer.py",
    "tests/training/test_mechanism_logging.py",
    "tests/training/test_metrics.py",
    "tests/training/test_caption_metrics.py",
    "tests/training/test_training_media.py",
    "tests/training/test_media_ends.py::test_a_video_that_was_cut_off",
    "tests/visualization/test_visualization.py",
    "tests/hub/verification/test_verification.py",
    "tests/examples/test_serve.py::test_answers_are_those_of_the_model",
)
CORE_SET = tuple(test for test in SMALL_SET if test.startswith(("tests/core/", "tests/cli/")))
OLD_PYTHON = "lowest versions, Python 3.10"
HAS_CPU_BUILDS = "download.pytorch.org/whl/cpu" in os.environ.get("PIP_EXTRA_INDEX_URL", "")


def run(*command, live=True):
    """Run a command to its end, wherever this was called from; its output goes to ours, or is returned."""
    sys.stdout.flush()
    # The models are tiny: more threads only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    to = {} if live else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(
        [str(part) for part in command], check=True, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, **to
    )
    return done.stdout


def run_quietly(*command):
    return run(*command, live=False)


def requirements():
    """What hf_lam needs and its tests need: of the extras that `test` names (`hf-lam[viz,…]`), what those need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [EXTRA]
    yield from project["dependencies"]
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            if requirement.startswith("hf-lam["):
                extras += re.search(r"\[(.*)\]", requirement).group(1).split(",")
            else:
                yield requirement


def lowest():
    """The lowest version of every package that pyproject.toml names, by the package."""
    found = {}
    for requirement in requirements():
        name, version = re.match(r"([\w.-]+)\s*(?:>=|==)\s*([\w.]+)", requirement).groups()
        if found.setdefault(name, version) != version:
            sys.exit(f"pyproject.toml has two lowest versions of {name}: {found[name]} and {version}.")
    return found


def tested_torch():
    return re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)


def install(base, folder, versions):
    """Make an environment with hf_lam and what its tests need, with these versions and otherwise the newest."""
    run(base, "-m", "venv", folder)
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    pip = (folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile")
    run(*pip, "-c", constraints, "-e", f"{ROOT}[{EXTRA}]")


def find_python(name):
    """An interpreter that runs, on the path or among those of pyenv; None if there is none."""
    version = name.removeprefix("python")
    for path in (shutil.which(name), *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/{name}"))):
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


class Checks:
    """What is done, and what of it failed."""

    def __init__(self):
        self.failed = []
        self.printing = threading.Lock()

    def step(self, title, do, *arguments):
        """Whether it went well."""
        start = time.monotonic()
        if do is not run_quietly:
            print(f"\n--- {title}", flush=True)
        try:
            output = do(*arguments)
        except subprocess.CalledProcessError as error:
            self.failed.append(title)
            output = error.stdout
        with self.printing:
            if do is run_quietly:
                print(f"\n--- {title}\n{output}", end="")
            print(f"    {time.monotonic() - start:.0f} s", flush=True)
        return title not in self.failed

    def together(self, steps):
        """Steps of one process each, two at a time: whether each went well."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda step: self.step(step[0], run_quietly, *step[1:]), steps))

    def small_set(self, title, python, tests):
        options = ("-q", "-m", "not slow and not gpu", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider")
        self.step(f"small set of tests, {title}", run, python, "-m", "pytest", *options, *tests)

    def all_directions(self, pythons, folder):
        saved = {saver: folder / f"saved_by_{saver}" for saver in pythons}
        went_well = self.together(
            [(f"save with {name}", pythons[name], SCRIPT, "save", saved[name]) for name in saved]
        )
        self.together(
            [
                (f"saved with {saver}, {command} with {loader}", python, SCRIPT, command, saved[saver])
                for command in ("load", "load-stock")
                for saver, is_saved in zip(saved, went_well, strict=True)
                for loader, python in pythons.items()
                if is_saved
            ]
        )


def check(folder):
    """Everything; returns the failed steps."""
    checks = Checks()
    torch = {} if HAS_CPU_BUILDS else {"torch": tested_torch()}
    kinds = {"lowest versions": (sys.executable, lowest() | torch), "newest versions": (sys.executable, torch)}
    old = find_python("python3.10")
    if old is None or not HAS_CPU_BUILDS:
        print(f"\n--- Python 3.10: left out, {'there is none' if old is None else 'pip finds torch with CUDA alone'}")
    else:
        kinds[OLD_PYTHON] = (old, lowest())
    environments = {kind: folder / f"venv{number}" for number, kind in enumerate(kinds)}
    with ThreadPoolExecutor(1) as installer:
        installed = {
            kind: installer.submit(install, base, environments[kind], versions)
            for kind, (base, versions) in kinds.items()
        }
        for kind, environment in environments.items():
            if checks.step(f"install the {kind}", installed[kind].result):
                python = environment / "bin" / "python"
                checks.small_set(kind, python, CORE_SET if kind == OLD_PYTHON else SMALL_SET)
                if kind == "lowest versions":
                    checks.all_directions({"lowest": python, "tested": sys.executable}, folder)
            shutil.rmtree(environment, ignore_errors=True)
    return checks.failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where to put everything; default: a temporary folder")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        failed = check(folder)
    if failed:
        sys.exit("versions: failed: " + "; ".join(failed))
    print("\nversions: the lowest and the newest ok, models load in all four directions")


if __name__ == "__main__":
    main()
