"""stt_attention compiled, exported, checkpointed and under autocast."""

import shutil

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from helpers.attention import assert_same
from helpers.stt_attention import (
    BATCH,
    IMPLEMENTATIONS,
    TOLERANCE,
    as_padding,
    assert_is,
    formula,
    make_inputs,
    right_padding,
)
from hf_lam.modeling import stt_attention_hf_lam
from hf_lam.modeling.stt_attention_hf_lam import stt_attention


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "dynamic", "form"),
    [
        ("modes", False, "bool"),
        pytest.param("modes", True, "-inf", marks=pytest.mark.slow),
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
def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    value, axes, shares = make_inputs([3, 4], 1)
    allowed = right_padding(BATCH, 13)
    actual = torch.compile(Attention("modes"), fullgraph=True)(value, *axes, shares, allowed)
    assert_is(actual, formula(value, axes, shares, allowed), [value, *axes, shares])


@pytest.mark.slow
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


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_gradients_it_is_the_same_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, prefix: int, dtype: torch.dtype
) -> None:
    value, axes, shares = make_inputs([3, 4, 2], prefix, dtype=dtype)
    recorded = stt_attention(value, axes, prefix_shares=shares)
    assert recorded.requires_grad
    for size in (1, value[0].numel(), 2**19):
        monkeypatch.setattr(stt_attention_hf_lam, "_CPU_CHUNK", size)
        with torch.no_grad():
            found = stt_attention(value, axes, prefix_shares=shares)
        assert_same(found, recorded.detach(), tolerance=TOLERANCE[dtype])
        with torch.inference_mode():
            assert torch.equal(stt_attention(value, axes, prefix_shares=shares), found)
