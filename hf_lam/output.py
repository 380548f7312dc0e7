"""A folder that is written: whole or not at all, and one process at a time."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_REASONS = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "it is not allowed",
    errno.EPERM: "it is not allowed",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
}
# How a Rust library, such as safetensors, says what the system said.
_OF_RUST = re.compile(r"\(os error (\d+)\)")


def check_output(output: Path) -> None:
    """Raises a `ValueError` if something is there that would be overwritten, or no folder can be there."""
    if output.is_dir():
        if any(output.iterdir()):
            raise ValueError(f"the folder {str(output)!r} is not empty; choose a new one.")
    elif os.path.lexists(output):
        raise ValueError(f"{str(output)!r} is not a folder; choose a new one.")
    nearest = next(parent for parent in output.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise ValueError(f"{str(output)!r} cannot be made: {str(nearest)!r} is not a folder. Choose another place.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which takes its place as `output` if nothing fails.

    It lies beside `output`; what processes left there that have died meanwhile is removed.

    Raises:
        ValueError: if something is in the way or comes in the way, if another process is writing the same, or if
            nothing can be written there.
    """
    from .modeling.saving_hf_lam import staging

    check_output(output)
    target = output.resolve()
    prefix = f".{target.name}."
    missing = [parent for parent in target.parents if not parent.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        with saying_why(output, ValueError):
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = stack.enter_context(staging(target.parent, prefix))
            _check_alone(staged, prefix, output)
            folder = staged / target.name
            folder.mkdir()
        yield folder
        with saying_why(output, ValueError):
            if target.is_dir():
                target.rmdir()  # fails if something has come in
            folder.rename(target)


@contextmanager
def saying_why(output: Path, kind: type[Exception] = RuntimeError) -> Iterator[None]:
    """Turn an error of the system in writing `output` into one of `kind` that names it, while this lasts."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _OF_RUST.search(str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number is None:
            raise
        if number in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            reason = "something else was written there meanwhile; choose a new one"
        else:
            reason = f"{_REASONS.get(number, os.strerror(number))}; choose another place, or make it possible there"
        raise kind(f"{str(output)!r} was not written: {reason}.") from error


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty: it was written, or it is somebody else's
            folder.rmdir()


def _check_alone(staged: Path, prefix: str, output: Path) -> None:
    """Raises a `ValueError` if another living process began to write the same before."""
    from .modeling.saving_hf_lam import is_alive, list_staged

    others = [folder for folder in list_staged(staged.parent, prefix) if folder != staged and is_alive(folder)]
    # One that began later finds this one.
    if any(folder.stat().st_ctime_ns <= staged.stat().st_ctime_ns for folder in others):
        raise ValueError(f"another process is writing {str(output)!r}; wait for it, or choose a new one.")
