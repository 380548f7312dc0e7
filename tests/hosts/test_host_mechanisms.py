"""Every family with every mechanism: what `docs/hosts.md` says of its row, shown on one model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from helpers.checkpointing import checkpoint_activations, keep_activations
from helpers.families import FAMILIES, SEGMENTS, Family
from helpers.injection import assert_no_trace
from helpers.outputs import (
    assert_same_gradients,
    distance,
    gradients_of,
    outputs_of,
    scramble_padding,
    take_second_alone,
)
from hf_lam import LocomtConfig, convert, freeze_host, inject, mechanism_parameters, remove
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, list_changes
from hf_lam.modeling.layers_hf_lam import container_of

TOLERANCE = 1e-5
# Outputs that mechanisms move by less would stay the same with them lost.
LEAST_EFFECT = 1e-3

# Change the outputs when they are attached.
CHANGING = ("views", "lam+views", "stt_dense")
# Have no parameters.
PARAMETERLESS = ("views", "annealing")


class Cell:
    """A family with a mechanism: the models of a test are made once, and in this order."""

    def __init__(self, name: str, mechanism: str) -> None:
        self.family: Family = FAMILIES[name]
        self.mechanism = mechanism
        self.inputs: dict[str, Tensor] = self.family.inputs_for(mechanism)
        self.configs = self.family.configs(mechanism)

    @cached_property
    def stock(self) -> Any:
        return self.family.make()

    @cached_property
    def stock_outputs(self) -> dict[str, Tensor]:
        return outputs_of(self.stock, self.inputs)

    @cached_property
    def model(self) -> Any:
        """As it was attached at first; the checks move its mechanisms once."""
        return inject(self.family.make(), *self.configs)

    def outputs(self, **options: Any) -> dict[str, Tensor]:
        return outputs_of(self.model.eval(), self.inputs, **options)

    def distance(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
        return distance(self.family, left, right)

    def gradients(self, model: Any) -> dict[str, Tensor]:
        return gradients_of(model, self.family, self.inputs)


def move(model: Any) -> None:
    """Put weights and schedules away from where they start, so that the mechanisms take part."""
    generator = torch.Generator().manual_seed(2)
    for base in injected_encoders(model):
        for parameter in container_of(base).parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
        for name, buffer in container_of(base).named_buffers():
            if name.endswith(("penalty", "mixing")):
                buffer.fill_(0.4)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# --- what holds ------------------------------------------------------------------------------------------------------


def check_that_it_starts_as_it_says(cell: Cell) -> None:
    found = cell.distance(cell.outputs(), cell.stock_outputs)
    if cell.mechanism in CHANGING:
        assert found > LEAST_EFFECT and list_changes(cell.model)
        return
    assert found < TOLERANCE and not list_changes(cell.model)
    expected = cell.gradients(cell.stock)
    found_gradients = cell.gradients(cell.model)
    assert_same_gradients({name: found_gradients[name] for name in expected}, expected, 1e-4)


def check_that_it_takes_part(cell: Cell) -> None:
    move(cell.model)
    outputs = cell.outputs()
    assert cell.distance(outputs, cell.stock_outputs) > LEAST_EFFECT
    # As sentence-transformers calls it, past the hooks of the module.
    with torch.no_grad():
        assert torch.equal(cell.model.forward(**cell.inputs).last_hidden_state, outputs["last_hidden_state"])


def check_that_eager_is_the_same(cell: Cell) -> None:
    expected, gradients = cell.outputs(), cell.gradients(cell.model)
    asked = cell.model.config._attn_implementation
    cell.model.set_attn_implementation("eager")
    assert cell.distance(cell.outputs(), expected) < TOLERANCE
    assert_same_gradients(cell.gradients(cell.model), gradients, 1e-4)
    cell.model.set_attn_implementation(asked)


def check_that_it_shows_its_maps(cell: Cell) -> None:
    with torch.no_grad():
        outputs = cell.model(**cell.inputs, output_attentions=True)
    injection = injection_of(injected_encoders(cell.model)[0])
    assert len(outputs.attentions) == len(injection.attentions)
    plain = {"last_hidden_state": outputs.last_hidden_state}
    assert cell.distance(plain, {"last_hidden_state": cell.outputs()["last_hidden_state"]}) < TOLERANCE
    for weights in outputs.attentions:
        assert weights.shape[:2] == (2, injection.host.num_heads)
        assert weights.shape[2] == weights.shape[3] == cell.family.tokens
        if cell.mechanism != "annealing":  # whose rows that see nothing fade
            sums = weights.sum(-1)
            assert (((sums - 1).abs() < 1e-4) | (sums.abs() < 1e-6)).all()


def check_that_padding_is_left_out(cell: Cell) -> None:
    if cell.family.padding is None:
        return
    expected = cell.outputs()
    scrambled = scramble_padding(cell.family, cell.inputs)
    if cell.family.kind != "audio":  # where a filter reaches over the end
        tokens = {"hidden": outputs_of(cell.model, scrambled)["last_hidden_state"]}
        assert cell.distance(tokens, {"hidden": expected["last_hidden_state"]}) < TOLERANCE
    attached = injection_of(injected_encoders(cell.model)[0]).configs.values()
    if any(config.exact_tokens is not None for config in attached):
        return
    if "padding" in cell.family.lacks:
        assert gap_of_second_alone(cell, cell.stock) > TOLERANCE
    else:
        assert gap_of_second_alone(cell, cell.model) < TOLERANCE


def gap_of_second_alone(cell: Cell, model: Any) -> float:
    together = outputs_of(model, cell.inputs)["last_hidden_state"][1, : cell.family.short]
    alone = outputs_of(model, take_second_alone(cell.family, cell.inputs))["last_hidden_state"][0]
    return float((alone[: cell.family.short] - together).abs().max())


def check_gradients_under_checkpointing(cell: Cell) -> None:
    cell.model.train()
    expected = cell.gradients(cell.model)
    own = {id(parameter) for parameter in mechanism_parameters(cell.model)}
    names = [name for name, parameter in cell.model.named_parameters() if id(parameter) in own]
    assert all(expected[name].abs().max() > 0 for name in names)
    assert bool(names) == (cell.mechanism not in PARAMETERLESS)
    if "checkpointing" in cell.family.lacks:
        with pytest.raises(ValueError, match="does not support"):
            checkpoint_activations(cell.stock, False)
        return
    for use_reentrant in (False, True):
        if use_reentrant and "reentrant" in cell.family.lacks:
            checkpoint_activations(cell.stock.train(), True)
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                cell.gradients(cell.stock)
            continue
        checkpoint_activations(cell.model, use_reentrant)
        assert_same_gradients(cell.gradients(cell.model), expected)
        keep_activations(cell.model)
    cell.model.eval()


def check_that_it_is_copied_and_pickled(cell: Cell) -> None:
    """Before transformers has put hooks of its own on the model, which cannot be pickled."""
    expected = cell.outputs()
    twins = [copy.deepcopy(cell.model)]
    if "pickle" in cell.family.lacks:
        with pytest.raises(RuntimeError, match="only supported through state_dict"):
            pickle.dumps(cell.stock)
    else:
        twins.append(pickle.loads(pickle.dumps(cell.model)))
    for twin in twins:
        assert_equal(outputs_of(twin, cell.inputs), expected)
        if cell.mechanism == "stt_dense":
            with pytest.raises(ValueError, match="no query and key projections any more"):
                remove(twin)
            continue
        remove(twin)
        assert_equal(outputs_of(twin, cell.inputs), cell.stock_outputs)
        assert twin.state_dict().keys() == cell.stock.state_dict().keys()
        assert_no_trace(twin)
    assert_equal(cell.outputs(), expected)


def check_that_it_is_saved_and_loaded(cell: Cell, folder: Path) -> None:
    converted = convert(cell.family.make(), *cell.configs)
    assert type(converted).__name__ == f"HfLam{type(cell.stock).__name__}"
    assert isinstance(converted, type(cell.stock))
    trained = container_of(injected_encoders(cell.model)[0]).state_dict()
    container_of(injected_encoders(converted)[0]).load_state_dict(trained)
    expected = cell.outputs()
    assert cell.distance(outputs_of(converted, cell.inputs), expected) < TOLERANCE
    converted.save_pretrained(folder)
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is type(converted)
    assert not any(info.values()), info
    assert cell.distance(outputs_of(loaded, cell.inputs), expected) < TOLERANCE
    assert all(weights is not None for weights in loaded(**cell.inputs, output_attentions=True).attentions)


def check_that_the_host_is_frozen(cell: Cell) -> None:
    freeze_host(cell.model)
    own = {id(parameter) for parameter in mechanism_parameters(cell.model)}
    assert all((id(p) in own) == p.requires_grad for p in cell.model.parameters())
    cell.model.requires_grad_(True)


def check_that_it_comes_off_after_all(cell: Cell) -> None:
    if cell.mechanism != "stt_dense":
        assert_equal(outputs_of(remove(cell.model), cell.inputs), cell.stock_outputs)
        assert not [key for module in cell.model.modules() for key in module.__dict__ if "hf_lam" in key]


def show(cell: Cell, folder: Path) -> None:
    check_that_it_starts_as_it_says(cell)
    check_that_it_takes_part(cell)
    check_that_it_is_copied_and_pickled(cell)
    check_that_eager_is_the_same(cell)
    check_that_it_shows_its_maps(cell)
    check_that_padding_is_left_out(cell)
    check_gradients_under_checkpointing(cell)
    check_that_it_is_saved_and_loaded(cell, folder)
    check_that_the_host_is_frozen(cell)
    check_that_it_comes_off_after_all(cell)


# --- the table -------------------------------------------------------------------------------------------------------


def cells() -> Iterator[Any]:
    """Quick for each family: the dense mask, and one other mechanism in turn."""
    for index, (name, family) in enumerate(FAMILIES.items()):
        others = [other for other in ("lam+views", "stt_dense", "stt_mixture") if other in family.mechanisms]
        quick = {"lam", others[index % len(others)]} if others else {"lam"}
        for mechanism in family.mechanisms:
            marks = [] if mechanism in quick else [pytest.mark.slow]
            yield pytest.param(name, mechanism, marks=marks, id=f"{name}-{mechanism}")


@pytest.mark.parametrize(("name", "mechanism"), [*cells()])
def test_a_family_with_a_mechanism(name: str, mechanism: str, tmp_path: Path) -> None:
    show(Cell(name, mechanism), tmp_path)


@pytest.mark.parametrize(
    ("name", "mechanism"), [(name, mechanism) for name, family in FAMILIES.items() for mechanism in family.without]
)
def test_a_mechanism_that_a_family_cannot_carry(name: str, mechanism: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.make(), family.inputs_for(mechanism)
    expected, state = outputs_of(model, inputs), list(model.state_dict())
    for attach in (inject, convert):
        with pytest.raises(ValueError, match=family.without[mechanism]):
            attach(model, *family.configs(mechanism))
        assert_equal(outputs_of(model, inputs), expected)
        assert list(model.state_dict()) == state
        assert_no_trace(model)


def test_segments_are_what_the_table_says() -> None:
    for family in FAMILIES.values():
        if family.segments is not None:
            model = inject(family.make(), LocomtConfig())
            views = injection_of(injected_encoders(model)[0]).configs["locomt"]
            assert SEGMENTS[family.segments] in [name for name, _ in views.segments], family.title
