# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention with a learnable mask as plain functions: tensors in, tensors out.

Source: Barrios & Jin, "Multi-layer Learnable Attention Mask for Multimodal Tasks", arXiv 2406.02761. With queries
`Q`, keys `K`, values `V`, a mask `M` that multiplies the scores or is added to them, and an additive padding mask `P`
(0 or −inf):

    multiply   A = softmax( (Q Kᵀ · scaling) ⊙ M + P )        P is added after the product, since 0 · −inf is NaN
    add        A = softmax( Q Kᵀ · scaling + M + P )
    out = A V

`mask` always is `M`, `attention_mask` always is the padding `P`. A zero in a mask that multiplies means "no
preference" (score 0), not "blocked"; in one that is added, it changes nothing. A query that may attend to nothing gets
zeros, and sends zero gradients.

Both are cases of `softmax( (Q Kᵀ · scaling) ⊙ factor + addend + P )`, which is what a layer with any mechanisms
computes. Here are the checks, the choice of an implementation and the fused CUDA kernel; the formula as it stands and
the chunked implementation have files of their own, `lam_formula_hf_lam.py` and `lam_chunked_hf_lam.py`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from .lam_chunked_hf_lam import attend_chunked
from .lam_formula_hf_lam import attend_by_formula, merge_addend
from .numerics_hf_lam import broadcasts, format_shape, needs_plain_operators
from .padding_hf_lam import check_padding

IMPLEMENTATIONS = ("auto", "eager", "chunked", "flex_attention")
# Up to this many scores on a CPU, calling the chunked operator takes longer than writing them all down.
FEW_SCORES = 2**16
COMBINES = ("multiply", "add")


def lam_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    combine: str = "multiply",
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Learnable-mask attention, `softmax((QKᵀ·scaling) ⊙ M + P) V` (arXiv 2406.02761, section 3).

    Args:
        query: `(B, H, Lq, D)`. Cast to the dtype of `value`, like `key`: under autocast they may differ.
        key: `(B, H, Lk, D)`.
        value: `(B, H, Lk, Dv)`; its dtype is the dtype of the result.
        mask: `M`, floating point, `(B or 1, H or 1, Lq, Lk)`.
        combine: effect of `M` on the scores: "multiply", or "add", `softmax(QKᵀ·scaling + M + P) V`.
        attention_mask: the padding `P`, broadcastable to `(B, H, Lq, Lk)`: bool (True = may attend), or additive
            floating point, where −inf and anything up to `finfo(dtype).min` block.
        scaling: factor on the raw scores; `D ** -0.5` unless given.
        dropout_p: probability, in [0, 1), with which an attention weight is zeroed (the others grow accordingly).
        implementation: "eager" forms the whole score matrix, as the formula reads; "chunked" never does, in either
            direction; "flex_attention" is one fused CUDA kernel, without dropout; "auto" is "flex_attention" on CUDA
            where it can run and neither mask gets a gradient, "eager" under the transforms of `torch.func` and in
            forward-mode differentiation, which only it follows, and for few scores on a CPU, and "chunked" elsewhere.

    Returns:
        `(B, H, Lq, Dv)`.

    Raises:
        TypeError: a mask or tensor of a dtype that has no meaning here.
        ValueError: sizes that do not fit, an unknown `combine`, an unknown or impossible `implementation`, a
            `dropout_p` outside [0, 1), or a floating point `attention_mask` of zeros and ones, which would mask
            nothing.

    Examples:
        >>> import torch
        >>> from hf_lam import lam_attention
        >>> query, key, value = torch.randn(3, 2, 4, 10, 8)  # 2 samples, 4 heads, 10 tokens
        >>> stock = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        >>> torch.allclose(lam_attention(query, key, value, torch.ones(2, 1, 10, 10)), stock, atol=1e-5)
        True
    """
    return changed_attention(
        query,
        key,
        value,
        **read_mask(query, key, value, mask, combine),
        attention_mask=attention_mask,
        scaling=scaling,
        dropout_p=dropout_p,
        implementation=implementation,
    )


def changed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factor: Tensor | None = None,
    addend: Tensor | None = None,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """`softmax((QKᵀ·scaling) ⊙ factor + addend + P) V`; the other arguments and errors are those of `lam_attention`.

    factor, addend: broadcastable to `(B, H, Lq, Lk)`, with 4 dimensions; None changes nothing. What an addend of −inf
        blocks is blocked, as by the padding.
    """
    arguments = check_arguments(query, key, value, factor, addend, attention_mask, scaling, dropout_p)
    chosen = _choose(implementation, arguments)
    if chosen == "eager":
        return _attend_eager(arguments)[0]
    return _attend_flex(arguments) if chosen == "flex_attention" else attend_chunked(*arguments)


def changed_attention_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factor: Tensor | None = None,
    addend: Tensor | None = None,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The reference: [`changed_attention`] by the eager formula, with its attention map; same arguments and errors.

    Returns:
        The output `(B, H, Lq, Dv)`, and the weights `(B, H, Lq, Lk)` that multiplied the values: after dropout, as
        in transformers' eager attention.
    """
    arguments = check_arguments(query, key, value, factor, addend, attention_mask, scaling, dropout_p)
    return _attend_eager(arguments)


# --- checking and choosing ---------------------------------------------------------------------------------------


class AttentionArguments(NamedTuple):
    """Checked arguments: query and key in value's dtype, a padding mask with 4 dimensions and all Lk keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    factor: Tensor | None
    addend: Tensor | None
    attention_mask: Tensor | None
    scaling: float
    dropout_p: float


def read_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, combine: str) -> dict[str, Tensor]:
    """The mask as a factor or an addend of the scores, once it is found to fit."""
    if combine not in COMBINES:
        raise ValueError(f"combine={combine!r} is unknown: choose one of {', '.join(COMBINES)}.")
    batch, heads, length_q, length_k = full = _check_projections(query, key, value)
    _check_tensor("mask", mask)
    if mask.shape[2:] != full[2:] or not broadcasts(mask, full):
        raise ValueError(
            f"mask must be ({batch} or 1, {heads} or 1, {length_q}, {length_k}): (batch, heads, queries, keys), got "
            f"{format_shape(mask)}."
        )
    return {"factor" if combine == "multiply" else "addend": mask}


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout_p: float,
) -> AttentionArguments:
    full = _check_projections(query, key, value)
    for name, tensor in (("factor", factor), ("addend", addend)):
        if tensor is not None:
            _check_tensor(name, tensor)
            if not broadcasts(tensor, full):
                raise ValueError(f"{name} must be broadcastable to {full}, got {format_shape(tensor)}.")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}.")
    if attention_mask is not None:
        attention_mask = check_padding(attention_mask, full)
    scaling = query.shape[3] ** -0.5 if scaling is None else float(scaling)
    return AttentionArguments(
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        factor,
        addend,
        attention_mask,
        scaling,
        float(dropout_p),
    )


def _check_projections(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int]:
    """The sizes `(B, H, Lq, Lk)` of the scores."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_tensor(name, tensor)
    batch, heads, length_q, size = query.shape
    length_k = key.shape[2]
    if key.shape != (batch, heads, length_k, size) or value.shape[:3] != (batch, heads, length_k):
        raise ValueError(
            "query (B, H, Lq, D), key (B, H, Lk, D) and value (B, H, Lk, Dv) must agree in B, H, Lk and D, got "
            f"{format_shape(query)}, {format_shape(key)} and {format_shape(value)}."
        )
    return batch, heads, length_q, length_k


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}: pass {name}.float().")
    if tensor.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions, (batch, heads, length, size), got {format_shape(tensor)}.")


def _choose(implementation: str, arguments: AttentionArguments) -> str:
    """The implementation that will run, or the error that says why the one asked for cannot."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}.")
    factor_learns, *added_learn = (
        x is not None and x.requires_grad and torch.is_grad_enabled()
        for x in (arguments.factor, arguments.addend, arguments.attention_mask)
    )
    if any(added_learn) and implementation == "flex_attention":
        raise ValueError(
            'implementation="flex_attention" gives what is added to the scores no gradient, but it requires one: pass '
            'implementation="auto", or detach() the mask.'
        )
    is_plain = needs_plain_operators()
    if is_plain and implementation == "chunked":
        raise ValueError(
            'implementation="chunked" has no forward-mode derivatives and no rules for the transforms of torch.func: '
            'pass implementation="eager" (or "auto").'
        )
    obstacle = flex_obstacle(arguments.query, arguments.value, arguments.dropout_p)
    if implementation == "flex_attention" and obstacle:
        raise ValueError(
            f'implementation="flex_attention" cannot run: {obstacle}. Pass implementation="auto" to take it only '
            "where it can."
        )
    if implementation in ("eager", "flex_attention"):
        return implementation
    # An exported program runs where this file is not, so it gets plain operators; an empty input has no chunks.
    # Nothing else may depend on what needs a gradient where there is dropout: reentrant checkpointing runs a layer
    # first without gradients and then with them, and both runs must draw the same.
    if is_plain or torch.compiler.is_exporting() or _is_empty(arguments.query, arguments.value):
        return "eager"
    if implementation == "auto" and _has_few_scores(arguments.query, arguments.key):
        return "eager"
    # flex_attention sums the gradient of a mask that heads share with atomic additions, in no fixed order; training
    # takes it only when asked to.
    is_learnt = factor_learns or any(added_learn)
    return "chunked" if implementation == "chunked" or obstacle or is_learnt else "flex_attention"


def _is_empty(query: Tensor, value: Tensor) -> bool:
    return 0 in query.shape or 0 in value.shape


def _has_few_scores(query: Tensor, key: Tensor) -> bool:
    """Whether the score matrix costs less than a call of the chunked operator does."""
    # Compiled, every side of the limit would be a program of its own. In fp16, plain products are slow.
    if torch.compiler.is_compiling() or query.device.type not in ("cpu", "meta") or query.dtype == torch.float16:
        return False
    batch, heads, length_q, _ = query.shape
    return batch * heads * length_q * key.shape[2] <= FEW_SCORES


def flex_obstacle(query: Tensor, value: Tensor, dropout_p: float) -> str | None:
    """Why flex_attention cannot run for these inputs of [`changed_attention`]; None if it can."""
    if query.device.type != "cuda":
        return f"it needs CUDA tensors, these are on {query.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "it needs triton, which is not installed"
    if needs_plain_operators():
        return "it has no forward-mode derivatives and no rules for the transforms of torch.func"
    if dropout_p > 0:
        return f"it has no dropout, and dropout_p is {dropout_p}"
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it has no kernel for {value.dtype}"
    if min(query.shape[-1], value.shape[-1]) < 16:
        return f"its head sizes start at 16, these are {query.shape[-1]} and {value.shape[-1]}"
    if torch.compiler.is_exporting():
        return "an exported program must consist of plain operators"
    return "a size is 0" if _is_empty(query, value) else None


# --- the formula -----------------------------------------------------------------------------------------------------


def _attend_eager(arguments: AttentionArguments) -> tuple[Tensor, Tensor]:
    """Output and weights."""
    p = arguments.dropout_p
    return attend_by_formula(*arguments[:7], lambda weights: torch.dropout(weights, p, train=p > 0))


# --- flex_attention ----------------------------------------------------------------------------------------------


@cache
def _compile_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _attend_flex(arguments: AttentionArguments) -> Tensor:
    """One fused kernel, which reads the factor and the padding where it computes a score."""
    factor, length_k = arguments.factor, arguments.key.shape[2]
    attention_mask = merge_addend(arguments.addend, arguments.attention_mask, length_k)

    def at(tensor: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # A broadcast dimension is indexed at 0; expanding it would give it a full-size gradient.
        batch, heads, queries, keys = tensor.shape
        return tensor[b * (batch > 1), h * (heads > 1), q * (queries > 1), k * (keys > 1)]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        score = score if factor is None else score * at(factor, b, h, q, k)
        if attention_mask is None:
            return score
        padding = at(attention_mask, b, h, q, k)
        # The kernel itself gives zeros to a row of which every score is −inf.
        if attention_mask.dtype == torch.bool:
            return torch.where(padding, score, -float("inf"))
        return torch.where(padding > torch.finfo(attention_mask.dtype).min, score + padding, -float("inf"))

    flex: Any = flex_attention if torch.compiler.is_compiling() else _compile_flex_attention()
    return flex(arguments.query, arguments.key, arguments.value, score_mod=score_mod, scale=arguments.scaling)
