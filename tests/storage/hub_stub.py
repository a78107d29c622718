"""A small hub on localhost: the part of the Hugging Face hub's HTTP interface that downloads use, with faults on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

READER = "hf_reader"
"""A token that the stub knows, of someone who has accepted no terms."""
MEMBER = "hf_member"
"""A token of someone who has."""


@dataclass
class Repository:
    """Branches and what each commit holds. ``gated``: its files want a token of a member; ``private``: all of it does."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass
class Fault:
    """What happens to the next ``times`` requests with ``part`` in their path: a status, a connection closed before the
    answer (``close``), or a body that ends halfway (``cut``)."""

    part: str
    how: int | str
    times: int
    method: str


class HubStub(ThreadingHTTPServer):
    """``add`` repositories, ``fail`` requests, look at ``requests`` (method, path)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes] | Path, kind: str = "model", **state: bool) -> str:
        """A new commit on ``main`` of ``repo`` that holds ``files`` (or a folder's): its hash."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault((kind, repo), Repository(**state))
        commit = hashlib.sha1(repr((repo, sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches["main"] = commit
        return commit

    def fail(self, part: str, how: int | str, times: int = 10**6, method: str = "GET") -> None:
        self.faults.append(Fault(part, how, times, method))

    def downloads(self) -> list[str]:
        """Names of the files whose contents were sent."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.part in path and fault.method == method and fault.times:
                    fault.times -= 1
                    return fault.how
        return None


@contextmanager
def running_hub() -> Iterator[HubStub]:
    with HubStub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


def oid_of(content: bytes) -> str:
    """Git's hash of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubStub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.server.fault(self.command, path)
        if fault == "close":
            self.close_connection = True
        elif isinstance(fault, int):
            self._refuse(fault, "", "out of order")
        elif self._token() not in (None, READER, MEMBER):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path.startswith("/api/"):
            self._api(path)
        else:
            self._file(path, cut=fault == "cut")

    def _api(self, path: str) -> None:
        if path.count("/") < 4:  # what the library asks for beside repositories
            return self._refuse(404, "", "Not Found")
        kind, owner, name, *rest = path.removeprefix("/api/").split("/")
        what, revision = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        if (found := self._commit(kind.removesuffix("s"), f"{owner}/{name}", revision)) is None:
            return
        repository, commit = found
        files = repository.commits[commit]
        if what == "tree":
            return self._json([self._entry(path, content) for path, content in files.items()])
        gated = "manual" if repository.gated else False
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": f"{owner}/{name}", "sha": commit, "gated": gated, "siblings": siblings})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid_of(content)}
        if path.endswith((".safetensors", ".bin")):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
        return entry

    def _file(self, path: str, cut: bool) -> None:
        kind = "dataset" if path.startswith("/datasets/") else "model"
        repo, _, rest = path.removeprefix("/datasets").lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if (found := self._commit(kind, repo, revision)) is None:
            return
        repository, commit = found
        if repository.gated and self._token() != MEMBER:
            return self._refuse(
                403 if self._token() else 401, "GatedRepo", f"Access to {repo} is restricted."
            )
        if (content := repository.commits[commit].get(name)) is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {
            "ETag": f'"{oid_of(content)}"',
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, cut)

    def _commit(self, kind: str, repo: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.server.repositories.get((kind, repo))
        if repository is None or (repository.private and self._token() != MEMBER):
            return self._refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut
