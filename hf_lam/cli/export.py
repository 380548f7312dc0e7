"""`hf-lam export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    CHECK_FAILED,
    WRONG_USE,
    AsJson,
    Elsewhere,
    Revision,
    epilog,
    is_local,
    loading_weights,
    model_source,
    print_json,
    result_console,
    stdout_for,
    working,
)

if TYPE_CHECKING:
    from ..exporting import ExportReport

EPILOG = epilog(
    [
        "hf-lam export ./bert-lam --output_dir ./bert-onnx",
        "hf-lam export me/vit-views --format torch --output_dir ./vit-program",
        "hf-lam export ./fusion --output_dir ./fusion-onnx --input clips_features --input clips_mask",
    ],
    {
        CHECK_FAILED: "the program could not be made, or differs from the model; nothing was written",
        WRONG_USE: "wrong use, such as a folder without a model, or a package that is missing; nothing was written",
    },
)


class Program(str, Enum):
    onnx = "onnx"
    torch = "torch"


def export(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the Hub.")],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output_dir", "--output-dir", "--output", metavar="DIR", help="The folder to write, new or empty."
        ),
    ],
    format: Annotated[
        Program,
        typer.Option(help="The kind of program: onnx writes model.onnx, and torch writes model.pt2 for torch.export."),
    ] = Program.onnx,
    input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A tensor that the program takes, by the name of the argument of forward. Unless given, all that "
            "the model takes in use. May be repeated.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The largest difference allowed between outputs of program and model, as a share of the largest "
            "number of an output. Unless given, 1e-4 in float32.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|float16", help="The dtype of the weights. Unless given, that of the checkpoint."
        ),
    ] = None,
    mechanism: Elsewhere = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX or torch.export, for batches of any size and inputs of any length, and check it.

    The program runs where hf_lam is not installed. Beside it are config.json with the labels, the tokenizer or
    processor, and a README.md with code to run it.

    Before anything is written, the program is compared with the model on batches of several shapes, with and without
    padding. ONNX runs in onnxruntime, torch.export in a process that cannot import hf_lam.
    """
    from ..exporting import export as export_model
    from ..mechanism_options import find_mechanisms

    find_mechanisms("--mechanism", mechanism or [])
    source = model_source(model)
    with stdout_for(as_json), working(f"Exporting {model}", has_bars=not is_local(source)), loading_weights(source):
        report = export_model(
            source,
            output_dir,
            format.value,
            inputs=input or None,
            tolerance=tolerance,
            dtype=dtype,
            revision=revision,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        result_console().print(_lines(model, report), markup=False, highlight=False, soft_wrap=True)


def _lines(name: str, report: ExportReport) -> str:
    inputs = [f"{key} ({', '.join(map(str, shape))})" for key, shape in report.inputs.items()]
    return "\n".join(
        [
            f"{name} → {report.path}/{report.file}",
            f"inputs: {', '.join(inputs)}",
            f"outputs: {', '.join(report.outputs)}",
            f"compared on {'; '.join(report.shapes)}",
            f"largest difference from the model: {report.largest_difference:.2g}, {report.relative_difference:.2g} of "
            f"the largest number of its output (at most {report.tolerance:.2g})",
            *(f"note: {note}" for note in report.notes),
        ]
    )
