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
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

IMPLEMENTATIONS = ("auto", "eager", "chunked", "flex_attention")

# Score elements in one chunk, of which one buffer (backward: three) exists at a time. CPU: 4 MiB in fp32, which stays
# near the cores. Other devices: enough to fill one, and small beside its memory (128 MiB in fp32).
_CPU_CHUNK = 2**20
_DEVICE_CHUNK = 2**25
# Long keys exceed that, rather than make a chunk of fewer query rows, or of fewer heads than threads: matrix products
# become slow (a single head of 128 × 1568 scores takes twice the time per score).
_MIN_ROWS = 384
_MAX_MIN_HEADS = 4


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
            direction; "flex_attention" is one fused CUDA kernel, without dropout; "auto" is "flex_attention" on CUDA
            where it can run and `mask` gets no gradient, and "chunked" elsewhere.

    Returns:
        `(B, H, Lq, Dv)`.

    Raises:
        TypeError: a mask or tensor of a dtype that has no meaning here.
        ValueError: sizes that do not fit, an unknown or impossible `implementation`, a `dropout_p` outside [0, 1), or
            a floating point `attention_mask` of zeros and ones, which would mask nothing.
    """
    call = _checked(query, key, value, mask, attention_mask, scaling, dropout_p)
    chosen = _choose(implementation, call)
    if chosen == "eager":
        return _eager(call)[0]
    if chosen == "flex_attention":
        return _flex(call)
    # The seed comes from the default generator, so that manual_seed and checkpointing reproduce the dropout.
    seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
    return _OPERATORS.lam_forward(*call, seed)


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
    """The reference: [`lam_attention`] by the eager formula, with its attention map; same arguments and errors.

    Returns:
        The output `(B, H, Lq, Dv)`, and the weights `(B, H, Lq, Lk)` that multiplied the values: after dropout, as
        in transformers' eager attention.
    """
    return _eager(_checked(query, key, value, mask, attention_mask, scaling, dropout_p))


# --- checking and choosing ---------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """Checked arguments: query and key in value's dtype, a padding mask with 4 dimensions and all Lk keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    attention_mask: Tensor | None
    scaling: float
    dropout_p: float


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout_p: float,
) -> _Call:
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
    scaling = size**-0.5 if scaling is None else float(scaling)
    return _Call(query.to(value.dtype), key.to(value.dtype), value, mask, attention_mask, scaling, float(dropout_p))


def _checked_padding(attention_mask: Tensor, full: tuple[int, int, int, int]) -> Tensor:
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


def _choose(implementation: str, call: _Call) -> str:
    """The implementation that will run, or the error that says why the one asked for cannot."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}.")
    padding = call.attention_mask
    padding_grad = padding is not None and padding.requires_grad and torch.is_grad_enabled()
    if padding_grad and implementation in ("chunked", "flex_attention"):
        raise ValueError(
            f"implementation={implementation!r} gives attention_mask no gradient, but it requires one: pass "
            'implementation="eager" (or "auto"), or attention_mask.detach().'
        )
    obstacle = flex_obstacle(call.query, call.value, call.dropout_p)
    if implementation == "flex_attention" and obstacle:
        raise ValueError(
            f'implementation="flex_attention" cannot run: {obstacle}. Pass implementation="auto" to take it only '
            "where it can."
        )
    if implementation in ("eager", "flex_attention"):
        return implementation
    # An exported program runs where this file is not, so it gets plain operators; an empty input has no chunks.
    if padding_grad or torch.compiler.is_exporting() or _is_empty(call.query, call.value):
        return "eager"
    # flex_attention sums the gradient of a mask that heads share with atomic additions, in no fixed order; training
    # takes it only when asked to.
    mask_grad = call.mask.requires_grad and torch.is_grad_enabled()
    return "chunked" if implementation == "chunked" or obstacle or mask_grad else "flex_attention"


def _is_empty(query: Tensor, value: Tensor) -> bool:
    return 0 in query.shape or 0 in value.shape


def flex_obstacle(query: Tensor, value: Tensor, dropout_p: float) -> str | None:
    """Why flex_attention cannot run for these inputs of [`lam_attention`]; None if it can."""
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
    return "a size is 0" if _is_empty(query, value) else None


# --- the formula -----------------------------------------------------------------------------------------------------


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores are masked and normalised in at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast would compute in its own dtype, not in value's. Switched off only where it is on: export records it."""
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


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
        addend = attention_mask.to(dtype).clamp(min=lowest)
    return addend, addend.detach().amax(-1, keepdim=True) <= limit


def _eager(call: _Call) -> tuple[Tensor, Tensor]:
    """Output and weights by the formula as it stands; every operator is a plain, differentiable one."""
    query, key, value, mask, attention_mask, scaling, dropout_p = call
    dtype = _softmax_dtype(value.dtype)
    with without_autocast(query.device.type):
        scores = torch.matmul(query, key.transpose(-2, -1)).to(dtype) * scaling * mask.to(dtype)
        if attention_mask is None or key.shape[2] == 0:
            weights = torch.softmax(scores, dim=-1)
        else:
            addend, blocked = _additive(attention_mask, dtype)
            weights = torch.softmax(scores + addend, dim=-1).masked_fill(blocked, 0)
        weights = torch.dropout(weights.to(value.dtype), dropout_p, train=dropout_p > 0)
        return torch.matmul(weights, value), weights


# --- flex_attention ----------------------------------------------------------------------------------------------


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _flex(call: _Call) -> Tensor:
    """One fused kernel, which reads `M` and the padding where it computes a score."""
    mask, attention_mask = call.mask, call.attention_mask

    def at(tensor: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # A broadcast dimension is indexed at 0; expanding it would give it a full-size gradient.
        return tensor[b * (tensor.shape[0] > 1), h * (tensor.shape[1] > 1), q * (tensor.shape[2] > 1), k]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        score = score * at(mask, b, h, q, k)
        if attention_mask is None:
            return score
        padding = at(attention_mask, b, h, q, k)
        # The kernel itself gives zeros to a row of which every score is −inf.
        if attention_mask.dtype == torch.bool:
            return torch.where(padding, score, -float("inf"))
        return torch.where(padding > torch.finfo(attention_mask.dtype).min, score + padding, -float("inf"))

    flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    return flex(call.query, call.key, call.value, score_mod=score_mod, scale=call.scaling)


# --- chunked: no score matrix, forward or backward ---------------------------------------------------------------
#
# Every chunk of queries computes its scores, uses them and drops them; the backward pass computes them again
# (Rabe & Staats, arXiv 2112.05682), with rowsum(dO ⊙ O) for rowsum(dA ⊙ A) (Dao et al., arXiv 2205.14135).
# Time goes into the passes over scores and, on a busy machine, into the threads' waiting for each other after every
# operator. Hence few operators, on large chunks, in buffers that stay in the cache.

Chunk = tuple[slice, ...]  # of batch, heads, query rows


def _chunks(query: Tensor, key: Tensor) -> Iterator[Chunk]:
    """Cut `(B, H, Lq)` into nearly equal parts; the order is what makes dropout reproducible."""
    batch, heads, length_q, _ = query.shape
    length_k = key.shape[2]
    limit = _CPU_CHUNK if query.device.type == "cpu" else _DEVICE_CHUNK
    rows = _part(length_q, max(_MIN_ROWS, limit // (heads * length_k)))
    group = _part(heads, max(min(torch.get_num_threads(), _MAX_MIN_HEADS), limit // (rows * length_k)))
    # Several samples only where they are small, since joining them copies what is not contiguous.
    samples = _part(batch, limit // 2 // (heads * length_q * length_k))
    for b in range(0, batch, samples):
        for r in range(0, length_q, rows):
            for h in range(0, heads, group):
                yield slice(b, b + samples), slice(h, h + group), slice(r, r + rows)


def _part(total: int, limit: int) -> int:
    """Size of the fewest nearly equal parts of `total` that keep to `limit` (or are 1)."""
    parts = -(-total // max(1, min(total, limit)))
    return -(-total // parts)


def _cut(tensor: Tensor, chunk: Chunk) -> Tensor:
    """The chunk's part, a view, of a tensor whose dimensions of size 1 are broadcast."""
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, chunk, strict=False))]


def _padded_chunks(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[Chunk, Tensor | None, Tensor | None]]:
    """Every chunk with its addends and its blocked rows, both None without padding."""
    addend = blocked = None
    for chunk in _chunks(query, key):
        # Groups of heads follow each other, and mostly share their padding.
        if attention_mask is not None and (chunk[1].start == 0 or attention_mask.shape[1] > 1):
            addend, blocked = _additive(_cut(attention_mask, chunk), dtype)
        yield chunk, addend, blocked


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """Matrix products keep the dtype, but fp16 on CPU, where they are ten times slower than in fp32."""
    return torch.float32 if tensor.device.type == "cpu" and tensor.dtype == torch.float16 else tensor.dtype


class _Dropout:
    """Dropout's factors, 0 or 1 / (1 - p), drawn anew from the seed in each direction, chunk after chunk."""

    def __init__(self, p: float, seed: Tensor | None, device: torch.device) -> None:
        self.keep = 1 - p
        self.generator = None if seed is None else torch.Generator(device).manual_seed(int(seed))

    def factors(self, weights: Tensor) -> Tensor | None:
        if self.generator is None:
            return None
        return torch.empty_like(weights).bernoulli_(self.keep, generator=self.generator).div_(self.keep)


class _Scratch:
    """Score-sized buffers that every chunk of a call uses again; clearing fresh pages would cost up to a third."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in the buffer of that name."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=dtype, device=like.device)
        return self.buffers[name][:size].view(shape)

    def product(self, name: str, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        """`left @ right` in `dtype`."""
        out = self.take(name, (*left.shape[:-1], right.shape[-1]), left, dtype)
        if left.dtype == dtype:
            return torch.matmul(left, right, out=out)
        return out.copy_(torch.matmul(left, right))


def _weights(scores: Tensor, mask: Tensor, addend: Tensor | None, out: Tensor) -> Tensor:
    """`softmax(scores ⊙ M + P)` in `out`, which may be `scores`."""
    if addend is None:
        torch.mul(scores, mask, out=out)
    else:
        torch.addcmul(addend, scores, mask, out=out)
    return torch.softmax(out, -1, out=out)


def _chunk_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    addend: Tensor | None,
    scaling: float,
    dropout: _Dropout,
    scratch: _Scratch,
) -> Tensor:
    """The output of some query rows: `(b, h, q, D)` by `(b, h, Lk, D)` and `(b, h, Lk, Dv)`."""
    dtype = _softmax_dtype(value.dtype)
    scores = scratch.product("scores", query * scaling, key.transpose(-2, -1), dtype)
    weights = _weights(scores, mask.to(dtype), addend, out=scores)
    factors = dropout.factors(weights)
    if factors is not None:
        weights.mul_(factors)
    return scratch.product("out", weights.to(value.dtype), value, value.dtype)


def _chunk_backward(
    grad_out: Tensor,
    mean: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    addend: Tensor | None,
    scaling: float,
    dropout: _Dropout,
    scratch: _Scratch,
    wanted: list[bool],
) -> list[Tensor | None]:
    """The part of some query rows in the gradients of query, key, value and mask (None: not wanted).

    `mean` is the mean of the weights' gradients under the weights, row by row: `rowsum(dO ⊙ O)`.
    """
    want_query, want_key, want_value, want_mask = wanted
    grad_query = grad_key = grad_value = grad_mask = None
    dtype = _softmax_dtype(value.dtype)
    mask, query = mask.to(dtype), query * scaling
    scores = scratch.product("scores", query, key.transpose(-2, -1), dtype)
    weights = _weights(scores, mask, addend, out=scratch.take("weights", scores.shape, scores, dtype))
    factors = dropout.factors(weights)
    if want_value:
        dropped = weights if factors is None else weights * factors
        grad_value = torch.matmul(dropped.to(value.dtype).transpose(-2, -1), grad_out)
    if want_query or want_key or want_mask:
        grad_logits = scratch.product("grad_logits", grad_out, value.transpose(-2, -1), dtype)
        if factors is not None:
            grad_logits.mul_(factors)
        grad_logits.sub_(mean).mul_(weights)
        if want_mask:
            grad_mask = scores.mul_(grad_logits).sum_to_size(mask.shape)
        grad_scores = grad_logits.mul_(mask).to(value.dtype)
        if want_query:
            grad_query = torch.matmul(grad_scores, key).mul_(scaling)
        if want_key:
            grad_key = torch.matmul(grad_scores.transpose(-2, -1), query)
    return [grad_query, grad_key, grad_value, grad_mask]


def _lam_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    out = _empty_output(query, value)
    dtype, product_dtype = _softmax_dtype(value.dtype), _product_dtype(value)
    query, key, value = query.to(product_dtype), key.to(product_dtype), value.to(product_dtype)
    dropout, scratch = _Dropout(dropout_p, seed, query.device), _Scratch()
    with torch.autocast(query.device.type, enabled=False):
        for chunk, addend, blocked in _padded_chunks(query, key, attention_mask, dtype):
            keys = chunk[:2]
            out_part = _chunk_forward(
                query[chunk], key[keys], value[keys], _cut(mask, chunk), addend, scaling, dropout, scratch
            )
            out[chunk] = out_part if blocked is None else out_part.masked_fill_(blocked, 0)
    return out


def _lam_backward(
    grad_out: Tensor,
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
    inputs = (query, key, value, mask)
    dtype, product_dtype = _softmax_dtype(value.dtype), _product_dtype(value)
    grads = [
        torch.zeros_like(x, dtype=dtype) if want else x.new_empty(0) for x, want in zip(inputs, wanted, strict=True)
    ]
    grad_out, query, key, value = (x.to(product_dtype) for x in (grad_out, query, key, value))
    dropout, scratch = _Dropout(dropout_p, seed, query.device), _Scratch()
    with torch.autocast(query.device.type, enabled=False):
        mean = (grad_out.to(dtype) * out).sum(-1, keepdim=True)
        for chunk, addend, blocked in _padded_chunks(query, key, attention_mask, dtype):
            keys = chunk[:2]
            grad_part = grad_out[chunk]
            if blocked is not None:  # a row that gets no gradient sends none
                grad_part = grad_part.masked_fill(blocked, 0)
            parts = _chunk_backward(
                grad_part,
                mean[chunk],
                query[chunk],
                key[keys],
                value[keys],
                _cut(mask, chunk),
                addend,
                scaling,
                dropout,
                scratch,
                wanted,
            )
            for grad, part, where in zip(grads, parts, (chunk, keys, keys, chunk), strict=True):
                if part is not None:
                    _cut(grad, where).add_(part)
    return [grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True)]


# --- the operators ---------------------------------------------------------------------------------------------------
#
# Operators, so that torch.compile sees one opaque node, not an unrolled loop. A name can be registered once in a
# process, and several copies of this file may be loaded (the package, Hub repositories): the name carries the hash of
# the content, and a second copy of the same content uses what the first one registered.


def _empty_output(query: Tensor, value: Tensor) -> Tensor:
    # (B, Lq, H, Dv) in memory: what follows an attention joins the heads, which then is a view.
    batch, heads, length_q, _ = query.shape
    return value.new_empty(batch, length_q, heads, value.shape[-1]).transpose(1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scaling, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(output, *tensors, seed)


def operator_namespace(file: str) -> str:
    """The namespace for the operators of one version of `file`."""
    return f"hf_lam_{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"


def _register_operators() -> Any:
    """The namespace of this file's operators; a copy may have registered them before."""
    namespace = operator_namespace(__file__)
    operators = getattr(torch.ops, namespace)
    if hasattr(operators, "lam_forward"):
        return operators
    lam_backward = torch.library.custom_op(f"{namespace}::lam_backward", _lam_backward, mutates_args=())
    lam_forward = torch.library.custom_op(f"{namespace}::lam_forward", _lam_forward, mutates_args=())

    @lam_backward.register_fake
    def fake_backward(grad_out: Tensor, out: Tensor, *rest: Any) -> list[Tensor]:
        return [torch.empty_like(x) if want else x.new_empty(0) for x, want in zip(rest[:4], rest[-1], strict=True)]

    @lam_forward.register_fake
    def fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        return _empty_output(query, value)

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:4])
        grads = lam_backward(grad_out, *ctx.saved_tensors, ctx.scaling, ctx.dropout_p, wanted)
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None, None

    lam_forward.register_autograd(backward, setup_context=_setup_context)
    return operators


_OPERATORS = _register_operators()
