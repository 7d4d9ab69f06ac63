"""A hub in this process that keeps what is uploaded, and gives it back."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


class HubServer(ThreadingHTTPServer):
    """Repositories as dictionaries of files by name, with one commit each.

    All files come within the commit. The hub takes large ones in another way (Xet), which this
    does not know.

    Attributes:
        repositories: the files.
        private: names of repositories that were made private.
        requested: methods and paths of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requested: list[str] = []

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def run_hub(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[HubServer]:
    """Runs a hub, and lets huggingface_hub use it and this cache."""
    with HubServer() as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HOME", cache)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{cache}/hub")
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self._send_file(with_body=False)

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[0] != "api":
            self._send_file(with_body=True)
            return
        files = self.server.repositories.get("/".join(parts[2:4]))
        if files is None:
            self._send_error(404, "RepoNotFound")
        elif "tree" in parts:
            self._send(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}
                    for path, content in files.items()
                ]
            )
        else:
            names = [{"rfilename": name} for name in files]
            self._send({"id": "/".join(parts[2:4]), "sha": "c" * 40, "siblings": names})

    def do_POST(self) -> None:
        parts, body = self._parts(), self._read()
        if parts[-1] == "create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._send({"url": f"{self.server.url}/{name}"})
        elif parts[-1] == "validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            for file in files:
                file |= {"shouldIgnore": False, "uploadMode": "regular"}
            self._send({"files": files})
        else:
            self._commit("/".join(parts[2:4]), body)

    def _commit(self, repository: str, body: bytes) -> None:
        files = self.server.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        address = f"{self.server.url}/{repository}/commit/{'c' * 40}"
        self._send({"success": True, "commitOid": "c" * 40, "commitUrl": address})

    def _send_file(self, *, with_body: bool) -> None:
        owner, name, _, _, file = self._parts()
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None or file not in files:
            self._send_error(404, "RepoNotFound" if files is None else "EntryNotFound")
            return
        content = files[file]
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{_hash(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _parts(self) -> list[str]:
        self.server.requested.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_error(self, code: int, reason: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
