"""A small W&B on localhost: the part of its protocol that the real client speaks, with faults on demand.

Runs are upserted over GraphQL, rows arrive as lines of ``wandb-history.jsonl`` at an offset (a line that is sent again
takes its own place), files are put where a mutation says. What arrived, and when, is kept for tests to look at.
"""

import base64
import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

KEY = "k" * 40
"""The API key that the stub takes; it refuses any other."""
ENTITY = "someone"
HISTORY = "wandb-history.jsonl"


@dataclass
class Run:
    """What the service knows of one run. ``lines`` by file; ``posts``: (time, offset, lines) of each batch of rows;
    ``closed``: exit codes, one each time that a client has said that the run is over."""

    id: str
    project: str
    about: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    posts: list[tuple[float, int, list[str]]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    preempting: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get(HISTORY, [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get("wandb-summary.json")
        return json.loads(lines[-1]) if lines else {}

    @property
    def config(self) -> dict[str, Any]:
        return {key: v["value"] for key, v in json.loads(self.about.get("config") or "{}").items()}

    @property
    def metrics(self) -> list[Any]:
        """The definitions of metrics, as the client packs them."""
        return self.config.get("_wandb", {}).get("m", [])

    def column(self, name: str) -> list[Any]:
        """Values of ``name``, in the order of the rows that have it."""
        return [row[name] for row in self.rows if name in row]


class WandbStub(ThreadingHTTPServer):
    """``runs`` by id. ``fault`` befalls each request whose path has ``part`` in it: a status, or seconds to wait."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or that has had enough, closes its connection: no news."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: tuple[str, int | float] | None = None
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, how: int, part: str = "/") -> None:
        """Answers ``how`` (a status) from now on."""
        self.fault = (part, how)

    def stall(self, seconds: float, part: str = "/") -> None:
        self.fault = (part, float(seconds))

    def heal(self) -> None:
        self.fault = None

    def environment(self, key: str = KEY) -> dict[str, str]:
        """Variables that lead the real client here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": key, "WANDB_ERROR_REPORTING": "false"}

    def wait_for(self, what: Any, seconds: float = 20.0) -> Any:
        """The first truthy value of ``what()``.

        Raises:
            TimeoutError: it stays false for ``seconds``.
        """
        until = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() > until:
                raise TimeoutError(f"the stub waited {seconds} s; it saw {self.requests[-5:]}")
            time.sleep(0.05)
        return found


@contextmanager
def wandb_stub(port: int = 0) -> Iterator[WandbStub]:
    server = WandbStub(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbStub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        plain = (
            json.loads(body) if self.headers.get("Content-Type", "").startswith("application/json") else {}
        )
        self.server.requests.append((self.command, f"{path} {plain.get('operationName', '')}".strip()))
        if self.server.fault and self.server.fault[0] in path:
            how = self.server.fault[1]
            if isinstance(how, int):
                return self._send(how, {"error": "the stub was told to fail"})
            time.sleep(how)
        if path.startswith("/storage/"):
            return self._store(path, body)
        if path.startswith("/sdk/otel"):
            return self._send(200, {})
        if not self._known():
            return self._send(401, {"errors": [{"message": "user is not logged in"}]})
        if path == "/graphql":
            return self._graphql(plain)
        if path.endswith("/file_stream"):
            return self._stream(path.split("/")[-2], plain)
        self._send(404, {"error": f"the stub knows no {path}"})

    def _known(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Basic ").removeprefix("Bearer ")
        try:
            return base64.b64decode(given).decode() == f"api:{KEY}"
        except ValueError:
            return given == KEY

    # ------------------------------------------------------------ GraphQL

    def _graphql(self, plain: dict[str, Any]) -> None:
        query, given = plain["query"], plain.get("variables") or {}
        answer: dict[str, Any] = {}
        with self.server.lock:
            if "upsertBucket" in query:
                answer = {"upsertBucket": self._upsert(given)}
            elif "createRunFiles" in query:
                answer = {"createRunFiles": self._files(given)}
            elif "RunResumeStatus" in query:
                answer = {"model": self._resume(given)}
            elif "historyKeys" in query:
                answer = {"project": {"run": self._public(given)}}
            elif "Artifact" in query:
                answer = self._artifact(query, given.get("input") or given)
            elif "viewer" in query:
                answer = {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}",
                                     "teams": {"edges": []}}}  # fmt: skip
        self._send(200, {"data": answer})

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name, project = given["name"], given.get("project") or "uncategorized"
        new = name not in self.server.runs
        run = self.server.runs.setdefault(name, Run(name, project))
        run.about |= {key: value for key, value in given.items() if value is not None}
        return {"bucket": self._bucket(run), "inserted": new}

    def _bucket(self, run: Run) -> dict[str, Any]:
        return {
            "id": run.id, "name": run.id, "displayName": run.about.get("displayName"), "description": None,
            "config": run.about.get("config"), "sweepName": None, "historyLineCount": len(run.rows),
            "project": {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}},
        }  # fmt: skip

    def _resume(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs.get(given["name"])
        bucket = None
        if run is not None:
            events = run.lines.get("wandb-events.jsonl", [])
            history = run.lines.get(HISTORY, [])
            bucket = self._bucket(run) | {
                "summaryMetrics": json.dumps(run.summary), "logLineCount": 0, "historyLineCount": len(history),
                "eventsLineCount": len(events), "historyTail": json.dumps(history[-1:]),
                "eventsTail": json.dumps(events[-1:]), "tags": run.about.get("tags", []),
                "wandbConfig": json.dumps({"t": {"value": 1}}),
            }  # fmt: skip
        project = given.get("project")
        return {"id": "1", "name": project, "entity": {"id": "1", "name": ENTITY}, "bucket": bucket}

    def _public(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """What the public API tells of a run."""
        run = self.server.runs.get(given["name"])
        if run is None:
            return None
        last = max([row["_step"] for row in run.rows], default=-1)
        return self._bucket(run) | {
            "state": "finished" if run.closed else "running", "historyKeys": {"lastStep": last, "keys": {}},
            "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}", "tags": run.about.get("tags", []),
            "createdAt": "2026-01-01T00:00:00", "user": {"name": ENTITY, "username": ENTITY},
        }  # fmt: skip

    def _files(self, given: dict[str, Any]) -> dict[str, Any]:
        names = given.get("files") or []
        links = [{"name": n, "uploadUrl": f"{self.server.url}/storage/{given['run']}/{n}"} for n in names]
        return {"runID": given["run"], "uploadHeaders": [], "files": links}

    def _artifact(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """What a logged table takes: it travels as an artifact of one file."""
        link = {"uploadHeaders": [], "uploadUrl": f"{self.server.url}/storage/artifacts/"}
        if "createArtifactFiles(" in query:
            nodes = [
                {**link, "id": "1", "name": f["name"], "displayName": f["name"], "storagePath": f["name"],
                 "uploadUrl": link["uploadUrl"] + f["name"], "artifact": {"id": f["artifactID"]}}
                for f in given["artifactFiles"]
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        file = {"id": "1", "name": "manifest", "displayName": "manifest", **link}
        file["uploadUrl"] += "manifest"
        artifact = {"id": "1", "digest": "0", "state": "PENDING", "artifactSequence": {"id": "1"}}
        return {
            "createArtifact": {"artifact": artifact},
            "createArtifactManifest": {"artifactManifest": {"id": "1", "file": file}},
            "updateArtifactManifest": {"artifactManifest": {"id": "1", "file": file}},
            "commitArtifact": {"artifact": artifact},
            "project": None,
        }

    # ------------------------------------------------------------ rows and files

    def _stream(self, name: str, plain: dict[str, Any]) -> None:
        with self.server.lock:
            run = self.server.runs[name]
            for file, chunk in (plain.get("files") or {}).items():
                lines, offset = run.lines.setdefault(file, []), chunk["offset"]
                if file == "wandb-summary.json":
                    offset = 0
                lines[offset : offset + len(chunk["content"])] = chunk["content"]
                if file == HISTORY:
                    run.posts.append((time.time(), offset, chunk["content"]))
            if plain.get("complete"):
                run.closed.append(plain["exitcode"])
            run.preempting |= bool(plain.get("preempting"))
        self._send(200, {"exitcode": None, "limits": {}})

    def _store(self, path: str, body: bytes) -> None:
        _, _, name, file = path.split("/", 3)
        with self.server.lock:
            files = self.server.artifacts if name == "artifacts" else self.server.runs[name].files
            files[file] = body
        self._send(200, {})

    # ------------------------------------------------------------ HTTP

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
