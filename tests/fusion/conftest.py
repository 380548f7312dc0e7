"""The parts of a fusion model's processor, and one of all of them."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.fusion_samples import make_parts
from hf_lam import HfLamFusionProcessor


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return make_parts()


@pytest.fixture(scope="module")
def processor(parts: dict[str, Any]) -> HfLamFusionProcessor:
    return HfLamFusionProcessor(**parts)
