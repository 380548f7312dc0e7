"""`hf-lam push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    CHECK_FAILED,
    NETWORK_FAILED,
    WRONG_USE,
    AsJson,
    Elsewhere,
    epilog,
    print_json,
    result_console,
    size_of,
    stdout_for,
    working,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..hub import PushReport

EPILOG = epilog(
    [
        "hf-lam push ./bert-lam me/bert-lam --dry-run",
        "hf-lam push ./run me/vit-stt --private --base-model google/vit-base-patch16-224",
        "hf-lam push ./run me/vit-stt --create-pr --message 'Trained for three more epochs'",
    ],
    {
        CHECK_FAILED: "the folder could not be prepared; nothing was uploaded",
        WRONG_USE: "wrong use, such as a folder without a model; nothing was uploaded",
        NETWORK_FAILED: "the Hub refused, or the network failed; no commit was made",
    },
)


def push(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a saved model, from save_pretrained, a Trainer, or a checkpoint.")
    ],
    repo_id: Annotated[
        str, typer.Argument(help="The repository, as your name or organisation, a slash, and its name.")
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Make a new repository private or public. Unless given, the account's setting decides.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="The branch to commit to. Unless given, main.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request with the commit.")] = False,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The data set that the results were measured on, for the card: an id on the Hub or a name.",
        ),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="The model that this one was converted from, for the card. May be repeated."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="The licence for the card, such as apache-2.0.")
    ] = None,
    mechanism: Elsewhere = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded, and upload nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a saved model to the Hub: weights, code, processor and card in one commit.

    The figures on the card come from result files in the folder, which a run wrote; they cannot be typed in.

    Log in with `hf auth login` or set HF_TOKEN. There is no option for the token, which would stay in the history of
    the shell.
    """
    from ..hub import push as push_model
    from ..mechanism_options import find_mechanisms

    find_mechanisms("--mechanism", mechanism or [])
    what = f"Looking at what would go to {repo_id}" if dry_run else f"Pushing to {repo_id}"
    with stdout_for(as_json), working(what, has_bars=not dry_run):
        report = push_model(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=message,
            dataset=dataset,
            base_model=base_model or None,
            license=license,
            dry_run=dry_run,
        )
    if as_json:
        print_json(report.to_dict())
        return
    console = result_console()
    console.print(_files_table(report))
    console.print(_lines(report, folder), markup=False, highlight=False, soft_wrap=True)


def _files_table(report: PushReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for path, size in report.files.items():
        table.add_row(Text(path), size_of(size))
    table.add_section()
    table.add_row(f"{len(report.files)} files", size_of(sum(report.files.values())))
    return table


def _lines(report: PushReport, folder: Path) -> str:
    lines = [f"removed by the same commit: {path}" for path in report.deleted]
    lines += [f"note: {note}" for note in report.notes]
    if report.commit is None:
        return "\n".join([*lines, f"dry run: nothing was uploaded to {report.repo_id} ({report.revision})"])
    commit = report.commit
    lines.append(f"commit: {commit.commit_url}")
    if commit.pr_url is not None:
        lines.append(f"pull request: {commit.pr_url}")
    pinned = f'"{report.repo_id}", trust_remote_code=True, revision="{commit.oid}", code_revision="{commit.oid}"'
    return "\n".join(
        [
            *lines,
            f"check it: hf-lam verify {report.repo_id} --revision {commit.oid}",
            f"load it:  {_auto_class_of(folder)}.from_pretrained({pinned})",
        ]
    )


def _auto_class_of(folder: Path) -> str:
    """The Auto class that loads the class which was saved in `folder`."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    saved = {f".{name}" for name in config.get("architectures") or ()}
    targets = config.get("auto_map", {})
    return next((auto for auto, target in targets.items() if any(map(str(target).endswith, saved))), "AutoModel")
