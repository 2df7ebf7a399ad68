"""A stand-in for a model hub: the routes that its client calls to list and download a repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1.0", "refs/pr/1", COMMIT)


@dataclass
class Hub:
    """Repositories by id, each its files by path."""

    repos: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    """Repositories to which access has to be granted."""
    tokens: dict[str, set[str]] = field(default_factory=dict)
    """Repositories to which each token gives access; other tokens are none."""
    downloaded: list[str] = field(default_factory=list)
    """Paths of the files that were sent, or the rest of which was."""
    resumed: list[int] = field(default_factory=list)
    """Bytes that clients had already when they asked for the rest of a file."""
    break_after: int | None = None
    """Bytes of a ``.safetensors`` file after which the connection is always cut."""
    cuts: list[int] = field(default_factory=list)
    """Likewise once each, in order."""
    endpoint: str = ""


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serves on a free loopback port."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def _route(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/({'|'.join(REVISIONS)})/(.+)", path):
            self._file(match[1], match[3])
        else:
            self._fail(404, "EntryNotFound")

    def _refused(self, repo: str, revision: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            self._fail(401, "", "Invalid credentials in Authorization header")
        elif repo in self.hub.gated and repo not in self.hub.tokens.get(token, ()):
            self._fail(403 if token else 401, "GatedRepo")
        elif repo not in self.hub.repos:
            self._fail(404, "RepoNotFound")
        elif revision not in REVISIONS:
            self._fail(404, "RevisionNotFound")
        else:
            return False
        return True

    def _info(self, repo: str, revision: str) -> None:
        if not self._refused(repo, revision):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.hub.repos[repo].items()]
            self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def _tree(self, repo: str, revision: str) -> None:
        if not self._refused(repo, revision):
            files = self.hub.repos[repo].items()
            self._json([{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files])

    def _file(self, repo: str, name: str) -> None:
        if self._refused(repo, "main"):
            return
        data = self.hub.repos[repo].get(name)
        if data is None:
            self._fail(404, "EntryNotFound")
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.hub.resumed.append(start)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.hub.downloaded.append(name)
            cut = self._cut() if name.endswith(".safetensors") else None
            self.wfile.write(data[start:cut])
            self.close_connection = cut is not None

    def _cut(self) -> int | None:
        return self.hub.cuts.pop(0) if self.hub.cuts else self.hub.break_after

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str = "refused") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
