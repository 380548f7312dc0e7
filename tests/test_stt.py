"""stt_attention: both ways to compute it against the map, written out place by place in fp64."""

import itertools
import math
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_functional import LargestTensor, assert_same, needs_cuda
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hf_lam.modeling import stt_hf_lam as stt
from hf_lam.modeling.stt_hf_lam import log_synthetic_map, stt_attention, synthetic_map

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Several axes in bf16 round in between, once an axis on the fast path, once for the map in the reference.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}
GRIDS = [[7], [3, 5], [2, 3, 4], [1, 6], [6, 1], [1, 1], [1, 5, 1]]
PREFIXES = [0, 1, 2]
IMPLEMENTATIONS = ["eager", "modes"]
FORMS = ["bool", "-inf", "finfo.min"]
BATCH, HEADS, SIZE = 3, 2, 4


def make_inputs(
    grid: Sequence[int],
    prefix: int = 0,
    batch: int = BATCH,
    heads: int = HEADS,
    size: int = SIZE,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = None,
    weights_batches: Sequence[int] | None = None,
    device: str = "cpu",
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Value, the matrices of the axes and shares, leaves with gradients; the value is laid out as an encoder's."""
    length = prefix + math.prod(grid)
    batches = [batch] * (len(grid) + 1) if weights_batches is None else weights_batches
    options: dict[str, Any] = {"dtype": dtype if weights_dtype is None else weights_dtype, "device": device}
    value = torch.randn(batch, length, heads, size, dtype=dtype, device=device).transpose(1, 2)
    axes = [torch.randn(b, heads, prefix + n, n, **options).softmax(-1) for b, n in zip(batches, grid, strict=False)]
    shares = torch.randn(batches[-1], heads, length, 1 + prefix, **options).softmax(-1) if prefix else None
    return (
        value.requires_grad_(),
        [x.requires_grad_() for x in axes],
        None if shares is None else shares.requires_grad_(),
    )


def whole_map(axes: Sequence[Tensor], shares: Tensor | None) -> Tensor:
    """Independent of the code under test: fp64, every entry by the coordinates of its query and of its key."""
    prefix = 0 if shares is None else shares.shape[3] - 1
    places = list(itertools.product(*(range(x.shape[3]) for x in axes)))
    device = axes[0].device
    entries = torch.ones((), dtype=torch.float64, device=device)
    for axis, weights in enumerate(axes):
        columns = [place[axis] for place in places]
        rows = [*range(prefix), *(prefix + column for column in columns)]
        query, key = (torch.tensor(x, dtype=torch.long, device=device) for x in (rows, columns))
        entries = entries * weights.double()[:, :, query[:, None], key[None, :]]
    if shares is None:
        return entries
    shares = shares.double()
    batch = max(len(entries), len(shares))
    whole = [shares[..., 1 + token].expand(batch, -1, -1) for token in range(prefix)]
    whole += [(shares[..., 0] * entries[..., key]).expand(batch, -1, -1) for key in range(len(places))]
    return torch.stack(whole, dim=3)


def formula(value: Tensor, axes: Sequence[Tensor], shares: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """The map times the values; without the padding's columns, and renormalised by hand."""
    weights = whole_map(axes, shares)
    if allowed is not None:
        weights = torch.where(allowed, weights, 0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.einsum("bhij,bhjd->bhid", weights.expand(len(value), -1, -1, -1), value.double())


def assert_gradients_same(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor], tolerance: float) -> None:
    grad_out = torch.randn_like(actual)
    found = torch.autograd.grad(actual, inputs, grad_out)
    # In the formula, an empty grid has no entries that its matrices could reach.
    options = {"allow_unused": True, "materialize_grads": True}
    wanted = torch.autograd.grad(expected, inputs, grad_out.to(expected.dtype), **options)
    for number, (a, e, x) in enumerate(zip(found, wanted, inputs, strict=True)):
        assert a.dtype == x.dtype
        assert_same(a, e, f"gradient of input {number}, {tuple(x.shape)}", tolerance)


def assert_is(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor | None]) -> None:
    """The same values and gradients."""
    tolerance = TOLERANCE[actual.dtype]
    assert_same(actual, expected, tolerance=tolerance)
    assert_gradients_same(actual, expected, [x for x in inputs if x is not None], tolerance)


def right_padding(batch: int, length: int) -> Tensor:
    """The last sample has half the tokens, and at least one."""
    allowed = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    allowed[-1:, ..., (length + 1) // 2 :] = False
    return allowed


def as_padding(allowed: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    if form == "bool":
        return allowed
    lowest = -float("inf") if form == "-inf" else torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest)


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


# --- how it is run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_meta_and_fake_tensors(implementation: str) -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    real = stt_attention(value, axes, prefix_shares=shares, implementation=implementation)
    assert shares is not None
    meta = stt_attention(
        value.to("meta"),
        [x.to("meta") for x in axes],
        prefix_shares=shares.to("meta"),
        attention_mask=torch.zeros(BATCH, 1, 1, 13, device="meta"),
        implementation=implementation,
    )
    assert meta.is_meta and meta.shape == real.shape and meta.dtype == real.dtype
    with FakeTensorMode():
        value, axes, shares = make_inputs([3, 4], 1)
        mask = torch.zeros(BATCH, 1, 1, 13)
        fake = stt_attention(value, axes, prefix_shares=shares, attention_mask=mask, implementation=implementation)
        fake.sum().backward()
    assert fake.shape == real.shape and fake.stride() == real.stride()
    assert all(x is not None and x.grad is not None and x.grad.shape == x.shape for x in (value, *axes, shares))


class Attention(torch.nn.Module):
    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.implementation = implementation

    def forward(self, value: Tensor, first: Tensor, second: Tensor, shares: Tensor, mask: Tensor) -> Tensor:
        return stt_attention(
            value, [first, second], prefix_shares=shares, attention_mask=mask, implementation=self.implementation
        )


@pytest.mark.parametrize(
    ("implementation", "dynamic", "form"),
    [
        ("modes", False, "bool"),
        *(
            pytest.param(implementation, True, form, marks=pytest.mark.slow)
            for implementation in IMPLEMENTATIONS
            for form in ("bool", "-inf")
        ),
    ],
)
def test_compile_is_one_graph_with_gradients(implementation: str, dynamic: bool, form: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Attention(implementation), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch, grid in ((2, [3, 4]), (3, [5, 2])) if dynamic else ((2, [3, 4]),):
        value, axes, shares = make_inputs(grid, 1, batch)
        allowed = right_padding(batch, value.shape[2])
        actual = compiled(value, *axes, shares, as_padding(allowed, form, torch.float32))
        assert_is(actual, formula(value, axes, shares, allowed), [value, *axes, shares])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_compile_with_inductor(implementation: str) -> None:
    torch.compiler.reset()
    value, axes, shares = make_inputs([3, 4], 1)
    allowed = right_padding(BATCH, 13)
    actual = torch.compile(Attention(implementation), fullgraph=True)(value, *axes, shares, allowed)
    assert_is(actual, formula(value, axes, shares, allowed), [value, *axes, shares])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("strict", [True, False])
def test_export_holds_plain_operators_only(implementation: str, strict: bool) -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    assert shares is not None
    inputs = [x.detach() for x in (value, *axes, shares)]
    mask = right_padding(BATCH, 13)
    program = torch.export.export(Attention(implementation), (*inputs, mask), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [name for name in targets if not name.startswith("aten.")]
    assert_same(program.module()(*inputs, mask), formula(value, axes, shares, mask).float())


@pytest.mark.slow
def test_export_with_a_batch_of_any_size() -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    assert shares is not None
    batch = torch.export.Dim("batch")
    arguments = (*(x.detach() for x in (value, *axes, shares)), right_padding(BATCH, 13))
    program = torch.export.export(Attention("modes"), arguments, dynamic_shapes=[{0: batch}] * 5)
    value, axes, shares = make_inputs([3, 4], 1, batch=5)
    mask = right_padding(5, 13)
    assert_same(program.module()(value, *axes, shares, mask), formula(value, axes, shares, mask).float())


class TextAttention(torch.nn.Module):
    def forward(self, value: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
        return stt_attention(value, [weights], attention_mask=mask)


@pytest.mark.slow
def test_export_with_a_text_of_any_length() -> None:
    length = torch.export.Dim("length", min=2, max=64)
    value, (weights,), _ = make_inputs([7])
    arguments = (value.detach(), weights.detach(), right_padding(BATCH, 7))
    shapes = ({2: length}, {2: length, 3: length}, {3: length})
    program = torch.export.export(TextAttention(), arguments, dynamic_shapes=shapes)
    value, axes, _ = make_inputs([11])
    mask = right_padding(BATCH, 11)
    assert_same(program.module()(value, *axes, mask), formula(value, axes, None, mask).float())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_follows_the_dtype_of_value(implementation: str) -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = stt_attention(value, axes, prefix_shares=shares, implementation=implementation)
        mixed = stt_attention(value.bfloat16(), axes, prefix_shares=shares, implementation=implementation)
    assert full.dtype == torch.float32 and mixed.dtype == torch.bfloat16
    assert_is(full, formula(value, axes, shares), [value, *axes, shares])
    assert_same(mixed, formula(value, axes, shares), tolerance=TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant: bool) -> None:
    value, axes, shares = make_inputs([3, 4], 1)
    tensors = [value, *axes, shares]

    def attend(value: Tensor, first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
        return stt_attention(value, [first, second], prefix_shares=shares)

    def gradients(out: Tensor) -> list[Tensor]:
        for x in tensors:
            x.grad = None
        out.square().sum().backward()
        return [x.grad for x in tensors]

    plain = gradients(attend(*tensors))
    again = gradients(checkpoint(attend, *tensors, use_reentrant=use_reentrant))
    assert all(torch.equal(a, e) for a, e in zip(again, plain, strict=True))


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
