"""Attention views as block masks of torch's flex_attention: what LoCoMT's blocks are compared with on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hf_lam.modeling.locomt_views_hf_lam import View


def flex_views_obstacle(device: str, backward: bool) -> str | None:
    """Why it cannot run; None if it can."""
    return "flex_attention has no gradients on a CPU" if device == "cpu" and backward else None


def attend_flex_views(lengths: Sequence[int], views: Sequence[View], device: str) -> Callable[..., Tensor]:
    """A function of query, key and value, `(B, H, L, D)`, for which the block mask is made once, here.

    On a CPU flex_attention is not compiled, which takes half a minute: it then runs to be checked, not to be timed.
    """
    segments = range(len(lengths))
    table = torch.tensor([[[(i, j) in view for j in segments] for i in segments] for view in views], device=device)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def is_seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return table[h, ids[q], ids[k]]

    mask = create_block_mask(is_seen, None, len(views), len(ids), len(ids), device=device)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        flex: Any = flex_attention if query.device.type == "cpu" else _compile_flex_attention()
        return flex(query, key, value, block_mask=mask)

    return attend


@cache
def _compile_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)
