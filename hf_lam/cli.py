"""The command `hf-lam`. What a command needs is imported inside of it, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from .modeling.configuration_hf_lam import __version__

# Exit codes, beside 0 for success.
CHECK_FAILED = 1  # the command ran, but what it checked does not hold
WRONG_USE = 2  # an option or its value, or a missing package; nothing was done

MAX_SEED = 2**32 - 1  # NumPy's

app = typer.Typer(
    name="hf-lam",
    help="Learnable attention masks in Hugging Face transformers.",
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
    """Learnable attention masks in Hugging Face transformers."""


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
