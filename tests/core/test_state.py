"""State that crosses modules belongs to one forward: checkpointing, two forwards, compile and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.checkpointing import checkpoint_activations, keep_activations
from helpers.few_scores import attention_of_long_inputs as attention_of_long_inputs
from helpers.hosts import (
    BASES,
    LAM_CONFIGS,
    STT_CASES,
    VIEW_CASES,
    make_host,
    make_inputs,
    mechanisms,
    perturb_mechanisms,
)
from hf_lam import LamConfig, LocomtConfig, SttConfig, inject, remove

COMPILED = ["bert", "vit", "videomae"]
slow = pytest.mark.slow
# What differs from host to host is compiled with a mask that all layers share, and with views; the rest once.
STT_COMPILED = [
    ("bert", "dense"),
    ("vit", "dense"),
    ("vit", "random"),
    ("videomae", "factorized_dense"),
    ("bert", "factorized_random"),
    ("vit", "mixture_trained"),
    ("bert", "mixture_all"),
]
COMPILED_CASES = [
    *((host, name) for host in COMPILED for name in ("shared", "half")),
    ("bert", "per_layer"),
    ("bert", "explicit"),
    ("vit", "explicit"),
    ("vit", "bottleneck"),
    ("bert", "directed"),
    ("videomae", "annealing"),
    ("bert", "lam"),
    ("vit", "shared_lam"),
    *STT_COMPILED,
]
# What crosses layers, and what does not, of each mechanism.
COMPILED_WITH_CHECKPOINTING = [
    ("bert", "shared"),
    ("bert", "per_layer"),
    ("videomae", "half"),
    ("vit", "bottleneck"),
    ("vit", "dense"),
    ("bert", "mixture_all"),
]


def gradients(
    model: nn.Module, batches: list[dict], use_reentrant: bool | None = None, compiled: bool = False
) -> dict[str, torch.Tensor]:
    """Gradients of one backward after a forward of every batch."""
    model.train().zero_grad()
    if use_reentrant is not None:
        checkpoint_activations(model, use_reentrant)
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    sum(run(**batch).last_hidden_state.square().sum() for batch in batches).backward()
    if use_reentrant is not None:
        keep_activations(model)
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and "pooler" not in name
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Some, such as those of the keys' biases, are rounding around zero.
        scale = gradient.abs().max().clamp(min=1e-2)
        assert ((found[name] - gradient).abs().max() / scale) < 1e-5, name


def make_batches(host: str, token_types: bool = False) -> list[dict]:
    batches = [make_inputs(host, seed=seed, token_types=token_types) for seed in (1, 2)]
    if host in ("bert", "roberta"):
        # transformers' BERT makes a cache in training unless told not to, which checkpointing then switches off.
        batches = [{**batch, "use_cache": False} for batch in batches]
    return batches


@pytest.mark.parametrize("use_reentrant", [None, pytest.param(False, marks=slow), pytest.param(True, marks=slow)])
@pytest.mark.parametrize(
    ("host", "name"), [*((host, name) for host in BASES for name in LAM_CONFIGS), *VIEW_CASES, *STT_CASES]
)
def test_two_forwards_then_one_backward(host: str, name: str, use_reentrant: bool | None) -> None:
    configs = mechanisms(name, host)
    model, batches = inject(make_host(host), *configs), make_batches(host, token_types=name not in LAM_CONFIGS)
    perturb_mechanisms(model)
    single = [gradients(model, [batch]) for batch in batches]
    assert {key for key in single[0] if "hf_lam" in key} == {
        key for key, _ in model.named_parameters() if "hf_lam" in key
    }
    expected = {key: single[0][key] + single[1][key] for key in single[0]}
    assert_same(gradients(model, batches, use_reentrant), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["shared", "half", "shared_lam", "dense", "mixture_all"])
def test_checkpointing_with_dropout_recomputes_the_same_masks(name: str, use_reentrant: bool) -> None:
    dropout = {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.1}
    model = inject(make_host("bert", **dropout), *mechanisms(name, "bert"))
    batches = make_batches("bert", token_types=True)
    perturb_mechanisms(model)
    torch.manual_seed(3)
    expected = gradients(model, batches[:1])
    torch.manual_seed(3)
    assert_same(gradients(model, batches[:1], use_reentrant), expected)


def test_remove_while_checkpointing_gives_the_host_back() -> None:
    model, batches = make_host("vit"), make_batches("vit")
    expected = gradients(model, batches, use_reentrant=False)
    inject(model, LamConfig(scope="shared"), LocomtConfig(views="half"))
    gradients(model, batches, use_reentrant=False)
    remove(model)
    model.zero_grad()
    assert_same(gradients(model, batches, use_reentrant=False), expected)


def make_short(host: str, name: str | None = None) -> Any:
    """An encoder of two layers: enough for what crosses from one to the next, and a third takes time to compile."""
    return make_host(host, num_hidden_layers=3 if name == "directed" else 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name", "use_reentrant"),
    [*((*case, None) for case in COMPILED_CASES), *((*case, False) for case in COMPILED_WITH_CHECKPOINTING)],
)
def test_compiled_without_a_graph_break(host: str, name: str, use_reentrant: bool | None) -> None:
    torch._dynamo.reset()
    configs = mechanisms(name, host)
    model, batches = inject(make_short(host, name), *configs), make_batches(host, token_types=name not in LAM_CONFIGS)
    perturb_mechanisms(model)
    expected = gradients(model, batches[:1])
    assert_same(gradients(model, batches[:1], use_reentrant, compiled=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("bert", "lam"),
        ("vit", "half"),
        ("videomae", "annealing"),
        ("bert", "mixture_all"),
        ("videomae", "dense"),
    ],
)
def test_compiled_with_inductor(host: str, name: str) -> None:
    torch._dynamo.reset()
    configs = mechanisms(name, host)
    model, inputs = inject(make_short(host, name), *configs), make_inputs(host, token_types=name not in LAM_CONFIGS)
    perturb_mechanisms(model)
    expected = model(**inputs).last_hidden_state
    found = torch.compile(model, fullgraph=True)(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name"),
    [
        *((host, name) for host in COMPILED for name in ("per_layer", "half")),
        ("bert", "shared"),
        ("bert", "lam"),
        ("videomae", "explicit"),
        ("vit", "bottleneck"),
        ("bert", "annealing"),
        *STT_COMPILED,
    ],
)
def test_exported_programs_need_nothing_of_ours(host: str, name: str) -> None:
    configs = mechanisms(name, host)
    model, inputs = inject(make_short(host, name), *configs), make_inputs(host, token_types=name not in LAM_CONFIGS)
    perturb_mechanisms(model)
    program = torch.export.export(model, (), inputs)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [operator for operator in operators if "hf_lam" in operator]
    torch.testing.assert_close(
        program.module()(**inputs).last_hidden_state, model(**inputs).last_hidden_state, atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "configs",
    [
        (LamConfig(),),
        (LocomtConfig(views="half"),),
        (SttConfig("dense"),),
        (SttConfig("factorized_random"),),
        (SttConfig("factorized_random", prefix_tokens=1),),
        (SttConfig(synthesizer="random"), LamConfig(rank=2)),
    ],
    ids=["lam", "views", "dense", "factorized_random", "prefix", "mixture_lam"],
)
def test_exported_for_any_batch_and_any_length(configs: tuple[Any, ...]) -> None:
    model, inputs = inject(make_short("bert"), *configs), make_inputs("bert", token_types=True)
    perturb_mechanisms(model)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=3, max=40)
    dynamic = {name: {0: batch, 1: length} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic)
    # ONNX has no such operator.
    assert not [node for node in program.graph.nodes if "sort.stable" in str(node.target)]
    shorter = {name: torch.cat([tensor, tensor[:1]])[:, :6] for name, tensor in inputs.items()}
    torch.testing.assert_close(
        program.module()(**shorter).last_hidden_state, model(**shorter).last_hidden_state, atol=1e-5, rtol=1e-4
    )
