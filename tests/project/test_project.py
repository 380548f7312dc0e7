"""What lies around the code: metadata, workflows, pages of the project. Nothing here imports torch."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/hf-lam/hf-lam"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML_FILES = [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"]
# What is installed under another name than it is imported by.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in read_yaml(path)["jobs"].items():
            yield f"{path.name}: {name}", job


def steps() -> Iterator[dict[str, Any]]:
    for _, job in jobs():
        yield from job["steps"]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_is_read(path: Path) -> None:
    assert isinstance(read_yaml(path), dict)


def test_every_target_that_is_called_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    called = {line for step in steps() for line in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert called >= {"lint", "test", "test-slow", "versions", "docs", "build", "check-dist", "check-release"}
    script = re.sub(r"#.*", "", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    called |= {name for names in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", script) for name in names.split()}
    for page in ("README.md", "CONTRIBUTING.md", "RELEASE.md", ".github/PULL_REQUEST_TEMPLATE.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        called |= set(re.findall(r"(?:`|^ {4}|^\$ )make ([a-z-]+)", text, re.MULTILINE))
    assert called - targets == set()


def test_the_versions_of_python_agree() -> None:
    prefix = "Programming Language :: Python :: "
    claimed = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if re.search(r" :: 3\.\d+$", name)]
    matrices = [job["strategy"]["matrix"]["python-version"] for _, job in jobs() if "strategy" in job]
    assert matrices == [claimed]
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == claimed[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{claimed[0].replace('.', '')}"
    set_up = [str(step["with"]["python-version"]) for step in steps() if "setup-python" in step.get("uses", "")]
    assert {version for text in set_up for version in re.findall(r"3\.\d+", text)} <= {*claimed}


def test_workflows_may_do_little() -> None:
    for path in WORKFLOWS:
        workflow = read_yaml(path)
        assert workflow["permissions"] == {"contents": "read"}, path.name
        assert "concurrency" in workflow, path.name
    for name, job in jobs():
        assert job["timeout-minutes"] <= 60, name
        # Only what publishes is given more, and it runs nothing of the repository.
        if "permissions" in job:
            assert job["permissions"].get("id-token") == "write", name
            assert not [step for step in job["steps"] if "run" in step], name
    for step in steps():
        assert "uses" not in step or re.search(r"@(v\d+|release/v\d+)$", step["uses"]), step
        # An issue's or a branch's name is no part of a script.
        assert "${{" not in step.get("run", ""), step


# --- what is needed --------------------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    """Of hf_lam and of all its extras, but itself."""
    every = [*PROJECT["dependencies"], *(entry for extra in EXTRAS.values() for entry in extra)]
    return [found for found in map(Requirement, every) if found.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(lines), re.MULTILINE)
    }


def test_what_is_imported_is_required() -> None:
    imported = set()
    for path in (ROOT / "hf_lam").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    imported -= {*sys.stdlib_module_names, "hf_lam"}
    needed = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}
    assert needed >= {"torch", "transformers", "rich", "matplotlib", "av"}
    assert needed - {canonicalize_name(requirement.name) for requirement in requirements()} == set()


def test_what_is_required_has_one_lowest_version_and_a_pin() -> None:
    tested = pins()
    lowest: dict[str, str] = {}
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        floors = [part.version for part in requirement.specifier if part.operator in (">=", "==")]
        assert len(floors) == 1, f"{requirement} has no lowest version"
        assert lowest.setdefault(name, floors[0]) == floors[0], f"{name} has two lowest versions"
        assert name in tested, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(tested[name]), f"{requirement}, and {tested[name]} in constraints.txt"


def test_extras_that_tests_name_exist() -> None:
    named = {extra for entry in EXTRAS["test"] for extra in Requirement(entry).extras if entry.startswith("hf-lam")}
    assert {"viz", "video", "peft", "captions"} <= named <= {*EXTRAS}


def test_hooks_are_the_tools_of_make_lint() -> None:
    repos = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    (ruff,) = (repo for repo in repos if repo["repo"].endswith("ruff-pre-commit"))
    assert ruff["rev"] == f"v{pins()['ruff']}"


# --- the pages -------------------------------------------------------------------------------------------------------


def test_addresses_are_those_of_one_repository() -> None:
    urls = PROJECT["urls"]
    assert urls["Repository"] == REPOSITORY
    citation = read_yaml(ROOT / "CITATION.cff")
    assert (citation["repository-code"], citation["url"]) == (REPOSITORY, urls["Documentation"])
    assert {reference["url"] for reference in citation["references"]} == {
        f"https://arxiv.org/abs/{number}" for number in ("2406.02761", "2402.15096", "2201.01410")
    }


def test_links_of_the_readme_work_on_pypi() -> None:
    """PyPI shows it without the repository around it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    text = code.sub("", text)
    links = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    targets = [first or second for first, second in links]
    assert targets
    assert [target for target in targets if not re.match(r"https://|#", target)] == []
    ours = re.compile(
        rf"(?:{REPOSITORY}/(?:blob|tree)|{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')})/main/([^#]*)"
    )
    named = [match.group(1) for match in map(ours.match, targets) if match]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "page", ["CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "RELEASE.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md"]
)
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target.partition("#")[0]).exists(), target
