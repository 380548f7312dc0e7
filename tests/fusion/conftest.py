"""The parts of a fusion model's processor, one of all of them, and what fusion models log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers.utils import logging

from helpers.fusion_samples import make_parts
from hf_lam import HfLamFusionProcessor


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return make_parts()


@pytest.fixture(scope="module")
def processor(parts: dict[str, Any]) -> HfLamFusionProcessor:
    return HfLamFusionProcessor(**parts)


@pytest.fixture
def fusion_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What fusion models warn of, however loud transformers is in the process by now."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    logger = logging.get_logger("hf_lam.modeling.modeling_hf_lam_fusion")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logging.set_verbosity(verbosity)
