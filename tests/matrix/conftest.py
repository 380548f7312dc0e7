from __future__ import annotations

from collections.abc import Iterator

import pytest

from matrix.columns import example_mechanisms


@pytest.fixture(autouse=True)
def _examples_are_registered() -> Iterator[None]:
    with example_mechanisms():
        yield
