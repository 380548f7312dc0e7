# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Attention with a learnable mask as plain functions: tensors in, tensors out.

Source: Barrios & Jin, "Multi-layer Learnable Attention Mask for Multimodal Tasks", arXiv 2406.02761. With queries
`Q`, keys `K`, values `V`, a mask `M` that *multiplies* the scores, and an additive padding mask `P` (0 or −inf):

    A = softmax( (Q Kᵀ · scaling) ⊙ M + P )        P is added after the product, since 0 · −inf is NaN
    out = A V

`mask` always is the multiplicative `M`, `attention_mask` always is the padding `P`. A zero in `M` means "no
preference" (score 0), not "blocked". A query that may attend to nothing gets zeros, and sends zero gradients.

This file travels: it is copied into Hub repositories, so it needs torch and the standard library only.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "eager", "chunked", "flex_attention")

# Score elements in flight at a time. CPU: a few such buffers stay in the cache (4 MiB each in fp32; from 1 to 8 MiB
# the time hardly changes). Other devices: enough to fill the device, small beside its memory (128 MiB in fp32).
_CPU_CHUNK_ELEMENTS = 2**20
_DEVICE_CHUNK_ELEMENTS = 2**25

# (batch, heads, query rows) of one chunk
Chunk = tuple[slice, slice, slice]


def lam_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
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
        mask: the multiplicative `M`, floating point, `(B or 1, H or 1, Lq, Lk)`.
        attention_mask: the padding `P`, broadcastable to `(B, H, Lq, Lk)`: bool (True = may attend), or additive
            floating point, where −inf and anything up to `finfo(dtype).min` block.
        scaling: factor on the raw scores; `D ** -0.5` unless given.
        dropout_p: probability, in [0, 1), with which an attention weight is zeroed (the others grow accordingly).
        implementation: "eager" forms the whole score matrix, as the formula reads; "chunked" never does, in either
            direction; "flex_attention" is one fused CUDA kernel, without dropout; "auto" takes the fastest that can
            run.

    Returns:
        `(B, H, Lq, Dv)`.

    Raises:
        TypeError: a mask or tensor of a dtype that has no meaning here.
        ValueError: sizes that do not fit, an unknown or impossible `implementation`, a `dropout_p` outside [0, 1), or
            a floating point `attention_mask` of zeros and ones, which would mask nothing.
    """
    query, key, attention_mask, scaling = _checked(query, key, value, mask, attention_mask, scaling, dropout_p)
    chosen = _choose(implementation, query, key, value, mask, attention_mask, dropout_p)
    if chosen == "eager":
        return _eager(query, key, value, mask, attention_mask, scaling, dropout_p)[0]
    if chosen == "flex_attention":
        return _flex(query, key, value, mask, attention_mask, scaling)
    # The seed comes from the default generator, so that manual_seed and checkpointing reproduce the dropout.
    seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
    return _OPS.lam_forward(query, key, value, mask, attention_mask, seed, scaling, dropout_p)


def lam_attention_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The reference: [`lam_attention`] by the eager formula, with its attention map.

    Returns:
        The output `(B, H, Lq, Dv)`, and the weights `(B, H, Lq, Lk)` that multiplied the values: after dropout, as
        in transformers' eager attention.
    """
    query, key, attention_mask, scaling = _checked(query, key, value, mask, attention_mask, scaling, dropout_p)
    return _eager(query, key, value, mask, attention_mask, scaling, dropout_p)


# --- choosing --------------------------------------------------------------------------------------------------------


def _choose(
    implementation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    dropout_p: float,
) -> str:
    """The implementation that will run, or the error that says why the one asked for cannot."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}.")
    if implementation == "eager":
        return "eager"
    padding_grad = attention_mask is not None and attention_mask.requires_grad and torch.is_grad_enabled()
    if padding_grad and implementation != "auto":
        raise ValueError(
            f"implementation={implementation!r} gives attention_mask no gradient, but it requires one: pass "
            'implementation="eager" (or "auto"), or attention_mask.detach().'
        )
    flex_obstacle = _flex_obstacle(query, key, value, dropout_p)
    if implementation == "flex_attention":
        if flex_obstacle:
            raise ValueError(
                f'implementation="flex_attention" cannot run: {flex_obstacle}. Pass implementation="auto" to take it '
                "only where it can."
            )
        return "flex_attention"
    # An exported program must run where this file is not, so it gets plain operators. Empty inputs leave nothing to
    # split.
    empty = 0 in query.shape or 0 in value.shape
    if torch.compiler.is_exporting() or padding_grad or empty:
        return "eager"
    if implementation == "chunked" or flex_obstacle:
        return "chunked"
    return "flex_attention"


def _flex_obstacle(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> str | None:
    """Why flex_attention cannot run for these inputs; None if it can."""
    if query.device.type != "cuda":
        return f"it needs CUDA tensors, these are on {query.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "it needs triton, which is not installed"
    if dropout_p > 0:
        return f"it has no dropout, and dropout_p is {dropout_p}"
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it has no kernel for {value.dtype}"
    if min(query.shape[-1], value.shape[-1]) < 16:
        return f"its head sizes start at 16, these are {query.shape[-1]} and {value.shape[-1]}"
    if torch.compiler.is_exporting():
        return "an exported program must consist of plain operators"
    if 0 in query.shape or 0 in value.shape:
        return "there is nothing to attend to (a size is 0)"
    return None


# --- checking --------------------------------------------------------------------------------------------------------


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """Check every argument; return query and key in value's dtype, the 4-D padding mask, and the scaling."""
    for name, tensor in (("query", query), ("key", key), ("value", value), ("mask", mask)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}: pass {name}.float().")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, (batch, heads, length, size), got {_shape(tensor)}.")
    batch, heads, length_q, size = query.shape
    length_k = key.shape[2]
    if key.shape != (batch, heads, length_k, size) or value.shape[:3] != (batch, heads, length_k):
        raise ValueError(
            "query (B, H, Lq, D), key (B, H, Lk, D) and value (B, H, Lk, Dv) must agree in B, H, Lk and D, got "
            f"{_shape(query)}, {_shape(key)} and {_shape(value)}."
        )
    full = (batch, heads, length_q, length_k)
    if mask.shape[2:] != full[2:] or not _broadcasts(mask, full):
        raise ValueError(
            f"mask must be ({batch} or 1, {heads} or 1, {length_q}, {length_k}): (batch, heads, queries, keys), got "
            f"{_shape(mask)}."
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}.")
    if attention_mask is not None:
        attention_mask = _checked_padding(attention_mask, full)
    scaling = size**-0.5 if scaling is None else scaling
    return query.to(value.dtype), key.to(value.dtype), attention_mask, scaling


def _checked_padding(attention_mask: Tensor, full: tuple[int, int, int, int]) -> Tensor:
    """Check the padding mask against `(B, H, Lq, Lk)`; return it with 4 dimensions and all Lk keys (a view)."""
    if attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
        raise TypeError(
            f"attention_mask must be bool (True = may attend) or additive floating point, got {attention_mask.dtype}:"
            " if its ones mean 'may attend', pass attention_mask.bool()."
        )
    if attention_mask.dim() > 4 or not _broadcasts(attention_mask, full):
        raise ValueError(
            f"attention_mask must be broadcastable to {full}, (batch, heads, queries, keys), got "
            f"{_shape(attention_mask)}: a (batch, keys) mask becomes attention_mask[:, None, None, :]."
        )
    # Reading values is for real tensors in eager mode only. The maximum of an additive mask is 0: one pass, as a rule.
    if (
        attention_mask.is_floating_point()
        and not torch.compiler.is_compiling()
        and type(attention_mask) is Tensor
        and not attention_mask.is_meta
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


def _broadcasts(tensor: Tensor, full: tuple[int, ...]) -> bool:
    return all(size in (1, wanted) for size, wanted in zip(reversed(tensor.shape), reversed(full), strict=False))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


# --- the formula -----------------------------------------------------------------------------------------------------


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores are masked and normalised in at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def _additive(attention_mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
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
        addend = attention_mask.clamp(min=lowest).to(dtype)
    return addend, addend.detach().amax(-1, keepdim=True) <= limit


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """The formula as it stands; every operator is a plain, differentiable one."""
    dtype = _softmax_dtype(value.dtype)
    scores = torch.matmul(query * scaling, key.transpose(-2, -1)).to(dtype) * mask.to(dtype)
    if attention_mask is None or key.shape[2] == 0:
        weights = torch.softmax(scores, dim=-1)
    else:
        addend, blocked = _additive(attention_mask, dtype)
        weights = torch.softmax(scores + addend, dim=-1).masked_fill(blocked, 0)
    weights = torch.dropout(weights.to(value.dtype), dropout_p, train=dropout_p > 0)
    return torch.matmul(weights, value).to(value.dtype), weights


# --- flex_attention --------------------------------------------------------------------------------------------------


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """One fused kernel that reads `M` and the padding where it computes a score."""
    from torch.nn.attention.flex_attention import flex_attention

    def at(tensor: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # A broadcast dimension is indexed at 0; expanding it would give it a full-size gradient.
        return tensor[b * (tensor.shape[0] > 1), h * (tensor.shape[1] > 1), q * (tensor.shape[2] > 1), k]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        score = score * at(mask, b, h, q, k)
        if attention_mask is None:
            return score
        padding = at(attention_mask, b, h, q, k)
        if attention_mask.dtype == torch.bool:
            return torch.where(padding, score, -float("inf"))
        # The kernel gives zeros to a row of which every score is −inf.
        return torch.where(padding > torch.finfo(padding.dtype).min, score + padding, -float("inf"))

    flex: Callable[..., Tensor] = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    return flex(query, key, value, score_mod=score_mod, scale=scaling)


# --- chunked: no score matrix, forward or backward -------------------------------------------------------------------
#
# Every chunk of queries computes its scores, uses them and drops them; the backward pass computes them again
# (Rabe & Staats, arXiv 2112.05682), with rowsum(dO ⊙ O) in place of rowsum(dA ⊙ A) (Dao et al., arXiv 2205.14135).


def _chunks(query: Tensor, key: Tensor) -> Iterator[Chunk]:
    """Cut `(B, H, Lq)` into equal parts that keep the scores of one part below the device's number of elements."""
    batch, heads, length_q, _ = query.shape
    length_k = key.shape[2]
    budget = _CPU_CHUNK_ELEMENTS if query.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    rows = _part(length_q, budget // length_k)
    group = _part(heads, budget // (rows * length_k))
    samples = _part(batch, budget // (group * rows * length_k)) if group == heads else 1
    for b in range(0, batch, samples):
        for r in range(0, length_q, rows):
            for h in range(0, heads, group):
                yield slice(b, b + samples), slice(h, h + group), slice(r, r + rows)


def _part(total: int, limit: int) -> int:
    """The size of the fewest nearly equal parts of `total` that do not exceed `limit` (at least 1)."""
    parts = -(-total // max(1, min(total, limit)))
    return -(-total // parts)


def _cut(tensor: Tensor, chunk: Chunk) -> Tensor:
    """The chunk's part (a view) of a tensor whose dimensions of size 1 are broadcast."""
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, chunk, strict=False))]


class _Plan:
    """What the forward and the backward pass of the chunked implementation compute alike, chunk by chunk."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        attention_mask: Tensor | None,
        seed: Tensor | None,
        scaling: float,
        dropout_p: float,
    ) -> None:
        # fp16 products are 10 times slower than fp32 ones on CPU.
        upcast = query.device.type == "cpu" and query.dtype == torch.float16
        self.product_dtype = torch.float32 if upcast else query.dtype
        self.dtype = _softmax_dtype(query.dtype)
        self.query = query.to(self.product_dtype) * scaling
        self.key = key.to(self.product_dtype)
        self.value = value.to(self.product_dtype)
        self.mask, self.attention_mask, self.dropout_p = mask, attention_mask, dropout_p
        self.generator = None
        if seed is not None:
            self.generator = torch.Generator(query.device)
            self.generator.manual_seed(int(seed))

    def __iter__(self) -> Iterator[tuple[Chunk, Tensor | None, Tensor | None]]:
        """Every chunk with its padding, always in the same order, which is what makes dropout reproducible."""
        addend = blocked = None
        for chunk in _chunks(self.query, self.key):
            per_head = self.attention_mask is not None and self.attention_mask.shape[1] > 1
            if self.attention_mask is not None and (per_head or chunk[1].start == 0):
                addend, blocked = _additive(_cut(self.attention_mask, chunk), self.dtype)
            yield chunk, addend, blocked

    def scores(self, chunk: Chunk) -> Tensor:
        b, h, _ = chunk
        return torch.matmul(self.query[chunk], self.key[b, h].transpose(-2, -1)).to(self.dtype)

    def weights(self, scores: Tensor, mask: Tensor, addend: Tensor | None) -> Tensor:
        logits = scores * mask if addend is None else torch.addcmul(addend, scores, mask)
        return torch.softmax(logits, dim=-1)

    def kept(self, weights: Tensor) -> Tensor | None:
        """Dropout's factors, 0 or 1 / (1 - p); None without dropout."""
        if self.generator is None:
            return None
        keep = 1 - self.dropout_p
        return torch.empty_like(weights).bernoulli_(keep, generator=self.generator).div_(keep)


def _lam_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    seed: Tensor | None,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    out = _empty_output(query, value)
    with torch.autocast(query.device.type, enabled=False):
        plan = _Plan(query, key, value, mask, attention_mask, seed, scaling, dropout_p)
        for chunk, addend, blocked in plan:
            weights = plan.weights(plan.scores(chunk), _cut(mask, chunk).to(plan.dtype), addend)
            kept = plan.kept(weights)
            if kept is not None:
                weights.mul_(kept)
            part = out[chunk]
            part.copy_(torch.matmul(weights.to(plan.product_dtype), plan.value[chunk[:2]]))
            if blocked is not None:
                part.masked_fill_(blocked, 0)
    return out


def _lam_backward(
    grad: Tensor,
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    seed: Tensor | None,
    scaling: float,
    dropout_p: float,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients of query, key, value and mask, in this order; an empty tensor for each that is not wanted."""
    with torch.autocast(query.device.type, enabled=False):
        plan = _Plan(query, key, value, mask, attention_mask, seed, scaling, dropout_p)
        want_query, want_key, want_value, want_mask = wanted
        grads = [
            torch.zeros_like(tensor, dtype=plan.dtype) if want else tensor.new_empty(0)
            for tensor, want in zip((query, key, value, mask), wanted, strict=True)
        ]
        grad_query, grad_key, grad_value, grad_mask = grads
        for chunk, addend, blocked in plan:
            b, h, _ = chunk
            scores, mask_part = plan.scores(chunk), _cut(mask, chunk).to(plan.dtype)
            weights = plan.weights(scores, mask_part, addend)
            kept = plan.kept(weights)
            grad_out = grad[chunk].to(plan.product_dtype)
            if blocked is not None:  # with no gradient from its output, a blocked row sends none
                grad_out = grad_out.masked_fill(blocked, 0)
            if want_value:
                dropped = weights if kept is None else weights * kept
                grad_value[b, h] += torch.matmul(dropped.to(plan.product_dtype).transpose(-2, -1), grad_out)
            if not (want_query or want_key or want_mask):
                continue
            grad_weights = torch.matmul(grad_out, plan.value[b, h].transpose(-2, -1)).to(plan.dtype)
            if kept is not None:
                grad_weights.mul_(kept)
            mean = (grad_out.to(plan.dtype) * out[chunk]).sum(-1, keepdim=True)
            grad_logits = grad_weights.sub_(mean).mul_(weights)
            if want_mask:
                part = _cut(grad_mask, chunk)
                part += scores.mul_(grad_logits).sum_to_size(part.shape)
            grad_scores = grad_logits.mul_(mask_part).to(plan.product_dtype)
            if want_query:
                grad_query[chunk] = torch.matmul(grad_scores, plan.key[b, h]).mul_(scaling)
            if want_key:
                grad_key[b, h] += torch.matmul(grad_scores.transpose(-2, -1), plan.query[chunk])
        return [g.to(t.dtype) for g, t in zip(grads, (query, key, value, mask), strict=True)]


# --- the operators ---------------------------------------------------------------------------------------------------
#
# Operators, so that torch.compile sees one opaque node, not an unrolled loop. A name can be registered once in a
# process, and several copies of this file may be loaded (the package, Hub repositories): the name carries the hash of
# the content, and a second copy of the same content uses what the first one registered.


def _empty_output(query: Tensor, value: Tensor) -> Tensor:
    # (B, Lq, H, Dv) in memory: what follows an attention joins the heads, which then is a view.
    batch, heads, length_q, _ = query.shape
    return value.new_empty(batch, length_q, heads, value.shape[-1]).transpose(1, 2)


def _fake_backward(
    grad: Tensor, out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *rest: Any
) -> list[Tensor]:
    wanted = rest[-1]
    return [
        torch.empty_like(tensor) if want else tensor.new_empty(0)
        for tensor, want in zip((query, key, value, mask), wanted, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scaling, ctx.dropout_p = inputs
    ctx.save_for_backward(output, *tensors)


def _registered_operators() -> Any:
    """The namespace of this file's operators, registered if no copy has done it yet."""
    namespace = f"hf_lam_{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    operators = getattr(torch.ops, namespace)
    if hasattr(operators, "lam_forward"):
        return operators
    backward_operator = torch.library.custom_op(f"{namespace}::lam_backward", _lam_backward, mutates_args=())
    backward_operator.register_fake(_fake_backward)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:4])
        grads = backward_operator(grad, *ctx.saved_tensors, ctx.scaling, ctx.dropout_p, wanted)
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None, None, None

    forward_operator = torch.library.custom_op(f"{namespace}::lam_forward", _lam_forward, mutates_args=())
    forward_operator.register_fake(lambda query, key, value, *rest: _empty_output(query, value))
    forward_operator.register_autograd(backward, setup_context=_setup_context)
    return operators


_OPS = _registered_operators()
