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
        typer.Option("--weights", help="Read all weights too, and find NaN and infinity. Of a repository: all of it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a model before its code is trusted, without running any of it.

    Whether the code is byte for byte that of a released hf_lam, whether what transformers, sentence-transformers and
    PEFT read while they load names no other code and no other place, whether the weights are safetensors alone and fit
    the configuration, whether the tokenizer is whole, and what loading it would touch.

    What passed runs no code but released code. It is not said what the model answers: weights, labels, words of the
    vocabulary and prompts may be anything.

    To be done before trust_remote_code=True. What passed is the commit that was looked at: pin it.
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
