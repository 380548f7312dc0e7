"""stt_attention: both ways to compute it against the map, written out place by place in fp64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from helpers.attention import LargestTensor, assert_same, needs_cuda, small_parts
from helpers.stt_attention import (
    BATCH,
    HEADS,
    IMPLEMENTATIONS,
    SIZE,
    TOLERANCE,
    as_padding,
    assert_gradients_same,
    assert_is,
    formula,
    make_inputs,
    right_padding,
    whole_map,
)
from hf_lam.modeling import stt_attention_hf_lam as stt
from hf_lam.modeling.stt_attention_hf_lam import log_synthetic_map, stt_attention, synthetic_map

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
GRIDS = [[7], [3, 5], [2, 3, 4], [1, 6], [6, 1], [1, 1], [1, 5, 1]]
PREFIXES = [0, 1, 2]
FORMS = ["bool", "-inf", "finfo.min"]


# --- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_the_formula(dtype: torch.dtype, prefix: int, grid: list[int], implementation: str) -> None:
    value, axes, shares = make_inputs(grid, prefix, dtype=dtype)
    actual = stt_attention(value, axes, prefix_shares=shares, implementation=implementation)
    assert actual.dtype == dtype
    assert_is(actual, formula(value, axes, shares), [value, *axes, shares])


def test_the_formula_itself_on_numbers_done_by_hand() -> None:
    """One prefix token on a grid of 1 × 2: what the formula of these tests must mean."""
    first, second = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    shares = torch.tensor([[0.8, 0.2], [0.6, 0.4], [1.0, 0.0]])
    axes = [x[None, None] for x in (first, second)]
    by_hand = torch.tensor([[0.2, 0.2, 0.6], [0.4, 0.6, 0.0], [0.0, 0.5, 0.5]])[None, None]
    assert_same(whole_map(axes, shares[None, None]).float(), by_hand)
    assert_same(synthetic_map(axes, shares[None, None]), by_hand)
    value = torch.tensor([[1.0], [10.0], [100.0]])[None, None]
    for implementation in IMPLEMENTATIONS:
        out = stt_attention(value, axes, prefix_shares=shares[None, None], implementation=implementation)
        assert_same(out.flatten(), torch.tensor([62.2, 6.4, 55.0]))


@pytest.mark.parametrize("batches", [1, BATCH])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("is_padded", [False, True])
def test_on_a_busy_machine_it_is_the_same(
    batches: int, prefix: int, grid: list[int], is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stt, "_MIN_SHARED", 1)
    batches_of_weights = [batches] * (len(grid) + 1)
    value, axes, shares = make_inputs(grid, prefix, dtype=torch.float64, weights_batches=batches_of_weights)
    padding = right_padding(BATCH, value.shape[2]) if is_padded else None
    inputs = [value, *axes, *([] if shares is None else [shares])]

    def outputs() -> list[Tensor]:
        out = stt_attention(value, axes, prefix_shares=shares, attention_mask=padding)
        some = torch.autograd.grad(out.square().sum(), axes, retain_graph=True)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), inputs)
        return [out, *some, *first, *second]

    expected = outputs()
    with small_parts(2):
        for actual, same in zip(outputs(), expected, strict=True):
            assert_same(actual, same)


def test_auto_is_modes() -> None:
    value, axes, shares = make_inputs([3, 5], 1)
    modes = stt_attention(value, axes, prefix_shares=shares, implementation="modes")
    assert torch.equal(stt_attention(value, axes, prefix_shares=shares), modes)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    prefix=st.integers(0, 3),
    batch=st.integers(0, 3),
    heads=st.integers(1, 3),
    size=st.integers(1, 4),
    single=st.lists(st.booleans(), min_size=5, max_size=5),
    padded=st.booleans(),
    chunk=st.sampled_from([1, 100, 2**19]),
)
def test_modes_are_eager_for_all_sizes(
    grid: list[int],
    prefix: int,
    batch: int,
    heads: int,
    size: int,
    single: list[bool],
    padded: bool,
    chunk: int,
) -> None:
    torch.manual_seed(0)  # hypothesis repeats what it draws itself
    batches = [1 if alone else batch for alone in single[: len(grid) + 1]]
    value, axes, shares = make_inputs(grid, prefix, batch, heads, size, weights_batches=batches)
    mask = right_padding(batch, value.shape[2]) if padded else None
    options: dict[str, Any] = {"prefix_shares": shares, "attention_mask": mask}
    expected = stt_attention(value, axes, implementation="eager", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stt, "_CPU_CHUNK", chunk)
        actual = stt_attention(value, axes, implementation="modes", **options)
    assert actual.shape == value.shape
    assert_is(actual, expected, [value, *axes, shares])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("alone", [[0], [1], [2], [0, 1, 2]])
def test_weights_of_one_sample_serve_the_batch(prefix: int, alone: list[int]) -> None:
    batches = [1 if number in alone else BATCH for number in range(3)]
    value, axes, shares = make_inputs([3, 5], prefix, weights_batches=batches)
    for implementation in IMPLEMENTATIONS:
        actual = stt_attention(value, axes, prefix_shares=shares, implementation=implementation)
        assert_is(actual, formula(value, axes, shares), [value, *axes, shares])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("grid", "batch"), [([3, 2], 0), ([5], 0), ([0], 2), ([0, 3], 2), ([3, 0], 2)])
def test_empty_batches_and_empty_grids(implementation: str, prefix: int, grid: list[int], batch: int) -> None:
    value, axes, shares = make_inputs(grid, prefix, batch)
    for mask in (None, torch.ones(batch, 1, 1, value.shape[2], dtype=torch.bool)):
        out = stt_attention(value, axes, prefix_shares=shares, attention_mask=mask, implementation=implementation)
        assert out.shape == value.shape
        assert_is(out, formula(value, axes, shares, mask), [value, *axes, shares])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_token_keeps_its_value(implementation: str) -> None:
    value, axes, _ = make_inputs([1, 1])
    assert torch.equal(stt_attention(value, axes, implementation=implementation), value)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_layout_gives_the_same(implementation: str) -> None:
    value, axes, shares = (x for x in make_inputs([3, 4], 1))
    assert shares is not None
    expected = stt_attention(value, axes, prefix_shares=shares, implementation=implementation)
    strided = torch.randn(BATCH, HEADS, 13, 2 * SIZE)
    strided[..., ::2] = value.detach()
    for other in (value.contiguous(), value.mT.contiguous().mT, strided[..., ::2]):
        turned = [x.mT.contiguous().mT for x in axes]
        gates = shares.transpose(0, 3).contiguous().transpose(0, 3)
        actual = stt_attention(other, turned, prefix_shares=gates, implementation=implementation)
        assert_same(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_weights_may_be_more_precise_than_values(dtype: torch.dtype, implementation: str) -> None:
    value, axes, shares = make_inputs([3, 4], 1, dtype=dtype, weights_dtype=torch.float32)
    actual = stt_attention(value, axes, prefix_shares=shares, implementation=implementation)
    assert actual.dtype == dtype
    assert_same(actual, formula(value, axes, shares), tolerance=TOLERANCE[dtype])
    tensors = [value, *axes, shares]
    found = torch.autograd.grad(actual.float().sum(), tensors)
    assert [x.dtype for x in found] == [dtype, *[torch.float32] * 3]
    for a, e in zip(found, torch.autograd.grad(formula(value, axes, shares).sum(), tensors), strict=True):
        assert_same(a, e, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(prefix: int, implementation: str, with_mask: bool) -> None:
    value, axes, shares = make_inputs([2, 3], prefix, batch=2, size=2, dtype=torch.float64)
    mask = right_padding(2, value.shape[2]) if with_mask else None
    gates = [] if shares is None else [shares]

    def attend(value: Tensor, first: Tensor, second: Tensor, *shares: Tensor) -> Tensor:
        gate = shares[0] if shares else None
        return stt_attention(
            value, [first, second], prefix_shares=gate, attention_mask=mask, implementation=implementation
        )

    assert torch.autograd.gradcheck(attend, [value, *axes, *gates])


# --- padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["right", "left", "scattered", "per_head", "one for all"])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_is_renormalising_by_hand(
    dtype: torch.dtype, form: str, kind: str, prefix: int, implementation: str
) -> None:
    value, axes, shares = make_inputs([3, 4], prefix, dtype=dtype)
    length = value.shape[2]
    right = right_padding(BATCH, length)
    allowed = {
        "right": right,
        "left": right.flip(-1),
        "scattered": torch.arange(length).remainder(3).ne(1).expand(BATCH, 1, 1, -1),
        "per_head": torch.rand(BATCH, HEADS, 1, length) > 0.4,
        "one for all": torch.arange(length) > 1,
    }[kind]
    actual = stt_attention(
        value,
        axes,
        prefix_shares=shares,
        attention_mask=as_padding(allowed, form, dtype),
        implementation=implementation,
    )
    assert actual.dtype == dtype
    assert_is(actual, formula(value, axes, shares, allowed), [value, *axes, shares])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_sample_of_padding_gives_zeros_and_zero_gradients(form: str, prefix: int, implementation: str) -> None:
    value, axes, shares = make_inputs([3, 2], prefix)
    allowed = torch.ones(BATCH, 1, 1, value.shape[2], dtype=torch.bool)
    allowed[1] = False
    mask = as_padding(allowed, form, torch.float32)
    out = stt_attention(value, axes, prefix_shares=shares, attention_mask=mask, implementation=implementation)
    assert (out[1] == 0).all() and (out[0] != 0).all()
    for grad in torch.autograd.grad(out.square().sum() + out.sum(), [value, *axes, *([shares] if prefix else [])]):
        assert grad.isfinite().all() and (grad[1] == 0).all() and grad[0].abs().sum() > 0
    weights = synthetic_map(axes, shares, mask)
    assert (weights[1] == 0).all()
    assert_same(weights[0].sum(-1), torch.ones(HEADS, value.shape[2]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_in_the_padding_does_not_matter(implementation: str) -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    allowed = right_padding(BATCH, 13)
    expected = stt_attention(value, axes, prefix_shares=shares, attention_mask=allowed, implementation=implementation)
    other = torch.where(allowed.mT, value, 1e4)
    actual = stt_attention(other, axes, prefix_shares=shares, attention_mask=allowed, implementation=implementation)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_finite_additive_mask_is_a_bias_of_the_logarithms(implementation: str) -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    bias = torch.randn(BATCH, 1, 1, 13, requires_grad=True)
    weights = (whole_map(axes, shares).log() + bias.double()).softmax(-1)
    actual = stt_attention(value, axes, prefix_shares=shares, attention_mask=bias, implementation=implementation)
    assert_is(actual, weights @ value.double(), [value, *axes, shares, bias])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("with_mask", [False, True])
def test_weights_of_zero_have_no_nan_in_their_gradients(implementation: str, with_mask: bool) -> None:
    value, _, _ = make_inputs([3, 4], 1)
    axes = [torch.eye(n).roll(1, 0)[None, None].repeat(1, HEADS, 1, 1) for n in (4, 5)]
    axes = [x[..., 1:].clone().requires_grad_() for x in axes]  # one-hot rows, and a row of zeros
    shares = torch.tensor([0.0, 1.0]).repeat(1, HEADS, 13, 1).requires_grad_()
    mask = right_padding(BATCH, 13) if with_mask else None
    out = stt_attention(value, axes, prefix_shares=shares, attention_mask=mask, implementation=implementation)
    assert_same(out, value[:, :, :1].expand_as(out))
    for grad in torch.autograd.grad(out.square().sum(), [value, *axes, shares]):
        assert grad.isfinite().all()


# --- chunks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 3, 6])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_chunks_of_a_large_batch(samples: int, prefix: int, with_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = 7
    value, axes, shares = make_inputs([3, 4], prefix, batch, weights_batches=[1, batch, batch])
    mask = right_padding(batch, value.shape[2]) if with_mask else None
    calls: list[int] = []
    products = stt._products

    def counted(value: Tensor, *rest: Tensor | None) -> Tensor:
        if value.shape[3] > 1:  # not what the padding leaves of the map's rows
            calls.append(len(value))
        return products(value, *rest)

    monkeypatch.setattr(stt, "_products", counted)
    monkeypatch.setattr(stt, "_CPU_CHUNK", samples * value[0].numel())
    actual = stt_attention(value, axes, prefix_shares=shares, attention_mask=mask)
    assert calls == [min(samples, batch - start) for start in range(0, batch, samples)]
    assert_is(actual, formula(value, axes, shares, mask), [value, *axes, shares])
    monkeypatch.setattr(stt, "_CPU_CHUNK", 2**19)
    assert actual.stride() == stt_attention(value, axes, prefix_shares=shares, attention_mask=mask).stride()


# --- the map -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_map_has_rows_of_one_and_reproduces_the_output(grid: list[int], prefix: int, with_mask: bool) -> None:
    value, axes, shares = make_inputs(grid, prefix)
    mask = right_padding(BATCH, value.shape[2]) if with_mask else None
    weights = synthetic_map(axes, shares, mask)
    assert weights.shape == (BATCH, HEADS, value.shape[2], value.shape[2]) and (weights >= 0).all()
    assert_same(weights.sum(-1), torch.ones(weights.shape[:3]))
    assert_same(weights @ value, stt_attention(value, axes, prefix_shares=shares, attention_mask=mask))
    if mask is not None:
        assert (weights.masked_select(~mask) == 0).all()


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_logarithm_of_the_map(grid: list[int], prefix: int) -> None:
    _, axes, shares = make_inputs(grid, prefix, weights_batches=[1, *[BATCH] * len(grid)])
    logs = [x.log() for x in axes]
    actual = log_synthetic_map(logs, None if shares is None else shares.log())
    tensors = [*axes, *([] if shares is None else [shares])]
    expected = whole_map(axes, shares).log()
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, tensors, 1e-4)  # up to 1 / weight


def test_the_logarithm_does_not_underflow() -> None:
    log_weights = [torch.tensor([[0.0, -80.0], [0.0, -80.0]])[None, None].requires_grad_() for _ in range(2)]
    found = log_synthetic_map(log_weights)
    assert found.min() == -160.0  # e^−160 is 0 in fp32
    assert all(x.isfinite().all() for x in torch.autograd.grad(found.sum(), log_weights))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("prefix", [0, 1])
def test_the_map_never_exists_in_modes(prefix: int, with_mask: bool) -> None:
    value, axes, shares = make_inputs([9, 11], prefix, size=16)
    length = value.shape[2]
    mask = right_padding(BATCH, length) if with_mask else None
    options: dict[str, Any] = {"prefix_shares": shares, "attention_mask": mask}
    with LargestTensor() as largest:
        stt_attention(value, axes, **options).sum().backward()
    assert largest.elements <= value.numel() < BATCH * HEADS * length * length
    with LargestTensor() as largest:
        stt_attention(value, axes, implementation="eager", **options)
    assert largest.elements >= BATCH * HEADS * length * length


@pytest.mark.parametrize("grid", [[7], [3, 5], [2, 3, 4]])
def test_flops_are_those_of_the_papers_formula(grid: list[int]) -> None:
    value, axes, _ = (x.detach().to("meta") if isinstance(x, Tensor) else x for x in make_inputs(grid))
    axes = [x.detach().to("meta") for x in axes]
    with FlopCounterMode(display=False) as counter:
        stt_attention(value, axes)
    assert counter.get_total_flops() == BATCH * HEADS * 2 * SIZE * math.prod(grid) * sum(grid)
    with FlopCounterMode(display=False) as counter:
        stt_attention(value, axes, implementation="eager")
    assert counter.get_total_flops() == BATCH * HEADS * 2 * SIZE * math.prod(grid) ** 2


# --- errors ------------------------------------------------------------------------------------------------------

VALUE, AXES, SHARES = torch.zeros(2, 3, 7, 4), [torch.ones(2, 3, 3, 2), torch.ones(2, 3, 4, 3)], torch.ones(2, 3, 7, 2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "fast"}, ValueError, "implementation='fast' is unknown: choose one of auto, eager, modes"),
        ({"value": VALUE.long()}, TypeError, r"value must be floating point, got torch.int64: pass value.float\(\)"),
        ({"axis_weights": [AXES[0], AXES[1].int()]}, TypeError, r"axis_weights\[1\] must be floating point"),
        ({"prefix_shares": SHARES.bool()}, TypeError, "prefix_shares must be floating point, got torch.bool"),
        ({"value": VALUE[0]}, ValueError, r"value must have 4 dimensions.*got \(3, 7, 4\)"),
        ({"axis_weights": [AXES[0][0], AXES[1]]}, ValueError, r"axis_weights\[0\] must have 4 dimensions"),
        ({"axis_weights": []}, ValueError, "axis_weights is empty: give one tensor"),
        (
            {"value": VALUE[:, :, 1:]},
            ValueError,
            r"the grid \[2, 3\] has 6 places and there are 1 prefix tokens, which makes 7 tokens, but value holds 6",
        ),
        ({"prefix_shares": None}, ValueError, r"0 prefix tokens, which makes 6 tokens, but value holds 7"),
        ({"axis_weights": AXES[1:]}, ValueError, r"the grid \[3\] has 3 places"),
        (
            {"axis_weights": [AXES[0][:, :, 1:], AXES[1]]},
            ValueError,
            r"axis_weights\[0\] must be \(2 or 1, 3, 3, 2\) for 1 prefix tokens and the grid \[2, 3\], got \(2, 3, 2",
        ),
        ({"axis_weights": [AXES[0], AXES[1][:, :1]]}, ValueError, r"axis_weights\[1\] must be \(2 or 1, 3, 4, 3\)"),
        (
            {"axis_weights": [AXES[0].repeat(2, 1, 1, 1), AXES[1]]},
            ValueError,
            r"axis_weights\[0\] must be \(2 or 1, 3, 3, 2\).*got \(4, 3, 3, 2\)",
        ),
        ({"prefix_shares": SHARES[:, :, 1:]}, ValueError, r"prefix_shares must be \(2 or 1, 3, 7, 2\)"),
        ({"attention_mask": torch.ones(2, 7)}, ValueError, r"broadcastable to \(2, 3, 1, 7\)"),
        ({"attention_mask": torch.ones(2, 1, 7, 7, dtype=torch.bool)}, ValueError, r"broadcastable to \(2, 3, 1, 7\)"),
        ({"attention_mask": torch.ones(2, 1, 1, 7)}, ValueError, "holds only zeros and ones"),
        ({"attention_mask": torch.ones(2, 1, 1, 7).long()}, TypeError, "attention_mask must be bool"),
    ],
)
def test_errors_name_the_value_and_the_way_out(
    change: dict[str, Any], error: type[Exception], message: str, implementation: str
) -> None:
    good = {"value": VALUE, "axis_weights": AXES, "prefix_shares": SHARES, "implementation": implementation}
    with pytest.raises(error, match=message):
        stt_attention(**{**good, **change})


# --- CUDA --------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", [[150], [14, 14], [3, 7, 7], [1, 9]])
@pytest.mark.parametrize("with_mask", [False, True])
def test_cuda(dtype: torch.dtype, prefix: int, grid: list[int], with_mask: bool) -> None:
    value, axes, shares = make_inputs(grid, prefix, size=32, dtype=dtype, device="cuda")
    allowed = right_padding(BATCH, value.shape[2]).cuda() if with_mask else None
    expected = formula(value, axes, shares, allowed)
    for implementation in IMPLEMENTATIONS:
        actual = stt_attention(
            value, axes, prefix_shares=shares, attention_mask=allowed, implementation=implementation
        )
        assert_is(actual, expected, [value, *axes, shares])


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("implementation", ["eager", "modes"])
def test_dropout_grows_the_other_weights_with_padding_too(implementation: str, prefix: int) -> None:
    torch.manual_seed(0)
    value, axes, shares = make_inputs([3, 4], prefix, 2)
    mask = right_padding(2, value.shape[2])
    options: dict[str, Any] = {"prefix_shares": shares, "implementation": implementation}
    ones = torch.ones_like(value)
    for attention_mask in (None, mask):
        sums = stt_attention(ones, axes, attention_mask=attention_mask, dropout_p=0.4, **options)[:, :, :-5]
        # Dropped weights make the sums of the rows vary around one, and padding does not bring them back to it.
        assert sums.std() > 0.1 and (sums - 1).abs().max() > 0.2
        means = torch.stack(
            [stt_attention(ones, axes, attention_mask=attention_mask, dropout_p=0.4, **options) for _ in range(400)]
        ).mean(0)[:, :, :-5]
        assert (means - 1).abs().mean() < 0.1
    torch.manual_seed(1)
    out, weights = stt.stt_attention_with_weights(
        value, axes, prefix_shares=shares, attention_mask=mask, dropout_p=0.4
    )
    torch.manual_seed(1)
    again = stt_attention(value, axes, attention_mask=mask, dropout_p=0.4, **options)
    torch.testing.assert_close(out, again, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights @ value, out)
    with pytest.raises(ValueError, match="dropout_p must be at least 0 and below 1, got 1"):
        stt_attention(value, axes, dropout_p=1.0, **options)
