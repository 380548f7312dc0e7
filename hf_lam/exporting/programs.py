"""A model as a program: traced once for batches and lengths of any size, and written for torch or as ONNX."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .batches import Batches

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}


class NamedOutputs(nn.Module):
    """A model that takes tensors by their names, and gives them in a plain dictionary.

    A program that had transformers' outputs in it would need transformers where it runs.

    Args:
        model: the model.
        names: names of the model's inputs.
        options: other arguments of the model.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.options = model, dict(options)
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]

        def forward(**inputs: Tensor) -> dict[str, Tensor]:
            return self._run(inputs)

        # By which `torch.export` knows the inputs.
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.model(**inputs, **self.options, return_dict=True)
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def trace(named: NamedOutputs, batches: Batches) -> ExportedProgram:
    """The program of a model on CPU, in evaluation mode, for all sizes of `batches.axes` and any batch.

    Raises:
        RuntimeError: if torch cannot make one; it says for which sizes.
    """
    sizes, found = batches.find_axes()
    dims: dict[str, Any] = {"batch": Dim("batch")}
    for name, axis in batches.axes.items():
        # The sides of a picture are whole patches: of any size, torch would ask whether the rest of one is left.
        whole = None if axis.patch is None else axis.patch * Dim(f"{name}_patches", min=axis.shortest // axis.patch)
        # Convolutions over sound need some of it; of texts, one of one word is nothing else to torch.
        least = axis.shortest if axis.shortest > 2 else None
        dims[name] = Dim(name, min=least, max=axis.longest) if whole is None else whole
    shapes = {
        name: {dim: dims[axis] + more if more else dims[axis] for dim, (axis, more) in of_input.items()}
        for name, of_input in found.items()
    }
    try:
        with torch.no_grad(), _quietly():
            return torch.export.export(named, (), batches.make(sizes), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch has no class of its own for what it cannot trace
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise RuntimeError(
            f"{type(named.model).__name__} cannot be exported for any {' and '.join(dims)}: {reason}"
        ) from error


def write_torch(program: ExportedProgram, path: Path) -> None:
    """The program as `torch.export.load` reads it."""
    with _quietly():
        torch.export.save(program, path)


def write_onnx(program: ExportedProgram, batches: Batches, outputs: tuple[str, ...], path: Path) -> None:
    """The program as ONNX; what is above 2 GB of weights is in a file beside it.

    Raises:
        RuntimeError: if there is no ONNX for one of its operators.
    """
    _, found = batches.find_axes()
    names = {key: {dim: axis for dim, (axis, more) in dims.items() if not more} for key, dims in found.items()}
    try:
        with _quietly():
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=names,
                input_names=list(batches.names),
                output_names=list(outputs),
                verbose=False,
            )
            made.save(path)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:500]
        raise RuntimeError(f"the model cannot be written as ONNX: {reason}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what torch says while it traces, about its own passes and packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # onnxscript says on stdout how many of its rules it has applied.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
