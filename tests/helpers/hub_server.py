"""A small Hugging Face Hub on 127.0.0.1, enough for the real `huggingface_hub` client to push models and load them.

    with HubServer() as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(cache_folder)})

It knows model repositories with branches, tags, pull requests and commits, all kept in memory: create, model info with
the metadata of the card, file trees, commits with plain and LFS files (the older upload protocol, hence
`HF_HUB_DISABLE_XET`), and downloads by branch or commit, in parts too. A commit is checked as a whole before any of it
is applied. Whatever is asked of it is listed in `hub.requests`, with headers.

Faults are set by a regular expression that is searched in "METHOD /path":

    hub.fail("POST .*/commit/", status=503)             # an error instead of an answer
    hub.cut("PUT /lfs/", after_bytes=1000)              # the connection is closed while it reads the request
    hub.cut("POST .*/commit/", after_commit=True)       # … or when the request has been applied, without an answer
    hub.stall("POST .*/preupload/", seconds=5)          # nothing comes for some time
    hub.before("POST .*/commit/", action)               # something else happens first
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import transformers
from huggingface_hub import close_session, constants, hf_api

from helpers.card_metadata import check_metadata, read_metadata

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")
TOKEN = "hf_" + "NotARealToken" * 3
NAMESPACES = ("user", "org")  # where the token may write: its user and others
ALWAYS = 10**9
# What the Hub puts into every new repository.
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Failure(Exception):
    """An answer with an error status, as the Hub gives it."""

    def __init__(self, status: int, code: str, error: str | None = None, **body: Any) -> None:
        self.status, self.code, self.body = status, code, {"error": error or code, **body}


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # with `%2F` and the like resolved
    query: dict[str, list[str]]
    headers: dict[str, str]  # by names in lower case
    sent: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def changes_something(self) -> bool:
        is_question = re.search(r"/(preupload|paths-info)/|/validate-yaml$", self.path)
        return self.method not in ("GET", "HEAD") and not is_question


@dataclass(frozen=True)
class Commit:
    sha: str
    branch: str
    title: str
    description: str = ""


class Repo:
    """One repository: `commits` has the files of every commit, `log` says how they came about, oldest first."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.log: list[Commit] = []
        self.commit("main", {".gitattributes": GITATTRIBUTES}, "initial commit")

    def commit(
        self, branch: str, files: dict[str, bytes], title: str = "", description: str = "", parent: str | None = None
    ) -> str:
        """Make `files` the content of a branch. `parent` is the last commit unless the branch is new."""
        parent = parent or self.branches.get(branch)
        contents = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(repr((parent, branch, contents)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.log.append(Commit(sha, branch, title, description))
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


@dataclass
class Fault:
    pattern: str
    times: int
    apply: Callable[[Handler, Request], bool]  # whether that was all; False: answer as usual
    reads: int | None = None  # so many bytes of what is sent, and no more
    seen: list[str] = field(default_factory=list)


class HubServer:
    """Serves from `__enter__` to `__exit__`. `repos` may be read and changed directly, by a test for example."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def environment(self, cache: str | os.PathLike[str], token: str | None = TOKEN) -> dict[str, str]:
        """The variables that point a new process at this server, with a cache of its own. `token=None`: read only."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HF_HOME": str(cache),
            **{f"HF_{name}_CACHE": os.path.join(cache, name.lower()) for name in ("HUB", "MODULES")},
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def serve(self, monkeypatch: pytest.MonkeyPatch, cache: str | os.PathLike[str]) -> None:
        """Let `huggingface_hub` and transformers of this process use this server, with no token of their own."""
        home = str(cache)
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HOME": home,
            "HF_HUB_CACHE": os.path.join(home, "hub"),
            "HF_TOKEN_PATH": os.path.join(home, "token"),
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        # Of `huggingface_hub.whoami` and the like, which was made when that was imported.
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        close_session()  # the connections of earlier tests

    def asked(self, pattern: str) -> list[Request]:
        """The requests that came, as far as they fit."""
        return [request for request in self.requests if re.search(pattern, str(request))]

    # Faults. Each returns a list that grows with the requests it has met.

    def fail(
        self,
        pattern: str,
        status: int = 500,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
    ) -> list[str]:
        """Answer with an error. `body` is JSON with an "error", unless given."""
        content = (body if body is not None else json.dumps({"error": f"this is a test of {status}"})).encode()

        def apply(handler: Handler, request: Request) -> bool:
            handler.send(status, content, headers)
            return True

        return self.add(pattern, times, apply)

    def cut(self, pattern: str, after_bytes: int = 0, times: int = 1, after_commit: bool = False) -> list[str]:
        """Close the connection.

        Args:
            pattern: of the requests.
            after_bytes: of what is sent with the request, or of the answer to a request that sends nothing.
            times: how often.
            after_commit: do all that was asked first, and close instead of answering.
        """

        def apply(handler: Handler, request: Request) -> bool:
            if after_commit or request.method in ("GET", "HEAD"):
                status, body, headers = handler.answer(request)
                if not after_commit:
                    handler.send(status, body, headers, only=after_bytes)
            handler.hang_up()
            return True

        return self.add(pattern, times, apply, reads=None if after_commit else after_bytes)

    def stall(
        self, pattern: str, seconds: float, times: int = 1, applied: Literal["never", "before", "after"] = "never"
    ) -> list[str]:
        """Let a request wait. What it asks for is done `before` or `after` that, or never (the connection closes)."""

        def apply(handler: Handler, request: Request) -> bool:
            answer = handler.answer(request) if applied == "before" else None
            self.closing.wait(seconds)
            if applied == "never":
                handler.hang_up()
            else:
                handler.send(*(answer or handler.answer(request)))
            return True

        return self.add(pattern, times, apply)

    def before(self, pattern: str, action: Callable[[], object], times: int = 1) -> list[str]:
        """Do something before a request is answered: commit something else, for example."""

        def apply(handler: Handler, request: Request) -> bool:
            action()
            return False

        return self.add(pattern, times, apply)

    def add(
        self, pattern: str, times: int, apply: Callable[[Handler, Request], bool], reads: int | None = None
    ) -> list[str]:
        """Any other fault: `apply` answers, and returns True, or returns False to have an answer made as usual."""
        self.faults.append(Fault(pattern, times, apply, reads))
        return self.faults[-1].seen

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    fault.seen.append(request)
                    return fault
        return None

    # Access

    def repo(self, repo_id: str, request: Request | None = None) -> Repo:
        """A repository. Those that are private do not exist for a request without the token."""
        found = self.repos.get(repo_id)
        has_token = request is None or request.headers.get("authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not has_token):
            raise Failure(404 if has_token else 401, "RepoNotFound", "Repository not found")
        return found

    def own_repo(self, repo_id: str, request: Request) -> Repo:
        found = self.repo(repo_id, request)
        if repo_id.split("/")[0] not in NAMESPACES:
            raise Failure(403, "Forbidden", "You don't have write access to this repository")
        return found

    # One method for each kind of request: the request, then the parts of the address. They return JSON.

    def whoami(self, request: Request) -> Any:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Failure(401, "Unauthorized", "Invalid credentials in Authorization header")
        name, *others = NAMESPACES
        orgs = [{"name": other} for other in others]
        return {"name": name, "type": "user", "orgs": orgs, "auth": {"type": "access_token"}}

    def validate_yaml(self, request: Request) -> Any:
        errors, warnings = check_metadata(json.loads(request.sent)["content"])
        if errors:
            raise Failure(400, "BadRequest", "Invalid metadata", **_messages(errors, warnings))
        return _messages(errors, warnings)

    def create(self, request: Request) -> Any:
        asked = json.loads(request.sent)
        namespace = asked.get("organization") or NAMESPACES[0]
        repo_id = f"{namespace}/{asked['name']}"
        created = {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if namespace not in NAMESPACES:
            raise Failure(403, "Forbidden", f'You don\'t have the rights to create a model under "{namespace}"')
        if repo_id in self.repos:
            raise Failure(409, "RepoAlreadyExists", "You already created this model repo", **created)
        self.repos[repo_id] = Repo(private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return created

    def info(self, request: Request, repo_id: str, revision: str | None = None) -> Any:
        repo = self.repo(repo_id, request)
        sha = repo.resolve(revision or "main")
        files = sorted(repo.files(sha).items())
        card: dict[str, Any] = read_metadata(repo.files(sha).get("README.md", b"").decode()) or {}
        siblings = [
            {"rfilename": path, **(_sibling(path, data) if "blobs" in request.query else {})} for path, data in files
        ]
        return {
            "id": repo_id,
            "sha": sha,
            "siblings": siblings,
            "private": repo.private,
            "tags": card.get("tags") or [],
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card or None,
        }

    def tree(self, request: Request, repo_id: str, revision: str, folder: str | None = None) -> Any:
        prefix = f"{folder.strip('/')}/" if folder else ""
        files = sorted(self.repo(repo_id, request).files(revision).items())
        inside = [(path, data) for path, data in files if path.startswith(prefix)]
        if prefix and not inside:
            raise Failure(404, "EntryNotFound", f'"{folder}" does not exist on "{revision}"')
        if request.query.get("recursive", ["false"])[0].lower() == "true":
            return [_tree_entry(path, data) for path, data in inside]
        folders = sorted({path[len(prefix) :].split("/")[0] for path, _ in inside if "/" in path[len(prefix) :]})
        listed = [_tree_entry(path, data) for path, data in inside if "/" not in path[len(prefix) :]]
        return [{"type": "directory", "path": prefix + name, "oid": "0" * 40, "size": 0} for name in folders] + listed

    def paths_info(self, request: Request, repo_id: str, revision: str) -> Any:
        files = self.repo(repo_id, request).files(revision)
        wanted = parse_qs(request.sent.decode()).get("paths", [])
        return [_tree_entry(path, files[path]) for path in wanted if path in files]

    def refs(self, request: Request, repo_id: str) -> Any:
        repo = self.repo(repo_id, request)

        def listed(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

        branches = {name: sha for name, sha in repo.branches.items() if not name.startswith("refs/")}
        requests = {name: sha for name, sha in repo.branches.items() if name.startswith("refs/pr/")}
        return {
            "branches": listed(branches, "refs/heads/"),
            "tags": listed(repo.tags, "refs/tags/"),
            "pullRequests": listed(requests, ""),
            "converts": [],
        }

    def history(self, request: Request, repo_id: str, revision: str) -> Any:
        repo = self.repo(repo_id, request)
        repo.resolve(revision)
        date = "2026-01-01T00:00:00.000Z"
        return [
            {
                "id": one.sha,
                "title": one.title,
                "message": one.description,
                "date": date,
                "authors": [{"user": "user"}],
            }
            for one in reversed(repo.log)
            if one.branch == revision
        ]

    def branch(self, request: Request, repo_id: str, name: str) -> Any:
        repo = self.own_repo(repo_id, request)
        if name in repo.branches:
            raise Failure(409, "BranchAlreadyExists", "Reference already exists")
        repo.branches[name] = repo.resolve(json.loads(request.sent or b"{}").get("startingPoint") or "main")

    def tag(self, request: Request, repo_id: str, revision: str) -> Any:
        repo, name = self.own_repo(repo_id, request), json.loads(request.sent)["tag"]
        if name in repo.tags:
            raise Failure(409, "TagAlreadyExists", "Tag reference exists already")
        repo.tags[name] = repo.resolve(revision)

    def preupload(self, request: Request, repo_id: str, revision: str) -> Any:
        present = self.own_repo(repo_id, request).files(revision)
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    **({"oid": _oid(path, present[path])} if path in present else {}),
                }
                for path in (file["path"] for file in json.loads(request.sent)["files"])
            ]
        }

    def lfs_batch(self, request: Request, repo_id: str) -> Any:
        self.own_repo(repo_id, request)
        objects = [
            {**wanted, **({} if wanted["oid"] in self.lfs else {"actions": self._lfs_actions(repo_id, wanted["oid"])})}
            for wanted in json.loads(request.sent)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _lfs_actions(self, repo_id: str, oid: str) -> dict[str, Any]:
        verify = f"{self.url}/api/models/{repo_id}/lfs-verify"
        return {"upload": {"href": f"{self.url}/lfs/{oid}"}, "verify": {"href": verify}}

    def lfs_put(self, request: Request, oid: str) -> Any:
        if hashlib.sha256(request.sent).hexdigest() != oid:
            raise Failure(400, "BadDigest", "The SHA256 you specified did not match what we received")
        self.lfs[oid] = request.sent

    def lfs_verify(self, request: Request, repo_id: str) -> Any:
        asked = json.loads(request.sent)
        if len(self.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise Failure(404, "EntryNotFound", "The file was not uploaded")

    def commit(self, request: Request, repo_id: str, revision: str) -> Any:
        is_request = "create_pr" in request.query
        repo = self.repo(repo_id, request) if is_request else self.own_repo(repo_id, request)
        head = repo.resolve(revision)
        if revision not in repo.branches:
            raise Failure(400, "BadRequest", f"{revision} is no branch")
        header: dict[str, Any] = {}
        files = dict(repo.files(head))
        for operation in map(json.loads, request.sent.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.lfs:
                    raise Failure(400, "BadRequest", f"LFS pointer pointed to a file that does not exist: {value}")
                files[value["path"]] = self.lfs[value["oid"]]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Failure(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
            else:
                raise Failure(400, "BadRequest", f"this server does not know the operation {key}")
        if header.get("parentCommit", head) != head:
            raise Failure(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        errors = check_metadata(files["README.md"].decode())[0] if "README.md" in files else []
        if errors:
            raise Failure(400, "BadRequest", f"Invalid metadata in README.md: {errors}")
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
        branch, url = (f"refs/pr/{number}", f"{self.url}/{repo_id}") if is_request else (revision, "")
        sha = repo.commit(branch, files, header["summary"], header.get("description", ""), parent=head)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"}
        return {**answer, **({"pullRequestUrl": f"{url}/discussions/{number}"} if is_request else {})}


def _messages(errors: list[str], warnings: list[str]) -> dict[str, list[dict[str, str]]]:
    texts = {"errors": errors, "warnings": warnings}
    return {kind: [{"message": text} for text in found] for kind, found in texts.items()}


def _oid(path: str, data: bytes) -> str:
    """What the Hub calls the content of a file: the SHA256 of an LFS file, the git object of another."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    stored = {"oid": _oid(path, data), "size": len(data)}
    lfs = {"lfs": {**stored, "pointerSize": 130}} if path.endswith(LFS_SUFFIXES) else {}
    return {"type": "file", "path": path, **stored, **lfs}


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    oid, size = _oid(path, data), len(data)
    lfs = {"lfs": {"sha256": oid, "size": size, "pointerSize": 130}} if path.endswith(LFS_SUFFIXES) else {}
    return {"blobId": oid, "size": size, **lfs}


# --- HTTP -----------------------------------------------------------------------------------------------------------

ID, REVISION = r"([^/]+(?:/[^/]+)?)", r"([^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"GET /api/whoami-v2", HubServer.whoami),
    (r"POST /api/validate-yaml", HubServer.validate_yaml),
    (r"POST /api/repos/create", HubServer.create),
    (rf"GET /api/models/{ID}(?:/revision/{REVISION})?", HubServer.info),
    (rf"GET /api/models/{ID}/tree/{REVISION}(/.+)?", HubServer.tree),
    (rf"GET /api/models/{ID}/refs", HubServer.refs),
    (rf"GET /api/models/{ID}/commits/{REVISION}", HubServer.history),
    (rf"POST /api/models/{ID}/paths-info/{REVISION}", HubServer.paths_info),
    (rf"POST /api/models/{ID}/branch/{REVISION}", HubServer.branch),
    (rf"POST /api/models/{ID}/tag/{REVISION}", HubServer.tag),
    (rf"POST /api/models/{ID}/preupload/{REVISION}", HubServer.preupload),
    (rf"POST /{ID}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    (r"PUT /lfs/([0-9a-f]+)", HubServer.lfs_put),
    (rf"POST /api/models/{ID}/lfs-verify", HubServer.lfs_verify),
    (rf"POST /api/models/{ID}/commit/{REVISION}", HubServer.commit),
]
RESOLVE = rf"(?:HEAD|GET) /{ID}/resolve/{REVISION}/(.+)"
# What may be asked for without a token.
OPEN = r"GET|HEAD|PUT /lfs/|POST /api/validate-yaml|POST /api/models/.*/paths-info/"

Answer = tuple[int, bytes, dict[str, str]]


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it makes every answer wait for 40 ms

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.hub.fault_for(f"{self.command} {path}")
        with contextlib.suppress(ConnectionError):
            request = Request(self.command, path, query, headers, self.read_body(fault.reads if fault else None))
            self.hub.requests.append(request)
            if not (fault and fault.apply(self, request)):
                self.send(*self.answer(request))

    def read_body(self, limit: int | None) -> bytes:
        """What was sent with the request, up to a limit."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length if limit is None else min(length, limit))
        body = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(length)
            self.rfile.readline()
            if limit is not None and len(body) >= limit:
                return body[:limit]
        self.rfile.readline()
        return body

    def answer(self, request: Request) -> Answer:
        """Do what is asked, and return the status, the body and the headers of the answer."""
        # The parts of an address are told apart before `%2F` in them is resolved.
        line = f"{request.method} {urlsplit(self.path).path}"
        try:
            with self.hub.lock:
                authorization = request.headers.get("authorization")
                if authorization != f"Bearer {TOKEN}" and not (authorization is None and re.match(OPEN, line)):
                    raise Failure(401, "Unauthorized", "Invalid credentials in Authorization header")
                if found := re.fullmatch(RESOLVE, line):
                    return self.file(request, *map(unquote, found.groups()))
                for pattern, method in ROUTES:
                    if found := re.fullmatch(pattern, line):
                        parts = [unquote(part) for part in found.groups() if part is not None]
                        return 200, json.dumps(method(self.hub, request, *parts)).encode(), {}
            raise Failure(404, "NotImplemented", error=f"this server has no {line}")
        except Failure as failure:
            shown = {"X-Error-Code": failure.code, "X-Error-Message": failure.body["error"]}
            return failure.status, json.dumps(failure.body).encode(), shown

    def file(self, request: Request, repo_id: str, revision: str, path: str) -> Answer:
        repo = self.hub.repo(repo_id, request)
        sha = repo.resolve(revision)
        data = repo.files(sha).get(path)
        if data is None:
            body = {"error": "Entry not found"}
            return 404, json.dumps(body).encode(), {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(path, data)}"', "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if not found or not any(found.groups()):
            return 200, data, headers
        first, last = found.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        if start >= stop:
            return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
        return 206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, only: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:only])
            self.wfile.flush()

    def hang_up(self) -> None:
        """Close the connection at once, as a broken line does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, *unused: object) -> None: ...
