"""locomt_attention compiled, exported, checkpointed and under autocast, and what it costs."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from helpers.attention import LargestTensor, assert_same, paddings, small_parts
from helpers.locomt_attention import (
    BATCH,
    HEADS,
    LENGTH,
    LENGTHS,
    NAMES,
    SIZE,
    VIEWS,
    assert_gradients_same,
    attend,
    composed,
    formula,
    inputs_of,
    spans,
)
from hf_lam.modeling import locomt_blocks_hf_lam as blocks
from hf_lam.modeling.locomt_attention_hf_lam import locomt_attention
from hf_lam.modeling.locomt_views_hf_lam import View, view_cost

# --- where it runs -----------------------------------------------------------------------------------------------


def attention_of(lengths: Sequence[int], views: Sequence[View]) -> Callable[..., Tensor]:
    """The layer as a model calls it: sizes and views are constants."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return locomt_attention(query, key, value, lengths, views, **options)

    return attention


@pytest.mark.parametrize("kind", [None, "right", "per_query", "per_head"])
@pytest.mark.parametrize("threads", [2, 5, 40])
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 8, 5]])
def test_on_a_busy_machine_it_is_the_same(kind: str | None, threads: int, lengths: list[int]) -> None:
    *inputs, _ = inputs_of()
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    grad_out = torch.randn_like(inputs[0])

    def outputs() -> list[Tensor]:
        out = locomt_attention(*inputs, lengths, VIEWS, attention_mask=allowed)
        return [out, *torch.autograd.grad(out, inputs, grad_out)]

    expected = outputs()
    with small_parts(threads):
        for actual, same in zip(outputs(), expected, strict=True):
            assert torch.equal(actual, same)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "right", "per_query"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_compile_is_one_graph_with_gradients(kind: str | None, with_mask: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attention_of(LENGTHS, VIEWS), fullgraph=True, backend="aot_eager")
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    for _ in range(2):
        *inputs, mask = inputs_of()
        mask = mask if with_mask else None
        actual = compiled(*inputs, mask=mask, attention_mask=allowed)
        expected = formula(*inputs, spans(LENGTHS), VIEWS, mask, allowed)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)


def test_compile_takes_several_layers_of_different_views() -> None:
    torch._dynamo.reset()
    first, second = attention_of(LENGTHS, VIEWS), attention_of(LENGTHS, VIEWS[::-1])
    compiled = torch.compile(lambda q, k, v: second(first(q, k, v), k, v), fullgraph=True, backend="aot_eager")
    *inputs, _ = inputs_of()
    actual = compiled(*inputs)
    once = formula(*inputs, spans(LENGTHS), VIEWS)
    expected = formula(once, *inputs[1:], spans(LENGTHS), VIEWS[::-1])
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)


@pytest.mark.slow
def test_dropout_under_compile_is_consistent() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attention_of(LENGTHS, VIEWS), fullgraph=True, backend="aot_eager")
    *inputs, _ = inputs_of()
    out = compiled(*inputs, dropout_p=0.4)
    # The output is linear in V, so its derivative times V is the output, if both drop the same.
    (grad,) = torch.autograd.grad(out, inputs[2], torch.ones_like(out))
    assert_same((grad * inputs[2]).sum(), out.sum(), tolerance=1e-4)
    assert not torch.equal(out, compiled(*inputs, dropout_p=0.4))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("with_mask", [False, True])
def test_compile_with_inductor(with_mask: bool) -> None:
    torch._dynamo.reset()
    *inputs, mask = inputs_of()
    mask = mask if with_mask else None
    actual = torch.compile(attention_of(LENGTHS, VIEWS), fullgraph=True)(*inputs, mask=mask)
    expected = formula(*inputs, spans(LENGTHS), VIEWS, mask)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)


class Attention(torch.nn.Module):
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        return locomt_attention(query, key, value, LENGTHS, VIEWS, mask=mask, attention_mask=attention_mask)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("kind", [None, "right"])
def test_export_holds_plain_operators_only(strict: bool, with_mask: bool, kind: str | None) -> None:
    *inputs, mask = (x.detach() for x in inputs_of())
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    arguments = (*inputs, mask if with_mask else None, allowed)
    program = torch.export.export(Attention(), arguments, strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [name for name in targets if not name.startswith(("aten.", "<built-in function getitem>"))]
    assert_same(program.module()(*arguments), Attention()(*arguments))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_checkpointing(use_reentrant: bool, dropout_p: float) -> None:
    *inputs, _ = inputs_of()

    def attention(*tensors: Tensor) -> Tensor:
        return locomt_attention(*tensors, LENGTHS, VIEWS, dropout_p=dropout_p)

    def gradients(run: Callable[..., Tensor]) -> list[Tensor | None]:
        torch.manual_seed(3)
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        run(*leaves).square().sum().backward()
        return [x.grad for x in leaves]

    plain = gradients(attention)
    checkpointed = gradients(lambda *x: checkpoint(attention, *x, use_reentrant=use_reentrant))
    for name, a, e in zip(NAMES, checkpointed, plain, strict=False):
        assert a is not None and torch.equal(a, e), name


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "blocks", "composed"])
def test_autocast_follows_the_dtype_of_value(implementation: str, with_mask: bool) -> None:
    query, key, value, mask = inputs_of()
    mask = mask if with_mask else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # An identity "query" stays fp32 under autocast, what a Linear makes is bf16.
        mixed = attend(implementation, query, key.bfloat16(), value.bfloat16(), LENGTHS, VIEWS, mask=mask)
        full = attend(implementation, query, key, value, LENGTHS, VIEWS, mask=mask)
    assert mixed.dtype == torch.bfloat16 and full.dtype == torch.float32
    expected = formula(query, key, value, spans(LENGTHS), VIEWS, mask)
    assert_same(mixed, expected)
    assert_same(full, expected)
    (grad,) = torch.autograd.grad(mixed.float().sum(), query)
    assert grad.dtype == torch.float32
    assert_same(grad, torch.autograd.grad(expected.sum(), query)[0], tolerance=3e-2)


@pytest.mark.parametrize("with_mask", [False, True])
def test_meta_tensors(with_mask: bool) -> None:
    *inputs, mask = (x.to("meta") for x in inputs_of())
    out = locomt_attention(*inputs, LENGTHS, VIEWS, mask=mask if with_mask else None)
    assert out.is_meta and out.shape == (BATCH, HEADS, LENGTH, SIZE)


# --- cost --------------------------------------------------------------------------------------------------------


def flops_of(run: Callable[[], Any]) -> int:
    # torch's counter takes the fused attention of a CPU for free; its plain one consists of products it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("lengths", [[5, 3, 5], [7, 1, 2], [4, 0, 9], [30, 20, 10]])
def test_flops_are_those_of_the_formula(lengths: list[int]) -> None:
    *inputs, _ = inputs_of(lengths)
    expected = 4 * SIZE * BATCH * sum(view_cost(view, lengths) for view in VIEWS)
    assert flops_of(lambda: locomt_attention(*inputs, lengths, VIEWS)) == expected
    full = 4 * SIZE * BATCH * HEADS * sum(lengths) ** 2
    assert flops_of(lambda: locomt_attention(*inputs, lengths, VIEWS, implementation="eager")) == full > expected


@pytest.mark.parametrize("kind", [None, "right"])
def test_backward_costs_twice_the_forward(kind: str | None) -> None:
    *inputs, _ = inputs_of()
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    expected = 4 * SIZE * BATCH * sum(view_cost(view, LENGTHS) for view in VIEWS)
    total = flops_of(lambda: locomt_attention(*inputs, LENGTHS, VIEWS, attention_mask=allowed).sum().backward())
    assert total == 3 * expected


LONG = [60, 50, 70]
# What the largest block of VIEWS needs: the self view of segment c, in 3 heads.
LARGEST_BLOCK = BATCH * 3 * 70 * 70


@pytest.mark.parametrize("implementation", ["blocks", "composed"])
def test_the_score_matrix_never_exists(implementation: str) -> None:
    *inputs, _ = inputs_of(LONG)
    with LargestTensor() as largest:
        attend(implementation, *inputs, LONG, VIEWS).sum().backward()
    assert largest.elements <= LARGEST_BLOCK
    with LargestTensor() as largest:
        attend("eager", *inputs, LONG, VIEWS)
    assert largest.elements >= BATCH * HEADS * sum(LONG) ** 2


def graphs_of(function: Callable[..., Tensor], *inputs: Tensor) -> list[torch.fx.GraphModule]:
    """The graphs, forward and backward, that torch.compile makes of it and its gradients."""
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*inputs).sum().backward()
    return graphs


@pytest.mark.slow
def test_compiled_with_static_lengths_it_saves_as_much() -> None:
    *inputs, _ = inputs_of(LONG)
    with composed():
        graphs = graphs_of(attention_of(LONG, VIEWS), *inputs)
    assert len(graphs) == 2
    sizes = [n.meta["val"].numel() for g in graphs for n in g.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    assert max(sizes) <= LARGEST_BLOCK
    targets = [str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"]
    attentions = [name for name in targets if "scaled_dot_product" in name]
    assert len(attentions) == len([b for b in blocks.blocks_of(VIEWS, 3) if b.keys])


def test_the_kernels_that_torch_is_told_to_use_are_used() -> None:
    *inputs, _ = inputs_of()
    with sdpa_kernel(SDPBackend.MATH):
        actual = locomt_attention(*inputs, LENGTHS, VIEWS)
        assert_same(actual, formula(*inputs, spans(LENGTHS), VIEWS))
        assert flops_of(lambda: locomt_attention(*inputs, LENGTHS, VIEWS)) > 0
    assert_gradients_same(actual, formula(*inputs, spans(LENGTHS), VIEWS), inputs)
