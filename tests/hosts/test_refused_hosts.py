"""What cannot carry mechanisms is refused with the reason, and stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.injection import assert_no_trace
from helpers.outputs import outputs_of
from helpers.refused_hosts import REFUSED
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert, inject

CONFIGS = {
    "lam": LamConfig(rank=3),
    "views": LocomtConfig(segments=[["a", 5], ["b", 7]], views="half"),
    "stt": SttConfig(grid=[12], prefix_tokens=0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_host_that_is_refused(name: str) -> None:
    host = REFUSED[name]
    model, inputs = host.make(), host.inputs()
    expected, state = outputs_of(model, inputs), {key: value.clone() for key, value in model.state_dict().items()}
    for attach, config in ((inject, CONFIGS["lam"]), (inject, CONFIGS["views"]), (convert, CONFIGS["stt"])):
        with pytest.raises(ValueError, match=host.reason) as refusal:
            attach(model, config)
        assert_unchanged(model, inputs, expected, state)
        assert "HfLam" not in str(refusal.value)
        if host.instead:
            assert all(part.strip("` ") in str(refusal.value) for part in host.instead.split(","))


def assert_unchanged(
    model: Any, inputs: dict[str, Any], expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> None:
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    found = outputs_of(model, inputs)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert_no_trace(model)
