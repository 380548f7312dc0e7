"""One branch of a repository on the Hub: what is there, and a commit to it that is made once or not at all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from ..modeling.configuration_hf_lam import __version__
from .cards import CARD_FILE, EarlierCard, read_card

logger = logging.get_logger(__name__)
ResultT = TypeVar("ResultT")

# Seconds before another try of what failed for a reason that passes; until an answer must begin; and at most to wait
# where the Hub says how long.
WAITS = (1.0, 2.0, 4.0, 8.0)
TIMEOUT = 120.0
_LONGEST_WAIT = 300.0
_PASSING = (408, 429, 500, 502, 503, 504)


class PushError(RuntimeError):
    """A push that failed for the Hub's or the network's sake. No commit was made."""


class Branch:
    """One branch of one repository."""

    def __init__(self, repo_id: str, revision: str | None, create_pr: bool, token: str | bool | None) -> None:
        self.repo_id, self.revision, self.create_pr = repo_id, revision, create_pr
        self.api = HfApi(token=token, library_name="hf_lam", library_version=__version__)
        self.secret = token if isinstance(token, str) else get_token()

    # What can be read.

    def files(self, notes: list[str], is_needed: bool) -> list[str]:
        """The paths in the repository; none if there is none yet.

        is_needed: whether a Hub that cannot be reached is an error.
        """
        try:
            with self._explained("looking at the repository"):
                return self._files(WAITS if is_needed else ())
        except PushError as error:
            if is_needed:
                raise
            notes.append(f"What is in the repository is not known. {error}")
            return []

    def _files(self, waits: Sequence[float]) -> list[str]:
        try:
            info = _tried(lambda: self.api.repo_info(self.repo_id, revision=self.revision), waits)
        except RevisionNotFoundError:  # the branch will start from the main one
            info = _tried(lambda: self.api.repo_info(self.repo_id), waits)
        except RepositoryNotFoundError:
            return []
        return [file.rfilename for file in info.siblings or ()]

    def card(self, there: Sequence[str], notes: list[str]) -> EarlierCard:
        """The card in the repository. What was measured belongs to the model that was there."""
        if CARD_FILE not in there:
            return EarlierCard({})
        try:
            path = self.api.hf_hub_download(self.repo_id, CARD_FILE, revision=self.revision)
            card = read_card(Path(path).read_text(encoding="utf-8"))
        except (HTTPError, OSError) as error:
            notes.append(f"The card in the repository could not be read, and is written anew: {_reason(error)}.")
            return EarlierCard({})
        return EarlierCard({**card.metadata, "eval_results": None}, card.sections)

    def license_of(self, bases: Sequence[str], notes: list[str]) -> str | None:
        """The licence of the bases, if all have the same."""
        found = set()
        for base in bases:
            try:
                data = self.api.model_info(base).card_data
                found.add(data.get("license") if data else None)
            except (HTTPError, OSError) as error:
                notes.append(f"The licence of {base} is not known: {_reason(error)}.")
                found.add(None)
        if len(found) == 1 and None not in found:
            return found.pop()
        notes.append("The card names no licence, since that of the base is not known; give license=.")
        return None

    # What is written.

    def commit(
        self,
        files: Mapping[str, Path],
        deleted: Sequence[str],
        message: str,
        description: str | None,
        private: bool | None,
    ) -> CommitInfo:
        with self._explained("creating the repository"):
            self.repo_id = _tried(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True)).repo_id
        if self.revision is not None and not self.revision.startswith("refs/") and not self.create_pr:
            with self._explained(f"making the branch {self.revision!r}"):
                _tried(lambda: self.api.create_branch(self.repo_id, branch=str(self.revision), exist_ok=True))
        with self._explained("looking at the repository"):
            parent = self._head()

        def send() -> CommitInfo:
            # They can be used once.
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in deleted),
            ]
            return self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                commit_description=description,
                revision=self.revision,
                create_pr=self.create_pr,
                # If it is made once and the answer is lost, it cannot be made a second time.
                parent_commit=parent,
            )

        with self._explained("the commit"):
            try:
                # huggingface_hub itself tries uploads and the commit again; this is for what it does not.
                return _tried(send, WAITS[:1])
            except Exception:
                head = self._head()
                if self.create_pr or head == parent or not self._holds(head, files):
                    raise
                url = f"{self.api.endpoint}/{self.repo_id}/commit/{head}"
                return CommitInfo(url, message, description or "", head, _endpoint=self.api.endpoint)

    def _head(self) -> str:
        return str(_tried(lambda: self.api.repo_info(self.repo_id, revision=self.revision)).sha)

    def _holds(self, commit: str, files: Mapping[str, Path]) -> bool:
        """Whether a commit has exactly these contents."""
        found = {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in _tried(lambda: self.api.get_paths_info(self.repo_id, list(files), revision=commit))
            if isinstance(entry, RepoFile)
        }
        return all(found.get(name) in _identities(path) for name, path in files.items())

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what the Hub and the network raise into a `PushError` that says what to do, without a token."""
        try:
            yield
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            text = f"{what} failed: {self._without_token(_reason(error))}. No commit was made. {self._advice(error)}"
            text = f"{self.repo_id}: {text}"
            # The original would show the token in its traceback, if a server sent it back.
            shows_token = self._without_token(_whole_text(error)) != _whole_text(error)
            raise PushError(text) from (None if shows_token else error)

    def _without_token(self, text: str) -> str:
        return text.replace(self.secret, "(token)") if self.secret else text

    def _advice(self, error: BaseException) -> str:
        status = _status(error)
        if status == 401:
            return "The Hub does not know the token: log in with `hf auth login`, or set HF_TOKEN."
        if status == 403:
            return f"The token may not write to {self.repo_id}: it needs the role `write`; or use create_pr=True."
        if status == 404:
            return "Check the repository's name and that the token may see it."
        if status in (409, 412):
            return "Somebody else has changed the repository meanwhile; look at it, and push again."
        if status == 429:
            return "The Hub asks for fewer requests; push again later."
        if isinstance(error, OfflineModeIsEnabled):
            return "Unset HF_HUB_OFFLINE to push."
        if status is None or status >= 500 or status == 408:
            return "Push again later; files that were uploaded are not sent a second time."
        return "Change what the Hub refuses, and push again."


@contextmanager
def limited_waiting() -> Iterator[None]:
    """A server that says nothing is an error after a while; huggingface_hub would wait for ever."""
    session = get_session()
    before, session.timeout = session.timeout, TIMEOUT
    try:
        yield
    finally:
        session.timeout = before


def _tried(call: Callable[[], ResultT], waits: Sequence[float] | None = None) -> ResultT:
    """The result of `call`, which is made again after what passes: a limit of requests, the Hub's own errors, cuts."""
    for wait in WAITS if waits is None else waits:
        try:
            return call()
        except (HTTPError, OSError, RuntimeError) as error:
            if not _passes(error):
                raise
            logger.warning(f"{_reason(error)}; trying again in {wait:g} s.")
            time.sleep(max(wait, _retry_after(error)))
    return call()


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _status(error: BaseException) -> int | None:
    """That of the Hub's answer; None if there was no answer."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code
    return None


def _passes(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in _PASSING
    return any(isinstance(cause, HTTPError) for cause in _causes(error))


def _retry_after(error: BaseException) -> float:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            seconds = cause.response.headers.get("Retry-After", "")
            return min(float(seconds), _LONGEST_WAIT) if seconds.isdigit() else 0.0
    return 0.0


def _reason(error: BaseException) -> str:
    """In one line: what the Hub says, or the innermost error."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            said = cause.server_message or cause.response.reason_phrase
            return f"{cause.response.status_code}, {said.strip().splitlines()[0]}" if said else str(_status(cause))
    innermost = list(_causes(error))[-1]
    return str(innermost).strip().split("\n")[0].rstrip(".") or type(innermost).__name__


def _whole_text(error: BaseException) -> str:
    return "".join(map(str, _causes(error)))


def _identities(path: Path) -> tuple[str, str]:
    """What the Hub calls a file by: git's name of a plain one, the SHA-256 of a large one."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()
