"""Errors of loading from the Hub, said once and in words that tell what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class LoadingError(OSError):
    """A repository on the Hub that cannot be read; what the Hub's client raised is its cause."""


@contextmanager
def loading(
    name: str,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    is_dataset: bool = False,
) -> Iterator[None]:
    """Turn errors of the Hub, or on the way there, into a `LoadingError` that names the repository, while this lasts.

    Other errors, and those of folders, pass as they are.

    Args:
        name: a repository, `owner/name`, or a folder.
        revision: its branch, tag or commit, if one was asked for.
        token: token that was given, if not the one that is stored.
        cache_dir: folder that keeps downloads, if not the usual one.
        is_dataset: whether it is a repository of data.

    Raises:
        LoadingError: for a repository that is not there, or that needs a token, and for a Hub that does not answer.
    """
    try:
        yield
    except Exception as error:
        reason = None if os.path.isdir(name) else _reason(error, name, revision, token or None, cache_dir, is_dataset)
        if reason is None:
            raise
        raise LoadingError(reason) from error


def _reason(
    error: Exception, name: str, revision: str | None, token: str | None, cache_dir: str | None, is_dataset: bool
) -> str | None:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = list(causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    endpoint, cache = constants.ENDPOINT, cache_dir or constants.HF_HUB_CACHE
    kind = "data set" if is_dataset else "repository"
    page = f"{endpoint}/{'datasets/' * is_dataset}{name}"
    download = "run this once before" if is_dataset else f"run `hf download {name}` before"
    has_token = bool(token or get_token())
    who = "with a token" if has_token else "without a token"
    log_in = ("use a token that may read it" if has_token else "log in") + " (`hf auth login`, or HF_TOKEN)"
    other_hub = "" if endpoint == "https://huggingface.co" else f" HF_ENDPOINT says which Hub is asked: {endpoint}."
    statuses = [cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError) and cause.response]
    if is_any(HFValidationError):
        return f"{name!r} is no folder, and no name of a repository on the Hub, which is owner/name."
    if is_any(GatedRepoError):
        return (
            f"the {kind} {name!r} is only for those who were granted access, and was asked for {who}. Ask for "
            f"access at {page}, then {log_in}.{other_hub}"
        )
    if is_any(RepositoryNotFoundError):
        return (
            f"there is no {kind} {name!r} at {endpoint}, or it is private; it was asked for {who}. Check the name "
            f"(owner/name, or a folder that is there); for a private one {log_in}.{other_hub}"
        )
    if is_any(RevisionNotFoundError):
        return f"the {kind} {name!r} at {endpoint} has no branch, tag or commit {revision or 'main'!r}."
    if constants.HF_HUB_OFFLINE and is_any(OfflineModeIsEnabled, LocalEntryNotFoundError):
        return (
            f"the {kind} {name!r} is not, or not whole, in the cache {cache!r}, and HF_HUB_OFFLINE is set, so "
            f"that the Hub is not asked. Unset it, or {download}, or give a folder."
        )
    if 401 in statuses or 403 in statuses:
        return f"{endpoint} does not let the {kind} {name!r} be read {who}; {log_in}.{other_hub}"
    if statuses:
        hint = "It is asked too often: wait, or log in." if 429 in statuses else "Try again later."
        return f"{endpoint} answered {statuses[0]} when it was asked for the {kind} {name!r}. {hint}{other_hub}"
    if is_any(LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, ConnectionError, TimeoutError):
        return (
            f"{endpoint} cannot be reached, and the {kind} {name!r} is not, or not whole, in the cache {cache!r}. "
            f"Check the network, a proxy (HTTPS_PROXY), and the name; or give a folder.{other_hub}"
        )
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
