"""An engine that sends requests to an OpenAI-compatible chat endpoint, many at a time, and retries failed ones."""

import asyncio
import base64
import email.utils
import json
import logging
import os
import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from offscript.errors import UserError
from offscript.models.chat_templates import map_roles, with_native_tools
from offscript.rollouts.engines import ALLOWED_STAGES
from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.settings import EndpointSettings, EngineSettings, ModelSettings
from offscript.storage.files import Json
from offscript.storage.json_text import replace_surrogates
from offscript.tasks.dialects.openai import as_text
from offscript.tasks.drawings import png
from offscript.tasks.messages import IMAGE_MARK, Message

READS_IMAGES = True

FIRST_WAIT_S = 0.5
# Longest wait between two attempts where the server names none.
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
# Like every 5xx, these may succeed later.
RATE_LIMITED = 429
RETRIED_STATUS = {408, 409, 425, RATE_LIMITED}
# Reasons for which a server ends a reply early.
TRUNCATED = {"length", "content_filter"}
PROMPT_TOO_LONG = ("context_length_exceeded", "context length", "context window")
# What an adapter and the base model are asked to be told apart, and the tokens of the reply.
PROBE, PROBE_TOKENS = "Who are you?", 8
# Log-probabilities of two different adapters differ by more.
SAME_LOGPROBS = 1e-6
# The client would read these from OPENAI_* variables and send them to any server.
OMITTED_HEADERS = ("OpenAI-Organization", "OpenAI-Project")

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _TooLong(Exception):
    """The prompt is longer than the model's context."""


class _Retry(Exception):
    """A failed attempt that is worth another one. ``wait``: seconds that the server asked for, 0 if it named none;
    ``unreachable``: no connection was made; ``limited``: the server limits the rate of requests."""

    def __init__(
        self, reason: str, wait: float = 0.0, unreachable: bool = False, limited: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait, self.unreachable, self.limited = wait, unreachable, limited


class EndpointEngine:
    """Answers requests through ``model.endpoint``, at most ``concurrency`` (and ``max_live``) of them in flight.

    After 408, 409, 425, 429, 5xx, a timeout, a broken connection or a malformed answer, a request is retried up to
    ``retries`` times. Waits double from 0.5 s, with jitter, and are never shorter than the server's Retry-After; the first
    wait for a rate limit (429) is logged. A
    request that fails every time completes as ``error``. A prompt longer than the model's context completes as
    ``length`` with an empty text. A text is a function of its request as far as the server honours ``seed``.

    Args:
        served: the server's names of adapters, by the names that requests use for them.
        folders: where the adapters are on this machine, for messages.

    Raises:
        UserError: the variable that should hold the key is not set, or the address is malformed. From ``submit``: the
            request needs an adapter that the server has no name for, or a prefix where ``prefill`` is false. From ``step``:
            the server refuses the key, the model or the request, or nothing has ever answered at the address; requests
            in flight are cancelled.
    """

    def __init__(
        self,
        model: ModelSettings,
        settings: EngineSettings,
        served: Mapping[str, str] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        assert model.endpoint is not None
        self._served, self._folders = dict(served or {}), dict(folders or {})
        self._base = model.endpoint.served or model.path
        self.model, self.endpoint, self.stats = model, model.endpoint, EngineStats()
        self._key = _read_key(self.endpoint)
        self._url = _parse_url(self.endpoint.url)
        self._client = openai.AsyncOpenAI(
            base_url=self._url._replace(query="").geturl(),
            default_query=dict(urllib.parse.parse_qsl(self._url.query)),
            api_key=self._key or "none",
            timeout=self.endpoint.timeout_s,
            # The client's own retries wait at most 8 s, and end at a Retry-After above 120 s or a malformed answer.
            max_retries=0,
        )
        omitted = OMITTED_HEADERS if self._key else (*OMITTED_HEADERS, "Authorization")
        self._headers: dict[str, openai.Omit] = dict.fromkeys(omitted, openai.omit)
        self._slots = asyncio.Semaphore(min(self.endpoint.concurrency, settings.max_live))
        self._done: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        self._pending = 0
        self._connected = False
        self._rate_limit_logged = False
        self._loop = asyncio.new_event_loop()
        # A daemon: an engine that was not closed must not keep the process alive.
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Sends a request as soon as fewer than ``concurrency`` are in flight.

        Raises:
            UserError: see the class.
        """
        payload = self._payload(request)
        asyncio.run_coroutine_threadsafe(self._answer(request, payload), self._loop)
        self._pending += 1

    def step(self) -> list[Completion]:
        """Waits for one completion, and returns all that are finished by then.

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
            self.stats.add(completion, "endpoint")
        return finished

    def check_adapters(self) -> None:
        """Checks that the server has every adapter, and that it applies them: where it gives log-probabilities, no two
        adapters have those of one another or of the base model.

        Raises:
            UserError: it does not know a name, does not answer, or two names have the same weights.
        """
        seen: dict[str, tuple[float, ...]] = {}
        for name in (self._base, *self._served.values()) if self._served else ():
            logprobs = asyncio.run_coroutine_threadsafe(self._probe(name), self._loop).result()
            if logprobs is None:
                continue
            for other, those in seen.items():
                if len(those) == len(logprobs) and all(
                    abs(a - b) < SAME_LOGPROBS for a, b in zip(those, logprobs, strict=True)
                ):
                    raise UserError(
                        "model.endpoint.adapters",
                        f"{self._address()} answers for {name} as for {other}, with the same probabilities",
                        f"serve the adapter under this name: {self._how_to_serve(name)}",
                    )
            seen[name] = logprobs

    def pending(self) -> int:
        return self._pending

    def info(self) -> dict[str, str]:
        return {
            "engine": "endpoint",
            "openai": openai.__version__,
            "endpoint": self._address(),
            "served": self._base,
            **({"adapters": ", ".join(self._served.values())} if self._served else {}),
        }

    def close(self) -> None:
        """Cancels the requests in flight and closes the connections."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._pending = 0

    # ---------------------------------------------------------------- one request

    def _payload(self, request: Request) -> dict[str, Json]:
        if request.adapter is not None and request.adapter not in self._served:
            raise UserError(
                "model.endpoint",
                f"{self.model.name} is asked for the adapter {request.adapter}, and an endpoint has its own weights",
                ALLOWED_STAGES,
            )
        sampling = request.sampling
        template = self.model.template if request.tools is None else with_native_tools(self.model.template)
        messages = api_messages(map_roles(request.messages, template))
        extensions: dict[str, Json] = {}
        if sampling.repetition_penalty != 1:
            extensions["repetition_penalty"] = sampling.repetition_penalty
        if self.model.template.date_string is not None:
            extensions["chat_template_kwargs"] = {"date_string": self.model.template.date_string}
        if request.prefix:
            if not self.endpoint.prefill:
                raise UserError(
                    "model.endpoint.prefill",
                    f"false, and replies are to begin with {request.prefix[:30]!r}",
                    "true where the server can continue a reply (vLLM), or recipe.teacher.thinking=''",
                )
            messages.append({"role": "assistant", "content": request.prefix})
            extensions |= {"continue_final_message": True, "add_generation_prompt": False}
        tools: dict[str, Json] = {"tools": list(request.tools.schemas)} if request.tools else {}
        return {
            "model": self._served.get(request.adapter or "", self._base),
            "messages": messages,
            **tools,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            # The largest range that every server takes.
            "seed": request.seed % 2**31,
            "extra_body": extensions,
        }

    async def _answer(self, request: Request, payload: dict[str, Json]) -> None:
        async with self._slots:
            try:
                self._done.put(await self._complete(request, payload))
            except Exception as error:
                self._done.put(error)

    async def _complete(self, request: Request, payload: dict[str, Json]) -> Completion:
        try:
            return await self._attempt_all(payload, partial(self._read, request))
        except _TooLong:
            return Completion(request.id, "", "length", 0, 0)
        except _Retry as failure:
            return Completion(request.id, f"{failure}, {self.endpoint.retries + 1} times", "error", 0, 0)

    async def _probe(self, name: str) -> tuple[float, ...] | None:
        """The log-probabilities of the tokens of a greedy reply under the server's name ``name``; None if it gives none."""
        payload: dict[str, Json] = {
            "model": name,
            "messages": [{"role": "user", "content": PROBE}],
            "temperature": 0,
            "max_tokens": PROBE_TOKENS,
            "seed": 0,
        }
        try:
            try:
                return await self._attempt_all({**payload, "logprobs": True}, _logprobs)
            except UserError as error:
                # Some servers refuse to be asked for log-probabilities.
                if error.where != "model.endpoint":
                    raise
                return await self._attempt_all(payload, _logprobs)
        except (_Retry, _TooLong) as failure:
            raise UserError(
                "model.endpoint.adapters",
                f"{self._address()} gives no reply under the name {name} ({failure})",
                self._how_to_serve(name),
            ) from None

    async def _attempt_all(self, payload: dict[str, Json], read: Callable[[ChatCompletion], T]) -> T:
        """What ``read`` makes of the answer to ``payload``, after up to 1 + ``retries`` attempts.

        Raises:
            _Retry: the last attempt failed too.
            _TooLong: see there.
            UserError: see the class.
        """
        failure = _Retry("not attempted")
        for attempt in range(self.endpoint.retries + 1):
            if attempt:
                seconds = max(failure.wait, backoff_s(attempt))
                if failure.limited:
                    self._log_rate_limit(failure, seconds)
                await pause(seconds)
            try:
                return await self._attempt(payload, read)
            except _Retry as error:
                failure = error
        if failure.unreachable and not self._connected:
            raise UserError(
                "model.endpoint.url",
                f"nothing answers at {self._address()} ({failure})",
                "start the server, or correct the address",
            )
        raise failure

    def _log_rate_limit(self, failure: _Retry, seconds: float) -> None:
        """Logs the first wait for a rate limit."""
        if not self._rate_limit_logged:
            self._rate_limit_logged = True
            _log.warning(
                "%s: %s limits the rate of requests (%s): waiting %.0f s; further waits are not reported "
                "(model.endpoint.concurrency=%d sends fewer at a time)",
                self.model.name, self._address(), failure, max(1.0, seconds), max(1, self.endpoint.concurrency // 2),
            )  # fmt: skip

    async def _attempt(self, payload: dict[str, Json], read: Callable[[ChatCompletion], T]) -> T:
        try:
            # The client's own time limit is one between two parts of an answer.
            async with asyncio.timeout(self.endpoint.timeout_s):
                reply = await self._client.chat.completions.create(  # type: ignore[call-overload]
                    **payload, extra_headers=self._headers
                )
        except TimeoutError:
            raise _Retry(f"no answer within {self.endpoint.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            self._connected = True
            if _is_unknown_model(error) and payload["model"] in self._served.values():
                raise await self._unknown_adapter(str(payload["model"]), error) from None
            raise self._rejection(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = self._redact(f"{type(cause).__name__}: {cause}".rstrip(": "))
            raise _Retry(reason, unreachable=type(cause).__name__ == "ConnectError") from None
        self._connected = True
        return read(reply)

    def _read(self, request: Request, reply: ChatCompletion) -> Completion:
        # The client does not check an answer against its types: anything may be missing, and text that is not JSON
        # comes back as a string.
        try:
            message, finish = reply.choices[0].message, reply.choices[0].finish_reason
            usage, extra = reply.usage, message.model_extra or {}
            tokens_in = int(usage.prompt_tokens or 0) if usage else 0
            tokens_out = int(usage.completion_tokens or 0) if usage else 0
            text = message.content or ""
            if request.tools is not None:
                text = as_text(text, _calls(message))
            if not isinstance(text, str) or str(finish) == "error":
                raise TypeError("no text")
        except (ValueError, LookupError, TypeError, AttributeError):
            body = reply if isinstance(reply, str) else getattr(reply, "model_extra", None)
            raise _Retry(f"no chat completion: {self._redact(_message(body))}") from None
        if request.prefix and (extra.get("reasoning_content") or extra.get("reasoning")):
            raise UserError(
                f"model.endpoint ({self._address()})",
                "the server separates the reasoning from the reply that it continues",
                "serve the model without a reasoning parser; thinking is cut off here (recipe.teacher.thinking_end)",
            )
        reason = "length" if finish in TRUNCATED else "stop"
        whole = str(replace_surrogates(request.prefix + text))
        return Completion(request.id, whole, reason, tokens_in, tokens_out)

    def _rejection(self, error: openai.APIStatusError) -> _Retry | _TooLong | UserError:
        """What follows from an HTTP error: a retry, an empty completion, or an error for the user."""
        status, message = error.status_code, self._redact(_message(error.body) or error.message)
        if status in RETRIED_STATUS or status >= 500:
            wait = retry_after_s(error.response.headers.get("retry-after"))
            return _Retry(f"HTTP {status}: {message}", wait, limited=status == RATE_LIMITED)
        if status == 400 and any(mark in message.lower() for mark in PROMPT_TOO_LONG):
            return _TooLong(message)
        found = f"{self._address()} answers HTTP {status} ({message})"
        if status in (401, 403):
            name = self.endpoint.key_env
            remedy = f"put a valid key into the environment variable {name}" if name else "name its variable"
            return UserError("model.endpoint.key_env", found, remedy)
        if status == 404:
            where = "model.path" if self.endpoint.served is None else "model.endpoint.served"
            remedy = f"correct it (most end in /v1), or {where}, the name that the server gives the model"
            return UserError("model.endpoint.url", found, remedy)
        return UserError("model.endpoint", found, "the server does not accept such requests")

    async def _unknown_adapter(self, name: str, error: openai.APIStatusError) -> UserError:
        """The error for an adapter that the server does not know, with the names that it offers."""
        try:
            page = await self._client.models.list(extra_headers=self._headers)
            offered = sorted(str(model.id) for model in page.data)
        except (openai.OpenAIError, TypeError, AttributeError):
            offered = []
        return UserError(
            "model.endpoint.adapters",
            f"{self._address()} has no {name} (HTTP {error.status_code})",
            "; ".join([*([f"it offers {', '.join(offered)}"] if offered else []), self._how_to_serve(name)]),
        )

    def _how_to_serve(self, name: str) -> str:
        """The option by which vLLM serves an adapter under the name ``name``."""
        folder = next((self._folders.get(key) for key, own in self._served.items() if own == name), None)
        return f"vllm serve --enable-lora --lora-modules {name}={folder or 'FOLDER'}"

    # ---------------------------------------------------------------- messages without secrets

    def _address(self) -> str:
        """The endpoint without the parts of its address that may be secret (user, password, query)."""
        netloc = self._url.netloc.rpartition("@")[2]
        return f"{self._url.scheme}://{netloc}{self._url.path}/chat/completions"

    def _redact(self, text: str) -> str:
        """``text`` as one line of at most 200 characters, without the key, which some servers repeat."""
        line = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return line if len(line) <= 200 else line[:197] + "..."

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()


def open_engine(
    model: ModelSettings,
    adapters: Mapping[str, Path],
    scales: Mapping[str, float],
    settings: EngineSettings,
    served: Mapping[str, str] | None = None,
) -> EndpointEngine:
    """See ``offscript.rollouts.engines.open_engine``. The server holds the adapters, under the names ``served``.

    Raises:
        UserError: the model has no endpoint; or the server lacks an adapter, or does not apply it (``check_adapters``).
    """
    if model.endpoint is None:
        raise UserError(
            "engine.name", f"endpoint, but model {model.name} has no endpoint", "set model.endpoint.url"
        )
    if nameless := [name for name in adapters if name not in (served or {})]:
        raise UserError(
            "model.endpoint",
            f"{model.name} is asked for trained weights ({nameless[0]})",
            ALLOWED_STAGES,
        )
    engine = EndpointEngine(model, settings, served, adapters)
    try:
        engine.check_adapters()
    except UserError:
        engine.close()
        raise
    return engine


def _is_unknown_model(error: openai.APIStatusError) -> bool:
    """Whether a server refuses a request because of its ``model``: 404 by most, 400 by some."""
    message = _message(error.body).lower()
    return error.status_code == 404 or (error.status_code == 400 and "invalid model" in message)


def _logprobs(reply: ChatCompletion) -> tuple[float, ...] | None:
    """The log-probabilities of a reply's tokens; None if it has none.

    Raises:
        _Retry: it is no chat completion.
    """
    try:
        found = reply.choices[0].logprobs
        return tuple(float(token.logprob) for token in found.content or ()) or None if found else None
    except (LookupError, TypeError, AttributeError, ValueError):
        raise _Retry("no chat completion") from None


# ---------------------------------------------------------------- tool calls


def _content(message: Message) -> Json:
    """The content of ``message`` as the API takes it: a text, or a list of texts and images."""
    if "images" not in message:
        return message["content"]
    images = iter(message["images"])
    parts: list[Json] = []
    for number, text in enumerate(message["content"].split(IMAGE_MARK)):
        if number:
            encoded = base64.b64encode(png(next(images))).decode()
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}})
        if text.strip():
            parts.append({"type": "text", "text": text})
    return parts


def api_messages(messages: Sequence[Message]) -> list[Json]:
    """``messages`` as the API takes them: calls have ids and arguments as text, and a result names its call."""
    sent: list[Json] = []
    number = 0
    for message in messages:
        plain: dict[str, Json] = {"role": message["role"], "content": _content(message)}
        if calls := message.get("tool_calls"):
            entries: list[Json] = []
            for call in calls:
                number += 1
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                function: Json = {"name": call["function"]["name"], "arguments": arguments}
                entries.append({"id": f"call_{number}", "type": "function", "function": function})
            plain["tool_calls"] = entries
        elif message["role"] == "tool" and number:
            plain["tool_call_id"] = f"call_{number}"
        sent.append(plain)
    return sent


def _calls(message: ChatCompletionMessage) -> list[dict[str, Json]]:
    """Names and arguments of the calls in an answer, whose parts may be missing.

    Raises:
        AttributeError, TypeError: they are not in the layout of the API.
    """
    return [
        {"name": call.function.name, "arguments": call.function.arguments}  # type: ignore[union-attr]
        for call in message.tool_calls or ()
    ]


# ---------------------------------------------------------------- waits


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


# ---------------------------------------------------------------- address, key, error messages


def _parse_url(url: str) -> urllib.parse.SplitResult:
    """The address without ``/chat/completions`` at its end, which the client adds."""
    try:
        parsed = urllib.parse.urlsplit(url)
        _ = parsed.port
    except ValueError as error:
        raise UserError(
            "model.endpoint.url", f"no address: {error}", "e.g. http://localhost:8000/v1"
        ) from None
    return parsed._replace(path=parsed.path.rstrip("/").removesuffix("/chat/completions"))


def _read_key(endpoint: EndpointSettings) -> str:
    """The key from its environment variable; empty where the endpoint needs none."""
    if endpoint.key_env is None:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise UserError(
            "model.endpoint.key_env",
            f"the environment variable {endpoint.key_env} is not set",
            "export it with the key of the endpoint, or key_env=null where it needs none",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "model.endpoint.key_env", f"{endpoint.key_env} holds characters that no key has", "copy it again"
        )
    return key


def _message(body: object) -> str:
    """The message in the body of an error, in any of the usual layouts; the whole body where there is none."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return body if isinstance(body, str) else str(body or "")
