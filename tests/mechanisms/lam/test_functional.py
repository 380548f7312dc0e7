"""lam_attention: the formula, and every faster or stranger way to compute it, against the formula."""

import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from helpers.attention import PADDINGS, LargestTensor, assert_same, make_inputs, needs_cuda, paddings, small_parts
from hf_lam.modeling import lam_attention_hf_lam as attention
from hf_lam.modeling import lam_chunked_hf_lam as chunked
from hf_lam.modeling.lam_attention_hf_lam import (
    COMBINES,
    changed_attention,
    changed_attention_with_weights,
    lam_attention,
)

NAMES = ("query", "key", "value", "mask")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_chunks() -> Iterator[None]:
    with small_parts():
        yield


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    blocked: Tensor | None,
    scaling: float | None = None,
    combine: str = "multiply",
) -> Tensor:
    """Independent of the code under test: fp64, True in `blocked` is out, softmax written out."""
    query, key, value, mask = (x.double() for x in (query, key, value, mask))
    scores = torch.einsum("bhid,bhjd->bhij", query, key) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    exponentials = (scores * mask if combine == "multiply" else scores + mask).exp()
    if blocked is not None:
        exponentials = exponentials * (~blocked)
    return torch.einsum("bhij,bhjd->bhid", exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300), value)


def assert_gradients_same(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    grad_out = torch.randn_like(actual)
    actual_grads = torch.autograd.grad(actual, inputs, grad_out)
    expected_grads = torch.autograd.grad(expected, inputs, grad_out.to(expected.dtype))
    for name, a, e in zip((*NAMES, "addend"), actual_grads, expected_grads, strict=False):
        assert a.dtype == e.dtype
        assert_same(a, e, f"gradient of {name}")


# --- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("implementation", ["eager", "chunked", "auto"])
@pytest.mark.parametrize("combine", COMBINES)
def test_is_the_papers_formula(dtype: torch.dtype, implementation: str, combine: str) -> None:
    inputs = make_inputs(dtype=dtype, length_k=11, value_size=5)
    actual = lam_attention(*inputs, combine=combine, implementation=implementation)
    assert actual.dtype == dtype
    expected = formula(*inputs, None, combine=combine)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", PADDINGS)
@pytest.mark.parametrize("form", ["bool", "-inf", "finfo.min"])
@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.usefixtures("small_chunks")
def test_padding(dtype: torch.dtype, kind: str, form: str, implementation: str, combine: str) -> None:
    allowed = paddings(2, 3, 13, 13)[kind]
    lowest = -float("inf") if form == "-inf" else torch.finfo(dtype).min
    attention_mask = (
        allowed if form == "bool" else torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, lowest)
    )
    inputs = make_inputs(dtype=dtype)
    actual = lam_attention(*inputs, combine=combine, attention_mask=attention_mask, implementation=implementation)
    expected = formula(*inputs, ~allowed, combine=combine)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)
    nowhere = ~allowed.expand(2, 3, 13, 13).any(-1)
    assert (actual[nowhere] == 0).all()


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize("form", ["bool", "-inf", "finfo.min"])
@pytest.mark.parametrize("combine", COMBINES)
def test_rows_that_see_nothing_give_zeros_and_zero_gradients(implementation: str, form: str, combine: str) -> None:
    inputs = make_inputs()
    allowed = torch.ones(2, 1, 1, 13, dtype=torch.bool)
    allowed[0] = False
    lowest = -float("inf") if form == "-inf" else torch.finfo(torch.float32).min
    attention_mask = allowed if form == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, lowest)
    out = lam_attention(*inputs, combine=combine, attention_mask=attention_mask, implementation=implementation)
    assert (out[0] == 0).all() and (out[1] != 0).all()
    for name, grad in zip(NAMES, torch.autograd.grad(out.square().sum() + out.sum(), inputs), strict=True):
        assert (grad[0] == 0).all() and grad[1].abs().sum() > 0, name


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.usefixtures("small_chunks")
def test_a_finite_additive_mask_is_a_bias_which_blocks_nothing_and_learns(implementation: str, combine: str) -> None:
    for shape in ((2, 1, 13, 13), (3, 13, 13), (13, 1), (1, 3, 1, 1)):
        bias = torch.randn(shape, requires_grad=True)
        inputs = [*make_inputs(), bias]
        query, key, value, mask, _ = inputs
        scores = query @ key.mT * 8**-0.5
        expected = torch.softmax((scores * mask if combine == "multiply" else scores + mask) + bias, -1) @ value
        actual = lam_attention(*inputs[:4], combine=combine, attention_mask=bias, implementation=implementation)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, inputs)


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize("kind", [None, "right", "per_query", "per_head"])
@pytest.mark.usefixtures("small_chunks")
def test_factor_and_addend_in_any_shape_that_is_broadcast(implementation: str, kind: str | None) -> None:
    allowed = paddings(2, 3, 13, 13)[kind] if kind else torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for first, second in (
        ((1, 3, 1, 1), (2, 3, 13, 13)),
        ((2, 1, 13, 13), (1, 3, 1, 1)),
        ((1, 1, 13, 1), (1, 1, 1, 13)),
    ):
        query, key, value, _ = make_inputs()
        factor, addend = torch.randn(first, requires_grad=True), torch.randn(second, requires_grad=True)
        inputs = [query, key, value, factor, addend]
        scores = (query @ key.mT * 8**-0.5 * factor + addend).masked_fill(~allowed, -1e30)
        weights = torch.softmax(scores, -1) * allowed.any(-1, keepdim=True)
        actual = changed_attention(
            query, key, value, factor=factor, addend=addend, attention_mask=allowed, implementation=implementation
        )
        assert_same(actual, weights @ value)
        assert_gradients_same(actual, weights @ value, inputs)


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
def test_an_addend_of_minus_infinity_blocks(implementation: str) -> None:
    query, key, value, _ = make_inputs()
    is_blocked = paddings(2, 3, 13, 13)["per_query"].logical_not()
    addend = torch.zeros(is_blocked.shape).masked_fill(is_blocked, -float("inf"))
    actual = changed_attention(query, key, value, addend=addend, implementation=implementation)
    expected = lam_attention(query, key, value, torch.ones(1, 1, 13, 13), attention_mask=~is_blocked)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, [query, key, value])


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize(("dtype", "of_padding"), [(torch.float32, torch.float16), (torch.float64, torch.float32)])
def test_what_padding_and_an_addend_block_together_is_blocked(
    implementation: str, dtype: torch.dtype, of_padding: torch.dtype
) -> None:
    """Also where the padding blocks with the least number of a smaller dtype, as transformers makes it."""
    query, key, value, _ = make_inputs(dtype=dtype)
    is_half = torch.arange(13) < 6
    padding = torch.zeros(13, dtype=of_padding).masked_fill(is_half, torch.finfo(of_padding).min)[None, None, None]
    addend = torch.zeros(13, 13, dtype=dtype).masked_fill(~is_half, -float("inf"))
    addend[3:] = 0
    actual = changed_attention(
        query, key, value, addend=addend[None, None], attention_mask=padding, implementation=implementation
    )
    assert not actual[:, :, :3].any()
    expected = lam_attention(query, key, value, torch.ones(1, 1, 13, 13), attention_mask=~is_half)
    assert_same(actual[:, :, 3:], expected[:, :, 3:])


def test_a_mask_of_ones_is_stock_attention_and_a_zero_is_no_preference() -> None:
    query, key, value, mask = make_inputs()
    stock = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert_same(lam_attention(query, key, value, torch.ones_like(mask)), stock)
    assert_same(lam_attention(query, key, value, torch.zeros_like(mask), combine="add"), stock)
    no_preference = lam_attention(query, key, value, torch.zeros_like(mask))
    assert_same(no_preference, value.mean(2, keepdim=True).expand_as(query))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    heads=st.integers(1, 3),
    length_q=st.integers(0, 9),
    length_k=st.integers(0, 9),
    size=st.integers(1, 5),
    value_size=st.integers(1, 5),
    whole_batch=st.booleans(),
    per_head=st.booleans(),
    scaling=st.sampled_from([None, 1.0, -0.3]),
    kind=st.sampled_from([None, *PADDINGS]),
    combine=st.sampled_from(COMBINES),
    chunk=st.sampled_from([1, 20, 2**18]),
    rows=st.integers(1, 9),
    threads=st.integers(1, 3),
)
def test_chunked_is_eager_for_all_sizes(
    batch: int,
    heads: int,
    length_q: int,
    length_k: int,
    size: int,
    value_size: int,
    whole_batch: bool,
    per_head: bool,
    scaling: float | None,
    kind: str | None,
    combine: str,
    chunk: int,
    rows: int,
    threads: int,
) -> None:
    inputs = make_inputs(
        batch, heads, length_q, length_k, size, value_size, batch if whole_batch else 1, heads if per_head else 1
    )
    attention_mask = paddings(batch, heads, length_q, length_k)[kind] if kind and batch else None
    options: dict[str, Any] = {"combine": combine, "attention_mask": attention_mask, "scaling": scaling}
    expected = lam_attention(*inputs, **options, implementation="eager")
    with small_parts(threads, chunk, rows):
        actual = lam_attention(*inputs, **options, implementation="chunked")
        assert actual.shape == (batch, heads, length_q, value_size)
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, inputs)
    if length_k == 0:
        assert (actual == 0).all()


@pytest.mark.parametrize("length_q, length_k", [(1, 1), (1, 7), (7, 1), (257, 129), (511, 513)])
@pytest.mark.parametrize("combine", COMBINES)
def test_odd_and_cross_lengths(length_q: int, length_k: int, combine: str) -> None:
    inputs = make_inputs(length_q=length_q, length_k=length_k)
    actual, expected = lam_attention(*inputs, combine=combine), formula(*inputs, None, combine=combine)
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)


@pytest.mark.parametrize("kind", [None, "per_query"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.usefixtures("small_chunks")
def test_gradcheck(kind: str | None, combine: str) -> None:
    inputs = make_inputs(1, 2, 5, 6, 3, dtype=torch.float64)
    attention_mask = paddings(1, 2, 5, 6)[kind] if kind else None
    assert torch.autograd.gradcheck(
        lambda *x: lam_attention(*x, combine=combine, attention_mask=attention_mask), inputs
    )


@pytest.mark.parametrize("needed", NAMES)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.usefixtures("small_chunks")
def test_gradients_of_some_inputs_only(needed: str, combine: str) -> None:
    inputs = [x.detach().requires_grad_(name == needed) for name, x in zip(NAMES, make_inputs(), strict=True)]
    wanted = [x for x in inputs if x.requires_grad]
    (expected,) = torch.autograd.grad(formula(*inputs, None, combine=combine).sum(), wanted)
    (actual,) = torch.autograd.grad(lam_attention(*inputs, combine=combine).sum(), wanted)
    assert_same(actual, expected)


def test_flex_attention_gives_what_is_added_no_gradient() -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match="added to the scores no gradient"):
        lam_attention(*inputs, combine="add", implementation="flex_attention")
    with torch.no_grad(), pytest.raises(ValueError, match="needs CUDA"):
        lam_attention(*inputs, combine="add", implementation="flex_attention")


def test_weights_reproduce_the_output_and_drop_as_transformers_does() -> None:
    query, key, value, mask = make_inputs()
    out, weights = changed_attention_with_weights(query, key, value, factor=mask)
    assert_same(out, formula(query, key, value, mask, None))
    assert_same(weights.sum(-1), torch.ones(2, 3, 13))
    assert_same(weights @ value, out)
    _, dropped = changed_attention_with_weights(query, key, value, factor=mask, dropout_p=0.5)
    is_kept = dropped != 0
    assert 0.3 < is_kept.float().mean() < 0.7
    assert_same(dropped[is_kept], 2 * weights[is_kept])


def test_inputs_are_not_changed() -> None:
    inputs = [x.detach() for x in make_inputs()]
    copies = [x.clone() for x in inputs]
    lam_attention(*inputs, attention_mask=paddings(2, 3, 13, 13)["per_query"])
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


# --- dropout -----------------------------------------------------------------------------------------------------


def dropout_weights(seed: int, p: float) -> Tensor:
    """The weights behind one dropped-out forward: with V = I, the output is the weights."""
    torch.manual_seed(0)
    query, key, _, mask = make_inputs()
    torch.manual_seed(seed)
    return lam_attention(query, key, torch.eye(13).expand(2, 3, 13, 13), mask, dropout_p=p).detach()


@pytest.mark.usefixtures("small_chunks")
def test_dropout_drops_at_its_rate_and_rescales() -> None:
    dropped, weights = dropout_weights(1, 0.3), dropout_weights(1, 0.0)
    is_kept = dropped != 0
    assert 0.6 < is_kept.float().mean() < 0.8
    assert_same(dropped[is_kept], weights[is_kept] / 0.7)


@pytest.mark.usefixtures("small_chunks")
def test_dropout_follows_the_default_generator() -> None:
    assert torch.equal(dropout_weights(1, 0.3), dropout_weights(1, 0.3))
    assert not torch.equal(dropout_weights(1, 0.3), dropout_weights(2, 0.3))


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.usefixtures("small_chunks")
def test_backward_drops_what_forward_dropped(combine: str) -> None:
    inputs = make_inputs(1, 2, 5, 6, 3, dtype=torch.float64)

    def seeded(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return lam_attention(*tensors, combine=combine, dropout_p=0.4, attention_mask=torch.arange(6) < 5)

    assert torch.autograd.gradcheck(seeded, inputs)


# --- few scores --------------------------------------------------------------------------------------------------


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, few_scores: None) -> list[str]:
    """The implementations that have run, in order."""
    runs: list[str] = []
    for name in ("_attend_eager", "attend_chunked"):
        run = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *x, run=run, name=name: runs.append(name) or run(*x))
    return runs


@pytest.mark.parametrize(
    ("length", "dtype", "implementation", "expected"),
    [
        (16, torch.float32, "auto", "_attend_eager"),
        (104, torch.bfloat16, "auto", "_attend_eager"),
        (105, torch.float32, "auto", "attend_chunked"),
        (16, torch.float16, "auto", "attend_chunked"),
        (16, torch.float32, "chunked", "attend_chunked"),
    ],
)
def test_few_scores_are_written_down(
    length: int, dtype: torch.dtype, implementation: str, expected: str, chosen: list[str]
) -> None:
    inputs = make_inputs(dtype=dtype, length_q=length, length_k=length)
    actual = lam_attention(*inputs, implementation=implementation)
    assert chosen == [expected]
    reference = formula(*inputs, None)
    assert_same(actual, reference)
    assert_gradients_same(actual, reference, inputs)


@pytest.mark.slow
@pytest.mark.usefixtures("few_scores")
def test_a_compiled_program_is_one_for_few_scores_and_for_many() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lam_attention, fullgraph=True, backend=counter, dynamic=True)
    counts = set()
    for length in (13, 105, 20):
        inputs = make_inputs(length_q=length, length_k=length)
        assert_same(compiled(*inputs), lam_attention(*inputs, implementation="chunked"))
        counts.add(counter.frame_count)
    assert len(counts) == 1


@pytest.mark.usefixtures("few_scores")
def test_few_scores_have_the_dropout_and_the_strides_of_one_rule() -> None:
    test_checkpointing(use_reentrant=True, dropout_p=0.3, combine="multiply")
    test_meta_and_fake_tensors()


# --- where it runs -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "right", "per_query"])
@pytest.mark.parametrize("combine", COMBINES)
def test_compile_is_one_graph_with_gradients(kind: str | None, combine: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lam_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (13, 16, 29):
        inputs = make_inputs(length_q=length, length_k=length)
        attention_mask = paddings(2, 3, length, length)[kind] if kind else None
        options: dict[str, Any] = {"combine": combine, "attention_mask": attention_mask}
        actual = compiled(*inputs, **options)
        expected = lam_attention(*inputs, **options, implementation="eager")
        assert_same(actual, expected)
        assert_gradients_same(actual, expected, inputs)


@pytest.mark.slow
def test_dropout_under_compile_is_consistent() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lam_attention, fullgraph=True, backend="aot_eager")
    query, key, value, mask = make_inputs()
    out = compiled(query, key, value, mask, dropout_p=0.4)
    # The output is linear in V, so its derivative times V is the output, if both drop the same.
    (grad,) = torch.autograd.grad(out, value, torch.ones_like(out))
    assert_same((grad * value).sum(), out.sum(), tolerance=1e-4)
    assert not torch.equal(out, compiled(query, key, value, mask, dropout_p=0.4))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    inputs = make_inputs()
    actual = torch.compile(lam_attention, fullgraph=True)(*inputs)
    expected = lam_attention(*inputs, implementation="eager")
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)


class Attention(torch.nn.Module):
    def __init__(self, **options: str) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attention_mask: Tensor) -> Tensor:
        return lam_attention(query, key, value, mask, attention_mask=attention_mask, **self.options)


@pytest.mark.parametrize("options", [{}, {"implementation": "chunked"}, {"combine": "add"}], ids=str)
@pytest.mark.parametrize("strict", [True, False])
def test_export_holds_plain_operators_only(options: dict[str, str], strict: bool) -> None:
    inputs = [x.detach() for x in make_inputs()]
    attention_mask = paddings(2, 3, 13, 13)["right"]
    program = torch.export.export(Attention(**options), (*inputs, attention_mask), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [name for name in targets if not name.startswith("aten.")]
    expected = lam_attention(*inputs, attention_mask=attention_mask, **options)
    assert_same(program.module()(*inputs, attention_mask), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("combine", COMBINES)
def test_checkpointing(use_reentrant: bool, dropout_p: float, combine: str) -> None:
    inputs = make_inputs()

    def gradients(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        run(*leaves).square().sum().backward()
        return tuple(x.grad for x in leaves if x.grad is not None)

    def attend(*tensors: Tensor) -> Tensor:
        return lam_attention(*tensors, combine=combine, dropout_p=dropout_p)

    plain = gradients(attend)
    checkpointed = gradients(lambda *x: checkpoint(attend, *x, use_reentrant=use_reentrant))
    assert len(plain) == len(checkpointed) == 4
    for name, a, e in zip(NAMES, checkpointed, plain, strict=True):
        assert torch.equal(a, e), name


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize("combine", COMBINES)
def test_autocast_follows_the_dtype_of_value(implementation: str, combine: str) -> None:
    query, key, value, mask = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # An identity "query" stays fp32 under autocast, what a Linear makes is bf16.
        options: dict[str, Any] = {"combine": combine, "implementation": implementation}
        mixed = lam_attention(query, key.bfloat16(), value.bfloat16(), mask, **options)
        full = lam_attention(query, key, value, mask, **options)
    assert mixed.dtype == torch.bfloat16 and full.dtype == torch.float32
    expected = formula(query, key, value, mask, None, combine=combine)
    assert_same(mixed, expected)
    assert_same(full, expected)
    grads = torch.autograd.grad(mixed.float().sum(), (query, mask))
    assert [g.dtype for g in grads] == [torch.float32, torch.float32]
    for actual, wanted in zip(grads, torch.autograd.grad(expected.sum(), (query, mask)), strict=True):
        assert_same(actual, wanted, tolerance=3e-2)


def test_meta_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = lam_attention(*make_inputs(value_size=5))
    meta = lam_attention(*(x.to("meta") for x in make_inputs(value_size=5)))
    assert meta.shape == real.shape and meta.stride() == real.stride() and meta.is_meta
    with FakeTensorMode():
        inputs = make_inputs(value_size=5)
        fake = lam_attention(*inputs, attention_mask=torch.zeros(2, 1, 1, 13))
        fake.sum().backward()
    assert fake.shape == real.shape and all(x.grad is not None and x.grad.shape == x.shape for x in inputs)


FILES = ("numerics", "padding", "threads", "lam_formula", "lam_parts", "lam_chunked", "lam_attention")


def load_copy(folder: Path, name: str, altered: str = "") -> tuple[ModuleType, ModuleType]:
    """The files under test as they are loaded from a Hub repository: without others, in another package.

    altered: which of them is of another version.
    """
    (folder / name).mkdir()
    for file in FILES:
        path = Path(chunked.__file__).with_name(f"{file}_hf_lam.py")
        extra = "\n# another version\n" if file == altered else ""
        (folder / name / path.name).write_bytes(path.read_bytes() + extra.encode())
    return tuple(importlib.import_module(f"{name}.{file}_hf_lam") for file in FILES[-2:])


def test_copies_live_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    same = load_copy(tmp_path, "lam_copy_same")
    others = [load_copy(tmp_path, f"lam_copy_{file}", file) for file in FILES[:-1]]
    operators = [copy._OPERATORS.lam_forward for copy, _ in (same, *others)]
    assert operators[0] is chunked._OPERATORS.lam_forward
    assert len(set(operators)) == len(operators)
    inputs = make_inputs()
    expected = lam_attention(*inputs)
    for module in (same[1], *(module for _, module in others), attention):
        actual = module.lam_attention(*inputs)
        assert_same(actual, expected)
        assert_gradients_same(actual, lam_attention(*inputs), inputs)


@pytest.mark.slow
def test_operators_pass_torchs_own_checks() -> None:
    inputs = make_inputs()
    arguments = (*inputs, None, paddings(2, 3, 13, 13)["per_query"], 0.3, 0.2, torch.tensor(5))
    operator = chunked._OPERATORS.lam_forward.default
    torch.library.opcheck(operator, arguments)
    bias = torch.randn(2, 1, 1, 13, requires_grad=True).expand(2, 1, 13, 13)
    torch.library.opcheck(operator, (*inputs[:3], None, inputs[3], bias, 0.3, 0.2, torch.tensor(5)))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shape", [(2, 3, 13, 13), (1, 3, 13, 13), (1, 1, 13, 13), (2, 1, 1, 13)])
@pytest.mark.parametrize("combine", ["factor", "addend"])
def test_several_threads_give_the_same_every_time(shape: tuple[int, ...], combine: str) -> None:
    inputs = make_inputs()[:3]
    change = torch.randn(shape, requires_grad=True)
    results = []
    for _ in range(5):
        torch.manual_seed(0)
        out = changed_attention(*inputs, **{combine: change}, dropout_p=0.2, implementation="chunked")
        results.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, change])])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [None, "right", "full"])
@pytest.mark.parametrize("combine", COMBINES)
def test_the_score_matrix_never_exists(kind: str | None, combine: str) -> None:
    batch, heads, length = 2, 6, 128
    inputs = make_inputs(batch, heads, length, length, size=4)
    attention_mask = paddings(batch, heads, length, length)[kind] if kind else None
    with small_parts(1, 2**14, 64), LargestTensor() as largest:
        lam_attention(*inputs, combine=combine, attention_mask=attention_mask).sum().backward()
    assert largest.elements <= batch * length * length  # the mask's gradient
    with LargestTensor() as largest:
        lam_attention(*inputs, combine=combine, attention_mask=attention_mask, implementation="eager")
    assert largest.elements >= batch * heads * length * length


# --- mistakes ----------------------------------------------------------------------------------------------------

GOOD = {"query": (2, 3, 5, 4), "key": (2, 3, 7, 4), "value": (2, 3, 7, 6), "mask": (2, 1, 5, 7)}
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "query of 3 dimensions": ({"query": torch.randn(3, 5, 4)}, ValueError, r"query must have 4.*\(3, 5, 4\)"),
    "key of another head size": ({"key": torch.randn(2, 3, 7, 5)}, ValueError, r"agree.*\(2, 3, 7, 5\)"),
    "value of another length": ({"value": torch.randn(2, 3, 8, 6)}, ValueError, r"agree.*\(2, 3, 8, 6\)"),
    "fewer key heads": ({"key": torch.randn(2, 1, 7, 4)}, ValueError, "agree in B, H"),
    "integer value": ({"value": torch.ones(2, 3, 7, 6).int()}, TypeError, "value must be floating.*int32"),
    "bool mask": ({"mask": torch.ones(2, 1, 5, 7).bool()}, TypeError, "mask must be floating.*bool"),
    "mask of another length": ({"mask": torch.randn(2, 1, 5, 5)}, ValueError, r"mask must be.*5, 7.*\(2, 1, 5, 5\)"),
    "mask broadcast over queries": ({"mask": torch.randn(2, 1, 1, 7)}, ValueError, "mask must be"),
    "mask of 2 heads": ({"mask": torch.randn(2, 2, 5, 7)}, ValueError, "3 or 1"),
    "padding (B, Lk)": ({"attention_mask": torch.ones(2, 7).bool()}, ValueError, r"attention_mask\[:, None, None"),
    "padding of 5 dimensions": ({"attention_mask": torch.ones(1, 1, 1, 1, 7).bool()}, ValueError, "broadcastable"),
    "integer padding": ({"attention_mask": torch.ones(2, 1, 1, 7).long()}, TypeError, r"attention_mask\.bool\(\)"),
    "0/1 float padding": (
        {"attention_mask": torch.tensor([1.0, 1, 1, 0, 0, 0, 0]).expand(2, 1, 1, 7)},
        ValueError,
        r"attention_mask\.bool\(\)",
    ),
    "float padding of ones": ({"attention_mask": torch.ones(2, 1, 5, 7)}, ValueError, "only zeros and ones"),
    "dropout 1": ({"dropout_p": 1.0}, ValueError, "dropout_p must be.*1.0"),
    "dropout below 0": ({"dropout_p": -0.1}, ValueError, "dropout_p must be"),
}


@pytest.mark.parametrize("change, error, message", BAD.values(), ids=BAD)
@pytest.mark.parametrize("combine", COMBINES)
def test_mistakes_are_named(combine: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {name: torch.randn(shape) for name, shape in GOOD.items()} | change
    with pytest.raises(error, match=message):
        lam_attention(*[arguments.pop(name) for name in NAMES], combine=combine, **arguments)


@pytest.mark.parametrize("name", ["factor", "addend"])
@pytest.mark.parametrize("function", [changed_attention, changed_attention_with_weights])
def test_changes_that_do_not_fit_are_named(function: Callable[..., Any], name: str) -> None:
    projections = [torch.randn(GOOD[other]) for other in NAMES[:3]]
    with pytest.raises(ValueError, match=rf"{name} must be broadcastable.*\(2, 1, 5, 5\)"):
        function(*projections, **{name: torch.randn(2, 1, 5, 5)})
    with pytest.raises(TypeError, match=f"{name} must be floating"):
        function(*projections, **{name: torch.ones(2, 1, 5, 7).bool()})


def test_an_unknown_combine_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"combine='sum'.*multiply, add"):
        lam_attention(*make_inputs(), combine="sum")


def test_additive_masks_that_look_like_zeros_and_ones_are_not_rejected() -> None:
    inputs = make_inputs()
    lam_attention(*inputs, attention_mask=torch.zeros(2, 1, 1, 13))
    lam_attention(*inputs, attention_mask=torch.tensor([1.0] * 6 + [0.5] + [0.0] * 6))


@pytest.mark.parametrize("implementation, message", [("sdpa", "unknown"), ("flex_attention", "needs CUDA")])
def test_implementations_that_cannot_run(implementation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lam_attention(*make_inputs(), implementation=implementation)


# --- flex_attention and CUDA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "right", "per_query", "per_head"])
@pytest.mark.parametrize("form", ["bool", "finfo.min"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_flex_attention_is_told_is_the_formula(
    kind: str | None, form: str, combine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its score function, in torch's own unfused interpretation, which runs without a GPU (forward only)."""
    monkeypatch.setattr(attention, "_compile_flex_attention", lambda: attention.flex_attention)
    inputs = [x.detach() for x in make_inputs(size=16, mask_heads=3)]
    attention_mask = allowed = paddings(2, 3, 13, 13)[kind] if kind else None
    if allowed is not None and form == "finfo.min":
        attention_mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    monkeypatch.setattr(attention, "flex_obstacle", lambda *_: None)
    actual = lam_attention(*inputs, combine=combine, attention_mask=attention_mask, implementation="flex_attention")
    assert_same(actual, formula(*inputs, None if allowed is None else ~allowed, combine=combine))


CUDA = [("multiply", "auto"), ("multiply", "chunked"), ("multiply", "flex_attention"), ("add", "auto")]


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [None, "right", "per_query", "a_sample_of_nothing"])
@pytest.mark.parametrize("mask_heads", [1, 3])
@pytest.mark.parametrize("combine, implementation", CUDA)
def test_cuda(dtype: torch.dtype, kind: str | None, mask_heads: int, combine: str, implementation: str) -> None:
    inputs = make_inputs(length_q=150, length_k=150, size=32, mask_heads=mask_heads, dtype=dtype, device="cuda")
    attention_mask = paddings(2, 3, 150, 150)[kind].cuda() if kind else None
    options: dict[str, Any] = {"combine": combine, "attention_mask": attention_mask}
    actual = lam_attention(*inputs, **options, implementation=implementation)
    expected = lam_attention(*inputs, **options, implementation="eager")
    assert_same(actual, expected)
    assert_gradients_same(actual, expected, inputs)


@needs_cuda
def test_cuda_dropout_is_consistent() -> None:
    query, key, value, mask = make_inputs(size=32, device="cuda")
    out = lam_attention(query, key, value, mask, dropout_p=0.4)
    (grad,) = torch.autograd.grad(out, value, torch.ones_like(out))
    assert_same((grad * value).sum(), out.sum(), tolerance=1e-4)
    with pytest.raises(ValueError, match="no dropout"):
        lam_attention(query, key, value, mask, dropout_p=0.4, implementation="flex_attention")
