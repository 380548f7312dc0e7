"""A small Hugging Face Hub on 127.0.0.1, enough for the real `huggingface_hub` client to push models and load them.

    with HubServer() as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(cache_folder)})

It knows model repositories with branches and commits, all kept in memory: create, model info, file trees, commits
with plain and LFS files (the older upload protocol, hence `HF_HUB_DISABLE_XET`), and downloads by branch or commit.
Whatever is asked of it is listed in `hub.requests`. It answers what the client asks for and checks little.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")
TOKEN = "hf_local"


class Failure(Exception):
    """An answer with an error status, as the Hub gives it."""

    def __init__(self, status: int, code: str, **body: Any) -> None:
        self.status, self.code, self.body = status, code, {"error": code, **body}


class Repo:
    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        contents = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(repr((self.branches.get(branch), contents)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Failure(404, "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class HubServer:
    """Serves from `__enter__` to `__exit__`. `repos` may be read and changed directly, by a test for example."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
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

    def repo(self, repo_id: str) -> Repo:
        if repo_id not in self.repos:
            raise Failure(404, "RepoNotFound")
        return self.repos[repo_id]

    # One method for each kind of request: the parts of the address, then what was sent. They return JSON.

    def create(self, sent: bytes) -> Any:
        asked = json.loads(sent)
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        created = {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.repos:
            raise Failure(409, "RepoAlreadyExists", **created)
        self.repos[repo_id] = Repo()
        return created

    def info(self, repo_id: str, revision: str | None, sent: bytes) -> Any:
        sha = self.repo(repo_id).resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(self.repo(repo_id).files(sha))]
        return {"id": repo_id, "sha": sha, "siblings": siblings, "private": False, "tags": []}

    def tree(self, repo_id: str, revision: str, folder: str | None, sent: bytes) -> Any:
        prefix = f"{folder.strip('/')}/" if folder else ""
        files = sorted(self.repo(repo_id).files(revision).items())
        return [_tree_entry(path, data) for path, data in files if path.startswith(prefix)]

    def branch(self, repo_id: str, name: str, sent: bytes) -> Any:
        if name in self.repo(repo_id).branches:
            raise Failure(409, "BranchAlreadyExists")
        self.repo(repo_id).branches[name] = self.repo(repo_id).resolve("main")

    def preupload(self, repo_id: str, revision: str, sent: bytes) -> Any:
        paths = [file["path"] for file in json.loads(sent)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}

    def lfs_batch(self, repo_id: str, sent: bytes) -> Any:
        missing = [wanted for wanted in json.loads(sent)["objects"] if wanted["oid"] not in self.lfs]
        upload = [{**wanted, "actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}} for wanted in missing]
        return {"transfer": "basic", "objects": upload}

    def lfs_put(self, oid: str, sent: bytes) -> Any:
        self.lfs[oid] = sent

    def commit(self, repo_id: str, revision: str, sent: bytes) -> Any:
        files = dict(self.repo(repo_id).files(revision))
        for operation in map(json.loads, sent.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.lfs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = self.repo(repo_id).commit(revision, files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"}


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    stored = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    lfs = {"lfs": {**stored, "pointerSize": 130}} if path.endswith(LFS_SUFFIXES) else {}
    return {"type": "file", "path": path, **stored, **lfs}


ID, REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"GET /api/whoami-v2", lambda hub, sent: {"name": "user", "type": "user", "orgs": []}),
    (r"POST /api/validate-yaml", lambda hub, sent: {"errors": [], "warnings": []}),
    (r"POST /api/repos/create", HubServer.create),
    (rf"GET /api/models/{ID}(?:/revision/{REVISION})?", HubServer.info),
    (rf"GET /api/models/{ID}/tree/{REVISION}(/.+)?", HubServer.tree),
    (rf"POST /api/models/{ID}/branch/{REVISION}", HubServer.branch),
    (rf"POST /api/models/{ID}/preupload/{REVISION}", HubServer.preupload),
    (rf"POST /{ID}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    (r"PUT /lfs/([0-9a-f]+)", HubServer.lfs_put),
    (rf"POST /api/models/{ID}/commit/{REVISION}", HubServer.commit),
]


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        request = f"{self.command} {unquote(urlsplit(self.path).path)}"
        self.hub.requests.append(request)
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if found := re.fullmatch(rf"(?:HEAD|GET) /{ID}/resolve/{REVISION}/(.+)", request):
                return self.send_file(*found.groups())
            if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Failure(401, "Unauthorized")
            for pattern, answer in ROUTES:
                if found := re.fullmatch(pattern, request):
                    return self.send(200, json.dumps(answer(self.hub, *found.groups(), sent)).encode())
            raise Failure(404, "NotImplemented", error=f"this server has no {request}")
        except Failure as failure:
            self.send(failure.status, json.dumps(failure.body).encode(), {"X-Error-Code": failure.code})

    def send_file(self, repo_id: str, revision: str, path: str) -> None:
        sha = self.hub.repo(repo_id).resolve(revision)
        data = self.hub.repo(repo_id).files(sha).get(path)
        if data is None:
            raise Failure(404, "EntryNotFound")
        self.send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *unused: object) -> None: ...
