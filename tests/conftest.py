from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging as transformers_logging


def pytest_collection_finish() -> None:
    """What the imports have made stays, so that garbage need not be looked for in it: every training collects it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    # `torch.manual_seed` notes for a GPU that is not in use from where it was called, each time.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    """Benchmarks silence the package's logger; the tests after them look at what it says."""
    logger = logging.getLogger("hf_lam")
    level, propagate = logger.level, logger.propagate
    yield
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `torch.empty` and `torch.empty_like` return with NaN, so that memory nobody wrote is seen."""

    def poison(make):
        def poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() and not tensor.is_meta:
                tensor.data.fill_(float("nan"))
            return tensor

        return poisoned

    with torch.device("cpu"):
        # torch remembers, the first time, which functions make tensors on the device of such a context.
        torch.empty(0)
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
