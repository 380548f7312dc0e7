from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.few_scores import attention_of_long_inputs as attention_of_long_inputs
from matrix.columns import example_mechanisms


@pytest.fixture(autouse=True)
def _examples_are_registered() -> Iterator[None]:
    with example_mechanisms():
        yield
