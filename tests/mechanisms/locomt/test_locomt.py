"""locomt_attention: every way to compute it against the formula, written out segment by segment in fp64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers.attention import PADDINGS, assert_same, needs_cuda, paddings
from helpers.locomt_attention import (
    BATCH,
    HEADS,
    LENGTH,
    LENGTHS,
    NAMES,
    SEGMENTS,
    SIZE,
    VIEWS,
    annealed,
    as_padding,
    assert_gradients_same,
    attend,
    formula,
    inputs_of,
    layout_call,
    random_ids,
    spans,
)
from hf_lam.modeling import locomt_blocks_hf_lam as blocks
from hf_lam.modeling.lam_attention_hf_lam import COMBINES
from hf_lam.modeling.locomt_attention_hf_lam import attend_eager, locomt_attention, locomt_attention_with_weights
from hf_lam.modeling.locomt_blocks_hf_lam import attend_blocks
from hf_lam.modeling.locomt_layout_hf_lam import Layout, sample_layout
from hf_lam.modeling.locomt_views_hf_lam import parse_view

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
IMPLEMENTATIONS = ("auto", "eager", "blocks", "composed")


# --- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value_size", [SIZE, 3])
@pytest.mark.parametrize("combine", [None, *COMBINES])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_the_formula(dtype: torch.dtype, value_size: int, combine: str | None, implementation: str) -> None:
    *inputs, mask = inputs_of(dtype=dtype, value_size=value_size)
    options: dict[str, Any] = {} if combine is None else {"mask": mask, "combine": combine}
    actual = attend(implementation, *inputs, LENGTHS, VIEWS, **options)
    assert actual.dtype == dtype and actual.shape == (BATCH, HEADS, LENGTH, value_size)
    expected = formula(*inputs, spans(LENGTHS), VIEWS, **options)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs if combine is None else [*inputs, mask])


def test_the_reference_with_weights_takes_both_kinds_of_mask() -> None:
    *inputs, mask = inputs_of()
    for combine in COMBINES:
        out, weights = locomt_attention_with_weights(*inputs, LENGTHS, VIEWS, mask=mask, combine=combine)
        assert_same(out, formula(*inputs, spans(LENGTHS), VIEWS, mask, combine=combine))
        assert_same(weights @ inputs[2], out)
    with pytest.raises(ValueError, match="combine='sum'"):
        locomt_attention(*inputs, LENGTHS, VIEWS, mask=mask, combine="sum")


FORMS = [
    (torch.float32, "bool"),
    (torch.float32, "-inf"),
    (torch.float32, "finfo.min"),
    (torch.bfloat16, "finfo.min"),
    (torch.float16, "finfo.min"),
]


@pytest.mark.parametrize("dtype, form", FORMS)
@pytest.mark.parametrize("kind", PADDINGS)
@pytest.mark.parametrize("implementation", ["eager", "blocks", "composed"])
def test_padding(dtype: torch.dtype, form: str, kind: str, implementation: str) -> None:
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind]
    *inputs, _ = inputs_of(dtype=dtype)
    actual = attend(implementation, *inputs, LENGTHS, VIEWS, attention_mask=as_padding(allowed, form, dtype))
    expected = formula(*inputs, spans(LENGTHS), VIEWS, None, allowed)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)
    assert (actual[expected.abs().sum(-1) == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_all_sizes_and_views(data: st.DataObject) -> None:
    draw = data.draw
    lengths = draw(st.lists(st.sampled_from([0, 1, 1, 2, 5]), min_size=1, max_size=4), label="lengths")
    pairs = st.tuples(st.integers(0, len(lengths) - 1), st.integers(0, len(lengths) - 1))
    some_views = draw(st.lists(st.frozensets(pairs), min_size=1, max_size=3), label="some views")
    views = draw(st.lists(st.sampled_from(some_views), min_size=1, max_size=5), label="views")
    batch, size = draw(st.integers(0, 2), label="batch"), draw(st.integers(1, 5), label="size")
    value_size = draw(st.sampled_from([size, 2]), label="value size")
    mask_heads = draw(st.sampled_from([None, 1, len(views)]), label="mask heads")
    mask_batch = draw(st.sampled_from([batch, 1]), label="mask batch")
    combine = draw(st.sampled_from(COMBINES), label="combine")
    scaling = draw(st.sampled_from([None, 1.0, -0.3]), label="scaling")
    kind = draw(st.sampled_from([None, *PADDINGS]), label="padding") if batch else None
    form = draw(st.sampled_from(["bool", "-inf", "finfo.min"]), label="form")
    *inputs, mask = inputs_of(
        lengths, len(views), batch=batch, size=size, value_size=value_size, mask_heads=mask_heads or 1,
        mask_batch=mask_batch,
    )  # fmt: skip
    mask = mask if mask_heads else None
    allowed = paddings(batch, len(views), sum(lengths), sum(lengths))[kind] if kind else None
    padding = None if allowed is None else as_padding(allowed, form, torch.float32)
    for implementation in ("eager", "blocks", "composed"):
        options: dict[str, Any] = {"mask": mask, "combine": combine, "scaling": scaling}
        actual = attend(implementation, *inputs, lengths, views, **options, attention_mask=padding)
        assert actual.shape == (batch, len(views), sum(lengths), value_size)
        expected = formula(*inputs, spans(lengths), views, **options, allowed=allowed)
        assert_same(actual, expected, implementation)
        assert_gradients_same(actual, expected, [*inputs, mask] if mask_heads else inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_modality_is_stock_attention_and_so_are_full_views(implementation: str) -> None:
    *inputs, _ = inputs_of()
    stock = torch.nn.functional.scaled_dot_product_attention(*inputs)
    full = parse_view("full", SEGMENTS)
    assert_same(attend(implementation, *inputs, [LENGTH], [{(0, 0)}] * HEADS), stock)
    assert_same(attend(implementation, *inputs, LENGTHS, [full] * HEADS), stock)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_modality_without_keys_gets_zeros_and_sends_zero_gradients(implementation: str, with_mask: bool) -> None:
    *inputs, mask = inputs_of()
    views = [parse_view("a>b+c>c", SEGMENTS)] * HEADS
    out = attend(implementation, *inputs, LENGTHS, views, mask=mask if with_mask else None)
    assert (out[:, :, 5:8] == 0).all() and (out[:, :, :5] != 0).all() and (out[:, :, 8:] != 0).all()
    query, key, value = torch.autograd.grad(out.square().sum() + out.sum(), inputs)
    assert (query[:, :, 5:8] == 0).all() and query[:, :, :5].abs().sum() > 0
    for grad in (key, value):  # a is seen by nobody
        assert (grad[:, :, :5] == 0).all() and grad[:, :, 5:].abs().sum() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_is_seen_at_all(implementation: str) -> None:
    *inputs, _ = inputs_of()
    assert (attend(implementation, *inputs, LENGTHS, [set()] * HEADS) == 0).all()


@pytest.mark.parametrize("implementation", ["blocks", "composed"])
@pytest.mark.usefixtures("poisoned_empty")
def test_no_memory_is_left_unwritten(implementation: str) -> None:
    *inputs, _ = inputs_of()
    views = [*VIEWS[:-1], frozenset({(1, 2)})]
    out = attend(implementation, *inputs, LENGTHS, views)
    for grad in torch.autograd.grad(out.sum(), inputs):
        assert grad.isfinite().all()
    assert out.isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", ["bool", "-inf", "finfo.min"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_padded_segment_is_like_none(implementation: str, form: str, with_mask: bool) -> None:
    """All keys of segment b are padding in one sample: who sees only b gets zeros, and no NaN anywhere."""
    allowed = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    allowed[0, ..., 5:8] = False
    *inputs, mask = inputs_of()
    mask = mask if with_mask else None
    padding = as_padding(allowed, form, torch.float32)
    out = attend(implementation, *inputs, LENGTHS, VIEWS, mask=mask, attention_mask=padding)
    assert (out[0, 1, :5] == 0).all() and (out[1, 1, :5] != 0).all()
    expected = formula(*inputs, spans(LENGTHS), VIEWS, mask, allowed)
    assert_same(out, expected)
    assert_gradients_same(out, expected, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "blocks", "composed"])
def test_a_finite_additive_mask_is_a_bias_and_blocks_nothing(
    dtype: torch.dtype, with_mask: bool, implementation: str
) -> None:
    """Also far down for all keys of a block; what `value`'s dtype (fp16) cannot hold must not become NaN at least."""
    *inputs, mask = inputs_of(dtype=dtype)
    mask = mask if with_mask else None
    bias = torch.zeros(BATCH, 1, 1, LENGTH)
    bias[0, ..., 5:8] = -1e9
    out = attend(implementation, *inputs, LENGTHS, VIEWS, mask=mask, attention_mask=bias)
    expected = attend("eager", *inputs, LENGTHS, VIEWS, mask=mask, attention_mask=bias.double())
    assert out.isfinite().all()
    if dtype != torch.float16:
        assert_same(out, expected)
    bias = torch.randn(BATCH, 1, LENGTH, LENGTH, dtype=torch.float64)
    out = attend(implementation, *inputs, LENGTHS, [parse_view("full", SEGMENTS)] * HEADS, attention_mask=bias)
    query, key, value = (x.double() for x in inputs)
    assert_same(out, torch.softmax(query @ key.mT * SIZE**-0.5 + bias, -1) @ value)


@pytest.mark.parametrize("implementation", ["auto", "eager", "blocks"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_padding_mask_that_needs_a_gradient_gets_it(implementation: str, with_mask: bool) -> None:
    *inputs, mask = inputs_of(dtype=torch.float64)
    bias = torch.randn(BATCH, 1, LENGTH, LENGTH, dtype=torch.float64, requires_grad=True)
    options = {"attention_mask": bias, "mask": mask if with_mask else None}

    def gradient(implementation: str) -> Tensor:
        out = locomt_attention(*inputs, LENGTHS, VIEWS, implementation=implementation, **options)
        return torch.autograd.grad(out.square().sum(), bias)[0]

    actual, expected = gradient(implementation), gradient("eager")
    assert expected.abs().sum() > 0
    assert_same(actual, expected)


@pytest.mark.parametrize("needed", NAMES)
@pytest.mark.parametrize("implementation", ["blocks", "composed"])
def test_gradients_of_some_inputs_only(needed: str, implementation: str) -> None:
    inputs = [x.detach().requires_grad_(name == needed) for name, x in zip(NAMES, inputs_of(), strict=True)]
    mask = inputs[3] if needed == "mask" else None
    wanted = [x for x in inputs if x.requires_grad]
    (expected,) = torch.autograd.grad(formula(*inputs[:3], spans(LENGTHS), VIEWS, mask).square().sum(), wanted)
    out = attend(implementation, *inputs[:3], LENGTHS, VIEWS, mask=mask)
    (actual,) = torch.autograd.grad(out.square().sum(), wanted)
    assert_same(actual, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_inputs_of_any_strides(implementation: str) -> None:
    """Every second feature of a wider tensor, heads that share one key, a gradient without memory of its own."""
    torch.manual_seed(1)
    wide = torch.randn(BATCH, LENGTH, HEADS, 2 * SIZE).transpose(1, 2)
    query = wide[..., ::2].requires_grad_()
    key = torch.randn(BATCH, 1, LENGTH, SIZE).expand(-1, HEADS, -1, -1).requires_grad_()
    value = torch.randn(BATCH, HEADS, SIZE, LENGTH).transpose(2, 3).requires_grad_()
    inputs = [query, key, value]
    actual = attend(implementation, *inputs, LENGTHS, VIEWS)
    expected = formula(*inputs, spans(LENGTHS), VIEWS)
    assert_same(actual, expected)
    found, wanted = (torch.autograd.grad(out.sum(), inputs) for out in (actual, expected))
    for name, a, e in zip(NAMES, found, wanted, strict=False):
        assert_same(a, e, f"gradient of {name}")
    actual = attend(implementation, *inputs, LENGTHS, VIEWS)
    assert_gradients_same(actual, formula(*inputs, spans(LENGTHS), VIEWS), inputs)


@pytest.mark.parametrize("mask_batch", [1, BATCH])
@pytest.mark.parametrize("mask_heads", [1, HEADS])
@pytest.mark.parametrize("implementation", ["eager", "blocks"])
@pytest.mark.parametrize("kind", [None, "right", "per_head"])
def test_lams_mask_is_cut_by_the_same_blocks(
    mask_batch: int, mask_heads: int, implementation: str, kind: str | None
) -> None:
    *inputs, mask = inputs_of(mask_batch=mask_batch, mask_heads=mask_heads)
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    actual = attend(implementation, *inputs, LENGTHS, VIEWS, mask=mask, attention_mask=allowed)
    expected = formula(*inputs, spans(LENGTHS), VIEWS, mask, allowed)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, [*inputs, mask])


@pytest.mark.parametrize("kind", [None, "right", "per_query"])
@pytest.mark.parametrize("implementation", ["blocks", "composed"])
def test_gradcheck(kind: str | None, implementation: str) -> None:
    lengths, views = [2, 1, 3], VIEWS[1:]
    *inputs, _ = inputs_of(lengths, len(views), batch=1, size=3, dtype=torch.float64)
    padding = paddings(1, len(views), 6, 6)[kind] if kind else None
    assert torch.autograd.gradcheck(
        lambda *x: attend(implementation, *x, lengths, views, attention_mask=padding), inputs
    )


def test_the_operator_runs_where_it_is_meant_to_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above compare what their names say."""
    ran = []
    monkeypatch.setattr(blocks, "_attend_composed", lambda query, *_: ran.append("composed") or query)
    *inputs, mask = (x.detach() for x in inputs_of())
    locomt_attention(*inputs, LENGTHS, VIEWS)
    assert ran == []
    locomt_attention(*inputs, LENGTHS, VIEWS, mask=mask)
    locomt_attention(*inputs, LENGTHS, VIEWS, dropout_p=0.1)
    with sdpa_kernel(SDPBackend.MATH):
        locomt_attention(*inputs, LENGTHS, VIEWS)
    assert ran == ["composed"] * 3


@pytest.mark.slow
def test_operators_pass_torchs_own_checks() -> None:
    *inputs, _ = inputs_of()
    pairs = [number for head, view in enumerate(VIEWS) for i, j in sorted(view) for number in (head, i, j)]
    arguments = (*inputs, paddings(BATCH, HEADS, LENGTH, LENGTH)["right"], LENGTHS, pairs, 0.3)
    torch.library.opcheck(blocks._OPERATORS.locomt_forward.default, arguments)


@pytest.mark.parametrize("implementation", ["eager", "blocks", "composed"])
def test_inputs_are_not_changed(implementation: str) -> None:
    inputs = [x.detach() for x in inputs_of()]
    padding = paddings(BATCH, HEADS, LENGTH, LENGTH)["per_query"]
    additive = as_padding(padding, "-inf", torch.float32)
    copies = [x.clone() for x in (*inputs, padding, additive)]
    for mask in (inputs[3], None):
        for attention_mask in (padding, additive):
            attend(implementation, *inputs[:3], LENGTHS, VIEWS, mask=mask, attention_mask=attention_mask)
    assert all(torch.equal(x, copy) for x, copy in zip((*inputs, padding, additive), copies, strict=True))


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("kind", [None, *PADDINGS])
def test_weights_reproduce_the_output_and_are_zero_outside_of_the_views(with_mask: bool, kind: str | None) -> None:
    *inputs, mask = inputs_of()
    mask = mask if with_mask else None
    allowed = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    out, weights = locomt_attention_with_weights(*inputs, LENGTHS, VIEWS, mask=mask, attention_mask=allowed)
    assert_same(weights @ inputs[2], out)
    assert_same(out, formula(*inputs, spans(LENGTHS), VIEWS, mask, allowed))
    ids = spans(LENGTHS)[0].tolist()
    sums = weights.sum(-1)
    for head, view in enumerate(VIEWS):
        for q, i in enumerate(ids):
            unseen = [k for k, j in enumerate(ids) if (i, j) not in view]
            assert (weights[:, head, q, unseen] == 0).all()
            if len(unseen) == LENGTH:
                assert (sums[:, head, q] == 0).all()
    if kind is None:
        is_seeing = torch.tensor([[any(i == q for q, _ in view) for i in ids] for view in VIEWS])
        assert_same(sums, is_seeing.float().expand(BATCH, -1, -1))


def test_weights_drop_as_transformers_does() -> None:
    *inputs, _ = inputs_of([40, 30, 30])
    _, weights = locomt_attention_with_weights(*inputs, [40, 30, 30], VIEWS)
    out, dropped = locomt_attention_with_weights(*inputs, [40, 30, 30], VIEWS, dropout_p=0.4)
    is_seen = weights != 0
    is_kept = dropped != 0
    assert not (is_kept & ~is_seen).any() and 0.55 < is_kept[is_seen].float().mean() < 0.65
    assert_same(dropped[is_kept], weights[is_kept] / 0.6)
    assert_same(dropped @ inputs[2], out)


# --- dropout -----------------------------------------------------------------------------------------------------


def dropout_weights(seed: int, p: float, with_mask: bool, implementation: str) -> Tensor:
    """The weights behind one dropped-out forward: with V = I, the output is the weights."""
    torch.manual_seed(0)
    query, key, _, mask = inputs_of([16, 9, 11])
    torch.manual_seed(seed)
    identity = torch.eye(36).expand(BATCH, HEADS, 36, 36)
    mask = mask if with_mask else None
    return attend(implementation, query, key, identity, [16, 9, 11], VIEWS, mask=mask, dropout_p=p).detach()


@pytest.mark.parametrize("implementation", ["eager", "blocks"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_dropout_drops_at_its_rate_rescales_and_follows_the_default_generator(
    implementation: str, with_mask: bool
) -> None:
    dropped, weights = (dropout_weights(1, p, with_mask, implementation) for p in (0.3, 0.0))
    is_kept = dropped != 0
    assert 0.67 < is_kept[weights != 0].float().mean() < 0.73
    assert_same(dropped[is_kept], weights[is_kept] / 0.7)
    assert torch.equal(dropped, dropout_weights(1, 0.3, with_mask, implementation))
    assert not torch.equal(dropped, dropout_weights(2, 0.3, with_mask, implementation))


@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [False, True])
def test_backward_drops_what_forward_dropped(with_mask: bool) -> None:
    lengths, views = [2, 1, 3], VIEWS[1:4]
    *inputs, mask = inputs_of(lengths, len(views), batch=1, size=3, dtype=torch.float64)
    padding = torch.arange(6) < 5

    def seeded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        torch.manual_seed(7)
        return locomt_attention(query, key, value, lengths, views, mask=mask, dropout_p=0.4, attention_mask=padding)

    assert torch.autograd.gradcheck(seeded, [*inputs, mask] if with_mask else inputs)


# --- mistakes ----------------------------------------------------------------------------------------------------

SHAPE = (2, 3, 6, 4)
GOOD: dict[str, Any] = {
    **{name: torch.zeros(SHAPE) for name in NAMES[:3]},
    "segment_lengths": [4, 2],
    "views": [{(0, 0), (1, 1)}] * 3,
}
MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lengths too short": ({"segment_lengths": [4, 1]}, ValueError, r"\[4, 1\] add up to 5.*\(2, 3, 6, 4\)"),
    "lengths too long": ({"segment_lengths": [4, 3]}, ValueError, r"\[4, 3\] add up to 7"),
    "negative length": ({"segment_lengths": [8, -2]}, ValueError, r"\[8, -2\]"),
    "no lengths": ({"segment_lengths": []}, ValueError, r"\[\] add up to 0"),
    "query of 3 dimensions": ({"query": torch.zeros(3, 6, 4)}, ValueError, r"\(3, 6, 4\)"),
    "other number of keys": (
        {"key": torch.zeros(2, 3, 7, 4), "value": torch.zeros(2, 3, 7, 4)},
        ValueError,
        "self-attention: 6 queries and 7 keys",
    ),
    "value of another length": ({"value": torch.zeros(2, 3, 7, 4)}, ValueError, r"agree.*\(2, 3, 7, 4\)"),
    "two views for three heads": ({"views": [{(0, 0)}] * 2}, ValueError, "2 views for 3 heads"),
    "index out of range": ({"views": [{(0, 2)}] * 3}, ValueError, r"\(0, 2\).*from 0 to 1"),
    "negative index": ({"views": [{(-1, 0)}] * 3}, ValueError, r"\(-1, 0\).*from 0 to 1"),
    "no pair": ({"views": [{(0, 0, 1)}] * 3}, ValueError, r"\(0, 0, 1\)"),
    "unknown implementation": ({"implementation": "flash"}, ValueError, "'flash' is unknown.*auto, eager, blocks"),
    "0/1 float padding": ({"attention_mask": torch.tensor([1.0] * 4 + [0, 0])}, ValueError, r"attention_mask\.bool"),
    "integer padding": ({"attention_mask": torch.ones(6).long()}, TypeError, r"attention_mask\.bool"),
    "padding of another length": ({"attention_mask": torch.ones(7).bool()}, ValueError, r"broadcastable.*\(7,\)"),
    "mask of another length": ({"mask": torch.ones(2, 1, 6, 5)}, ValueError, r"mask must be.*\(2, 1, 6, 5\)"),
    "bool mask": ({"mask": torch.ones(2, 1, 6, 6).bool()}, TypeError, "mask must be floating"),
    "integer value": ({"value": torch.ones(SHAPE).int()}, TypeError, "value must be floating"),
    "dropout 1": ({"dropout_p": 1.0}, ValueError, "dropout_p must be.*1.0"),
}


@pytest.mark.parametrize("change, error, message", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("implementation", ["eager", "blocks"])
def test_mistakes_are_named(change: dict[str, Any], error: type[Exception], message: str, implementation: str) -> None:
    with pytest.raises(error, match=message):
        locomt_attention(**{"implementation": implementation, **GOOD, **change})
    if "implementation" not in change:
        with pytest.raises(error, match=message):
            locomt_attention_with_weights(**{**GOOD, **change})


# --- CUDA --------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [None, "right", "per_query", "a_sample_of_nothing"])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("ids_kind", [None, "random", "a segment absent from a sample"])
def test_cuda(dtype: torch.dtype, kind: str | None, with_mask: bool, ids_kind: str | None) -> None:
    lengths = [60, 41, 49]
    *inputs, mask = inputs_of(lengths, size=32, dtype=dtype, device="cuda")
    mask = mask if with_mask else None
    ids = spans(lengths).cuda() if ids_kind is None else random_ids(ids_kind, 150).cuda()
    layout = Layout(tuple(lengths)) if ids_kind is None else sample_layout(ids, 3)
    allowed = paddings(BATCH, HEADS, 150, 150)[kind].cuda() if kind else None
    call = layout_call(inputs, layout, mask, allowed)
    expected = formula(*inputs, ids, VIEWS, mask, allowed)
    for run in (attend_eager, attend_blocks):
        actual = call(run)
        assert_same(actual, expected, run.__name__)
        assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)
    assert_same(annealed(call, 40.0)[0], expected)


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("with_mask", [False, True])
def test_cuda_dropout_is_consistent(with_mask: bool) -> None:
    *inputs, mask = inputs_of([60, 41, 49], size=32, device="cuda")
    out = locomt_attention(*inputs, [60, 41, 49], VIEWS, mask=mask if with_mask else None, dropout_p=0.4)
    (grad,) = torch.autograd.grad(out, inputs[2], torch.ones_like(out))
    assert_same((grad * inputs[2]).sum(), out.sum(), tolerance=1e-4)
