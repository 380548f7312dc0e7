"""The command `hf-lam`. What a command needs is imported inside of it, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .modeling.configuration_hf_lam import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel

    from .flops import CostReport

# Exit codes, beside 0 for success.
CHECK_FAILED = 1  # the command ran, but what it checked does not hold
WRONG_USE = 2  # an option or its value, or a missing package; nothing was done

WIDE = 160  # columns of a table that does not go to a terminal

MAX_SEED = 2**32 - 1  # NumPy's

app = typer.Typer(
    name="hf-lam",
    help="Attention mechanisms from research in Hugging Face transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"hf-lam {__version__}")
        raise typer.Exit


@app.callback()
def hf_lam(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Attention mechanisms from research in Hugging Face transformers."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model and the pictures.")] = Path("hf-lam-demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Fixes the split, the weights and the order of training.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON on stdout; all else goes to stderr.")
    ] = False,
) -> None:
    """Train, convert, fine-tune, save and load back a small ViT on real digits.

    Takes less than two minutes on two CPU cores.

    Exit code 0: the logits agreed after conversion, and after loading without hf_lam.

    Exit code 1: they did not, or saving or loading failed.

    Exit code 2: wrong use; nothing was done.
    """
    from .demo import DemoSettings, run_demo

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = run_demo(output, DemoSettings(seed=seed))
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)


@app.command()
def cost(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the Hub.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in the batch.")] = 1,
    bottleneck_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the bottleneck (MBT) that the views are compared with.")
    ] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """FLOPs of an encoder's attention, by formula and as counted by torch.

    For every layer: full attention, segments that see themselves, these with a bottleneck, and the model's own views
    or synthesised attention; what makes a synthesised map is counted beside its products. Of a fusion model, the
    layers are those of fusion, and the segments its modalities.

    It reads the model's configuration alone, and builds the encoder with random weights.

    Example: hf-lam cost ./my-model --batch-size 8

    Exit code 0: formula and count are equal.

    Exit code 1: they are not, or the model could not run.

    Exit code 2: wrong use, such as a folder without a model; nothing was done.
    """
    from rich.console import Console

    from .flops import cost as cost_of
    from .flops import example_inputs

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        encoder = _encoder_of(model)
        report = cost_of(encoder, example_inputs(encoder, batch_size), bottleneck_tokens=bottleneck_tokens)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDE)
        console.print(f"{report.model}: GFLOPs of the attention products")
        console.print(_cost_table(report))
        console.print(_cost_lines(report), markup=False, highlight=False, soft_wrap=True)
    if not report.agrees:
        raise typer.Exit(CHECK_FAILED)


def _encoder_of(name: str) -> PreTrainedModel:
    """The encoder behind a folder or id, with random weights; a `ValueError` of one line if there is none."""
    from transformers import AutoConfig, AutoModel

    try:
        return AutoModel.from_config(AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name!r} is not a folder or id of a model that can be built: {reason}") from error


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
        views = [_summary(layer.views)] if layer.views else []
        synthesis = [_giga(layer.synthesis)] if report.synthesizer else []
        table.add_row(str(index), *views, *_cost_cells(sums, layer.forward), *synthesis)
    table.add_section()
    views = [""] if has_views else []
    synthesis = [_giga(report.synthesis)] if report.synthesizer else []
    table.add_row("all", *views, *_cost_cells(report.attention, report.forward_attention), *synthesis)
    return table


def _summary(views: tuple[str, ...]) -> str:
    """How many heads have which view: `6 self, 6 cross:a-b`."""
    return ", ".join(f"{views.count(view)} {view}" for view in dict.fromkeys(views))


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
        f"whole model: {_giga(report.flops)} GFLOPs, {report.parameters:,} parameters{added}",
    ]
    return "\n".join(lines)


def _synthesis_line(report: CostReport) -> str:
    assert report.grid is not None
    grid = "×".join(map(str, report.grid))
    prefix = report.tokens - prod(report.grid)
    before = f" after {prefix} prefix token{'s' if prefix > 1 else ''}" if prefix else ""
    share = (report.forward_attention + report.synthesis) / report.attention["full"]
    return (
        f"synthesised attention: {report.synthesizer}, on a grid of {grid}{before}; counted and synthesis are "
        f"{share:.3f} of full, without what projections cost"
    )


def main() -> None:
    """Run the command line; expected errors are one message on stderr and an exit code, not a traceback."""
    try:
        app()
    except (ValueError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(WRONG_USE)
    except (RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(CHECK_FAILED)


if __name__ == "__main__":
    main()
