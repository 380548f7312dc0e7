"""Common parts of the commands: exit codes and help, what goes to which stream, and how a model is found."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..loading import LoadingError, causes, loading
from ..result_tables import ResultTable, printable

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedConfig, PreTrainedModel

DONE = 0
CHECK_FAILED = 1
WRONG_USE = 2
NETWORK_FAILED = 3

EXIT_CODES = {
    DONE: "done",
    CHECK_FAILED: "what was checked does not hold, or the work failed",
    WRONG_USE: "wrong use, such as a folder without a model; nothing was done",
    NETWORK_FAILED: "the Hub or the network failed",
}

WIDE = 160  # columns of a table that does not go to a terminal

# The form of mechanisms that are given by their place, not by the name of a registered one.
ELSEWHERE = "FILE.py|MODULE:CLASS"

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout. Everything else goes to stderr.")
]
Elsewhere = Annotated[
    list[str] | None,
    typer.Option(
        "--mechanism",
        metavar=ELSEWHERE,
        help="Import this file or class to register a mechanism that the model has and hf_lam does not. Its code "
        "is run: read it first. May be repeated.",
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="The branch, tag or commit on the Hub.")]


# --- Help ------------------------------------------------------------------------------------------------------------


def epilog(examples: Sequence[str], codes: Mapping[int, str] | None = None) -> str:
    """The end of a command's help: examples, and the exit codes, some of them in the command's own words."""
    lines = [f"  $ {example}" for example in examples]
    return "\n".join(["[bold]Examples[/bold]", *lines]) + "\n\n" + exit_codes(codes)


def exit_codes(codes: Mapping[int, str] | None = None) -> str:
    """The exit codes as a paragraph of help."""
    lines = [f"  {code}  {meaning}" for code, meaning in {**EXIT_CODES, **(codes or {})}.items()]
    return "\n".join(["[bold]Exit codes[/bold]", *lines])


def help_of(command: Callable[..., None]) -> str:
    """A command's docstring with one line for each paragraph, which the terminal then breaks where it is wide."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


# --- Streams ---------------------------------------------------------------------------------------------------------


def stdout_for(as_json: bool) -> AbstractContextManager[Any]:
    """Send whatever is printed to stderr while this lasts, if stdout is for JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(values: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(values, indent=2))


def result_console() -> Console:
    """The console for results that people read: stdout."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)


def print_tables(tables: Iterable[ResultTable]) -> None:
    """Print what a result shows; on a terminal, tables are no wider than that."""
    from rich.markup import escape
    from rich.table import Table

    console = result_console()
    for found in tables:
        if found.title:
            title = "\n".join(map(printable, found.title.splitlines()))
            console.print(title, markup=False, highlight=False, soft_wrap=True)
        if found.columns:
            table = Table()
            for column in found.columns:
                is_number = column.is_number
                table.add_column(
                    column.heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
                )
            for row in found.rows:
                table.add_row(*map(escape, row))
            if found.totals:
                table.add_section()
            for row in found.totals:
                table.add_row(*map(escape, row))
            console.print(table)
        if found.notes:
            console.print("\n".join(map(printable, found.notes)), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def working(what: str, *, has_bars: bool = False) -> Iterator[None]:
    """Say on stderr what is being done: a spinner on a terminal, one line elsewhere.

    has_bars: the work shows bars of its own on a terminal, such as those of downloads, which a spinner would break.
    """
    from rich.console import Console

    is_terminal = sys.stderr.isatty()
    spins = is_terminal and not has_bars
    if not spins:
        typer.echo(f"{what} …", err=True)
    spinner = Console(stderr=True).status(what) if spins else nullcontext()
    with _quiet_transformers(bars=is_terminal and has_bars), spinner:
        yield


@contextmanager
def _quiet_transformers(bars: bool) -> Iterator[None]:
    """Keep transformers' warnings out of what a command says, and its progress bars and the Hub's unless `bars`."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def size_of(count: int) -> str:
    """A number of bytes for readers: `417 B`, `1.2 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


# --- Models ----------------------------------------------------------------------------------------------------------


def is_local(name: str) -> bool:
    """Whether a name is a folder, and so none on the Hub."""
    return os.path.isdir(os.path.expanduser(name))


def model_source(name: str) -> str:
    """The folder or the id on the Hub that a name means.

    Raises:
        ValueError: for a folder without a model, or a path where there is no folder.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if not Path(path, "config.json").is_file():
            raise ValueError(f"there is no model in the folder {name!r}: it has no config.json.")
        return path
    if os.path.exists(path) or name.startswith((".", "~")) or os.path.isabs(name):
        raise ValueError(f"there is no folder {name!r}.")
    return name


def load_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model, without running code from its repository.

    Raises:
        LoadingError: if the repository or the Hub cannot be read.
        ValueError: if there is none that can be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    options = {} if revision is None else {"revision": revision}
    try:
        with loading(source, revision):
            return AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except LoadingError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{source!r} is no folder or id of a model that can be read: {first_line(error)}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the config.json of {source!r} cannot be read ({type(error).__name__}: {first_line(error)}). See whether "
            "model_type in it is the name of a model, and whether auto_map and the like are what they should be."
        ) from error


@contextmanager
def loading_weights(source: str) -> Iterator[None]:
    """Let errors about damaged weights name the file while this lasts, and those of the Hub the repository."""
    from safetensors import SafetensorError

    from ..hub.repository_files import LocalFiles, UnreadableError

    try:
        with loading(source):
            yield
    except (SafetensorError, OSError) as error:
        if not is_local(source):
            raise
        files = LocalFiles(source)
        for name in sorted(files.sizes):
            if name.endswith(".safetensors") and "/" not in name:
                try:
                    files.tensors(name)
                except UnreadableError as reason:
                    raise RuntimeError(f"{os.path.join(source, name)!r} {reason}.") from error
        raise


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder of a configuration, with random weights; a `ValueError` if there is none."""
    from transformers import AutoModel

    from ..modeling import modeling_hf_lam
    from ..modeling.configuration_hf_lam import config_class_of

    ours = config_class_of(config.model_type)
    try:
        if ours is not None and not isinstance(config, ours):
            # Of a model with a decoder, the Auto class would make both.
            return getattr(modeling_hf_lam, ours.auto_classes["AutoModel"]).host_class(config)
        return AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"no model can be made of the {type(config).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_processor(source: str, model: PreTrainedModel, revision: str | None = None) -> Any:
    """Load the processor of a model's inputs; `None` if there is none beside it.

    Raises:
        LoadingError: if the repository or the Hub cannot be read.
        UnavailableError: if its class needs a package that is not installed.
        ValueError: if it cannot be made of its files.
    """
    from ..hub import processors

    try:
        with loading(source, revision):
            return processors.load_processor(source, model, revision)
    except (LoadingError, processors.UnavailableError):
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"the tokenizer or processor of {source!r} cannot be loaded ({reason}).") from error


# --- Errors ----------------------------------------------------------------------------------------------------------


def exit_code_of(error: BaseException) -> int | None:
    """The exit code for an error; `None` for one that is a fault of this program."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from safetensors import SafetensorError

    from ..hub import PushError

    # transformers, and this program, wrap what the Hub's client raises.
    chain = list(causes(error))
    absent = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError, HFValidationError)
    if any(isinstance(cause, absent) and not isinstance(cause, GatedRepoError) for cause in chain):
        return NETWORK_FAILED if isinstance(error, PushError) else WRONG_USE
    network = (PushError, HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if any(isinstance(cause, network) for cause in chain):
        return NETWORK_FAILED
    if isinstance(error, (ValueError, TypeError, ImportError)):
        return WRONG_USE
    return CHECK_FAILED if isinstance(error, (RuntimeError, OSError, SafetensorError)) else None


def one_line(error: BaseException) -> str:
    """The message of an error in one line, and never with the token in it."""
    from huggingface_hub import get_token

    message = " ".join(str(error).split()) or type(error).__name__
    token = get_token()
    return message.replace(token, "(token)") if token else message
