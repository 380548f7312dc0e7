"""What a forward needs is in the state of the model, or is a constant: models without values, and other devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, VideoMAEForVideoClassification, ViTForImageClassification

from helpers.hosts import (
    STT_CASES,
    VIEW_CASES,
    first_output,
    make_host,
    make_inputs,
    make_model,
    max_difference,
    mechanisms,
    perturb_mechanisms,
)
from hf_lam import convert, inject

MODELS: dict[str, type[PreTrainedModel]] = {
    "vit": ViTForImageClassification,
    "videomae": VideoMAEForVideoClassification,
}
NAMES = ["per_layer", "half", "explicit", "annealing", "bottleneck", "shared_lam", "frozen", "mixture"]


@pytest.mark.parametrize(("host", "name"), [(host, name) for host in MODELS for name in NAMES])
@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_a_model_without_values_gets_them_all_from_a_state_dict(host: str, name: str, way: str) -> None:
    model = convert(make_model(MODELS[host], host), *mechanisms(name, host)).eval()
    perturb_mechanisms(model)
    with torch.device("meta"):
        empty: Any = type(model)(model.config)
    if way == "to_empty":
        empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict(), assign=way == "assign")
    inputs = make_inputs(host)
    assert torch.equal(first_output(empty.eval(), inputs), first_output(model, inputs))


@pytest.mark.parametrize(("host", "name"), [*VIEW_CASES, *STT_CASES])
def test_no_buffer_is_missing_from_the_state(host: str, name: str) -> None:
    model = inject(make_host(host), *mechanisms(name, host))
    assert {key for key, _ in model.hf_lam.named_buffers()} <= set(model.hf_lam.state_dict())


def test_constants_follow_the_model_but_not_to_where_they_would_be_lost() -> None:
    model = inject(make_host("vit"), *mechanisms("half", "vit"))
    expected = first_output(model, make_inputs("vit"))
    model.to("meta")
    assert model(pixel_values=make_inputs("vit")["pixel_values"].to("meta")).last_hidden_state.is_meta
    model.to_empty(device="cpu").load_state_dict(inject(make_host("vit"), *mechanisms("half", "vit")).state_dict())
    assert torch.equal(first_output(model, make_inputs("vit")), expected)
    model.half().float()
    assert max_difference(first_output(model, make_inputs("vit")), expected) < 1e-2
