"""Some people call `model.forward(...)`, sentence-transformers among them: it is what `model(...)` is."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from helpers.families import FAMILIES
from helpers.hosts import max_difference, perturb_mechanisms
from helpers.injection import assert_no_trace
from hf_lam import LamConfig, LocomtConfig, inject, remove
from hf_lam.modeling.changes_hf_lam import Changes, undo_changes
from hf_lam.modeling.injection_hf_lam import injection_of

SHARED, VIEWS = LamConfig(rank=2, scope="shared"), LocomtConfig(views="half")
# The stack of layers is the encoder, in the first two; the others learn what they are called with.
CASES: dict[str, Any] = {"modernbert": SHARED, "gte": SHARED, "bert": VIEWS, "vjepa2": VIEWS, "siglip2_vision": VIEWS}


def make(name: str) -> tuple[Any, dict[str, Any]]:
    family = FAMILIES[name]
    model = inject(family.make(), CASES[name])
    perturb_mechanisms(model)
    return model, family.inputs()


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def test_forward_is_like_the_call(name: str) -> None:
    model, inputs = make(name)
    expected = model(**inputs)[0]
    assert torch.equal(model.forward(**inputs)[0], expected)
    assert inspect.signature(model.forward) == inspect.signature(FAMILIES[name].make().forward)
    twin = copy.deepcopy(model)
    perturb_mechanisms(model, seed=5)
    assert torch.equal(twin.forward(**inputs)[0], expected)
    remove(model)
    assert "forward" not in model.__dict__
    assert max_difference(model.forward(**inputs)[0], FAMILIES[name].make()(**inputs)[0]) == 0
    assert_no_trace(model)


@pytest.mark.parametrize("is_first", [True, False])
@torch.no_grad()
def test_beside_a_hook_of_accelerate(name: str, is_first: bool) -> None:
    expected = make(name)[0](**FAMILIES[name].inputs())[0]
    model = FAMILIES[name].make()
    if is_first:
        add_hook_to_module(model, ModelHook())
    perturb_mechanisms(inject(model, CASES[name]))
    if not is_first:
        add_hook_to_module(model, ModelHook())
    inputs = FAMILIES[name].inputs()
    assert torch.equal(model(**inputs)[0], expected)
    assert torch.equal(model.forward(**inputs)[0], expected)
    remove(model)
    assert torch.equal(model(**inputs)[0], FAMILIES[name].make()(**inputs)[0])
    remove_hook_from_module(model)
    assert torch.equal(model(**inputs)[0], FAMILIES[name].make()(**inputs)[0])


@torch.no_grad()
def test_it_stays_when_a_hook_of_accelerate_goes(name: str) -> None:
    inputs = FAMILIES[name].inputs()
    model = FAMILIES[name].make()
    add_hook_to_module(model, ModelHook())
    perturb_mechanisms(inject(model, CASES[name]))
    expected = model(**inputs)[0]
    remove_hook_from_module(model)
    assert torch.equal(model(**inputs)[0], expected)
    remove(model)
    assert inspect.ismethod(model.forward)  # as accelerate leaves it
    assert torch.equal(model(**inputs)[0], FAMILIES[name].make()(**inputs)[0])


@torch.no_grad()
def test_a_model_that_accelerate_gives_back_from_mixed_precision(name: str) -> None:
    model, inputs = make(name)
    expected = model(**inputs)[0]
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare_model(model)
    assert not torch.equal(prepared(**inputs)[0], expected)
    assert torch.equal(accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)(**inputs)[0], expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_and_exported(name: str) -> None:
    model, inputs = make(name)
    expected = model(**inputs)[0]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert max_difference(compiled(**inputs)[0], expected) < 1e-5
    if name != "siglip2_vision":  # which stock transformers does not export either: it reads the shapes
        program = torch.export.export(model, (), inputs, strict=False)
        assert max_difference(program.module()(**inputs)[0], expected) < 1e-5


def test_data_parallel_is_refused_where_the_stack_is_the_encoder() -> None:
    model, inputs = make("modernbert")
    assert injection_of(model).stack is model
    with pytest.raises(RuntimeError, match="torchrun"):
        model._replicate_for_data_parallel()(**inputs)


class Doubling(nn.Module):
    def forward(self, x: int, *, more: int = 0) -> int:
        return 2 * x + more


def test_several_hooks_are_taken_back_one_by_one() -> None:
    def add(module: Any, args: Any, kwargs: Any) -> Any:
        return (args[0] + 1,), kwargs

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(args)

    module, seen = Doubling(), []
    undo: list[Any] = []
    changes = Changes(undo)
    changes.enter(module, add)
    changes.enter(module, look)
    assert module.forward(1, more=3) == module(1, more=3) == 7
    assert seen == [(2,), (2,)]
    forward = module.forward
    undo_changes(undo)
    assert "forward" not in module.__dict__
    assert forward(1) == 2  # kept by somebody
