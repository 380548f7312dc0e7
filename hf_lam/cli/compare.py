"""`hf-lam compare`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import CHECK_FAILED, WRONG_USE, epilog, one_line, result_console

INTERRUPTED = 130  # as shells have it

EPILOG = epilog(
    [
        "hf-lam compare plan.yaml --output_dir ./out",
        "hf-lam compare plan.yaml --output_dir ./out --seeds 0-4 --rows full --rows lam",
        "hf-lam compare plan.yaml --output_dir ./out --test --keep_models",
    ],
    {
        CHECK_FAILED: "some runs failed; the results say which and why",
        WRONG_USE: "wrong use, such as a plan that cannot work; nothing was trained",
        INTERRUPTED: "interrupted; the same command goes on from there",
    },
)


def compare(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN.yaml", help="The plan of what to compare, as docs/compare.md describes it.")
    ],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output_dir", help="A new folder, or the folder of an earlier run of the same plan, which is continued."
        ),
    ],
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="SEEDS",
            help="Use these seeds in place of the plan's: a number of seeds (5), or a list of them (0,3 or 10-19).",
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--rows",
            metavar="ROW",
            help="Run only this row, the baseline, and rows whose runs it needs. May be repeated.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Run this many runs at the same time.")] = 1,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate every run on the test data as well, at the very end.")
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep_models", help="Keep the trained models in the folders of their runs.")
    ] = False,
    no_check: Annotated[
        bool,
        typer.Option("--no_check", help="Skip the check that prepares every row for training before the first run."),
    ] = False,
    no_timing: Annotated[bool, typer.Option("--no_timing", help="Skip measuring milliseconds at the end.")] = False,
) -> None:
    """Train every row of a plan with every seed, to find which mechanism helps on your data and what it costs.

    Writes results.json, times.json, tables and plots. After an interruption, the same command continues where it
    stopped.
    """
    from ..comparing import compare as run

    # A shell leaves it in `--output_dir=~/out`.
    output_dir = output_dir.expanduser()
    try:
        results = run(
            plan,
            output_dir,
            seeds=None if seeds is None else read_seeds(seeds),
            rows=rows or None,
            jobs=jobs,
            test=test,
            keep_models=keep_models,
            check=not no_check,
            timing=not no_timing,
        )
    except KeyboardInterrupt as stop:
        typer.echo(f"interrupted: {stop}" if stop.args else "interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from stop
    except ValueError as error:
        # Of every row that cannot be trained, a line.
        for line in str(error).splitlines():
            typer.echo(f"error: {one_line(ValueError(line))}", err=True)
        raise typer.Exit(WRONG_USE) from error
    _print_table(output_dir)
    if any(run["error"] is not None for row in results["rows"] for run in row["runs"]):
        raise typer.Exit(CHECK_FAILED)


def read_seeds(text: str) -> int | list[int]:
    """Read `--seeds`: a number of seeds (`5`), or a list of them (`0,3` or `10-19`)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+(-\d+)?", part) for part in parts):
        raise ValueError(f"--seeds {text}: say how many, such as 5, or which, such as 0,3 or 10-19.")
    if len(parts) == 1 and parts[0].isdigit():
        return int(text)
    seeds: list[int] = []
    for part in parts:
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def _print_table(output_dir: Path) -> None:
    text = Path(output_dir, "results.md").read_text(encoding="utf-8")
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        result_console().print(Markdown(text))
    else:
        typer.echo(text)
