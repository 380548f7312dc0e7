"""Export a model: the program, what feeds it, and a page that says how, written whole once the program is checked."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from ..hub.processors import copy_processor
from ..output import check_output, new_folder, saying_why
from .batches import Batches, batches_for
from .checking import Trial, compare_outputs, default_tolerance, run_onnx, run_torch
from .programs import FILES, NamedOutputs, trace, write_onnx, write_torch
from .readme import write_readme
from .sources import Source, as_it_runs, load_source

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportReport:
    """The program that [`export`] wrote, and how it was checked.

    path: the folder.
    format: `onnx` or `torch`.
    file: name of the program's file in the folder.
    inputs: the dimensions of each input: numbers, and names of what may differ.
    outputs: the names of the outputs.
    shapes: the batches that the program was compared on.
    largest_difference: largest difference of an output from the model's.
    relative_difference: the same as a share of the largest number of its output.
    tolerance: largest relative difference that was allowed.
    notes: notes for the user.
    """

    path: str
    format: str
    file: str
    inputs: dict[str, list[int | str]]
    outputs: list[str]
    shapes: list[str]
    largest_difference: float
    relative_difference: float
    tolerance: float
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def export(
    model: PreTrainedModel | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    format: str = "onnx",
    *,
    inputs: Iterable[str] | None = None,
    processor: Any = None,
    tolerance: float | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> ExportReport:
    """Write a model as a program that runs without hf_lam, for batches of any size and inputs of any length.

    The folder gets `model.onnx` or `model.pt2`, `config.json` with the labels, the files of the tokenizer or
    processor, and a `README.md` with lines that run. Inputs have the names of the arguments of `forward`, outputs
    those of what it returns.

    Before anything takes its place, the program runs on batches of several shapes, with padding and without, and is
    compared with the model: ONNX by onnxruntime, and `torch.export` in a new process that can import neither hf_lam
    nor transformers. The difference that counts is that of any number of an output, as a share of the largest number
    of that output in the batch.

    Args:
        model: an `HfLam…` model, one of transformers with injected mechanisms or without, a folder that one was saved
            in, or its id on the Hub. Code in it is not run.
        output_dir: the folder, new or empty.
        format: `onnx`, which needs the extra `export`, or `torch`.
        inputs: names of the tensors that the program takes, or a batch, which has names. Unless given, all that the
            model takes in use but `has_NAME` and `NAME_positions` of a fusion model.
        processor: the tokenizer, image processor, feature extractor or processor; of a folder, the one in it unless
            given.
        tolerance: largest relative difference that is allowed; unless given, 1e-4 in float32, and ten steps of other
            dtypes.
        dtype: dtype of the weights, such as `float32`; as in the checkpoint unless given. Only for a checkpoint.
        revision: branch, tag or commit on the Hub.

    Returns:
        The program, and how far its outputs are from the model's.

    Raises:
        ImportError: if a package is missing; it names the extra.
        TypeError: if `model` is none of transformers'.
        ValueError: for an invalid format, folder, tolerance or input, or a model that cannot be exported.
        RuntimeError: if the program cannot be made, does not run at some shape, or differs. Nothing is written.

    Examples:
        >>> from hf_lam import LocomtConfig, convert, export
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig(views="self"))
        >>> report = export(model, "vit-program", "torch")
        >>> report.file, report.relative_difference < 1e-4
        ('model.pt2', True)
    """
    target = Path(output_dir).expanduser()
    _check_options(model, format, tolerance, dtype, revision)
    check_output(target)
    if isinstance(model, PreTrainedModel):
        source = Source(model, processor, None)
    else:
        source = load_source(model, revision, dtype)
        source = source if processor is None else source._replace(processor=processor, notes=())
    if format == "onnx" and source.model.dtype == torch.bfloat16:
        raise ValueError(
            "onnxruntime runs no bfloat16 on CPU. Export the model in float32: model.float(), or dtype='float32' "
            "(--dtype float32) for a checkpoint."
        )
    batches = batches_for(source.model, inputs)
    _check_forward(source.model, batches)
    allowed = default_tolerance(source.model.dtype) if tolerance is None else float(tolerance)
    with new_folder(target) as folder, as_it_runs(source.model) as running:
        named = NamedOutputs(running, batches.names, batches.options)
        program, batches, notes = _trace(named, batches)
        made = [(sizes, batches.make(sizes)) for sizes in batches.list_sizes()]
        trials = [Trial(sizes, batch, named(**batch)) for sizes, batch in made]
        outputs = tuple(trials[0].expected)
        file = folder / FILES[format]
        with saying_why(target):
            if format == "onnx":
                write_onnx(program, batches, outputs, file)
            else:
                write_torch(program, file)
        found = (run_onnx if format == "onnx" else run_torch)(file, trials)
        difference, share = compare_outputs(trials, found, allowed)
        report = ExportReport(
            path=str(target),
            format=format,
            file=file.name,
            inputs=_dimensions_of(batches),
            outputs=list(outputs),
            shapes=[trial.sizes.describe() for trial in trials],
            largest_difference=difference,
            relative_difference=share,
            tolerance=allowed,
            notes=[*source.notes, *notes],
        )
        with saying_why(target):
            _write_beside(folder, source, revision)
            write_readme(folder, source.model, source.processor, batches, report.format, _facts_of(report))
    return report


def _check_options(model: Any, format: str, tolerance: Any, dtype: str | None, revision: str | None) -> None:
    if format not in FILES:
        raise ValueError(f"format must be one of {', '.join(FILES)}, got {format!r}.")
    is_number = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
    if tolerance is not None and not (is_number and tolerance > 0):
        raise ValueError(f"tolerance must be a number above 0, got {tolerance!r}.")
    is_model = isinstance(model, PreTrainedModel)
    if not is_model and not isinstance(model, (str, os.PathLike)):
        unwrap = " Export what is inside: model.merge_and_unload()." if hasattr(model, "merge_and_unload") else ""
        raise TypeError(
            f"export needs a transformers model (a PreTrainedModel), a folder or an id on the Hub, got "
            f"{type(model).__name__}.{unwrap}"
        )
    if is_model and (dtype is not None or revision is not None):
        raise ValueError("dtype and revision are for a folder or an id on the Hub; a model is exported as it is.")
    if dtype is not None and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ValueError(f"dtype must be the name of one of torch, such as 'float32', got {dtype!r}.")
    missing = [name for name in _PACKAGES if format == "onnx" and find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}. Run `pip install "hf-lam[export]"`.')


def _check_forward(model: Any, batches: Batches) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in kinds]
    lacking = [name for name in needed if name not in batches.names]
    if lacking:
        raise ValueError(
            f"{type(model).__name__} cannot be exported: it needs {', '.join(lacking)}, which is made anew for each "
            "batch while a model is trained. Export the encoder inside of it, or a model with another head."
        )


def _trace(named: NamedOutputs, batches: Batches) -> tuple[ExportedProgram, Batches, list[str]]:
    """The program, of pictures of any size where the model takes them and torch can trace that."""
    fixed = batches.without_sizes()
    if fixed.axes == batches.axes:
        return trace(named, batches), batches, []
    names = " and ".join(name for name, axis in batches.axes.items() if axis.patch is not None)
    try:
        program = trace(named, batches)
        run = program.module()
        for sizes in batches.list_sizes():
            run(**batches.make(sizes))
    except (RuntimeError, AssertionError):
        note = f"the {names} of its input cannot differ in the program: torch cannot trace this model for any"
        return trace(named, fixed), fixed, [note]
    return program, batches, []


def _dimensions_of(batches: Batches) -> dict[str, list[int | str]]:
    sizes, found = batches.find_axes()
    dimensions: dict[str, list[int | str]] = {}
    for name, tensor in batches.make(sizes).items():
        dimensions[name] = list(tensor.shape)
        for dim, (axis, more) in found[name].items():
            dimensions[name][dim] = f"{axis} + {more}" if more else axis
    return dimensions


def _write_beside(folder: Path, source: Source, revision: str | None) -> None:
    """The configuration, with the labels and without the code of a model, and the files of the processor."""
    config = source.model.config
    content = json.loads(config.to_json_string())
    content.pop("auto_map", None)
    if config.id2label:
        content["id2label"] = {str(number): label for number, label in config.id2label.items()}
        content["label2id"] = {label: number for number, label in config.id2label.items()}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if source.processor is not None:
        source.processor.save_pretrained(folder)
    elif source.place is not None:
        copy_processor(source.place, folder, revision=revision)


def _facts_of(report: ExportReport) -> list[str]:
    """The sentences of the page about the check."""
    return [
        f"compared with the model on {'; '.join(report.shapes)}",
        f"largest difference: {report.largest_difference:.2g}, which is {report.relative_difference:.2g} of the "
        f"largest number of the output (allowed: {report.tolerance:.2g})",
        *report.notes,
    ]
