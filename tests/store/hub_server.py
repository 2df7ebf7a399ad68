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
    downloaded: list[str] = field(default_factory=list)
    """Paths of the files that were sent."""
    break_after: int | None = None
    """Bytes of a ``.safetensors`` file after which the connection is cut."""
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
        if repo in self.hub.gated:
            self._fail(403, "GatedRepo")
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
        data = self.hub.repos.get(repo, {}).get(name)
        if data is None:
            return self._fail(404, "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.hub.downloaded.append(name)
            cut = self.hub.break_after if name.endswith(".safetensors") else None
            self.wfile.write(data[:cut])
            self.close_connection = cut is not None
        return None

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"refused: {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
