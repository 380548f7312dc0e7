"""Tiny models have few scores, which attention with masks writes down (`FEW_SCORES`).

Tests that stand for larger models import `attention_of_long_inputs`, in their file or in the conftest of their folder.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_lam.modeling import lam_attention_hf_lam

_FEW_SCORES = lam_attention_hf_lam.FEW_SCORES


@pytest.fixture(scope="module", autouse=True)
def attention_of_long_inputs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lam_attention_hf_lam, "FEW_SCORES", 0)
        yield


@pytest.fixture
def few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """In spite of `attention_of_long_inputs`, as users have it."""
    monkeypatch.setattr(lam_attention_hf_lam, "FEW_SCORES", _FEW_SCORES)
