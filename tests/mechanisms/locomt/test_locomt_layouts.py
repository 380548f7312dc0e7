"""locomt_attention where the tokens of a segment lie apart, or differ from sample to sample."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.attention import assert_same, paddings
from helpers.locomt_attention import (
    BATCH,
    HEADS,
    KINDS_OF_IDS,
    LENGTH,
    LENGTHS,
    VIEWS,
    as_padding,
    assert_gradients_same,
    composed,
    formula,
    inputs_of,
    layout_call,
    random_ids,
    spans,
)
from hf_lam.modeling.lam_attention_hf_lam import COMBINES
from hf_lam.modeling.locomt_attention_hf_lam import attend_eager, attend_with_weights
from hf_lam.modeling.locomt_blocks_hf_lam import attend_blocks
from hf_lam.modeling.locomt_layout_hf_lam import fixed_layout, sample_layout


@pytest.mark.parametrize("ids_kind", KINDS_OF_IDS)
@pytest.mark.parametrize(
    "kind, form",
    [
        (None, ""),
        ("right", "bool"),
        ("per_query", "finfo.min"),
        ("per_head", "bool"),
        ("a_sample_of_nothing", "-inf"),
    ],
)
@pytest.mark.parametrize("with_mask", [False, True])
def test_segments_that_differ_from_sample_to_sample(
    ids_kind: str, kind: str | None, with_mask: bool, form: str
) -> None:
    *inputs, mask = inputs_of()
    mask = mask if with_mask else None
    ids = random_ids(ids_kind)
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    padding = None if allowed is None else as_padding(allowed, form, torch.float32)
    call = layout_call(inputs, sample_layout(ids, 3), mask, padding)
    expected = formula(*inputs, ids, VIEWS, mask, allowed)
    wanted = [*inputs, mask] if with_mask else inputs
    for run in (attend_eager, attend_blocks):
        actual = call(run)
        assert_same(actual, expected, run.__name__)
        assert_gradients_same(actual, expected, wanted)
    with composed():
        actual = call(attend_blocks)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, wanted)
    out, weights = call(attend_with_weights)
    assert_same(weights @ inputs[2], out)


@pytest.mark.parametrize("mask_batch", [1, BATCH])
@pytest.mark.parametrize("mask_heads", [1, HEADS])
@pytest.mark.parametrize("combine", COMBINES)
def test_lams_mask_with_segments_that_differ(mask_batch: int, mask_heads: int, combine: str) -> None:
    *inputs, mask = inputs_of(mask_batch=mask_batch, mask_heads=mask_heads)
    ids = random_ids("random")
    padding = paddings(BATCH, HEADS, LENGTH, LENGTH)["right"]
    expected = formula(*inputs, ids, VIEWS, mask, padding, combine=combine)
    for run in (attend_eager, attend_blocks):
        actual = layout_call(inputs, sample_layout(ids, 3), mask, padding, combine=combine)(run)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, [*inputs, mask])


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_few_tokens_of_segments_that_differ(length: int, batch: int, with_mask: bool, padded: bool) -> None:
    *inputs, mask = inputs_of([length], batch=batch)
    mask = mask if with_mask else None
    allowed = torch.ones(batch, 1, 1, length, dtype=torch.bool) if padded else None
    ids = random_ids("one segment a sample", length, batch)
    call = layout_call(inputs, sample_layout(ids, 3), mask, allowed)
    for run in (attend_eager, attend_blocks):
        assert_same(call(run), formula(*inputs, ids, VIEWS, mask, allowed), run.__name__)


def test_sample_layout_pads_to_the_longest_segment_and_goes_there_and_back() -> None:
    ids = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 1, 1, 0]])
    layout = sample_layout(ids, 3)
    assert layout.lengths == (3, 4, 0)
    assert layout.order is not None and layout.places is not None and layout.is_token is not None
    assert layout.is_token.tolist() == [
        [True, True, True, True, True, False, False],
        [True, False, False, *[True] * 4],
    ]
    tokens = torch.arange(5).expand(2, -1)
    in_order = tokens.gather(1, layout.order)
    assert in_order[0, :5].tolist() == [0, 1, 3, 2, 4] and in_order[1][layout.is_token[1]].tolist() == [4, 0, 1, 2, 3]
    assert torch.equal(in_order.gather(1, layout.places), tokens)
    assert sample_layout(ids[:1], 2).is_token is None


@pytest.mark.parametrize("kind", [None, "right", "per_head"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_segments_that_lie_apart_in_every_sample(kind: str | None, with_mask: bool) -> None:
    """Rectangles of a grid: the same permutation for all samples."""
    *inputs, mask = inputs_of()
    mask = mask if with_mask else None
    ids = spans(LENGTHS)[0][torch.randperm(LENGTH)]
    layout = fixed_layout(ids, LENGTHS)
    assert layout.is_token is None and layout.lengths == tuple(LENGTHS)
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    call = layout_call(inputs, layout, mask, allowed)
    expected = formula(*inputs, ids[None], VIEWS, mask, allowed)
    for run in (attend_eager, attend_blocks):
        actual = call(run)
        assert_same(actual, expected, run.__name__)
        assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)


@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("ids_kind", ["random", "a segment absent from a sample", "one segment"])
@pytest.mark.parametrize("length", [LENGTH, 1])
def test_compile_with_segments_that_differ(with_mask: bool, ids_kind: str, length: int) -> None:
    torch._dynamo.reset()

    def attention(query: Tensor, key: Tensor, value: Tensor, ids: Tensor, mask: Any, padding: Tensor) -> Tensor:
        return layout_call([query, key, value], sample_layout(ids, 3), mask, padding)(attend_blocks)

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    *inputs, mask = inputs_of([length])
    mask = mask if with_mask else None
    allowed = paddings(BATCH, HEADS, length, length)["right"]
    for seed in range(2):
        torch.manual_seed(seed)
        ids = random_ids(ids_kind, length)
        actual = compiled(*inputs, ids, mask, allowed)
        expected = formula(*inputs, ids, VIEWS, mask, allowed)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)


@pytest.mark.slow
def test_compile_with_segments_that_lie_apart() -> None:
    torch._dynamo.reset()
    ids = spans(LENGTHS)[0][torch.randperm(LENGTH)]
    compiled = torch.compile(
        lambda q, k, v, ids: layout_call([q, k, v], fixed_layout(ids, LENGTHS))(attend_blocks),
        fullgraph=True,
        backend="aot_eager",
    )
    *inputs, _ = inputs_of()
    actual, expected = compiled(*inputs, ids), formula(*inputs, ids[None], VIEWS)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)


def test_dropout_with_segments_that_differ() -> None:
    *inputs, _ = inputs_of()
    ids = random_ids("random")
    out = layout_call(inputs, sample_layout(ids, 3), p=0.4)(attend_blocks)
    assert not torch.allclose(out.double(), formula(*inputs, ids, VIEWS))
    (grad,) = torch.autograd.grad(out, inputs[2], torch.ones_like(out))
    assert_same((grad * inputs[2]).sum(), out.sum(), tolerance=1e-4)
