# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Padding in any form: reading it, checking it, adding to it, and asking it which tokens there are.

`attention_mask` and `padding` always are the padding `P`: bool (True = may attend), or additive floating point, where
−inf and anything up to `finfo(dtype).min` block. It is never the learnable mask `M`.

Written for this package; the forms are those of transformers' attention interface.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.nn.functional import pad

from .numerics_hf_lam import broadcasts, format_shape, needs_plain_operators


def check_padding(attention_mask: Tensor, full: tuple[int, int, int, int]) -> Tensor:
    """The padding with 4 dimensions and all keys of `full`, `(B, H, Lq, Lk)`, once it is found to fit."""
    if attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
        raise TypeError(
            f"attention_mask must be bool (True = may attend) or additive floating point, got {attention_mask.dtype}:"
            " if its ones mean 'may attend', pass attention_mask.bool()."
        )
    if attention_mask.dim() > 4 or not broadcasts(attention_mask, full):
        raise ValueError(
            f"attention_mask must be broadcastable to {full}, (batch, heads, queries, keys), got "
            f"{format_shape(attention_mask)}: a (batch, keys) mask becomes attention_mask[:, None, None, :]."
        )
    # Reading values is for real tensors in eager mode only. The maximum of an additive mask is 0: one pass, as a rule.
    if (
        attention_mask.is_floating_point()
        and is_readable(attention_mask)
        and type(attention_mask) is Tensor
        and attention_mask.numel() > 0
        and attention_mask.max() == 1
        and ((attention_mask == 0) | (attention_mask == 1)).all()
    ):
        raise ValueError(
            "attention_mask is floating point but holds only zeros and ones. An additive mask of that kind masks "
            "nothing: pass attention_mask.bool() (True = may attend)."
        )
    attention_mask = attention_mask[(None,) * (4 - attention_mask.dim())]
    return attention_mask.expand(*attention_mask.shape[:3], full[3])


def is_readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: not while a program is traced, transformed, or runs without any."""
    return not (torch.compiler.is_compiling() or needs_plain_operators() or tensor.is_meta)


def dense_padding(attention_mask: Tensor | BlockMask | None, query: Tensor, key: Tensor) -> Tensor | None:
    """Padding in any form that transformers' attention implementations use, as a 4-D boolean or additive mask."""
    if isinstance(attention_mask, BlockMask):
        batch, heads = attention_mask.shape[:2]
        # A bottleneck makes the sequence longer than what the host made its mask for.
        rows, columns = map(min, attention_mask.seq_lengths, (query.shape[2], key.shape[2]))
        return create_mask(attention_mask.mask_mod, batch, heads, rows, columns, str(query.device))
    if attention_mask is not None and attention_mask.dim() == 2:
        return attention_mask[:, None, None, :].bool()
    return attention_mask


def additive(attention_mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The padding as finite addends, and which query rows it blocks completely.

    Blocked keys get a huge negative number instead of −inf: their weight still is exactly 0, and a blocked row stays
    free of NaN, so that it can be zeroed afterwards.

    Returns:
        Addends of `dtype` in the shape `(b, h, q, Lk)` of `attention_mask`, and blocked rows, bool `(b, h, q, 1)`.
    """
    lowest = torch.finfo(dtype).min / 2
    if attention_mask.dtype == torch.bool:
        # Arithmetic, since masked_fill is not vectorised on CPU and takes several times as long.
        addend, limit = (attention_mask.to(dtype) - 1) * -lowest, lowest
    else:
        limit = max(lowest, torch.finfo(attention_mask.dtype).min)
        addend = attention_mask.to(dtype).clamp(min=lowest)
        if limit > lowest:  # the least number of a smaller dtype, which here would be one among others
            addend = addend.masked_fill(attention_mask <= limit, lowest)
    return addend, addend.detach().amax(-1, keepdim=True) <= limit


def allowed(padding: Tensor) -> Tensor:
    """The keys that a mask lets through, bool in its shape."""
    return padding if padding.dtype == torch.bool else padding > torch.finfo(padding.dtype).min


def valid_tokens(padding: Tensor, batch: int, length: int) -> Tensor:
    """The tokens that are not padding, bool `(B, L)`: those that some query may see."""
    # Not flattened, which would hold an exported program to some of the lengths.
    return allowed(padding).any(2).any(1).expand(batch, length)


def restrict_padding(padding: Tensor | None, seen: Tensor) -> Tensor:
    """The padding, in its form, that also blocks what is not `seen`, a bool tensor that broadcasts with it."""
    if padding is None:
        return seen
    if padding.dtype == torch.bool:
        return padding & seen
    return padding.masked_fill(~seen, -float("inf"))


def extend_padding(padding: Tensor, added: int) -> Tensor:
    """Padding `(…, 1 or L, L)` with `added` tokens more, which are none, and see what any other token sees."""
    is_bool = padding.dtype == torch.bool
    if padding.shape[-2] > 1:
        seen = allowed(padding).any(-2, keepdim=True)
        row = seen if is_bool else padding.new_zeros(seen.shape).masked_fill(~seen, -float("inf"))
        padding = torch.cat([padding, row.expand(*row.shape[:-2], added, -1)], dim=-2)
    return pad(padding, (0, added), value=is_bool)


def add_padding(added: Tensor, padding: Tensor | None) -> Tensor:
    """`added` to the padding, in its dtype, with −inf for what the padding blocks."""
    if padding is None:
        return added
    padding = padding.to(added.device)
    if padding.dtype != torch.bool:
        added = added + padding.to(added.dtype)
    return added.masked_fill(~allowed(padding), -float("inf"))


def normalize_over_tokens(log_map: Tensor, padding: Tensor | None) -> Tensor:
    """The logarithms of a map whose rows sum to one over what the padding leaves of them."""
    if padding is None:
        return log_map
    blocked = ~allowed(padding.to(log_map.device))
    # A finite number instead of −inf: a row without any token has a gradient of 0, not NaN.
    total = log_map.masked_fill(blocked, torch.finfo(log_map.dtype).min / 2).logsumexp(-1, keepdim=True)
    return log_map - total.masked_fill(blocked.all(-1, keepdim=True), 0)


def refuse_masks_by_query(padding: Tensor) -> None:
    """Raises a `ValueError` for padding `(…, 1 or L, L)` that differs from query to query, where it can be read."""
    if padding.shape[-2] == 1 or not padding.numel() or not is_readable(padding):
        return
    if (padding != padding[..., :1, :]).any():
        raise ValueError(
            "the attention mask differs from query to query, but synthesised attention on a grid never forms its map, "
            "and can only leave out keys. Give a mask (batch, tokens) of padding."
        )
