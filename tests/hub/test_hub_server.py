"""The Hub of the other tests answers `huggingface_hub` as the Hub does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData, errors

from helpers.card_metadata import check_metadata
from helpers.hub_server import TOKEN, HubServer

WEIGHTS = bytes(range(256)) * 40
CARD = b"---\nlicense: mit\ntags:\n- hf_lam\n---\n# A model\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.serve(monkeypatch, tmp_path / "cache")
        yield server


def commit(api: HfApi, files: dict[str, bytes], deleted: tuple[str, ...] = (), **options: Any) -> Any:
    operations: list[Any] = [CommitOperationAdd(path, data) for path, data in files.items()]
    operations += [CommitOperationDelete(path) for path in deleted]
    return api.create_commit("user/one", operations, commit_message="a title", **options)


def test_commits_branches_requests_and_downloads(hub: HubServer) -> None:
    api = HfApi(token=TOKEN)
    assert api.create_repo("one").repo_id == "user/one"
    repo = hub.repos["user/one"]
    first = commit(api, {"model.safetensors": WEIGHTS, "README.md": CARD}, commit_description="more")
    assert (repo.log[-1].title, repo.log[-1].description) == ("a title", "more")
    again = commit(api, {"model.safetensors": WEIGHTS})
    assert again.oid == first.oid, "what has not changed is no commit"
    request = commit(api, {"new.txt": b"new"}, create_pr=True)
    assert (request.pr_revision, request.pr_num) == ("refs/pr/1", 1)
    assert "new.txt" not in repo.files()
    assert "new.txt" in api.list_repo_files("user/one", revision="refs/pr/1")
    api.create_branch("user/one", branch="a/b")
    other = commit(api, {}, deleted=("README.md",), revision="a/b")
    api.create_tag("user/one", tag="v1", revision="a/b")
    refs = api.list_repo_refs("user/one", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.oid, "a/b": other.oid}
    assert [ref.target_commit for ref in refs.tags] == [other.oid]
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]
    assert [one.title for one in api.list_repo_commits("user/one")] == ["a title", "initial commit"]
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since"):
        commit(api, {"a.txt": b"a"}, parent_commit=other.oid)
    with pytest.raises(errors.EntryNotFoundError):
        commit(api, {"a.txt": b"a"}, deleted=("missing.txt",))
    assert "a.txt" not in repo.files()
    info = api.model_info("user/one", files_metadata=True)
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    sizes = {one.rfilename: (one.size, one.lfs is not None) for one in info.siblings or []}
    assert sizes["model.safetensors"] == (len(WEIGHTS), True)
    assert sizes["README.md"] == (len(CARD), False)
    assert Path(huggingface_hub.hf_hub_download("user/one", "model.safetensors")).read_bytes() == WEIGHTS
    part = huggingface_hub.get_session().get(
        f"{hub.url}/user/one/resolve/a%2Fb/model.safetensors", headers={"Range": "bytes=100-299"}
    )
    assert (part.status_code, part.content) == (206, WEIGHTS[100:300])
    assert {request.headers.get("authorization") for request in hub.asked("PUT /lfs/")} == {None}


def test_only_the_token_reads_what_is_private_and_writes(hub: HubServer) -> None:
    HfApi(token=TOKEN).create_repo("user/one", private=True)
    assert HfApi(token=TOKEN).model_info("user/one").private
    for token, error in ((False, "401"), ("hf_wrong", "Invalid credentials")):
        with pytest.raises(errors.HfHubHTTPError, match=error):
            HfApi(token=token).model_info("user/one")
        with pytest.raises(errors.HfHubHTTPError, match="401"):
            HfApi(token=token).create_repo("user/two")
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        HfApi(token=TOKEN).create_repo("someone/one")
    with pytest.raises(errors.RepositoryNotFoundError):
        HfApi(token=TOKEN).model_info("user/missing")


def test_metadata_are_checked() -> None:
    data = ModelCardData(license="mit", base_model="user/base", tags=["a"], pipeline_tag="fill-mask", language="en")
    assert check_metadata(f"---\n{data.to_yaml()}\n---\n") == ([], [])
    assert check_metadata("# no metadata")[1]
    for bad in ("license: my own", "base_model: ./folder/a", "tags: [1]", "tags: [a, a]", "model-index: [{name: a}]"):
        assert check_metadata(f"---\n{bad}\n---\n")[0], bad
    assert check_metadata("---\na: [\n---\n")[0]


def test_faults_come_as_often_as_they_are_asked_for(hub: HubServer) -> None:
    api = HfApi(token=TOKEN)
    met = hub.fail("create", status=403, body="no", headers={"X-Why": "test"})
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        api.create_repo("user/one")
    api.create_repo("user/one")
    assert met == ["POST /api/repos/create"]
    hub.cut("commit/main", after_commit=True)
    with pytest.raises(Exception, match=r"disconnected|reset"):
        commit(api, {"a.txt": b"a"})
    assert "a.txt" in hub.repos["user/one"].files()
    hub.cut("commit/main", after_bytes=10)
    with pytest.raises(Exception, match=r"disconnected|reset|Broken pipe"):
        commit(api, {"b.txt": b"b" * 10**6})
    assert "b.txt" not in hub.repos["user/one"].files()
    # Before 2.0, huggingface_hub asks the Hub itself, whatever HF_ENDPOINT says.
    if int(huggingface_hub.__version__.partition(".")[0]) >= 2:
        assert ModelCard("---\nlicense: mit\n---\n").validate() is None
