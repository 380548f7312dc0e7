"""What the tests of attention functions share: inputs, paddings, and when two outputs are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_lam.modeling import lam_parts_hf_lam, threads_hf_lam

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_inputs(
    batch: int = 2,
    heads: int = 3,
    length_q: int = 13,
    length_k: int = 13,
    size: int = 8,
    value_size: int | None = None,
    mask_batch: int | None = None,
    mask_heads: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Tensor]:
    """Leaves with gradients. Query, key and value are laid out as an encoder's: (B, L, H, D), transposed."""
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    query = torch.randn(batch, length_q, heads, size, **options).transpose(1, 2)
    key = torch.randn(batch, length_k, heads, size, **options).transpose(1, 2)
    value = torch.randn(batch, length_k, heads, value_size or size, **options).transpose(1, 2)
    mask = 1 + 0.5 * torch.randn(
        batch if mask_batch is None else mask_batch, mask_heads, length_q, length_k, **options
    )
    return [x.requires_grad_() for x in (query, key, value, mask)]


@contextmanager
def small_parts(threads: int = 2, chunk: int = 64, rows: int = 4) -> Iterator[None]:
    """Attention in chunks cuts short inputs, too: in samples, heads and rows, for threads of a busy machine."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"_CPU_CHUNK": chunk, "_DEVICE_CHUNK": chunk, "_MIN_ROWS": rows, "_MIN_ROWS_OF_PART": rows}
        for name, size in {**sizes, "_MIN_SHARED": 1}.items():
            patch.setattr(lam_parts_hf_lam, name, size)
        patch.setattr(threads_hf_lam.load, "until", float("inf"))
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def assert_same(actual: Tensor, expected: Tensor, what: str = "output", tolerance: float | None = None) -> None:
    """Equal up to the dtype's tolerance, relative to the largest expected value; and finite."""
    assert actual.shape == expected.shape, what
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance * scale, msg=lambda m: f"{what}: {m}"
    )


def paddings(batch: int, heads: int, length_q: int, length_k: int) -> dict[str, Tensor]:
    """Bool masks (True = may attend) of the shapes and kinds that occur."""
    right = torch.ones(batch, 1, 1, length_k, dtype=torch.bool)
    right[-1, ..., (length_k + 1) // 2 :] = False
    per_query = torch.rand(batch, 1, length_q, length_k) > 0.4
    per_query[0, :, : length_q // 2] = False  # rows that may attend to nothing
    per_head = torch.rand(batch, heads, length_q, length_k) > 0.4
    nothing = right.clone()
    nothing[0] = False
    return {
        "right": right,
        "left": right.flip(-1),
        "full": right.expand(-1, -1, length_q, -1),
        "per_query": per_query,
        "per_head": per_head,
        "a_sample_of_nothing": nothing,
        "queries_only": torch.rand(length_q, 1) > 0.5,
    }


PADDINGS = tuple(paddings(2, 3, 13, 13))


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max(self.elements, *made, 0)
        return result
