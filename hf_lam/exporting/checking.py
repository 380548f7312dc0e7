"""Whether an exported program gives what its model gives: run where it will run, and compared."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .batches import Sizes

# How far outputs may be away, as a share of the largest of them, and in steps of a dtype that has fewer numbers.
_SHARE, _STEPS = 1e-4, 10

# What runs a program without hf_lam and transformers: its file, and a folder of inputs, which gets the outputs.
_RUNNER = """
import sys
from pathlib import Path

sys.modules["hf_lam"] = sys.modules["transformers"] = None
import torch
from safetensors.torch import load_file, save_file

model = torch.export.load(sys.argv[1]).module()
for path in sorted(Path(sys.argv[2]).glob("*.inputs")):
    try:
        with torch.no_grad():
            outputs = model(**load_file(path))
    except Exception as error:
        path.with_suffix(".error").write_text(str(error), encoding="utf-8")
    else:
        save_file({name: value.contiguous().clone() for name, value in outputs.items()}, path.with_suffix(".outputs"))
"""


class Trial(NamedTuple):
    """One batch: its sizes, the inputs, and what the model makes of them."""

    sizes: Sizes
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]


def default_tolerance(dtype: torch.dtype) -> float:
    """The largest difference allowed, as a share of an output's largest number: 1e-4 in float32, 0.01 in float16."""
    return max(_SHARE, _STEPS * torch.finfo(dtype).eps)


def run_onnx(path: Path, trials: Sequence[Trial]) -> list[dict[str, Tensor]]:
    """Run an ONNX program in onnxruntime, on CPU.

    Raises:
        RuntimeError: if it cannot; it says with which sizes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise RuntimeError(f"onnxruntime cannot load the exported model: {_first_line(error)}") from error
    names = [each.name for each in session.get_outputs()]
    found = []
    for trial in trials:
        try:
            made = session.run(names, {name: value.numpy() for name, value in trial.inputs.items()})
        except Exception as error:
            raise RuntimeError(_explain(trial, "onnxruntime", _first_line(error))) from error
        found.append(dict(zip(names, map(torch.from_numpy, made), strict=True)))
    return found


def run_torch(path: Path, trials: Sequence[Trial]) -> list[dict[str, Tensor]]:
    """Run a program in a new process that can import neither hf_lam nor transformers.

    Raises:
        RuntimeError: if it cannot; it says with which sizes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, trial in enumerate(trials):
            save_file({key: value.contiguous() for key, value in trial.inputs.items()}, folder / f"{number}.inputs")
        done = subprocess.run(
            [sys.executable, "-c", _RUNNER, str(path), name], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(f"the exported model cannot be loaded in a new process: {lines[-1]}")
        found = []
        for number, trial in enumerate(trials):
            failed = folder / f"{number}.error"
            if failed.is_file():
                reason = failed.read_text(encoding="utf-8").strip().partition("\n")[0]
                raise RuntimeError(_explain(trial, "torch", reason))
            found.append(load_file(folder / f"{number}.outputs"))
        return found


def _explain(trial: Trial, runner: str, reason: str) -> str:
    return f"the exported model does not run with {trial.sizes.describe()} in {runner}: {reason}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def compare_outputs(
    trials: Sequence[Trial], found: Sequence[Mapping[str, Tensor]], tolerance: float
) -> tuple[float, float]:
    """The largest difference of any number, and the largest as a share of the largest number of its output.

    Raises:
        RuntimeError: if one is above the tolerance, or a shape differs; it says with which sizes, and in which output.
    """
    largest = relative = 0.0
    for trial, outputs in zip(trials, found, strict=True):
        for name, expected in trial.expected.items():
            difference, share = _difference(outputs[name], expected)
            if not share <= tolerance:
                raise RuntimeError(
                    f"{name} of the exported model is up to {difference:.2g} away from the model's with "
                    f"{trial.sizes.describe()}: {share:.2g} of its largest number, where at most {tolerance:.2g} is "
                    "allowed. Nothing was written."
                )
            largest, relative = max(largest, difference), max(relative, share)
    return largest, relative


def _difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference of one output, and as a share of its largest number.

    Both are infinite for another shape, and for NaN or infinity in other places.
    """
    infinite = float("inf")
    if found.shape != expected.shape:
        return infinite, infinite
    found, expected = found.double(), expected.double()
    is_finite = expected.isfinite()
    if not torch.equal(found.isfinite(), is_finite):
        return infinite, infinite
    if not torch.equal(found[~is_finite].nan_to_num(0.0), expected[~is_finite].nan_to_num(0.0)):
        return infinite, infinite
    found, expected = found[is_finite], expected[is_finite]
    if expected.numel() == 0:
        return 0.0, 0.0
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    return difference, difference / scale if scale > 0 else (0.0 if difference == 0 else infinite)
