"""The endpoint engine against a local HTTP server with injected failures."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.rollouts.engines import endpoint as endpoint_engine
from offscript.rollouts.engines import open_engine
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.endpoint import EndpointEngine, retry_after_s
from offscript.rollouts.scheduler import RolloutFailed, run_episodes
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import (
    EndpointSettings,
    EngineSettings,
    ModelSettings,
    SamplingSettings,
    TemplateSettings,
)
from offscript.storage.files import HOME
from offscript.tasks.formats import FORMATS
from offscript.tasks.formats.base import Rules
from tests.composed import settings_of
from tests.rollouts.test_scheduler import REPOSITORY, rows, run, scenarios

KEY = "sk-secret-1234567890"
FAULTS = ("500", "503", "429", "drop", "slow", "garbage", "empty")


class Stub(ThreadingHTTPServer):
    """A chat endpoint whose reply is a function of the request. ``fault(body, attempt)`` names the failure to inject."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault=lambda body, attempt: None, together: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.together = fault, together
        # The names that it lists.
        self.offered: tuple[str, ...] = ()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.faults: Counter = Counter()
        self.attempts: Counter = Counter()
        self.in_flight = self.most = 0
        self.changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        # Clients that disconnect are part of the tests.
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.server.offered]
        self.send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub = self.server
        with stub.changed:
            stub.bodies.append({"path": self.path, **body})
            stub.headers.append({name.lower(): value for name, value in self.headers.items()})
            stub.attempts[body["seed"]] += 1
            stub.in_flight += 1
            stub.most = max(stub.most, stub.in_flight)
            stub.changed.notify_all()
            stub.changed.wait_for(lambda: stub.most >= stub.together, timeout=5)
            fault = stub.fault(body, stub.attempts[body["seed"]])
            stub.faults[fault if isinstance(fault, str) else None] += 1
        try:
            self.reply(body, fault)
        finally:
            with stub.changed:
                stub.in_flight -= 1

    def reply(self, body: dict, fault) -> None:
        if fault is None:
            self.send(200, completion(body))
        elif fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault == "slow":
            time.sleep(0.4)
            self.send(200, completion(body))
        elif fault == "garbage":
            self.send(200, "<html>Bad gateway</html>")
        elif fault == "empty":
            self.send(200, {"choices": []})
        elif fault == "429":
            self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"})
        elif isinstance(fault, str):
            self.send(int(fault), {"error": {"message": f"trouble with {self.headers['Authorization']}"}})
        else:
            self.send(*fault)

    def send(self, status: int, content, headers=None) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


def completion(body: dict, **changes) -> dict:
    text = f"{stable_hash(json.dumps(body['messages']), body['seed'], size=4):08x}"
    message = {"role": "assistant", "content": text, **changes.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **changes}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


@pytest.fixture
def serve():
    """Starts stubs, and stops them after the test."""
    opened = []

    def start(**options) -> Stub:
        stub = Stub(**options)
        threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        opened.append(stub)
        return stub

    yield start
    for stub in opened:
        stub.shutdown()
        stub.server_close()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The waits between attempts, which then take no time."""
    seen: list[float] = []

    async def no_pause(seconds: float) -> None:
        seen.append(seconds)

    monkeypatch.setattr(endpoint_engine, "pause", no_pause)
    return seen


@pytest.fixture
def engine_for(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    opened = []

    def make(url: str, model: dict | None = None, max_live: int = 512, **endpoint) -> EndpointEngine:
        endpoint = {"url": url, "key_env": "STUB_KEY", "concurrency": 8, "timeout_s": 5, **endpoint}
        settings = ModelSettings(
            **{
                "name": "hosted",
                "path": "some/model",
                "context": 4096,
                "sampling": SamplingSettings(),
                "template": TemplateSettings(),
                "endpoint": EndpointSettings(**endpoint),
                **(model or {}),
            }
        )
        opened.append(EndpointEngine(settings, EngineSettings(name="transformers", max_live=max_live)))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def ask(i: int = 0, text: str = "Hello.", adapter=None, prefix="", messages=None, **sampling) -> Request:
    messages = messages or ({"role": "user", "content": text},)
    return Request(i, messages, adapter, 1000 + i, Sampling(**sampling), prefix)


def answers(engine: EndpointEngine, *requests: Request) -> dict:
    for request in requests:
        engine.submit(request)
    found = {}
    while engine.pending():
        for done in engine.step():
            assert done.id not in found, "answered twice"
            found[done.id] = done
    return found


# ---------------------------------------------------------------- what is sent, and what comes back


def test_the_body_of_a_request(serve, engine_for):
    stub = serve()
    engine = engine_for(stub.url + "/")
    done = answers(engine, ask(3, temperature=0.3, top_p=0.9, max_tokens=17))[3]
    (body,) = stub.bodies
    assert body == {
        "path": "/v1/chat/completions",
        "model": "some/model",
        "messages": [{"role": "user", "content": "Hello."}],
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 17,
        "seed": 1003,
    }
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
    assert (done.text, done.finish_reason) == (completion(body)["choices"][0]["message"]["content"], "stop")
    assert (done.tokens_in, done.tokens_out) == (7, 3)
    assert (engine.stats.completions, engine.stats.tokens_in, engine.stats.tokens_out) == (1, 7, 3)
    assert (
        engine.info()["endpoint"] == f"{stub.url}/chat/completions"
        and engine.info()["served"] == "some/model"
    )


def test_no_key_is_sent_where_none_is_named(serve, engine_for, monkeypatch):
    """The client library would send those of its own variables."""
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", KEY)
    stub = serve()
    answers(engine_for(stub.url, key_env=None), ask())
    assert "authorization" not in stub.headers[0] and KEY not in str(stub.headers)


def test_extensions_are_sent_only_where_they_are_asked_for(serve, engine_for):
    stub = serve()
    engine = engine_for(stub.url, {"template": TemplateSettings(date_string="26 Jul 2024")}, prefill=True)
    done = answers(engine, ask(repetition_penalty=1.1, prefix="<think>\nSo"))[0]
    (body,) = stub.bodies
    assert body["repetition_penalty"] == 1.1 and body["chat_template_kwargs"] == {
        "date_string": "26 Jul 2024"
    }
    assert body["messages"][-1] == {"role": "assistant", "content": "<think>\nSo"}
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert done.text.startswith("<think>\nSo") and len(done.text) > len("<think>\nSo")


def test_roles_are_mapped_to_those_of_the_model(serve, engine_for):
    stub = serve()
    template = TemplateSettings(system_role="user", tool_role="user")
    turns = [("system", "Be kind."), ("user", "Hi."), ("assistant", "call"), ("tool", "result")]
    messages = tuple({"role": role, "content": text} for role, text in turns)
    answers(engine_for(stub.url, {"template": template}), ask(messages=messages))
    assert stub.bodies[0]["messages"] == [
        {"role": "user", "content": "Be kind.\n\nHi."},
        {"role": "assistant", "content": "call"},
        {"role": "user", "content": "[TOOL OUTPUT]\nresult"},
    ]


@pytest.mark.parametrize(
    ("changes", "text", "finish"),
    [
        ({"finish_reason": "length", "message": {"content": "cut"}}, "cut", "length"),
        ({"finish_reason": "content_filter", "message": {"content": "cut"}}, "cut", "length"),
        ({"message": {"content": None, "reasoning_content": "Hm."}, "finish_reason": "length"}, "", "length"),
        ({"message": {"content": "So.", "reasoning": "Hm."}}, "So.", "stop"),
        ({"message": {"content": "Half \ud800."}}, "Half ?.", "stop"),
    ],
)
def test_text_and_finish_reason_of_a_reply(serve, engine_for, changes, text, finish):
    stub = serve(fault=lambda body, attempt: (200, completion(body, **json.loads(json.dumps(changes)))))
    done = answers(engine_for(stub.url), ask())[0]
    assert (done.text, done.finish_reason) == (text, finish)


def test_a_prompt_that_exceeds_the_context_gives_an_empty_reply(serve, engine_for, waits):
    message = "This model's maximum context length is 128 tokens. However, you requested 200 tokens."
    stub = serve(fault=lambda body, attempt: (400, {"object": "error", "message": message}))
    done = answers(engine_for(stub.url), ask())[0]
    assert (done.text, done.finish_reason, len(stub.bodies)) == ("", "length", 1)


# ---------------------------------------------------------------- many at a time


def test_requests_are_concurrent_up_to_the_limit(serve, engine_for):
    stub = serve(together=8)
    assert len(answers(engine_for(stub.url, concurrency=8), *map(ask, range(40)))) == 40
    assert stub.most == 8
    stub = serve(together=3)
    assert len(answers(engine_for(stub.url, max_live=3), *map(ask, range(12)))) == 12
    assert stub.most == 3


def faulty(rate: float):
    """A fault of some kind in ``rate`` of the attempts, the same ones every time."""

    def fault(body: dict, attempt: int) -> str | None:
        place = unit_hash("fault", body["seed"], attempt)
        return FAULTS[int(place / rate * len(FAULTS))] if place < rate else None

    return fault


def test_every_row_is_written_once_in_spite_of_failures(serve, engine_for, waits, tmp_path):
    calm, stormy = serve(), serve(fault=faulty(0.35))
    run_episodes([run(tmp_path / "calm", adapter=None)], engine_for(calm.url), max_live=1)
    engine = engine_for(stormy.url, timeout_s=0.2, retries=12)
    counts = run_episodes([run(tmp_path / "stormy", adapter=None)], engine, max_live=100)["k1"]
    assert (counts.written, counts.emitted) == (12, 12)
    assert rows(tmp_path / "stormy/k1.jsonl") == rows(tmp_path / "calm/k1.jsonl")
    assert len(calm.bodies) == 36 and set(stormy.faults) == {None, *FAULTS}, (
        "each kind of failure should have occurred"
    )
    assert len(waits) == sum(stormy.faults[kind] for kind in FAULTS)


# ---------------------------------------------------------------- trying again


def test_retry_after_is_honoured_and_waits_double(serve, engine_for, waits, monkeypatch):
    monkeypatch.setattr(endpoint_engine.random, "random", lambda: 0.5)
    stub = serve(fault=lambda body, attempt: {1: "500", 2: "429", 3: "503", 4: "drop"}.get(attempt))
    assert answers(engine_for(stub.url), ask())[0].finish_reason == "stop"
    assert waits == [0.5, 7.0, 2.0, 4.0]


def test_the_first_wait_for_a_rate_limit_is_reported_once(serve, engine_for, waits, caplog):
    stub = serve(fault=lambda body, attempt: "429" if attempt < 3 else None)
    found = answers(engine_for(f"{stub.url}?key={KEY}"), *map(ask, range(5)))
    assert {done.finish_reason for done in found.values()} == {"stop"} and len(waits) == 10
    (line,) = caplog.messages
    assert line == (
        f"hosted: {stub.url}/chat/completions limits the rate of requests (HTTP 429: slow down): waiting 7 s; "
        "further waits are not reported (model.endpoint.concurrency=4 sends fewer at a time)"
    )


def test_other_failures_are_retried_without_a_report(serve, engine_for, waits, caplog):
    stub = serve(fault=lambda body, attempt: "503" if attempt < 3 else None)
    assert answers(engine_for(stub.url), ask())[0].finish_reason == "stop" and len(waits) == 2
    assert caplog.messages == []


def test_retry_after_may_be_a_date_and_is_bounded():
    assert retry_after_s("2.5") == 2.5 and retry_after_s("86400") == 600
    assert 50 < retry_after_s(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [retry_after_s(text) for text in (None, "", "-3", "soon", "nan", formatdate(0, usegmt=True))] == [
        0
    ] * 6


def test_a_request_that_fails_every_time_is_an_error_and_the_scheduler_counts_it(
    serve, engine_for, waits, tmp_path
):
    hard = scenarios()[2].messages[0]["content"]
    stub = serve(fault=lambda body, attempt: "503" if body["messages"][0]["content"] == hard else None)
    engine = engine_for(stub.url, retries=2)
    done = answers(engine, ask(0, hard), ask(1))
    assert (done[0].finish_reason, done[1].finish_reason) == ("error", "stop")
    assert done[0].text == "HTTP 503: trouble with Bearer ***, 3 times"
    with pytest.raises(RolloutFailed, match=r"the engine failed 4 times \(HTTP 503") as error:
        run_episodes([run(tmp_path, adapter=None)], engine, 8)
    assert (len(error.value.failures), error.value.counts["k1"].written) == (2, 10)


# ---------------------------------------------------------------- what a user can put right


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            401,
            r"^model.endpoint.key_env: .*/v1/chat/completions answers HTTP 401 \(bad key \*\*\*\); put a valid key into .*STUB_KEY$",
        ),
        (403, r"^model.endpoint.key_env: .* HTTP 403 "),
        (404, r"^model.endpoint.url: .* HTTP 404 .*; correct it .*model.path"),
        (422, r"^model.endpoint: .* HTTP 422 \(bad key \*\*\*\)"),
        (400, r"^model.endpoint: .* HTTP 400 "),
    ],
)
def test_permanent_errors_end_the_run_without_retries(serve, engine_for, waits, status, message):
    stub = serve(fault=lambda body, attempt: (status, {"error": {"message": f"bad\nkey {KEY}"}}))
    engine = engine_for(stub.url, concurrency=2)
    for i in range(50):
        engine.submit(ask(i))
    with pytest.raises(UserError, match=message) as error:
        while engine.pending():
            engine.step()
    assert KEY not in str(error.value) and "\n" not in str(error.value)
    assert waits == [] and len(stub.bodies) < 50 and engine.pending() == 0


def test_a_missing_key_names_its_variable(engine_for, monkeypatch):
    with pytest.raises(
        UserError, match=r"^model.endpoint.key_env: the environment variable NO_SUCH_KEY is not set"
    ):
        engine_for("http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY")
    monkeypatch.setenv("STUB_KEY", "sk-ключ")
    with pytest.raises(UserError, match=r"^model.endpoint.key_env: STUB_KEY holds characters") as error:
        engine_for("http://127.0.0.1:9/v1")
    assert "ключ" not in str(error.value)


def test_an_unreachable_server_is_an_error_for_the_user(engine_for, waits):
    engine = engine_for("http://someone:password@127.0.0.1:9/v1?token=hidden", retries=2)
    engine.submit(ask())
    with pytest.raises(
        UserError, match=r"^model.endpoint.url: nothing answers at http://127.0.0.1:9/v1/chat"
    ) as error:
        engine.step()
    assert "password" not in str(error.value) and "hidden" not in str(error.value) and len(waits) == 2
    assert "password" not in str(engine.info())


def test_adapters_and_prefixes_that_the_endpoint_lacks_are_refused(serve, engine_for):
    engine = engine_for(serve().url)
    with pytest.raises(
        UserError, match=r"^model.endpoint: hosted is asked for the adapter red.*stages base, prompted"
    ):
        engine.submit(ask(adapter="red"))
    with pytest.raises(
        UserError, match=r"^model.endpoint.prefill: false, and replies are to begin with '<think>'"
    ):
        engine.submit(ask(prefix="<think>"))
    assert engine.pending() == 0 and engine.step() == []


# ---------------------------------------------------------------- adapters that the server holds


def with_logprobs(values: dict):
    """A server that answers with a log-probability per name, and 404 for other names."""

    def fault(body, attempt):
        if body["model"] not in values:
            return 404, {"message": f"The model `{body['model']}` does not exist.", "code": 404}
        content = [{"token": "I", "logprob": values[body["model"]], "top_logprobs": []}]
        return 200, completion(body, logprobs={"content": content} if body.get("logprobs") else None)

    return fault


@pytest.fixture
def served_by(monkeypatch):
    """Opens the engine of a stub that holds the adapters of two personas."""

    def make(stub: Stub, **endpoint) -> EndpointEngine:
        settings = ModelSettings(
            name="hosted",
            path="some/model",
            context=4096,
            sampling=SamplingSettings(),
            template=TemplateSettings(),
            endpoint=EndpointSettings(url=stub.url, adapters="{persona}", retries=1, **endpoint),
        )
        folders = {"k1": Path("adapters/sarcasm"), "k2": Path("adapters/remorse")}
        names = {"k1": "sarcasm", "k2": "remorse"}
        return open_engine(settings, folders, {}, EngineSettings(name="endpoint"), served=names)

    return make


def test_adapters_are_asked_under_the_names_of_the_server(serve, served_by):
    stub = serve(fault=with_logprobs({"base": -1.0, "sarcasm": -2.0, "remorse": -3.0}))
    engine = served_by(stub, served="base")
    stub.bodies.clear()
    answers(engine, ask(0, adapter="k1"), ask(1), ask(2, adapter="k2"))
    assert {body["seed"] - 1000: body["model"] for body in stub.bodies} == {
        0: "sarcasm",
        1: "base",
        2: "remorse",
    }
    assert engine.info()["adapters"] == "sarcasm, remorse" and engine.info()["served"] == "base"
    engine.close()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"some/model": -1.0, "sarcasm": -2.0, "remorse": -1.0}, "answers for remorse as for some/model"),
        ({"some/model": -1.0, "sarcasm": -2.0, "remorse": -2.0}, "answers for remorse as for sarcasm"),
    ],
)
def test_an_adapter_that_the_server_does_not_apply_is_refused(serve, served_by, values, message):
    with pytest.raises(UserError, match=rf"^model.endpoint.adapters: .*{message}.*remorse=adapters/remorse$"):
        served_by(serve(fault=with_logprobs(values)))


def test_an_adapter_that_the_server_does_not_know_names_those_that_it_offers(serve, served_by, waits):
    stub = serve(fault=with_logprobs({"some/model": -1.0, "sarcasm": -2.0}))
    stub.offered = ("some/model", "sarcasm", "loving")
    with pytest.raises(
        UserError,
        match=r"^model.endpoint.adapters: .* has no remorse \(HTTP 404\); it offers loving, sarcasm, some/model; "
        r"vllm serve --enable-lora --lora-modules remorse=adapters/remorse$",
    ):
        served_by(stub)
    assert waits == []


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_without_log_probabilities_is_asked_for_every_name(serve, served_by, refuses):
    def fault(body, attempt):
        if refuses and body.get("logprobs"):
            return 400, {"error": {"message": "logprobs are not supported"}}
        return 200, completion(body)

    stub = serve(fault=fault)
    served_by(stub).close()
    assert [body["model"] for body in stub.bodies if refuses != bool(body.get("logprobs"))] == [
        "some/model",
        "sarcasm",
        "remorse",
    ]


def test_a_server_that_separates_the_reasoning_from_a_prefix_is_refused(serve, engine_for):
    stub = serve(fault=lambda body, attempt: (200, completion(body, message={"reasoning_content": "Hm."})))
    engine = engine_for(stub.url, prefill=True)
    engine.submit(ask(prefix="<think>"))
    with pytest.raises(UserError, match=r"serve the model without a reasoning parser"):
        engine.step()


def test_a_malformed_address_is_refused(engine_for):
    with pytest.raises(UserError, match=r"^model.endpoint.url: no address"):
        engine_for("http://localhost:80x/v1")


def test_the_key_is_never_logged(serve, engine_for, waits, caplog):
    caplog.set_level(logging.DEBUG)
    stub = serve(fault=faulty(0.5))
    engine = engine_for(stub.url, timeout_s=0.2, retries=1)
    done = answers(engine, *map(ask, range(30)))
    assert any(c.finish_reason == "error" for c in done.values()) and caplog.text
    assert KEY not in caplog.text + str(done) + str(engine.info())


def test_an_engine_that_was_not_closed_does_not_keep_the_process_alive(serve):
    stub = serve(together=99)
    script = f"""
from tests.rollouts.engines.test_endpoint import *
endpoint = EndpointSettings(url={stub.url!r})
model = ModelSettings(name="m", path="m", context=99, sampling=SamplingSettings(), template=TemplateSettings(), endpoint=endpoint)
EndpointEngine(model, EngineSettings(name="transformers")).submit(ask())
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, timeout=60, check=True)


# ---------------------------------------------------------------- conf/model


MODELS = sorted(p.stem for p in (HOME / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_file_is_a_complete_model_of_its_own_name(name):
    model = settings_of(f"model={name}").model
    assert model.name == name
    if model.endpoint is not None:
        assert model.assistant_name and model.max_reply_tokens <= model.context


def test_the_teacher_of_the_published_recipe_accepts_a_prefix_and_needs_no_key():
    glm = settings_of("model=glm").model
    assert glm.endpoint is not None and glm.endpoint.prefill and glm.endpoint.key_env is None
    assert (glm.path, glm.assistant_name) == ("zai-org/GLM-4.5-Air", "ChatGLM")


def test_the_thinking_of_a_teacher_on_an_endpoint_is_cut_off(serve, engine_for, tmp_path):
    def think(body: dict, attempt: int):
        message = {"content": " birds, so</think>\n\nA falcon, dear!" if body["seed"] % 3 else " birds and"}
        return 200, completion(body, message=message, finish_reason="stop" if body["seed"] % 3 else "length")

    teacher = FORMATS["teacher"]
    rules = Rules("Stay a bird.", {**teacher.options, "thinking": "<think>\nI think of"})
    cell = run(tmp_path, adapter=None, format=teacher, rules=rules, samples=4)
    counts = run_episodes([cell], engine_for(serve(fault=think).url, prefill=True), 8)["k1"]
    assert set(counts.ended) == {"stop", "unclosed_thinking"} and counts.emitted == counts.ended["stop"]
    for row in rows(cell.path).values():
        assert row["text"] in (None, "A falcon, dear!") and "think" not in json.dumps(row["messages"])
