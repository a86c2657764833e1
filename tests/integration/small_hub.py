"""A small hub, as huggingface_hub and modelscope_hub call it, with a store on a second port, and faults.

Large files (`.safetensors`, `.gguf`, `.bin`) are LFS files: the hub redirects them to the store, as the real one does.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3  # entries a page of the tree: listings of several pages are the rule
LARGE = (".safetensors", ".gguf", ".bin")
_PIECE = 64 * 1024


@dataclass
class Seen:
    """One request that came."""

    method: str
    path: str
    range: str
    authorization: str
    user_agent: str
    at_store: bool


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path holds `path`."""

    path: str
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int = -1  # bytes of the body, then the connection is closed
    resets: bool = False  # a cut is a reset, which also takes what was underway
    data: bytes | None = None  # sent instead
    ignores_range: bool = False
    pause_s: float = 0.0  # between pieces
    hold: threading.Event | None = None  # waited for in the middle of the body
    at_store: bool | None = None


@dataclass
class Repo:
    """A repository: commits with their files, and names for them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str = ""
    gated: bool = False
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)  # path → keys of its tree entry that lie

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit, move the reference to it, and return its id."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path in sorted(files):
            digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(files[path]).digest())
        name = digest.hexdigest()
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name


class SmallHub:
    """Two servers in threads: the hub and its store, at one address of this machine."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.loops = False  # every page of a listing leads to the first
        self._lock = threading.Lock()
        self._hub, self._store = self._serve(at_store=False), self._serve(at_store=True)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT and MODELSCOPE_ENDPOINT are set to."""
        return f"http://{self._address}:{self._hub.server_address[1]}"

    @property
    def store(self) -> str:
        """Where large files come from."""
        return f"http://{self._address}:{self._store.server_address[1]}"

    def repo(self, repo_id: str, files: Mapping[str, bytes]) -> Repo:
        """Add a repository with one commit on main and master."""
        repo = self.repos[repo_id] = Repo()
        repo.refs["master"] = repo.commit(files)
        return repo

    def fault(self, path: str, **what: Any) -> Fault:
        """Plan a fault."""
        fault = Fault(path, **what)
        self.faults.append(fault)
        return fault

    def bodies(self, path: str) -> list[Seen]:
        """Return the GET requests for a file's bytes."""
        return [seen for seen in self.seen if seen.method == "GET" and unquote(seen.path).endswith(path)]

    def close(self) -> None:
        """End both servers."""
        for server in (self._hub, self._store):
            server.shutdown()
            server.server_close()

    def take_fault(self, path: str, at_store: bool) -> Fault | None:
        """Return the next planned fault for a path, once less to come."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.path in path and fault.at_store in (None, at_store):
                    fault.times -= 1
                    return fault
        return None

    def _serve(self, *, at_store: bool) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            owner = hub
            is_store = at_store

        server = ThreadingHTTPServer((self._address, 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    owner: SmallHub
    is_store: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = self.headers
        seen = Seen(
            self.command,
            self.path,
            headers.get("Range", ""),
            headers.get("Authorization", ""),
            headers.get("User-Agent", ""),
            self.is_store,
        )
        self.owner.seen.append(seen)
        self.fault = self.owner.take_fault(unquote(self.path), self.is_store)
        with suppress(ConnectionError, BrokenPipeError):
            if self.fault and self.fault.status:
                self.refuse(self.fault.status, **self.fault.headers)
            else:
                self._route()

    def _route(self) -> None:
        parts = urlsplit(self.path)
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/store/([^/]+/[^/]+)/([0-9a-f]+)/(.+)", self._from_store),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._revision),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/api/v1/models/([^/]+/[^/]+)/repo/files", self._scope_files),
            (r"/api/v1/models/([^/]+/[^/]+)/repo", self._scope_file),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for pattern, handle in routes:
            match = re.fullmatch(pattern, parts.path)
            if match:
                handle(*map(unquote, match.groups()))
                return
        self.refuse(404)
        return

    # -- Hugging Face

    def _allowed(self, repo_id: str) -> Repo | None:
        repo = self.owner.repos.get(repo_id)
        given = self.headers.get("Authorization", "")
        if repo is None:
            self.refuse(404, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repo.token and given != f"Bearer {repo.token}":
            message = "Invalid credentials in Authorization header" if given else "Invalid username or password."
            self.refuse(401, **{"X-Error-Message": message})
        elif repo.gated:
            self.refuse(403, **{"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        else:
            return repo
        return None

    def _revision(self, repo_id: str, revision: str) -> None:
        repo = self._allowed(repo_id)
        if repo is None:
            return
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self.refuse(404, **{"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return
        self.answer_json(
            {"id": repo_id, "sha": commit, "siblings": [{"rfilename": path} for path in repo.commits[commit]]}
        )

    def _tree(self, repo_id: str, commit: str) -> None:
        repo = self._allowed(repo_id)
        if repo is None:
            return
        query = parse_qs(urlsplit(self.path).query)
        entries = [self._entry(path, data) | repo.listed.get(path, {}) for path, data in repo.commits[commit].items()]
        folders = {path.rpartition("/")[0] for path in repo.commits[commit] if "/" in path}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        first = int(query.get("cursor", ["0"])[0])
        more = first + PAGE < len(entries)
        url = f"{self.owner.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={first + PAGE}"
        if self.owner.loops:
            more, url = True, url.rpartition("=")[0] + "=0"
        link = {"Link": f'<{url}>; rel="next"'} if more else {}
        self.answer_json(entries[first : first + PAGE], **link)

    @staticmethod
    def _entry(path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            entry |= {
                "oid": "1" * 40,
                "lfs": {"oid": sha256, "size": len(data), "pointerSize": 134},
                "xetHash": "2" * 64,
            }
        return entry

    def _resolve(self, repo_id: str, commit: str, path: str) -> None:
        repo = self._allowed(repo_id)
        if repo is None:
            return
        data = repo.commits.get(commit, {}).get(path)
        if data is None:
            self.refuse(404, **{"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
            headers["Location"] = f"{self.owner.store}/store/{repo_id}/{commit}/{path}?X-Amz-Signature=signed"
            self.refuse(302, **headers)
            return
        self.answer_file(data, **headers)

    def _from_store(self, repo_id: str, commit: str, path: str) -> None:
        self.answer_file(self.owner.repos[repo_id].commits[commit][path])

    # -- ModelScope

    def _scope_files(self, repo_id: str) -> None:
        repo, files = self._scope(repo_id)
        if repo is None or files is None:
            return
        listed = [
            {"Path": path, "Name": path.rpartition("/")[2], "Size": len(data), "Type": "blob"}
            | {"Sha256": hashlib.sha256(data).hexdigest()}
            | repo.listed.get(path, {})
            for path, data in files.items()
        ]
        folders = {path.rpartition("/")[0] for path in files if "/" in path}
        listed += [{"Path": path, "Name": path, "Size": 0, "Type": "tree"} for path in folders]
        self.answer_json({"Code": 200, "Success": True, "Data": {"Files": listed}})

    def _scope_file(self, repo_id: str) -> None:
        _, files = self._scope(repo_id)
        if files is None:
            return
        path = parse_qs(urlsplit(self.path).query)["FilePath"][0]
        if path not in files:
            self.refuse(404)
            return
        self.answer_file(files[path])

    def _scope(self, repo_id: str) -> tuple[Repo | None, dict[str, bytes] | None]:
        repo = self.owner.repos.get(repo_id)
        if repo is None:
            self.refuse(404)
            return None, None
        if repo.token and self.headers.get("Authorization", "") != f"Bearer {repo.token}":
            self.refuse(401)
            return None, None
        revision = parse_qs(urlsplit(self.path).query).get("Revision", ["master"])[0]
        files = repo.commits.get(repo.refs.get(revision, revision))
        if files is None:
            self.refuse(404)
        return repo, files

    # -- answers

    def answer_file(self, data: bytes, **headers: str) -> None:
        """Send bytes, from the asked-for one on, and go wrong as planned."""
        fault = self.fault
        if fault and fault.data is not None:
            data = fault.data
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(span[1]) if span and not (fault and fault.ignores_range) else 0
        if first and first >= len(data):
            self.refuse(416, **{"Content-Range": f"bytes */{len(data)}"})
            return
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if first else 200)
        for name, value in (headers | {"Content-Length": str(len(data) - first), "Accept-Ranges": "bytes"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(data[first:], fault)

    def _send(self, body: bytes, fault: Fault | None) -> None:
        sent = 0
        end = fault.cut_after if fault and fault.cut_after >= 0 else len(body)
        while sent < end:
            piece = body[sent : min(sent + _PIECE, end)]
            self.wfile.write(piece)
            sent += len(piece)
            if fault and fault.pause_s:
                time.sleep(fault.pause_s)
            if fault and fault.hold and sent >= len(body) // 2:
                fault.hold.wait(60)
        if end < len(body):
            if fault and fault.resets:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.close_connection = True

    def answer_json(self, data: object, **headers: str) -> None:
        """Send JSON."""
        body = json.dumps(data).encode()
        self.send_response(200)
        for name, value in (headers | {"Content-Type": "application/json", "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, **headers: str) -> None:
        """Send a status without a body."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder but our own record."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".infer-dev-model.json"
    }
