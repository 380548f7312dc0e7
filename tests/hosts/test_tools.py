"""Every family under the tools: its mechanisms alone in a folder, its cost, half precision, PEFT on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.families import FAMILIES, Family
from helpers.hosts import perturb_mechanisms
from helpers.outputs import distance, outputs_of
from hf_lam import cost, inject, load_mechanism, mechanism_parameters, save_mechanism
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of

TOLERANCE = 1e-5


def injected(family: Family) -> Any:
    model = inject(family.make(), *family.configs("lam+views"))
    perturb_mechanisms(model)
    return model


def keeps_its_mechanisms_alone(family: Family, folder: Path) -> None:
    model, inputs = injected(family), family.inputs()
    save_mechanism(model, folder / "mechanism")
    again = load_mechanism(family.make(), folder / "mechanism")
    assert distance(family, outputs_of(again, inputs), outputs_of(model, inputs)) < TOLERANCE


def costs_what_it_says(family: Family, folder: Path) -> None:
    model, inputs = injected(family), family.inputs()
    expected = outputs_of(model, inputs)
    report = cost(model, inputs)
    assert report.agrees
    assert report.mechanism_parameters == sum(p.numel() for p in mechanism_parameters(model))
    assert all(torch.equal(value, expected[key]) for key, value in outputs_of(model, inputs).items())


def runs_in_half_precision(family: Family, folder: Path) -> None:
    model, inputs = injected(family), family.inputs()
    expected = outputs_of(model, inputs)["last_hidden_state"]
    halved = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in inputs.items()}
    found = outputs_of(model.to(torch.bfloat16), halved)["last_hidden_state"]
    gap = distance(family, {"hidden": found}, {"hidden": expected})
    assert gap < 0.2 * float(expected.abs().max())


def takes_an_adapter(family: Family, folder: Path) -> None:
    import peft

    model, inputs = injected(family), family.inputs()
    expected = outputs_of(model, inputs)
    attentions = injection_of(injected_encoders(model)[0]).attentions
    linear = {id(m) for attention in attentions for m in attention.modules() if isinstance(m, nn.Linear)}
    targets = [path for path, module in model.named_modules() if id(module) in linear]
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["hf_lam"], init_lora_weights=False)
    )
    for path, parameter in adapted.named_parameters():
        if ".modules_to_save." in path:
            parameter.data += 0.3
    adapted.eval()
    assert distance(family, outputs_of(adapted, inputs), expected) > 1e-3
    with adapted.disable_adapter():
        assert distance(family, outputs_of(adapted, inputs), expected) < TOLERANCE


TOOLS = [keeps_its_mechanisms_alone, costs_what_it_says, runs_in_half_precision, takes_an_adapter]


def cases() -> Iterator[Any]:
    """One tool for each family is quick, in turn; the others are slow."""
    for index, name in enumerate(FAMILIES):
        for number, tool in enumerate(TOOLS):
            marks = [] if number == index % len(TOOLS) else [pytest.mark.slow]
            yield pytest.param(tool, name, marks=marks, id=f"{tool.__name__}-{name}")


@pytest.mark.parametrize(("tool", "name"), [*cases()])
def test_a_family_under_a_tool(tool: Callable[[Family, Path], None], name: str, tmp_path: Path) -> None:
    tool(FAMILIES[name], tmp_path)
