"""A push ends with one commit or with none, whatever happens on the way, and says what to do."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertForSequenceClassification

import hf_lam
from helpers.hub_server import ALWAYS, TOKEN, Handler, HubServer, Repo, Request
from helpers.lam_models import make_lam
from hf_lam.hub import PushError, cards, pushing, remote

POINTS = {
    "info": "GET /api/models/user/one(/revision/main)?$",
    "create": "POST /api/repos/create",
    "validate": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/main",
    "batch": r"POST /user/one\.git/info/lfs/objects/batch",
    "upload": "PUT /lfs/",
    "verify": "POST .*/lfs-verify",
    "commit": "POST .*/commit/main",
}
PASSING: dict[str, Callable[[HubServer, str, int], list[str]]] = {
    "500": lambda hub, pattern, times: hub.fail(pattern, 500, times),
    "502": lambda hub, pattern, times: hub.fail(pattern, 502, times, {"Content-Type": "text/html"}, "<html></html>"),
    "503": lambda hub, pattern, times: hub.fail(pattern, 503, times),
    "429": lambda hub, pattern, times: hub.fail(pattern, 429, times, {"Retry-After": "7"}),
    "cut": lambda hub, pattern, times: hub.cut(pattern, after_bytes=100, times=times),
    "lost": lambda hub, pattern, times: hub.cut(pattern, times=times, after_commit=True),
    "stall": lambda hub, pattern, times: hub.stall(pattern, 3, times),
}
# Tried with the quick tests: every place and every kind once, but for those where somebody waits.
ONCE = [("commit", "500"), ("commit", "lost"), ("upload", "cut"), ("verify", "503"), ("preupload", "429")]
ONCE += [("validate", "502"), ("batch", "503"), ("create", "lost"), ("info", "503")]
ALL_THE_TIME = [("commit", "500"), ("commit", "lost"), ("upload", "cut"), ("info", "503"), ("create", "lost")]


def cases(quick: list[tuple[str, str]]) -> list[Any]:
    every = [(point, kind) for point in POINTS for kind in PASSING]
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in every]


# What is done although no answer ever comes: the next try finds the commit, or the weights in their place.
DONE_ANYWAY = {("commit", "lost"), ("upload", "lost"), *(("verify", kind) for kind in PASSING)}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that somebody wanted to wait; nobody does."""
    seconds: list[float] = []
    for module in ("hf_lam.hub.remote", "huggingface_hub.utils._http"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]) -> Iterator[HubServer]:
    """A Hub with one repository, in which an earlier push left a file of code."""
    # These take most of the time of a push.
    monkeypatch.setattr(pushing, "draw_pictures", lambda *unused: {})
    monkeypatch.setattr(cards, "_sizes", lambda model: None)
    # A release that had another file.
    monkeypatch.setattr(pushing, "released_code", lambda path: {"0.0.1": {"stale_hf_lam.py": "0" * 64}})
    with HubServer() as server:
        server.serve(monkeypatch, tmp_path / "cache")
        server.repos["user/one"] = repo = Repo()
        repo.commit("main", {**repo.files(), "mine.txt": b"mine", "stale_hf_lam.py": b"import os"}, "by hand")
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)


@pytest.fixture
def passing(request: pytest.FixtureRequest, kind: str) -> Callable[[HubServer, str, int], list[str]]:
    if kind == "stall":
        request.getfixturevalue("impatient")
    return PASSING[kind]


@pytest.fixture(scope="module")
def lam_bert() -> Any:
    return make_lam(BertForSequenceClassification, "bert", num_hidden_layers=1)


def commits(hub: HubServer, branch: str = "main") -> list[str]:
    """The commits of a branch but for those that a test starts with."""
    repo = hub.repos.get("user/one")
    log = repo.log if repo else []
    return [one.sha for one in log if one.branch == branch and one.title not in ("initial commit", "by hand")]


def assert_is_whole(hub: HubServer, report: hf_lam.hub.PushReport) -> None:
    """The branch ends with one new commit, which is the reported one and has all files and none of the old."""
    assert report.commit is not None
    assert commits(hub) == [report.commit.oid]
    repo = hub.repos["user/one"]
    files = repo.files()
    assert {path: len(data) for path, data in files.items() if path in report.files} == report.files
    foreign = {"mine.txt"} if len(repo.log) > 2 else set()
    assert set(files) == {".gitattributes", *foreign, *report.files}


def start_at(hub: HubServer, point: str) -> None:
    if point == "create":  # what exists is not created
        hub.repos.clear()


def push(model: Any, **options: Any) -> hf_lam.hub.PushReport:
    return hf_lam.push(model, "user/one", token=TOKEN, **options)


def test_without_faults_a_push_asks_every_kind_of_request(hub: HubServer, lam_bert: Any, slept: list[float]) -> None:
    assert_is_whole(hub, push(lam_bert))
    hub.repos.clear()
    assert_is_whole(hub, push(lam_bert))
    assert [name for name, pattern in POINTS.items() if not hub.asked(pattern)] == []
    assert slept == []


@pytest.mark.parametrize(("point", "kind"), cases(ONCE))
def test_what_passes_is_tried_again(
    hub: HubServer, lam_bert: Any, slept: list[float], passing: Any, point: str, kind: str
) -> None:
    start_at(hub, point)
    met = passing(hub, POINTS[point], 1)
    report = push(lam_bert)
    assert len(met) == 1
    assert_is_whole(hub, report)
    assert slept or kind == "lost"
    if kind == "429":
        assert max(slept) >= 7


@pytest.mark.parametrize(("point", "kind"), cases(ALL_THE_TIME))
def test_what_does_not_pass_is_an_error_and_no_commit(
    hub: HubServer, lam_bert: Any, passing: Any, point: str, kind: str
) -> None:
    start_at(hub, point)
    met = passing(hub, POINTS[point], ALWAYS)
    if (point, kind) in DONE_ANYWAY:
        assert_is_whole(hub, push(lam_bert))
        return
    with pytest.raises(PushError, match=r"user/one: .* failed: .*No commit was made\. \w+.*again") as caught:
        push(lam_bert)
    assert 1 < len(met) < 20
    assert commits(hub) == []
    assert kind not in ("429", "500", "503") or kind in str(caught.value)
    hub.faults.clear()
    assert_is_whole(hub, push(lam_bert))


REFUSED = {
    401: "hf auth login",
    403: "write",
    400: "a reason of its own",
    404: "name",
    413: "a reason of its own",
}


@pytest.mark.parametrize(
    ("point", "status"),
    [
        pytest.param(point, status, marks=() if point == "commit" else pytest.mark.slow)
        for point in ("create", "preupload", "batch", "commit")
        for status in REFUSED
    ],
)
def test_what_the_hub_refuses_is_not_tried_again(
    hub: HubServer, lam_bert: Any, slept: list[float], point: str, status: int
) -> None:
    start_at(hub, point)
    met = hub.fail(POINTS[point], status, ALWAYS, body=json.dumps({"error": "a reason of its own"}))
    with pytest.raises(PushError, match=REFUSED[status]) as caught:
        push(lam_bert)
    assert str(status) in str(caught.value)
    assert "a reason of its own" in str(caught.value)
    assert "No commit was made" in str(caught.value)
    assert len(met) == 1
    assert slept == []
    assert commits(hub) == []
    hub.faults.clear()
    assert_is_whole(hub, push(lam_bert))


@pytest.mark.parametrize(("point", "status"), [("preupload", 412), ("commit", 409)])
def test_what_somebody_else_commits_meanwhile_is_kept(hub: HubServer, lam_bert: Any, point: str, status: int) -> None:
    repo = hub.repos["user/one"]
    hub.before(POINTS[point], lambda: repo.commit("main", {**repo.files(), "theirs.txt": b"theirs"}, "theirs"))
    if status == 409:
        hub.fail(POINTS["commit"], 409, ALWAYS)
    with pytest.raises(PushError, match=r"No commit was made\. Somebody else"):
        push(lam_bert)
    assert [one.title for one in repo.log][2:] == ["theirs"]
    assert "model.safetensors" not in repo.files()
    hub.faults.clear()
    report = push(lam_bert)
    assert len(commits(hub)) == 2
    assert set(repo.files()) == {".gitattributes", "mine.txt", "theirs.txt", *report.files}


def test_what_somebody_else_writes_before_the_commit_is_not_lost(hub: HubServer, lam_bert: Any) -> None:
    repo = hub.repos["user/one"]
    card = b"---\nlicense: mit\n---\n\n## Words\n\nThese are new.\n"
    hub.before(POINTS["validate"], lambda: repo.commit("main", {**repo.files(), "README.md": card}, "theirs"))
    with contextlib.suppress(PushError):
        push(lam_bert)
    assert b"These are new." in repo.files()["README.md"]


def test_a_cut_in_the_middle_of_the_weights_is_tried_again(hub: HubServer, lam_bert: Any) -> None:
    met = hub.cut(POINTS["upload"], after_bytes=20000)
    report = push(lam_bert)
    assert report.files["model.safetensors"] > 30000
    assert_is_whole(hub, report)
    uploads = [len(request.sent) for request in hub.asked(POINTS["upload"])]
    assert uploads == [20000, report.files["model.safetensors"]]
    assert len(met) == 1


def test_weights_that_were_uploaded_are_not_sent_again(hub: HubServer, lam_bert: Any) -> None:
    # One of several files never gets through.
    hub.before(POINTS["upload"], lambda: None, times=2)
    hub.cut(POINTS["upload"], after_bytes=100, times=ALWAYS)
    with pytest.raises(PushError):
        push(lam_bert, max_shard_size="20KB")
    assert commits(hub) == []
    there = set(hub.lfs)
    assert len(there) == 2
    hub.faults.clear()
    before = len(hub.requests)
    report = push(lam_bert, max_shard_size="20KB")
    assert_is_whole(hub, report)
    shards = sum(path.endswith(".safetensors") for path in report.files)
    sent = [str(request).rpartition("/")[2] for request in hub.requests[before:] if request.method == "PUT"]
    assert len(sent) == shards - 2
    assert not there & set(sent)


@pytest.mark.slow
def test_a_commit_that_arrives_late_is_no_second_one(hub: HubServer, lam_bert: Any, impatient: None) -> None:
    hub.stall(POINTS["commit"], 0.8, applied="after")
    report = push(lam_bert)
    time.sleep(0.8)
    assert len(hub.asked(POINTS["commit"])) == 2
    assert_is_whole(hub, report)


def test_an_answer_that_is_lost_opens_no_second_pull_request(hub: HubServer, lam_bert: Any) -> None:
    hub.cut(POINTS["commit"], after_commit=True)
    try:
        push(lam_bert, create_pr=True)
    except PushError as error:
        assert "No commit was made" not in str(error)
    assert commits(hub) == []
    assert [name for name in hub.repos["user/one"].branches if name.startswith("refs/pr/")] == ["refs/pr/1"]


def test_nothing_is_claimed_of_a_commit_that_is_not_known(hub: HubServer, lam_bert: Any) -> None:
    def commit_and_go(handler: Handler, request: Request) -> bool:
        handler.answer(request)
        hub.cut(".", times=ALWAYS)
        handler.hang_up()
        return True

    hub.add(POINTS["commit"], 1, commit_and_go)
    with pytest.raises(PushError) as caught:
        push(lam_bert)
    assert len(commits(hub)) == 1
    assert "No commit was made" not in str(caught.value)


def test_a_new_branch_stays_as_it_began(hub: HubServer, lam_bert: Any) -> None:
    hub.fail("POST .*/commit/new", 403)
    with pytest.raises(PushError):
        push(lam_bert, revision="new")
    repo = hub.repos["user/one"]
    assert commits(hub, "new") == commits(hub) == []
    push(lam_bert, revision="new")
    assert len(commits(hub, "new")) == 1
    assert commits(hub) == []
    assert "stale_hf_lam.py" in repo.files()
    assert "stale_hf_lam.py" not in repo.files("new")


def test_offline(hub: HubServer, lam_bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE"):
        push(lam_bert)
    assert hub.requests == []


def test_nobody_answers(hub: HubServer, lam_bert: Any) -> None:
    hub.__exit__()
    with pytest.raises(PushError, match=r"No commit was made\. .*again later"):
        push(lam_bert)


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_token_that_comes_back_is_not_shown(
    hub: HubServer, lam_bert: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    said = f"no such token: Bearer {TOKEN}"
    hub.fail(POINTS["commit"], status, ALWAYS, {"X-Error-Message": said}, json.dumps({"error": said}))
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers", "hf_lam")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        with pytest.raises(PushError) as caught:
            push(lam_bert)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    printed = capfd.readouterr()
    shown = "".join(traceback.format_exception(caught.value))
    assert "no such token" in str(caught.value)
    assert TOKEN not in shown + printed.out + printed.err + caplog.text
