# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The common base of all attention functions: dtypes, shapes, outputs in memory, and operators' names.

Written for this package, after the attention functions of torch and transformers.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores are masked and normalised in at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Matrix products keep the dtype, but fp16 on CPU, where they are ten times slower than in fp32."""
    return torch.float32 if tensor.device.type == "cpu" and tensor.dtype == torch.float16 else tensor.dtype


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast would compute in its own dtype, not in value's. Switched off only where it is on: export records it."""
    # torch 2.7 cannot trace torch.amp.is_autocast_available, which says no for this device.
    is_on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


def needs_plain_operators() -> bool:
    """Whether a transform of `torch.func`, or forward-mode differentiation, is at work.

    Both go through every operator of torch: our own ones have no tangents and no batches to give, and what looks at
    values cannot. With plain operators both are right.
    """
    return torch._C._are_functorch_transforms_active() or is_forward_mode()


def has_dispatch_mode() -> bool:
    """Whether a mode of this thread sees every operator, such as torch's counter of FLOPs or fake tensors."""
    return torch._C._len_torch_dispatch_stack() > 0


def differentiate_gradients(
    attend: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    grad_out: Tensor,
    tangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Derivatives of the gradients of an attention, which its fast operators do not have, by autograd.

    Args:
        attend: formula of the attention, in plain operators.
        inputs: arguments of the formula.
        grad_out: the gradient of its output.
        tangents: factor of each input's gradient; None where nobody wants the derivative.

    Returns:
        The gradients of `grad_out` and of every input; None for what needs none. They can be differentiated again.
    """
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # One input may be computed of another one: each stands for itself here, and still for what it was.
        own = [x if x is None else x.view_as(x) for x in (grad_out, *inputs)]
        learnt = {i: x for i, x in enumerate(own) if x is not None and x.requires_grad}
        wanted = {i: v for i, v in enumerate(tangents, 1) if v is not None and i in learnt}
        gradients = torch.autograd.grad(
            attend(*own[1:]), [learnt[i] for i in wanted], own[0], create_graph=True, allow_unused=True
        )
        pairs = [(x, v) for x, v in zip(gradients, wanted.values(), strict=True) if x is not None and x.requires_grad]
        found = torch.autograd.grad(
            [x for x, _ in pairs],
            list(learnt.values()),
            [v for _, v in pairs],
            create_graph=is_recorded,
            allow_unused=True,
        )
    by_place = dict(zip(learnt, found, strict=True))
    return [by_place.get(i) for i in range(len(own))]


def is_forward_mode() -> bool:
    """Whether tangents are computed, by `torch.func.jvp` or `torch.autograd.forward_ad`."""
    return forward_ad._current_level >= 0


def broadcasts(tensor: Tensor, full: tuple[int, ...]) -> bool:
    """Whether the tensor can be expanded to the shape `full`, which has at least as many dimensions."""
    return all(size in (1, wanted) for size, wanted in zip(reversed(tensor.shape), reversed(full), strict=False))


def format_shape(tensor: Tensor) -> str:
    """The shape as errors say it."""
    return str(tuple(tensor.shape))


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """An uninitialised `(B, H, Lq, Dv)`."""
    # (B, Lq, H, Dv) in memory: what follows an attention joins the heads, which then is a view.
    batch, heads, length_q, _ = query.shape
    return value.new_empty(batch, length_q, heads, value.shape[-1]).transpose(1, 2)


def operator_namespace(file: str, *siblings: str) -> str:
    """The namespace for the operators of one version of `file` and of the siblings that they compute with.

    A name can be registered once in a process, and several copies of a file may be loaded (the package, Hub
    repositories): the name carries the hash of the content, and a second copy of the same content uses what the first
    one registered.

    Args:
        file: the file's `__file__`.
        siblings: names of modules beside it.
    """
    paths = [Path(file), *(Path(file).with_name(f"{name}.py") for name in siblings)]
    content = b"".join(path.read_bytes() for path in paths)
    return f"hf_lam_{hashlib.sha256(content).hexdigest()[:12]}"
