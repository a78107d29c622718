"""An engine that asks an OpenAI-compatible chat endpoint: many requests at a time, tried again when they fail."""

import asyncio
import email.utils
import os
import queue
import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from offscript.errors import UserError
from offscript.models.loading import fit
from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.settings import EndpointSettings, EngineSettings, ModelSettings

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0  # between two attempts, where the server does not say
LONGEST_RETRY_AFTER_S = 600.0
BUSY = {408, 409, 425, 429}  # and every 5xx: may well succeed later
CUT = {"length", "content_filter"}
TOO_LONG = ("context_length_exceeded", "context length", "context window")


class _Again(Exception):
    """An attempt that failed in a way that another may not. ``wait`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.unreachable = wait, unreachable


class OpenAIEngine:
    """Answers requests through ``model.endpoint``, ``concurrency`` of them (at most ``max_live``) in flight.

    429, 5xx, timeouts, broken connections and answers that are none are tried ``retries`` times more, after waits that
    double, with jitter, and are never shorter than the server's Retry-After; then the completion is an ``error``. A
    prompt that the model has no room for comes back empty, as ``length``. A text is a function of its request as far as
    the server honours ``seed``.

    Raises:
        UserError: the variable that should hold the key is not set. Later, from ``submit`` or ``step``: an adapter or a
            begun reply is asked for that the endpoint cannot give; the server refuses the key, the model, or the
            request; nothing has ever answered at the address. What is still in flight is then given up.
    """

    def __init__(self, model: ModelSettings, settings: EngineSettings) -> None:
        assert model.endpoint is not None
        self.model, self.endpoint, self.stats = model, model.endpoint, EngineStats()
        self._key = _read_key(self.endpoint)
        self._url = _completions(self.endpoint.url)
        at_once = min(self.endpoint.concurrency, settings.max_live)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self.endpoint.timeout_s, pool=None),
            limits=httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once),
        )
        self._slots = asyncio.Semaphore(at_once)
        self._done: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        self._pending = 0
        self._reached = False
        self._loop = asyncio.new_event_loop()
        # A daemon: an engine that nobody closed must not keep the process alive.
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Sends a request as soon as there is room for it.

        Raises:
            UserError: it wants an adapter, or begins a reply and the endpoint does not take that (``prefill``).
        """
        payload = self._payload(request)
        asyncio.run_coroutine_threadsafe(self._answer(request, payload), self._loop)
        self._pending += 1

    def step(self) -> list[Completion]:
        """Waits for a completion and returns it with all others that are there.

        Raises:
            UserError: see the class.
        """
        finished: list[Completion] = []
        while self._pending and not (finished and self._done.empty()):
            answer = self._done.get()
            if isinstance(answer, Exception):
                self.close()
                raise answer
            self._pending -= 1
            finished.append(answer)
        for completion in finished:
            self.stats.completions += 1
            self.stats.tokens_in += completion.tokens_in
            self.stats.tokens_out += completion.tokens_out
        self.stats.by_way["endpoint"] = self.stats.completions
        return finished

    def pending(self) -> int:
        return self._pending

    def info(self) -> dict[str, str]:
        return {
            "engine": "openai", "httpx2": httpx2.__version__, "endpoint": self._address(), "served": self.model.path,
        }  # fmt: skip

    def close(self) -> None:
        """Gives up what is in flight and ends the connections. Nothing can be asked afterwards."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._give_up(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._pending = 0

    # ---------------------------------------------------------------- one request

    def _payload(self, request: Request) -> dict[str, Any]:
        if request.adapter is not None:
            raise UserError(
                "model.endpoint",
                f"{self.model.name} is asked for the adapter {request.adapter}, and an endpoint has its own weights",
                "allowed: stages base, prompted",
            )
        sampling, messages = request.sampling, fit(request.messages, self.model.template)
        payload = {
            "model": self.model.path,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed % 2**31,  # as large as every server takes
        }
        if sampling.repetition_penalty != 1:
            payload["repetition_penalty"] = sampling.repetition_penalty
        if self.model.template.date_string is not None:
            payload["chat_template_kwargs"] = {"date_string": self.model.template.date_string}
        if request.prefix:
            if not self.endpoint.prefill:
                raise UserError(
                    "model.endpoint.prefill",
                    f"false, and replies are to begin with {request.prefix[:30]!r}",
                    "true where the server can go on with a begun reply (vLLM), or recipe.teacher.thinking=''",
                )
            messages.append({"role": "assistant", "content": request.prefix})
            payload |= {"continue_final_message": True, "add_generation_prompt": False}
        return payload

    async def _answer(self, request: Request, payload: dict[str, Any]) -> None:
        async with self._slots:
            try:
                self._done.put(await self._persist(request, payload))
            except Exception as error:
                self._done.put(error)

    async def _persist(self, request: Request, payload: dict[str, Any]) -> Completion:
        """The completion of a request, in as many attempts as it may have."""
        failed = _Again("never asked")
        for attempt in range(self.endpoint.retries + 1):
            if attempt:
                await pause(max(failed.wait, backoff_s(attempt)))
            try:
                return await self._attempt(request, payload)
            except _Again as error:
                failed = error
        if failed.unreachable and not self._reached:
            raise UserError(
                "model.endpoint.url", f"nothing answers at {self._address()} ({failed})",
                "start the server, or correct the address",
            )  # fmt: skip
        return Completion(request.id, f"{failed}, {self.endpoint.retries + 1} times", "error", 0, 0)

    async def _attempt(self, request: Request, payload: dict[str, Any]) -> Completion:
        try:
            response = await self._client.post(self._url, json=payload)
        except httpx2.RequestError as error:
            reason = self._safe(f"{type(error).__name__}: {error}".rstrip(": "))
            raise _Again(reason, unreachable=isinstance(error, httpx2.ConnectError)) from None
        self._reached = True
        if response.status_code == 200:
            return self._read(request, response)
        said = self._safe(_message(response))
        if response.status_code in BUSY or response.status_code >= 500:
            raise _Again(
                f"HTTP {response.status_code}: {said}", retry_after_s(response.headers.get("retry-after"))
            )
        if response.status_code == 400 and any(mark in said.lower() for mark in TOO_LONG):
            return Completion(request.id, "", "length", 0, 0)
        raise self._refused(response.status_code, said)

    def _read(self, request: Request, response: httpx2.Response) -> Completion:
        try:
            body = response.json()
            choice = body["choices"][0]
            text, finish = choice["message"]["content"] or "", choice.get("finish_reason")
            reasoning = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
            usage = body.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            if not isinstance(text, str) or finish == "error":
                raise TypeError("no text")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Again(f"no chat completion: {self._safe(_message(response))}") from None
        if request.prefix and reasoning:
            raise UserError(
                f"model.endpoint ({self._address()})", "the server keeps the reasoning apart from the reply it goes on with",
                "serve the model without a reasoning parser; thinking is cut off here (recipe.teacher.thinking_end)",
            )  # fmt: skip
        return Completion(
            request.id, request.prefix + text, "length" if finish in CUT else "stop", tokens[0], tokens[1]
        )

    # ---------------------------------------------------------------- what people read

    def _refused(self, status: int, said: str) -> UserError:
        answer = f"{self._address()} answers HTTP {status} ({said})"
        if status in (401, 403):
            name = self.endpoint.key_env
            remedy = (
                f"put a valid key into the environment variable {name}"
                if name
                else "name the variable of its key"
            )
            return UserError("model.endpoint.key_env", answer, remedy)
        if status == 404:
            remedy = "correct it (most end in /v1), or model.path, the name that the server gives the model"
            return UserError("model.endpoint.url", answer, remedy)
        return UserError("model.endpoint", answer, "the server does not take such requests")

    def _address(self) -> str:
        """The endpoint without what may be secret in its address (a password, a query)."""
        return f"{self._url.scheme}://{self._url.netloc.decode()}{self._url.path}"

    def _safe(self, text: str) -> str:
        """One line of at most 200 characters without the key, which some servers repeat."""
        line = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return line if len(line) <= 200 else line[:197] + "..."

    async def _give_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()


def open_engine(
    model: ModelSettings, adapters: Mapping[str, Path], scales: Mapping[str, float], settings: EngineSettings
) -> OpenAIEngine:
    """See ``offscript.rollouts.engines.open_engine``.

    Raises:
        UserError: the model has no endpoint, or trained weights are asked of it.
    """
    if model.endpoint is None:
        raise UserError(
            "engine.name", f"openai, but model {model.name} has no endpoint", "set model.endpoint.url"
        )
    if adapters:
        raise UserError(
            "model.endpoint", f"{model.name} is asked for trained weights", "allowed: stages base, prompted"
        )
    return OpenAIEngine(model, settings)


# ---------------------------------------------------------------- waiting


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


def backoff_s(attempt: int) -> float:
    """Seconds before attempt ``attempt`` (from 1): doubling, times a random factor in [0.5, 1.5)."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * (0.5 + random.random())


def retry_after_s(header: str | None) -> float:
    """Seconds of a Retry-After header (a number or a date), 0 where there is none that can be read, 600 at most."""
    try:
        seconds = float(header or 0)
    except ValueError:
        seconds = _until(str(header))
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)


def _until(date: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return 0.0


# ---------------------------------------------------------------- parts


def _completions(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(
            "model.endpoint.url", f"no address: {error}", "e.g. http://localhost:8000/v1"
        ) from None
    path = parsed.path.rstrip("/")
    return parsed if path.endswith("/chat/completions") else parsed.copy_with(path=f"{path}/chat/completions")


def _read_key(endpoint: EndpointSettings) -> str:
    """The key from its environment variable; empty where the endpoint needs none."""
    if endpoint.key_env is None:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise UserError(
            "model.endpoint.key_env", f"the environment variable {endpoint.key_env} is not set",
            "export it with the key of the endpoint, or key_env=null where it needs none",
        )  # fmt: skip
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "model.endpoint.key_env", f"{endpoint.key_env} holds characters that no key has", "copy it again"
        )
    return key


def _message(response: httpx2.Response) -> str:
    """What a server says of an error, in whichever of the usual layouts; else the beginning of what it sent."""
    try:
        body: Any = response.json()
    except ValueError:
        return response.text or response.reason_phrase
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return body if isinstance(body, str) else str(body)
