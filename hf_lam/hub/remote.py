"""One branch of a repository on the Hub: what is there, and a commit to it that is made once or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
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

from ..modeling.version_hf_lam import __version__
from .earlier_cards import CARD_FILE, LICENSE_KEYS, CardContent, read_card
from .names import git_name_of, sha256_of

logger = logging.get_logger(__name__)
ResultT = TypeVar("ResultT")

# Seconds before another try of what failed for a reason that passes; until an answer must begin; and at most to wait
# where the Hub says how long.
WAITS = (1.0, 2.0, 4.0, 8.0)
TIMEOUT = 120.0
_LONGEST_WAIT = 300.0
_PASSING = (408, 429, 500, 502, 503, 504)


class PushError(RuntimeError):
    """A push that failed for the Hub's or the network's sake. Unless it says otherwise, no commit was made."""


class Branch:
    """One branch of one repository. Notes for the user on what was read of it are returned beside the results.

    Args:
        repo_id: `you/name`, or `name` in the namespace of the token's owner.
        revision: name of the branch; None is the main one.
        create_pr: commit to a pull request instead.
        token: token for the Hub, as everywhere in huggingface_hub.
        is_needed: whether a Hub that cannot be reached is an error.
    """

    def __init__(
        self, repo_id: str, revision: str | None, create_pr: bool, token: str | bool | None, is_needed: bool = True
    ) -> None:
        self.repo_id, self.revision, self.create_pr, self.is_needed = repo_id, revision, create_pr, is_needed
        self.api = HfApi(token=token, library_name="hf_lam", library_version=__version__)
        # Its last commit and the files in it; None if there is no repository yet.
        self.commit_before: str | None = None
        self.files: list[str] = []
        self.is_private: bool | None = None
        self._secret = token if isinstance(token, str) else get_token()
        # What a push that fails leaves, in words.
        self._left = ""

    # --- what can be read --------------------------------------------------------------------------------------------

    def look(self) -> list[str]:
        """Find out the full name, the last commit and its files."""
        try:
            with self._explained("looking at the repository"):
                self._look()
        except PushError as error:
            if self.is_needed:
                raise
            return [f"The contents of the repository are not known. {error}"]
        return []

    def _look(self) -> None:
        waits = WAITS if self.is_needed else ()
        if "/" not in self.repo_id:
            self.repo_id = f"{self._tried(self.api.whoami, waits)['name']}/{self.repo_id}"
        try:
            info = self._tried(lambda: self._info(self.revision), waits)
        except RevisionNotFoundError:  # the branch will start from the main one
            info = self._tried(lambda: self._info(None), waits)
        except RepositoryNotFoundError:
            return
        self.commit_before, self.files = info.sha, [file.rfilename for file in info.siblings or ()]
        self.is_private = info.private

    def _info(self, revision: str | None) -> ModelInfo:
        # Left out, the timeout would be none at all.
        return self.api.model_info(self.repo_id, revision=revision, timeout=TIMEOUT)

    def read(self, path: str) -> str:
        """The text of a file in the repository; an `HTTPError` or an `OSError` if it cannot be read."""
        local = self.api.hf_hub_download(self.repo_id, path, revision=self.commit_before)
        return Path(local).read_text(encoding="utf-8", errors="replace")

    def card(self) -> tuple[CardContent, list[str]]:
        """The card in the repository, but for what belongs to the model that was there."""
        if CARD_FILE not in self.files:
            return CardContent(), []
        try:
            text = self.read(CARD_FILE)
        except (HTTPError, OSError) as error:
            note = f"The card in the repository could not be read, and is written anew: {_reason(error)}."
            return CardContent(), [self._without_token(note)]
        return read_card(text).of_another_model(), []

    def license_of(self, bases: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The licence in the metadata of the bases, if all have the same; empty if it is not known."""
        found = []
        for base in bases:
            try:
                data = self.api.model_info(base, timeout=TIMEOUT).card_data
            except (HTTPError, OSError) as error:
                return {}, [self._without_token(f"The licence of {base} is not known: {_reason(error)}.")]
            terms = {key: data.get(key) for key in LICENSE_KEYS if data and data.get(key)}
            if "license_link" in terms and "://" not in str(terms["license_link"]):
                terms["license_link"] = f"{self.api.endpoint}/{base}/blob/main/{terms['license_link']}"
            found.append(terms)
        return (found[0] if found and all(terms == found[0] for terms in found) else {}), []

    # --- what is written ---------------------------------------------------------------------------------------------

    def commit(
        self,
        files: Mapping[str, Path],
        deleted: Sequence[str],
        message: str,
        description: str | None,
        private: bool | None,
    ) -> CommitInfo:
        """Make the repository and the branch, unless they are there, and one commit.

        Args:
            files: files that are added or changed, by their paths in the repository.
            deleted: paths of files that are removed.
            message: the first line of the commit.
            description: the rest of it.
            private: whether a new repository is.

        Raises:
            PushError: if that was not possible.
        """
        parent = self.commit_before
        if parent is None:
            with self._explained("creating the repository"):
                made = self._tried(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))
                self.repo_id, self._left = made.repo_id, " The new repository is there, and empty."
                parent = str(self._tried(lambda: self._info(None)).sha)
        branch = self.revision
        if branch is not None and not branch.startswith("refs/") and not self.create_pr:
            with self._explained(f"making the branch {branch!r}"):
                self._tried(
                    lambda: self.api.create_branch(self.repo_id, branch=branch, revision=parent, exist_ok=True)
                )
            self._left = self._left or f" The branch {branch!r} is there, as it was or as main."

        def send() -> CommitInfo:
            # They can be used once.
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in deleted),
            ]
            try:
                return self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    commit_description=description,
                    revision=self.revision,
                    create_pr=self.create_pr,
                    # If it is made and the answer is lost, it cannot be made a second time.
                    parent_commit=parent,
                )
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                if _may_have_committed(error):
                    lost.append(error)
                raise

        lost: list[Exception] = []
        with self._explained("the commit"):
            try:
                # huggingface_hub tries each upload again by itself. A pull request would be opened a second time.
                return self._tried(send, () if self.create_pr else WAITS[:2])
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                found = self._lost_commit(parent, files, error) if lost else None
                if found is None:
                    raise
                url = f"{self.api.endpoint}/{self.repo_id}/commit/{found}"
                return CommitInfo(url, message, description or "", found, _endpoint=self.api.endpoint)

    def _lost_commit(self, parent: str, files: Mapping[str, Path], error: BaseException) -> str | None:
        """The commit that was made although there was no answer that said so; None if there is none.

        Raises:
            PushError: if that cannot be found out.
        """
        address = f"{self.api.endpoint}/{self.repo_id}"
        if self.create_pr:
            raise self._unknown(f"{address}/discussions", error)
        try:
            head = str(self._tried(lambda: self._info(self.revision)).sha)
            return head if head != parent and self._holds(head, files) else None
        except (HTTPError, OSError):
            raise self._unknown(f"{address}/commits/{self.revision or 'main'}", error) from None

    def _unknown(self, address: str, error: BaseException) -> PushError:
        return PushError(
            f"{self.repo_id}: the commit failed: {self._without_token(_reason(error))}. Whether it was made is not "
            f"known: look at {address}, and push again if it is not there."
        )

    def _holds(self, commit: str, files: Mapping[str, Path]) -> bool:
        """Whether a commit has exactly these contents."""
        found = {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in self.api.get_paths_info(self.repo_id, list(files), revision=commit)
            if isinstance(entry, RepoFile)
        }
        return all(found.get(name) in (git_name_of(path), sha256_of(path)) for name, path in files.items())

    # --- what fails --------------------------------------------------------------------------------------------------

    def _tried(self, call: Callable[[], ResultT], waits: Sequence[float] | None = None) -> ResultT:
        """The result of `call`, made again after what passes: a limit of requests, the Hub's own errors, cuts."""
        for wait in WAITS if waits is None else waits:
            # Each time: after an error of the network there may be another session.
            get_session().timeout = TIMEOUT
            try:
                return call()
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                if not _passes(error):
                    raise
                seconds = max(wait, _retry_after(error))
                logger.warning(f"{self._without_token(_reason(error))}; trying again in {seconds:g} s.")
                time.sleep(seconds)
        get_session().timeout = TIMEOUT
        return call()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what the Hub and the network raise into a `PushError` that says what to do, without a token."""
        try:
            yield
        except PushError:
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            reason = self._without_token(_reason(error))
            text = f"{self.repo_id}: {what} failed: {reason}. No commit was made. {self._advice(error)}"
            text += self._left
            # The original would show the token in its traceback, if a server sent it back.
            whole = "".join(map(str, _causes(error)))
            raise PushError(text) from (None if self._without_token(whole) != whole else error)

    def _without_token(self, text: str) -> str:
        return text.replace(self._secret, "(token)") if self._secret else text

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
        if _passes(error):
            return "Push again later; files that were uploaded are not sent a second time."
        return "Change what the Hub refuses, and push again."


_waiting = threading.Lock()
_pushes: list[Any] = []


@contextmanager
def limited_waiting() -> Iterator[None]:
    """A server that says nothing is an error after a while; huggingface_hub would wait for ever.

    Its session is one for the whole process: the last push that ends gives it its own limit back.
    """
    with _waiting:
        _pushes.append(get_session().timeout)
    try:
        yield
    finally:
        with _waiting:
            before = _pushes.pop()
            if not _pushes:
                get_session().timeout = before


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _status(error: BaseException) -> int | None:
    """The status of the Hub's answer; None if there was no answer."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code
    return None


def _passes(error: BaseException) -> bool:
    """Whether it may be gone in a moment."""
    status = _status(error)
    if status is not None:
        return status in _PASSING
    # Instead of JSON, proxies answer with a page.
    return any(isinstance(cause, (HTTPError, json.JSONDecodeError)) for cause in _causes(error))


def _may_have_committed(error: BaseException) -> bool:
    """Whether it was the answer to the commit that is missing or says nothing."""
    if _status(error) in (400, 401, 403, 404, 413, 422, 429):
        return False
    for cause in _causes(error):
        if isinstance(cause, HTTPError):
            try:
                return "/commit/" in str(cause.request.url)
            except RuntimeError:  # it has none
                return False
    return isinstance(error, json.JSONDecodeError)


def _retry_after(error: BaseException) -> float:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            seconds = cause.response.headers.get("Retry-After", "")
            return min(float(seconds), _LONGEST_WAIT) if seconds.isdigit() else 0.0
    return 0.0


def _reason(error: BaseException) -> str:
    """The reason of an error in one line: what the Hub says, or the innermost error."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            said = cause.server_message or cause.response.reason_phrase
            return f"{cause.response.status_code}, {said.strip().splitlines()[0]}" if said else str(_status(cause))
    innermost = list(_causes(error))[-1]
    return str(innermost).strip().split("\n")[0].rstrip(".") or type(innermost).__name__
