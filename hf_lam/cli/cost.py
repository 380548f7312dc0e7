"""`hf-lam cost`."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    CHECK_FAILED,
    AsJson,
    Elsewhere,
    Revision,
    count_each,
    epilog,
    is_local,
    load_config,
    model_source,
    print_json,
    random_model,
    result_console,
    stdout_for,
    working,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..flops import CostReport

EPILOG = epilog(
    [
        "hf-lam cost ./my-model --batch-size 8",
        "hf-lam cost google/vit-base-patch16-224 --json",
        "hf-lam cost ./my-fusion-model --length text=20 --length clips=75",
    ],
    {CHECK_FAILED: "formula and count are not equal, or the model could not run"},
)


def cost(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the Hub.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in the batch.")] = 1,
    bottleneck_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the bottleneck (MBT) that the views are compared with.")
    ] = 4,
    length: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="Tokens of the text, vectors of features, or samples of plain sound, by the name of the modality; "
            "as many as the model can take unless given, 32 vectors or a second of sound without a limit. May be "
            "repeated.",
        ),
    ] = None,
    mechanism: Elsewhere = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """FLOPs of an encoder's attention, by formula and as counted by torch.

    For every layer: full attention, segments that see themselves, these with a bottleneck, and the model's own views
    or synthesised attention; what makes a synthesised map or a mask is counted beside these products. Of a fusion
    model, the layers are those of fusion, and the segments its modalities.

    It reads the model's configuration alone, and builds the encoder with random weights.
    """
    from ..flops import cost as cost_of
    from ..flops import example_inputs
    from ..mechanism_options import find_mechanisms

    lengths = _read_lengths(length or [])
    find_mechanisms("--mechanism", mechanism or [])
    source = model_source(model)
    with stdout_for(as_json), working(f"Counting the FLOPs of {model}", has_bars=not is_local(source)):
        encoder = random_model(load_config(source, revision))
        inputs = example_inputs(encoder, batch_size, lengths=lengths)
        report = cost_of(encoder, inputs, bottleneck_tokens=bottleneck_tokens)
    if as_json:
        print_json(report.to_dict())
    else:
        console = result_console()
        console.print(f"{report.model}: GFLOPs of the attention products")
        console.print(_cost_table(report))
        console.print(_cost_lines(report), markup=False, highlight=False, soft_wrap=True)
    if not report.agrees:
        raise typer.Exit(CHECK_FAILED)


def _read_lengths(given: Iterable[str]) -> dict[str, int]:
    lengths = {}
    for pair in given:
        name, _, number = pair.partition("=")
        if not (name and number.isdecimal()):
            raise ValueError(f"--length {pair!r} must be the name of a modality and a number, such as text=20.")
        lengths[name] = int(number)
    return lengths


def _cost_table(report: CostReport) -> Table:
    from rich.table import Table

    kinds = list(report.attention)
    table = Table()
    table.add_column("layer")
    has_views = any(layer.views for layer in report.layers)
    if has_views:
        table.add_column("views", overflow="fold")
    synthesis = ["synthesis"] if report.synthesizer else []
    for kind in [*kinds, *(["own/full"] if "own" in kinds else []), "counted", *synthesis]:
        table.add_column(kind, justify="right", no_wrap=True)
    for index, layer in enumerate(report.layers):
        sums = {kind: sum(heads) for kind, heads in layer.formula.items()}
        views = [count_each(layer.views)] if layer.views else []
        synthesis = [_giga(layer.synthesis)] if report.synthesizer else []
        table.add_row(str(index), *views, *_cost_cells(sums, layer.forward), *synthesis)
    table.add_section()
    views = [""] if has_views else []
    synthesis = [_giga(report.synthesis)] if report.synthesizer else []
    table.add_row("all", *views, *_cost_cells(report.attention, report.forward_attention), *synthesis)
    return table


def _cost_cells(sums: dict[str, int], counted: int) -> list[str]:
    ratio = [f"{sums['own'] / sums['full']:.3f}"] if "own" in sums else []
    return [*(_giga(flops) for flops in sums.values()), *ratio, _giga(counted)]


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.4g}"


def _cost_lines(report: CostReport) -> str:
    size = f"batch of {report.batch_size}, {report.tokens} tokens, heads of {report.head_size} features"
    segments = ", ".join(f"{name} {length}" for name, length in (report.segments or {}).items())
    added = f", {report.mechanism_parameters:,} of them of hf_lam" if report.mechanism_parameters else ""
    counted = f"counted: the forward pass, which computes {report.forward_kind} attention; formula and count "
    counted += "are equal" if report.agrees else "DIFFER"
    lines = [
        f"{size}{f'; segments {segments}' if segments else ''}",
        *([f"bottleneck: {report.bottleneck_tokens} tokens for each segment"] if segments else []),
        counted if report.layers else "late fusion: no fusion layers, so no attention between the modalities",
        *([_synthesis_line(report)] if report.synthesizer else []),
        *(_added_line(name, flops, report.added_formula[name]) for name, flops in report.added.items()),
        f"whole model: {_giga(report.flops)} GFLOPs, {report.parameters:,} parameters{added}",
    ]
    return "\n".join(lines)


def _synthesis_line(report: CostReport) -> str:
    where = ""
    if report.grid is not None:
        prefix = report.tokens - prod(report.grid)
        where = f", on a grid of {'×'.join(map(str, report.grid))}"
        where += f" after {prefix} prefix token{'s' if prefix > 1 else ''}" if prefix else ""
    share = (report.forward_attention + report.synthesis) / report.attention["full"]
    return (
        f"synthesised attention: {report.synthesizer}{where}; counted and synthesis are "
        f"{share:.3f} of full, without what projections cost"
    )


def _added_line(name: str, counted: int, formula: int) -> str:
    by_formula = "as by formula" if counted == formula else f"{_giga(formula)} by formula"
    return f"{name}: {_giga(counted)} GFLOPs of its own, {by_formula}"
