"""The hashes by which runs are compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from hf_lam.training.recording import BatchOrder


def order_of(*batches: dict[str, Any]) -> dict[str, str]:
    order = BatchOrder()
    for batch in batches:
        order.add(batch)
    return order.digests


@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 64, 64), (1, 50000), ()])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.bfloat16, torch.float32])
def test_the_order_of_batches_and_of_samples_counts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = ({"x": torch.randint(0, 2, shape, generator=generator).to(dtype)} for _ in range(2))
    if not shape:
        first, second = {"x": torch.tensor(0).to(dtype)}, {"x": torch.tensor(1).to(dtype)}
    assert order_of(first, second) == order_of({"x": first["x"].clone()}, second)
    assert order_of(first, second) != order_of(second, first)
    assert order_of(first, second) != order_of(first)
    if shape and shape[0] > 1:
        assert order_of(first) != order_of({"x": first["x"].roll(1, 0)})


def test_arguments_are_told_apart_and_others_left_out() -> None:
    batch = {"a": torch.arange(6), "b": torch.arange(6.0), "names": ["x"] * 6}
    found = order_of(batch)
    assert found.keys() == {"a", "b"}
    assert found["a"] == order_of({"a": torch.arange(6)})["a"] != found["b"]
    assert order_of({"a": torch.arange(6).reshape(2, 3)}) != order_of({"a": torch.arange(6)})


def test_a_checkpoint_has_the_order_so_far() -> None:
    batches = [{"x": torch.randn(2, 3)} for _ in range(4)]
    stopped = BatchOrder(order_of(*batches[:2]))
    resumed = BatchOrder()
    state = TrainerState(global_step=2)
    state.stateful_callbacks = {"BatchOrder": stopped.state()}
    resumed.on_train_begin(None, state, TrainerControl())
    for batch in batches[2:]:
        resumed.add(batch)
    assert resumed.digests == order_of(*batches)
