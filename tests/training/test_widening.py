"""The control of a mechanism: wider feed-forward layers, by as many parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.families import FAMILIES, Family
from helpers.fusion_models import make_fusion, make_fusion_inputs
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.training.widening import count_added, widen_like

# Families of which no configuration says how wide the feed-forward layers are, in a number that is near enough.
NARROW = {name: "mlp_ratio: .* expected int" for name in ("dinov2", "dinov2_with_registers", "pixio")}


def size_of(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_same_outputs(model: Any, other: Any, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected, found = model(**inputs), other(**inputs)
    for name, value in expected.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def changed_options(model: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    ours, theirs = model.config.to_dict(), other.config.to_dict()
    return [name for name, value in ours.items() if isinstance(value, (int, float)) and theirs[name] != value]


def check_wide(model: Any, mechanisms: list[Any], inputs: dict[str, Tensor], folder: Path) -> Any:
    before, state = size_of(model), {key: value.clone() for key, value in model.state_dict().items()}
    wanted = count_added(model, mechanisms)
    wide = widen_like(model, mechanisms)
    assert type(wide) is type(model)
    assert len(changed_options(model, wide)) == 1
    units = max(value.shape[-1] - state[key].shape[-1] for key, value in wide.state_dict().items() if value.ndim == 2)
    added = size_of(wide) - before
    assert abs(added - wanted) <= added / units / 2
    assert_same_outputs(model, wide, inputs)
    wide.save_pretrained(folder)
    assert_same_outputs(wide, type(wide).from_pretrained(folder).eval(), inputs)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    return wide


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_with_wider_layers(name: str, tmp_path: Path) -> None:
    family: Family = FAMILIES[name]
    model = family.make().eval()
    mechanisms = family.configs("lam") if "lam" in family.mechanisms else (LamConfig(rank=2),)
    if name in NARROW:
        with pytest.raises(ValueError, match=NARROW[name]):
            widen_like(model, mechanisms)
        return
    check_wide(model, list(mechanisms), family.inputs_for("lam"), tmp_path)


@pytest.mark.parametrize("case", ["dense", "bottleneck", "two"])
def test_a_fusion_model_with_wider_layers(case: str, tmp_path: Path) -> None:
    mechanisms = {
        "dense": [LamConfig()],
        "bottleneck": [LocomtConfig(views="self", bottleneck_tokens=4)],
        "two": [LamConfig(rank=2, scope="shared"), LocomtConfig(views="half")],
    }[case]
    model = make_fusion()
    wide = check_wide(model, mechanisms, make_fusion_inputs(), tmp_path)
    assert wide.config.text_config.intermediate_size == model.config.text_config.intermediate_size
    assert wide.config.hf_lam is None


def test_the_new_units_are_the_hosts_and_learn() -> None:
    model = FAMILIES["bert"].make("SequenceClassification")
    wide = widen_like(model, [LamConfig(rank=2)])
    units = wide.config.intermediate_size - model.config.intermediate_size
    layer = wide.bert.encoder.layer[0]
    assert 0 < layer.intermediate.dense.weight[-units:].std() < 2 * model.config.initializer_range
    assert not layer.intermediate.dense.bias[-units:].any()
    assert not layer.output.dense.weight[:, -units:].any()
    wide(**FAMILIES["bert"].inputs(), labels=torch.tensor([0, 1])).loss.backward()
    assert layer.output.dense.weight.grad[:, -units:].abs().min() > 0
    model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad_(False)
    frozen = widen_like(model, [LamConfig(rank=2)])
    assert not frozen.bert.encoder.layer[0].intermediate.dense.weight.requires_grad


def test_nothing_is_drawn_from_the_generator_of_the_run() -> None:
    model = FAMILIES["bert"].make()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    widen_like(model, [LamConfig(rank=2)])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("mechanism", "message"),
    [
        (LocomtConfig(segments=[["a", 5], ["b", 4]], views="self"), "has no parameters with it"),
        (SttConfig(variant="dense"), "parameters less with it"),
    ],
)
def test_mechanisms_that_add_nothing(mechanism: Any, message: str) -> None:
    model = FAMILIES["bert"].make()
    with pytest.raises(ValueError, match=message):
        widen_like(model, [mechanism])
