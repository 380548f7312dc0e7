from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from helpers.door import AVERAGE, DISTANCE, TEMPERATURE, WINDOW, LoadFile, open_door


@pytest.fixture(autouse=True)
def load_file() -> Iterator[LoadFile]:
    """Loads mechanisms, which are forgotten after the test."""
    with open_door() as load:
        yield load


@pytest.fixture
def temperature(load_file: LoadFile) -> ModuleType:
    return load_file(TEMPERATURE)


@pytest.fixture
def distance(load_file: LoadFile) -> ModuleType:
    return load_file(DISTANCE)


@pytest.fixture
def window(load_file: LoadFile) -> ModuleType:
    return load_file(WINDOW)


@pytest.fixture
def average(load_file: LoadFile) -> ModuleType:
    return load_file(AVERAGE)


@pytest.fixture
def door(temperature: ModuleType, distance: ModuleType, window: ModuleType, average: ModuleType) -> SimpleNamespace:
    """The classes of all four."""
    modules = (temperature, distance, window, average)
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})
