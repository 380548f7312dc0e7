"""The page beside an exported model: its inputs and outputs, how it was checked, and lines that run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..hub.card_snippets import usage_of
from .batches import Batches
from .programs import FILES

_CLASSIFIERS = tuple(f"{kind}Classification" for kind in ("Sequence", "Image", "Video", "Audio"))
# How each format says what: the tensors of a processor, an array of ones, and how to load and call a program.
_TENSORS = {"onnx": "np", "torch": "pt"}
_LIBRARY = {"onnx": "numpy", "torch": "torch"}
_RUNS = {
    "onnx": [
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        "names = [output.name for output in session.get_outputs()]",
        "values = session.run(names, {each.name: inputs[each.name] for each in session.get_inputs()})",
        "outputs = dict(zip(names, values))",
    ],
    "torch": [
        'model = torch.export.load("model.pt2").module()',
        "with torch.no_grad():",
        "    outputs = model(**{{name: inputs[name] for name in {names}}})",
    ],
}


def write_readme(
    folder: Path, model: Any, processor: Any, batches: Batches, format: str, facts: Sequence[str]
) -> None:
    """Write `README.md`.

    Args:
        folder: folder of the program.
        model: model that was exported.
        processor: processor that is saved in the folder; None without one.
        batches: batches that the program takes.
        format: format of the program.
        facts: sentences on how it was checked, one for each line of a list.
    """
    lines = _snippet(folder, model, processor, batches, format)
    page = [
        f"# {type(model).__name__} as {'ONNX' if format == 'onnx' else 'torch.export'}",
        "",
        f"`{FILES[format]}` was written by hf_lam and runs without it. Run these lines in this folder:",
        "",
        "```python",
        *lines,
        "```",
        "",
        f"Inputs: {', '.join(f'`{name}`' for name in batches.names)}.",
        "",
        *(f"- {fact}" for fact in facts),
        "",
    ]
    (folder / "README.md").write_text("\n".join(page), encoding="utf-8")


def _snippet(folder: Path, model: Any, processor: Any, batches: Batches, format: str) -> list[str]:
    library = _LIBRARY[format]
    made = _made_by_processor(folder, model, processor, batches, format) if processor is not None else None
    imports = ["import onnxruntime"] if format == "onnx" else ["import torch"]
    if made is None:
        made = _made_by_hand(batches, library)
    label = _label_lines(model, format)
    text = "\n".join([*made, *label])
    imports += [f"import {name}" for name in ("json", "numpy") if f"{name}." in text]
    from_imports = [line for line in made if line.startswith("from ")]
    if "Image." in text:
        from_imports.append("from PIL import Image")
    made = [line for line in made if not line.startswith("from ")]
    run = [line.format(names=list(batches.names)) if "{{" in line else line for line in _RUNS[format]]
    return [*sorted(set(imports)), *sorted(from_imports), "", *made, *run, *label]


def _made_by_processor(folder: Path, model: Any, processor: Any, batches: Batches, format: str) -> list[str] | None:
    """The lines that make inputs with the processor; None if it makes none that the program takes."""
    usage = usage_of(model, type(model), processor, batches.make(batches.example))
    line = next((line for line in usage["lines"] if line.startswith("inputs = processor(")), None)
    if line is None:
        return None
    tensors = f'return_tensors="{_TENSORS[format]}"'
    if "input_ids" in batches.names and "text" not in batches.axes and "padding" not in line:
        length = batches.make(batches.example)["input_ids"].shape[-1]
        tensors = f'padding="max_length", max_length={length}, truncation=True, {tensors}'
    line = line.replace('return_tensors="pt"', tensors).replace("inputs = ", "inputs = dict(", 1) + ")"
    choices = next((line for line in usage["lines"] if line.startswith("inputs = {name: x[None]")), None)
    lines = [line, *([choices] if choices is not None else [])]
    scope: dict[str, Any] = {"processor": processor, "torch": torch}
    exec("import numpy\n", scope)
    if "Image." in line:
        exec("from PIL import Image\n", scope)
    try:
        exec("\n".join(lines), scope)
    except Exception:  # whatever a processor says to a sample that it does not take
        return None
    added = _fill(scope["inputs"], batches, _LIBRARY[format])
    if added is None:
        return None
    kind = type(processor).__name__
    auto = hasattr(transformers, kind)
    load = f'{kind}.from_pretrained(".")' if auto else 'AutoProcessor.from_pretrained(".", trust_remote_code=True)'
    return [f"from transformers import {kind if auto else 'AutoProcessor'}", f"processor = {load}", *lines, *added]


def _fill(inputs: Mapping[str, Any], batches: Batches, library: str) -> list[str] | None:
    """The lines that make what a processor does not; None if what it makes does not fit."""
    sizes, found = batches.find_axes()
    example = batches.make(sizes)
    places: dict[str, str] = {}
    for name in batches.names:
        if name not in inputs:
            continue
        if len(inputs[name].shape) != example[name].dim():
            return None
        for dim, (has, expected) in enumerate(zip(inputs[name].shape, example[name].shape, strict=True)):
            axis, more = found[name].get(dim, (None, 0))
            if axis is None and has != expected:
                return None
            if axis is not None and axis != "batch":
                limits = batches.axes[axis]
                if has - more < limits.shortest or (limits.longest is not None and has - more > limits.longest):
                    return None
            if axis is not None and not more:
                places.setdefault(axis, f'inputs["{name}"].shape[{dim}]')
    lines = []
    for name in (name for name in batches.names if name not in inputs):
        shape = []
        for dim, size in enumerate(example[name].shape):
            axis, more = found[name].get(dim, (None, 0))
            if axis is not None and axis not in places:
                return None
            shape.append(str(size) if axis is None else f"{places[axis]}{f' + {more}' if more else ''}")
        fill = "zeros" if name == "token_type_ids" or example[name].is_floating_point() else "ones"
        dtype = _dtype(example[name], library)
        lines.append(f'inputs["{name}"] = {library}.{fill}(({", ".join(shape)},), dtype={dtype})')
    return lines


def _dtype(tensor: torch.Tensor, library: str) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return f'"{name}"' if library == "numpy" else f"torch.{name}"


def _made_by_hand(batches: Batches, library: str) -> list[str]:
    """The lines that make inputs of the right shapes."""
    lines = ["inputs = {"]
    for name, tensor in batches.make(batches.example).items():
        dtype = _dtype(tensor, library)
        if name == "spatial_shapes":
            make = "array" if library == "numpy" else "tensor"
            lines.append(f'    "{name}": {library}.{make}({tensor.tolist()}, dtype={dtype}),')
            continue
        fill = "zeros" if tensor.is_floating_point() else "ones"
        lines.append(f'    "{name}": {library}.{fill}({tuple(tensor.shape)}, dtype={dtype}),')
    return [*lines, "}"]


def _label_lines(model: Any, format: str) -> list[str]:
    """The lines that print what came out."""
    config = model.config
    is_one = getattr(config, "problem_type", None) in (None, "single_label_classification") and config.num_labels > 1
    if type(model).__name__.endswith(_CLASSIFIERS) and is_one:
        return [
            'labels = json.load(open("config.json", encoding="utf-8"))["id2label"]',
            'print(labels[str(outputs["logits"].argmax(-1).item())])',
        ]
    return ["print({name: tuple(value.shape) for name, value in outputs.items()})"]
