"""`hf-lam verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import (
    CHECK_FAILED,
    DONE,
    WRONG_USE,
    AsJson,
    Revision,
    epilog,
    is_local,
    print_json,
    result_console,
    stdout_for,
    working,
)

EPILOG = epilog(
    [
        "hf-lam verify me/bert-lam",
        "hf-lam verify me/bert-lam --revision 4f2c1d9 --json",
        "hf-lam verify ./run/checkpoint-500 --weights",
        "hf-lam verify ./downloaded && python train.py",
    ],
    {
        DONE: "the code is that of a released hf_lam, and nothing is wrong",
        CHECK_FAILED: "there are findings: do not load it with trust_remote_code=True",
        WRONG_USE: "there is no such folder, repository or revision",
    },
)


def verify(
    source: Annotated[str, typer.Argument(help="A folder, or the id of a repository on the Hub.")],
    revision: Revision = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights",
            help="Read all weights as well, and find NaN and infinity. From the Hub, this downloads all of them.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a model before you trust its code, without running any of it.

    The check passes if the code is byte for byte that of a released hf_lam; if no file that transformers,
    sentence-transformers or PEFT read while loading names other code or another place; if all weights are safetensors
    and fit the configuration; and if the tokenizer is whole. It also lists what loading the model would touch.

    A model that passes runs released code only. This check does not tell you what the model answers: its weights,
    labels, vocabulary and prompts may be anything.

    Run it before you set trust_remote_code=True. It holds for the commit that was checked: pin that commit.
    """
    from ..hub import verify as verify_source

    with stdout_for(as_json), working(f"Looking at {source}", has_bars=not is_local(source)):
        found = verify_source(source, revision=revision, weights=weights)
    if as_json:
        print_json(found.to_dict())
    else:
        result_console().print(str(found), markup=False, highlight=False, soft_wrap=True)
    if not found.passed:
        raise typer.Exit(CHECK_FAILED)
