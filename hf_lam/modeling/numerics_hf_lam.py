# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""What all attention functions share below their formulas: dtypes, shapes, outputs in memory, and operators' names.

Written for this package, after the attention functions of torch and transformers.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores are masked and normalised in at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Matrix products keep the dtype, but fp16 on CPU, where they are ten times slower than in fp32."""
    return torch.float32 if tensor.device.type == "cpu" and tensor.dtype == torch.float16 else tensor.dtype


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast would compute in its own dtype, not in value's. Switched off only where it is on: export records it."""
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


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
