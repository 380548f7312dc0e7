"""locomt_attention: every way to compute it against the formula, written out segment by segment in fp64."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_functional import PADDINGS, LargestTensor, assert_same, make_inputs, needs_cuda, paddings
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hf_lam.modeling import locomt_hf_lam as locomt
from hf_lam.modeling.locomt_hf_lam import (
    Layout,
    attend_annealed,
    attend_blocks,
    attend_eager,
    attend_with_weights,
    fixed_layout,
    locomt_attention,
    locomt_attention_with_weights,
    sample_layout,
)
from hf_lam.modeling.views_hf_lam import View, parse_view, view_cost

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ("query", "key", "value", "mask")
IMPLEMENTATIONS = ("auto", "eager", "blocks", "composed")

SEGMENTS = ["a", "b", "c"]
LENGTHS = [5, 3, 5]  # as long as the paddings of test_functional
LENGTH = sum(LENGTHS)
# The heads of one view lie irregularly; `cross:a-b` leaves c without keys, and the directed one leaves b without.
VIEWS = [parse_view(view, SEGMENTS) for view in ("self", "cross:a-b", "self", "self", "a>c+c>a+self:c")]
HEADS = len(VIEWS)
BATCH, SIZE = 2, 4


def spans(lengths: Sequence[int]) -> Tensor:
    """The segment of every token, `(1, L)`."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))[None]


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_ids: Tensor,
    views: Sequence[View],
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    scaling: float | None = None,
) -> Tensor:
    """Independent of the code under test: fp64, one softmax over the keys of the segments seen, zeros without any."""
    query, key, value = (x.double() for x in (query, key, value))
    batch, heads, length, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    segment_ids = segment_ids.expand(batch, -1)
    mask = None if mask is None else mask.double().expand(batch, heads, length, length)
    allowed = None if allowed is None else allowed.expand(batch, heads, length, length)
    out = torch.zeros(batch, heads, length, value.shape[-1], dtype=torch.float64, device=query.device)
    for b in range(batch):
        for h, view in enumerate(views):
            for segment in segment_ids[b].unique().tolist():
                rows = (segment_ids[b] == segment).nonzero()[:, 0]
                seen = [j for i, j in view if i == segment]
                columns = torch.tensor([k for k, s in enumerate(segment_ids[b].tolist()) if s in seen]).long()
                columns = columns.to(rows)
                scores = query[b, h, rows] @ key[b, h, columns].T * scaling
                if mask is not None:
                    scores = scores * mask[b, h][rows][:, columns]
                exponentials = scores.exp()
                if allowed is not None:
                    exponentials = exponentials * allowed[b, h][rows][:, columns]
                weights = exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300)
                out[b, h, rows] = weights @ value[b, h, columns]
    return out


@contextmanager
def composed() -> Iterator[None]:
    """Take the path of differentiable operators where the CPU operator would run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locomt, "_fits_operator", lambda *_: False)
        yield


def attend(implementation: str, *args: Any, **options: Any) -> Tensor:
    if implementation == "composed":
        with composed():
            return locomt_attention(*args, implementation="blocks", **options)
    return locomt_attention(*args, implementation=implementation, **options)


def inputs_of(lengths: Sequence[int] = LENGTHS, heads: int = HEADS, **options: Any) -> list[Tensor]:
    """Query, key, value and mask, leaves with gradients."""
    length = sum(lengths)
    return make_inputs(**{"batch": BATCH, "size": SIZE, **options}, heads=heads, length_q=length, length_k=length)


def assert_gradients_same(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    grad_out = torch.randn_like(actual)
    found, wanted = (gradients(out, inputs, grad_out.to(out.dtype)) for out in (actual, expected))
    for name, a, e in zip(NAMES, found, wanted, strict=False):
        assert a.dtype == e.dtype
        assert_same(a, e, f"gradient of {name}")


def gradients(out: Tensor, inputs: Sequence[Tensor], grad_out: Tensor) -> list[Tensor]:
    """Zeros for an input that took no part: no query may see a key."""
    if not out.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(out, inputs, grad_out, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


def as_padding(allowed: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    if form == "bool":
        return allowed
    lowest = -float("inf") if form == "-inf" else torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest)


# --- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value_size", [SIZE, 3])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_the_formula(dtype: torch.dtype, value_size: int, with_mask: bool, implementation: str) -> None:
    *inputs, mask = inputs_of(dtype=dtype, value_size=value_size)
    mask = mask if with_mask else None
    actual = attend(implementation, *inputs, LENGTHS, VIEWS, mask=mask)
    assert actual.dtype == dtype and actual.shape == (BATCH, HEADS, LENGTH, value_size)
    expected = formula(*inputs, spans(LENGTHS), VIEWS, mask)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)


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
        actual = attend(implementation, *inputs, lengths, views, mask=mask, attention_mask=padding, scaling=scaling)
        assert actual.shape == (batch, len(views), sum(lengths), value_size)
        expected = formula(*inputs, spans(lengths), views, mask, allowed, scaling)
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
    monkeypatch.setattr(locomt, "_composed", lambda query, *_: ran.append("composed") or query)
    *inputs, mask = (x.detach() for x in inputs_of())
    locomt_attention(*inputs, LENGTHS, VIEWS)
    assert ran == []
    locomt_attention(*inputs, LENGTHS, VIEWS, mask=mask)
    locomt_attention(*inputs, LENGTHS, VIEWS, dropout_p=0.1)
    with sdpa_kernel(SDPBackend.MATH):
        locomt_attention(*inputs, LENGTHS, VIEWS)
    assert ran == ["composed"] * 3


def test_operators_pass_torchs_own_checks() -> None:
    *inputs, _ = inputs_of()
    pairs = [number for head, view in enumerate(VIEWS) for i, j in sorted(view) for number in (head, i, j)]
    arguments = (*inputs, paddings(BATCH, HEADS, LENGTH, LENGTH)["right"], LENGTHS, pairs, 0.3)
    torch.library.opcheck(locomt._OPERATORS.locomt_forward.default, arguments)


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


@pytest.mark.parametrize("with_mask", [False, True])
def test_backward_drops_what_forward_dropped(with_mask: bool) -> None:
    lengths, views = [2, 1, 3], VIEWS[1:4]
    *inputs, mask = inputs_of(lengths, len(views), batch=1, size=3, dtype=torch.float64)
    padding = torch.arange(6) < 5

    def seeded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        torch.manual_seed(7)
        return locomt_attention(query, key, value, lengths, views, mask=mask, dropout_p=0.4, attention_mask=padding)

    assert torch.autograd.gradcheck(seeded, [*inputs, mask] if with_mask else inputs)


# --- where it runs -----------------------------------------------------------------------------------------------


def attention_of(lengths: Sequence[int], views: Sequence[View]) -> Callable[..., Tensor]:
    """The layer as a model calls it: sizes and views are constants."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return locomt_attention(query, key, value, lengths, views, **options)

    return attention


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
    assert len(attentions) == len([b for b in locomt.blocks_of(VIEWS, 3) if b.keys])


def test_the_kernels_that_torch_is_told_to_use_are_used() -> None:
    *inputs, _ = inputs_of()
    with sdpa_kernel(SDPBackend.MATH):
        actual = locomt_attention(*inputs, LENGTHS, VIEWS)
        assert_same(actual, formula(*inputs, spans(LENGTHS), VIEWS))
        assert flops_of(lambda: locomt_attention(*inputs, LENGTHS, VIEWS)) > 0
    assert_gradients_same(actual, formula(*inputs, spans(LENGTHS), VIEWS), inputs)


# --- layouts: tokens that are not in order -----------------------------------------------------------------------


def random_ids(kind: str, length: int = LENGTH, batch: int = BATCH) -> Tensor:
    """`(B, L)` segments of 3, as token types have them."""
    ids = torch.randint(3, (batch, length))
    if kind == "a segment absent from a sample":
        ids[0] = ids[0] % 2
    elif kind == "a segment absent from all":
        ids = ids % 2
    elif kind == "one segment":
        ids = torch.full_like(ids, 1)
    elif kind == "one segment a sample":
        ids = torch.arange(batch)[:, None].expand(-1, length) % 3
    elif kind == "same for all":
        ids = ids[:1].expand(batch, -1)
    elif kind == "one row":
        ids = ids[:1]
    return ids


KINDS_OF_IDS = (
    "random",
    "a segment absent from a sample",
    "a segment absent from all",
    "one segment",
    "one segment a sample",
    "same for all",
    "one row",
)


def layout_call(
    inputs: Sequence[Tensor], layout: Layout, mask: Tensor | None = None, padding: Tensor | None = None, p: float = 0.0
) -> tuple[Any, ...]:
    return (*inputs, layout, VIEWS, mask, padding, None, p)


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
        actual = run(*call)
        assert_same(actual, expected, run.__name__)
        assert_gradients_same(actual, expected, wanted)
    with composed():
        actual = attend_blocks(*call)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, wanted)
    out, weights = attend_with_weights(*call)
    assert_same(weights @ inputs[2], out)


@pytest.mark.parametrize("mask_batch", [1, BATCH])
@pytest.mark.parametrize("mask_heads", [1, HEADS])
def test_lams_mask_with_segments_that_differ(mask_batch: int, mask_heads: int) -> None:
    *inputs, mask = inputs_of(mask_batch=mask_batch, mask_heads=mask_heads)
    ids = random_ids("random")
    actual = attend_blocks(*layout_call(inputs, sample_layout(ids, 3), mask))
    expected = formula(*inputs, ids, VIEWS, mask)
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
        assert_same(run(*call), formula(*inputs, ids, VIEWS, mask, allowed), run.__name__)


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
        actual = run(*call)
        assert_same(actual, expected, run.__name__)
        assert_gradients_same(actual, expected, [*inputs, mask] if with_mask else inputs)


@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("ids_kind", ["random", "a segment absent from a sample", "one segment"])
@pytest.mark.parametrize("length", [LENGTH, 1])
def test_compile_with_segments_that_differ(with_mask: bool, ids_kind: str, length: int) -> None:
    torch._dynamo.reset()

    def attention(query: Tensor, key: Tensor, value: Tensor, ids: Tensor, mask: Any, padding: Tensor) -> Tensor:
        return attend_blocks(*layout_call([query, key, value], sample_layout(ids, 3), mask, padding))

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
        lambda q, k, v, ids: attend_blocks(*layout_call([q, k, v], fixed_layout(ids, LENGTHS))),
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
    out = attend_blocks(*layout_call(inputs, sample_layout(ids, 3), p=0.4))
    assert not torch.allclose(out.double(), formula(*inputs, ids, VIEWS))
    (grad,) = torch.autograd.grad(out, inputs[2], torch.ones_like(out))
    assert_same((grad * inputs[2]).sum(), out.sum(), tolerance=1e-4)


# --- annealing ---------------------------------------------------------------------------------------------------


def annealed(
    call: tuple[Any, ...], penalty: float, want_weights: bool = False, implementation: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    return attend_annealed(*call, torch.tensor(penalty), want_weights, implementation)


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
    assert_same(end, attend_eager(*call), tolerance=1e-4)
    assert_gradients_same(end, formula(*inputs, spans(LENGTHS), VIEWS, mask, allowed), wanted)


@pytest.mark.parametrize("kind", [None, "per_head"])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 40.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_mask", [False, True])
def test_annealing_is_its_formula(kind: str | None, penalty: float, dtype: torch.dtype, with_mask: bool) -> None:
    *inputs, mask = inputs_of(dtype=dtype)
    mask = mask if with_mask else None
    allowed = torch.ones(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    padding = paddings(BATCH, HEADS, LENGTH, LENGTH)[kind] if kind else None
    allowed = allowed if padding is None else allowed & padding
    ids = spans(LENGTHS)[0].tolist()
    seen = torch.tensor([[[(i, j) in view for j in ids] for i in ids] for view in VIEWS]) & allowed
    query, key, value = (x.double() for x in inputs)
    scores = query @ key.mT * SIZE**-0.5 * (1 if mask is None else mask.double())
    is_blind = ~seen.any(-1, keepdim=True)
    scores = scores - penalty * (~seen & ~is_blind)
    exponentials = scores.exp() * allowed
    weights = exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300)
    weights = weights * torch.where(is_blind, torch.tensor(-penalty).exp(), torch.tensor(1.0))
    call = layout_call(inputs, Layout(tuple(LENGTHS)), mask, padding)
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
    assert_same(annealed(call, 40.0)[0], attend_blocks(*call), tolerance=1e-4)


def test_annealing_compiles_once_for_every_penalty() -> None:
    torch._dynamo.reset()
    *inputs, _ = inputs_of()
    call = layout_call(inputs, Layout(tuple(LENGTHS)))
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda q, k, v, penalty: attend_annealed(q, k, v, *call[3:], penalty, False)[0], fullgraph=True, backend=keep
    )
    for penalty in (0.0, 1.5, 40.0):
        assert_same(compiled(*inputs, torch.tensor(penalty)), annealed(call, penalty)[0])
    assert len(graphs) == 1


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
        actual = run(*call)
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
