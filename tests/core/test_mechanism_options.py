"""Mechanisms of one's own on a command line: from a file, and from a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.door import TEMPERATURE, open_door
from hf_lam.mechanism_options import find_mechanisms, read_mechanisms
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_names

OWN = ["lam", "locomt", "stt"]
SOURCE = TEMPERATURE.read_text()


@pytest.fixture(autouse=True)
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered and nothing imported stays, and the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    modules = set(sys.modules)
    with open_door():
        yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def find(*given: str) -> list[str]:
    return find_mechanisms("--mechanism", given)


def test_a_file_registers_its_mechanisms_once() -> None:
    assert find(str(TEMPERATURE)) == ["head_temperature"]
    assert mechanism_names() == [*OWN, "head_temperature"]
    # By name, and by the file again, however it is written.
    assert find("lam", "head_temperature", str(TEMPERATURE.parent / "." / TEMPERATURE.name)) == [
        "lam",
        "head_temperature",
        "head_temperature",
    ]


def test_a_file_with_two_mechanisms() -> None:
    again = "\n\nregister_mechanism('another', Another, HeadTemperatures)\n"
    Path("two.py").write_text(f"{SOURCE}\n\nclass Another(HeadTemperatureConfig):\n    pass\n{again}")
    assert find("two.py") == ["head_temperature", "another"]


def test_a_class_of_a_module_in_the_current_folder() -> None:
    Path("mine").mkdir()
    Path("mine/temperature.py").write_text(SOURCE)
    assert find("mine.temperature:HeadTemperatureConfig") == ["head_temperature"]
    # A file that was imported as a module is not imported again.
    assert find("mine/temperature.py") == ["head_temperature"]
    assert "temperature" not in sys.modules


def test_options_by_the_name_that_is_registered() -> None:
    def options_of(options: str) -> dict:
        (config,) = read_mechanisms("--mechanism", [str(TEMPERATURE)], "--mechanism_config", options)
        return config.to_dict()

    assert options_of('{"shared": true}') == options_of('{"head_temperature": {"shared": true}}') == {"shared": True}
    with pytest.raises(ValueError, match="one of each"):
        read_mechanisms("--mechanism", [str(TEMPERATURE), "head_temperature"], "--mechanism_config", None)


@pytest.mark.parametrize(
    ("given", "source", "message"),
    [
        ("temperature", "", "--mechanism temperature: choose from lam, locomt, stt; or say where"),
        ("no.py", "", "no.py: there is no such file"),
        ("empty.py", "x = 1\n", "registers no mechanism"),
        ("wrong.py", "import\n", "wrong.py"),
        ("missing.py", "import no_such_module\n", "No module named 'no_such_module'"),
        ("json.py", SOURCE, "there is a module 'json' already"),
        ("no_such_module:Config", "", "No module named 'no_such_module'"),
        ("json:Config", "", "has no attribute 'Config'"),
        ("json:JSONDecoder", "", "does not register this class"),
        (":Config", "", "--mechanism :Config"),
    ],
)
def test_what_is_no_mechanism(given: str, source: str, message: str) -> None:
    if source:
        Path(given).write_text(source)
    with pytest.raises(ValueError) as error:
        find(given)
    assert message in str(error.value)
    assert mechanism_names() == OWN
