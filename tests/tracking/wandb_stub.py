"""A stub of the W&B service on localhost: the part of its protocol that the client uses, with injected faults.

Runs are upserted over GraphQL. Rows arrive as lines of ``wandb-history.jsonl`` at an offset; a line that is sent again
replaces itself. Files are put to the URLs that a mutation returns. Tests can read what has arrived.
"""

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

KEY = "k" * 40
"""The only API key that the stub accepts."""
ENTITY = "someone"
HISTORY = "wandb-history.jsonl"
T = TypeVar("T")


@dataclass
class Run:
    """What the service stores of a run.

    ``lines``: by file. ``posts``: (time, offset, lines) of each batch of rows. ``closed``: the exit code of each time that
    a client ended the run.
    """

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
        """The definitions of metrics, in the client's encoding."""
        return self.config.get("_wandb", {}).get("m", [])

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column, without the rows that lack it."""
        return [row[name] for row in self.rows if name in row]


class WandbStub(ThreadingHTTPServer):
    """``runs`` by id. ``fault``: (part of a path, status or seconds of delay) for the requests whose path contains it."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores connections that a killed client has closed."""

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

    def fail(self, status: int, part: str = "/") -> None:
        """Answers requests with this status from now on."""
        self.fault = (part, status)

    def stall(self, seconds: float, part: str = "/") -> None:
        self.fault = (part, float(seconds))

    def heal(self) -> None:
        self.fault = None

    def environment(self, key: str = KEY) -> dict[str, str]:
        """Returns the environment variables that make the client use this stub."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": key, "WANDB_ERROR_REPORTING": "false"}

    def wait_for(self, condition: Callable[[], T], seconds: float = 20.0) -> T:
        """Waits until ``condition()`` is true, and returns its value.

        Raises:
            TimeoutError: it is still false after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still waiting after {seconds} s; last requests: {self.requests[-5:]}")
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
            fault = self.server.fault[1]
            if isinstance(fault, int):
                return self._send(fault, {"error": "an injected fault"})
            time.sleep(fault)
        if path.startswith("/storage/"):
            return self._store(path, body)
        if path.startswith("/sdk/otel"):
            return self._send(200, {})
        if not self._is_authorized():
            return self._send(401, {"errors": [{"message": "user is not logged in"}]})
        if path == "/graphql":
            return self._graphql(plain)
        if path.endswith("/file_stream"):
            return self._stream(path.split("/")[-2], plain)
        self._send(404, {"error": f"the stub does not serve {path}"})

    def _is_authorized(self) -> bool:
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
                answer = {
                    "viewer": {
                        "id": "1",
                        "entity": ENTITY,
                        "username": ENTITY,
                        "flags": "{}",
                        "teams": {"edges": []},
                    }
                }
        self._send(200, {"data": answer})

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name, project = given["name"], given.get("project") or "uncategorized"
        new = name not in self.server.runs
        run = self.server.runs.setdefault(name, Run(name, project))
        run.about |= {key: value for key, value in given.items() if value is not None}
        return {"bucket": self._bucket(run), "inserted": new}

    def _bucket(self, run: Run) -> dict[str, Any]:
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.about.get("displayName"),
            "description": None,
            "config": run.about.get("config"),
            "sweepName": None,
            "historyLineCount": len(run.rows),
            "project": {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}},
        }

    def _resume(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs.get(given["name"])
        bucket = None
        if run is not None:
            events = run.lines.get("wandb-events.jsonl", [])
            history = run.lines.get(HISTORY, [])
            bucket = self._bucket(run) | {
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "historyLineCount": len(history),
                "eventsLineCount": len(events),
                "historyTail": json.dumps(history[-1:]),
                "eventsTail": json.dumps(events[-1:]),
                "tags": run.about.get("tags", []),
                "wandbConfig": json.dumps({"t": {"value": 1}}),
            }
        project = given.get("project")
        return {"id": "1", "name": project, "entity": {"id": "1", "name": ENTITY}, "bucket": bucket}

    def _public(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what the public API reports of a run."""
        run = self.server.runs.get(given["name"])
        if run is None:
            return None
        last = max([row["_step"] for row in run.rows], default=-1)
        return self._bucket(run) | {
            "state": "finished" if run.closed else "running",
            "historyKeys": {"lastStep": last, "keys": {}},
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "tags": run.about.get("tags", []),
            "createdAt": "2026-01-01T00:00:00",
            "user": {"name": ENTITY, "username": ENTITY},
        }

    def _files(self, given: dict[str, Any]) -> dict[str, Any]:
        names = given.get("files") or []
        links = [{"name": n, "uploadUrl": f"{self.server.url}/storage/{given['run']}/{n}"} for n in names]
        return {"runID": given["run"], "uploadHeaders": [], "files": links}

    def _artifact(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answers the requests for a logged table, which is uploaded as an artifact with one file."""
        link = {"uploadHeaders": [], "uploadUrl": f"{self.server.url}/storage/artifacts/"}
        if "createArtifactFiles(" in query:
            nodes = [
                {
                    **link,
                    "id": "1",
                    "name": f["name"],
                    "displayName": f["name"],
                    "storagePath": f["name"],
                    "uploadUrl": link["uploadUrl"] + f["name"],
                    "artifact": {"id": f["artifactID"]},
                }
                for f in given["artifactFiles"]
            ]
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
