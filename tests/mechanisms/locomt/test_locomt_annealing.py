"""attend_annealed: from full attention to the views, against its formula in fp64."""

from typing import Any

import pytest
import torch

from helpers.attention import assert_same, paddings
from helpers.locomt_attention import (
    BATCH,
    HEADS,
    KINDS_OF_IDS,
    LENGTH,
    LENGTHS,
    SIZE,
    VIEWS,
    annealed,
    as_padding,
    assert_gradients_same,
    formula,
    inputs_of,
    layout_call,
    random_ids,
    spans,
)
from hf_lam.modeling.lam_attention_hf_lam import COMBINES
from hf_lam.modeling.locomt_attention_hf_lam import attend_annealed, attend_eager
from hf_lam.modeling.locomt_blocks_hf_lam import attend_blocks
from hf_lam.modeling.locomt_layout_hf_lam import Layout, sample_layout

ANNEALING_PADDINGS = [None, "right", "left", "full", "per_query", "per_head", "a_sample_of_nothing", "queries_only"]


@pytest.mark.parametrize("kind", ANNEALING_PADDINGS)
@pytest.mark.parametrize("form", ["bool", "finfo.min"])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("implementation", ["auto", "eager"])
def test_annealing_goes_from_full_attention_to_the_views(
    kind: str | None, form: str, with_mask: bool, implementation: str
) -> None:
    """VIEWS leave modalities without keys, and the paddings leave rows of a view without."""
    *inputs, mask = inputs_of()
    mask = mask if with_mask else None
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    padding = None if allowed is None else as_padding(allowed, form, torch.float32)
    call = layout_call(inputs, Layout(tuple(LENGTHS)), mask, padding)
    wanted = [*inputs, mask] if with_mask else inputs
    everything = formula(*inputs, torch.zeros(1, LENGTH).long(), [{(0, 0)}] * HEADS, mask, allowed)
    start, _ = annealed(call, 0.0, implementation=implementation)
    assert_same(start, everything)
    assert_gradients_same(start, everything, wanted)
    end, _ = annealed(call, 40.0, implementation=implementation)
    assert_same(end, call(attend_eager), tolerance=1e-4)
    assert_gradients_same(end, formula(*inputs, spans(LENGTHS), VIEWS, mask, allowed), wanted)


@pytest.mark.parametrize("kind", [None, "per_head"])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 40.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("combine", [None, *COMBINES])
def test_annealing_is_its_formula(kind: str | None, penalty: float, dtype: torch.dtype, combine: str | None) -> None:
    *inputs, mask = inputs_of(dtype=dtype)
    allowed = torch.ones(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    padding = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    allowed = allowed if padding is None else allowed & padding
    ids = spans(LENGTHS)[0].tolist()
    seen = torch.tensor([[[(i, j) in view for j in ids] for i in ids] for view in VIEWS]) & allowed
    query, key, value = (x.double() for x in inputs)
    scores = query @ key.mT * SIZE**-0.5
    if combine is not None:
        scores = scores * mask.double() if combine == "multiply" else scores + mask.double()
    is_blind = ~seen.any(-1, keepdim=True)
    scores = scores - penalty * (~seen & ~is_blind)
    exponentials = scores.exp() * allowed
    weights = exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300)
    weights = weights * torch.where(is_blind, torch.tensor(-penalty).exp(), torch.tensor(1.0))
    if combine is None:
        call = layout_call(inputs, Layout(tuple(LENGTHS)), None, padding)
    else:
        call = layout_call(inputs, Layout(tuple(LENGTHS)), mask, padding, combine=combine)
    out, nothing = annealed(call, penalty)
    assert nothing is None and out.dtype == dtype
    assert_same(out, weights @ value)
    for grad in torch.autograd.grad(out.float().square().sum(), inputs):
        assert grad.isfinite().all()
    out, found = annealed(call, penalty, want_weights=True)
    assert found is not None
    assert_same(out, weights @ value)
    assert_same(found, weights)
    assert_same(found @ inputs[2], out)


@pytest.mark.parametrize("ids_kind", KINDS_OF_IDS)
def test_annealing_with_segments_that_differ(ids_kind: str) -> None:
    *inputs, _ = inputs_of()
    ids = random_ids(ids_kind)
    padding = paddings(BATCH, HEADS, LENGTH, LENGTH)["right"]
    call = layout_call(inputs, sample_layout(ids, 3), None, padding)
    assert_same(annealed(call, 40.0)[0], call(attend_blocks), tolerance=1e-4)


def test_annealing_compiles_once_for_every_penalty() -> None:
    torch._dynamo.reset()
    *inputs, _ = inputs_of()
    call = layout_call(inputs, Layout(tuple(LENGTHS)))
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda q, k, v, penalty: attend_annealed(q, k, v, Layout(tuple(LENGTHS)), VIEWS, penalty=penalty)[0],
        fullgraph=True,
        backend=keep,
    )
    for penalty in (0.0, 1.5, 40.0):
        assert_same(compiled(*inputs, torch.tensor(penalty)), annealed(call, penalty)[0])
    assert len(graphs) == 1
