"""`hf-lam demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import CHECK_FAILED, WRONG_USE, AsJson, epilog, print_json, stdout_for

MAX_SEED = 2**32 - 1  # NumPy's

EPILOG = epilog(
    ["hf-lam demo", "hf-lam demo --output ./tour --seed 1 --json"],
    {
        CHECK_FAILED: "logits differed after conversion or after loading without hf_lam, or saving or loading failed",
        WRONG_USE: "wrong use, such as an output folder with something else in it; nothing was done",
    },
)


def demo(
    output: Annotated[Path, typer.Option(help="The folder for the model and the pictures.")] = Path("hf-lam-demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="The seed of the split, the weights and the order of training.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Train, convert, fine-tune, save and load back a small ViT on real digits.

    This takes less than two minutes on two CPU cores.
    """
    from ..demo import DemoSettings, run_demo

    with stdout_for(as_json):
        result = run_demo(output, DemoSettings(seed=seed))
    if as_json:
        print_json(result.to_dict())
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)
