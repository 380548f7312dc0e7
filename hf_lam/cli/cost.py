"""`hf-lam cost`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from .common import (
    CHECK_FAILED,
    AsJson,
    Elsewhere,
    Revision,
    epilog,
    is_local,
    load_config,
    model_source,
    print_json,
    print_tables,
    random_model,
    stdout_for,
    working,
)

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
    batch_size: Annotated[int, typer.Option(min=1, help="The number of samples in the batch.")] = 1,
    bottleneck_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="The number of bottleneck tokens (MBT) in the baseline that views are compared with."
        ),
    ] = 4,
    length: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="The length of a modality's input, by the name of the modality: tokens of text, vectors of "
            "features, or samples of plain sound. Unless given, the longest input that the model takes; without a "
            "limit, 32 vectors or one second of sound. May be repeated.",
        ),
    ] = None,
    mechanism: Elsewhere = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show the FLOPs of an encoder's attention, by formula and as counted by torch.

    Every layer is costed with full attention, with segments that see only themselves, with a bottleneck between these
    segments, and with the model's own views or synthesised attention. Making a synthesised map or a mask is counted
    separately. For a fusion model, the layers are those of fusion, and the segments are its modalities.

    Only the model's configuration is read; the encoder is built with random weights.
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
        print_tables(report.tables())
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
