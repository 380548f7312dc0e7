"""Whether weights are numbers: NaN and infinity, in the tensors of a model and in files, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .repository_files import Finding, RepositoryFiles, StoredTensor, UnreadableError

# The number of bytes that are read of a file at once.
_SLICE_BYTES = 16 << 20
# By their names in safetensors files.
_FLOATS = {
    **dict.fromkeys(("F32", "C64"), torch.float32),
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# Of floats of eight bits, which few operators take: a mask for the bits, and what is left of NaN and infinity.
_EIGHT_BITS = {
    torch.float8_e4m3fn: (0x7F, 0x7F),
    torch.float8_e5m2: (0x7C, 0x7C),
    torch.float8_e8m0fnu: (0xFF, 0xFF),
}


def refuse_infinite(tensors: Mapping[str, Tensor]) -> None:
    """Raises a `ValueError` if a tensor has NaN or infinity in it; those on the meta device have no values."""
    for name, tensor in tensors.items():
        if not tensor.is_meta and (count := count_infinite(tensor)):
            raise ValueError(
                f"the weights cannot be published: {_told(name, count)}. The training may have diverged; take an "
                "earlier checkpoint."
            )


def check_finite(files: RepositoryFiles, names: Iterable[str]) -> list[Finding]:
    """Findings for tensors with NaN or infinity in them.

    Args:
        files: files of the repository.
        names: names of its safetensors files. Those that are not whole are passed over; `check_weights` reports them.
    """
    findings = []
    for name in names:
        try:
            for tensor, stored in files.tensors(name).items():
                if count := _count_stored(files, name, stored):
                    findings.append(Finding("weights", name, _told(tensor, count)))
        except UnreadableError:
            continue
    return findings


def count_infinite(tensor: Tensor) -> int:
    """Count the values of a tensor, of whatever kind, that are NaN or infinite."""
    # Of a DTensor, the part of this process.
    numbers = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    numbers = numbers.detach()
    numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
    if numbers.numel() == 0 or not numbers.is_floating_point():
        return 0
    if numbers.dtype in _EIGHT_BITS:
        mask, value = _EIGHT_BITS[numbers.dtype]
        return int(((numbers.view(torch.uint8) & mask) == value).sum())
    # Both are NaN if anything is: one fast pass tells that all is well.
    if all(map(torch.isfinite, numbers.aminmax())):
        return 0
    return int((~torch.isfinite(numbers)).sum())


def _count_stored(files: RepositoryFiles, name: str, stored: StoredTensor) -> int:
    dtype = _FLOATS.get(stored.dtype)
    if dtype is None:
        return 0
    starts = range(stored.start, stored.stop, _SLICE_BYTES)
    parts = (files.part(name, start, min(start + _SLICE_BYTES, stored.stop)) for start in starts)
    return sum(count_infinite(torch.frombuffer(bytearray(part), dtype=dtype)) for part in parts)


def _told(tensor: str, count: int) -> str:
    return f"{tensor} holds {'a value that is' if count == 1 else f'{count} values that are'} NaN or infinite"
