"""The command `hf-lam`. What a command needs is imported inside of it, so that `--help` is quick."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from ..modeling.version_hf_lam import __version__
from . import compare, convert, cost, demo, export, inspect, push, verify
from .common import CHECK_FAILED, NETWORK_FAILED, WRONG_USE, exit_code_of, exit_codes, help_of, one_line

__all__ = ["CHECK_FAILED", "NETWORK_FAILED", "WRONG_USE", "app", "main"]

app = typer.Typer(
    name="hf-lam",
    help="Attention mechanisms from research in Hugging Face transformers.",
    epilog="hf-lam COMMAND --help shows examples. No command runs code from a repository.\n\n" + exit_codes(),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
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


app.command(help=help_of(convert.convert), epilog=convert.EPILOG)(convert.convert)
app.command(help=help_of(inspect.inspect), epilog=inspect.EPILOG)(inspect.inspect)
app.command(help=help_of(cost.cost), epilog=cost.EPILOG)(cost.cost)
app.command(help=help_of(export.export), epilog=export.EPILOG)(export.export)
app.command(help=help_of(push.push), epilog=push.EPILOG)(push.push)
app.command(help=help_of(compare.compare), epilog=compare.EPILOG)(compare.compare)
app.command(help=help_of(verify.verify), epilog=verify.EPILOG)(verify.verify)
app.command(help=help_of(demo.demo), epilog=demo.EPILOG)(demo.demo)


def main() -> None:
    """Run the command line; expected errors are one line on stderr and an exit code, not a traceback."""
    # Tables have a minus sign and Greek letters, which not every stream can take; errors already go on as they can.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        typer.echo(f"error: {one_line(error)}", err=True)
        sys.exit(code)
