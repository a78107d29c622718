"""The process in which vLLM runs, in an environment of its own: token ids in, token ids out.

The engine (``vllm.py``) starts this file by its path, with the number of a socket as its argument. It needs vLLM and
``draw.py`` beside it; nothing else of this package is imported. Each message is a line of JSON:

    in   {"model", "dtype", "context", "adapters", "rank", "batch_size", "tensor_parallel", "memory_share", "probe"}   once
    out  {"ready": {"versions", "device", "effects"}}, or {"refused": "reason"}
    in   {"id", "prompt", "adapter", "limit", "ends", "seed", "temperature", "top_p", "repetition_penalty"}
    out  {"done": [{"id", "tokens", "finish"}]}, and {"done": []} at least every second while requests are decoded

``finish`` is "stop", "length" or "error" (the logits were not finite). The process ends when the socket is closed. What
vLLM prints goes to stdout and stderr, which are a file.
"""

import importlib.util
import json
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import Tensor
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

BEAT_S = 1.0
EXIT_S = 10.0
"""After the socket is closed, seconds until the process kills itself, whatever vLLM waits for."""

NOT_FINITE = "OFFSCRIPT_NOT_FINITE"
"""The variable with the file into which every process of vLLM writes a line "id step" for a row whose logits are not
finite: an engine step returns nothing but the token."""


def _draw_module() -> Any:
    spec = importlib.util.spec_from_file_location("draw", Path(__file__).with_name("draw.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_sampling = _draw_module()


# ---------------------------------------------------------------- sampling


class SampledRow:
    """A request in vLLM's batch. ``new`` is vLLM's own list, which grows with every step."""

    def __init__(self, params: dict[str, Any], prompt: list[int], new: list[int]) -> None:
        self.params, self.prompt, self.new = params, prompt, new
        self._seen: Tensor | None = None
        self._counted = 0

    def seen(self, vocabulary: int, device: torch.device) -> Tensor:
        """The tokens of prompt and reply: (vocabulary,) bool."""
        if self._seen is None:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[torch.tensor(self.prompt, device=device)] = True
        if len(self.new) > self._counted:
            self._seen[torch.tensor(self.new[self._counted :], device=device)] = True
            self._counted = len(self.new)
        return self._seen


class DrawProcessor(LogitsProcessor):
    """Samples with ``draw`` and leaves only the sampled token possible. vLLM, which is asked for temperature 0, takes
    it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.rows: dict[int, SampledRow] = {}
        self._batch: dict[str, Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if process_dict_updates(self.rows, batch_update, _sampled_row):
            self._batch = _batch_of(self.rows, self.device)

    def apply(self, logits: Tensor) -> Tensor:
        if not self.rows:
            return logits
        index, tokens = self._batch["index"], sample(list(self.rows.values()), self._batch, logits)
        logits[index] = float("-inf")
        logits[index, tokens] = 0.0
        return logits


def _sampled_row(params: SamplingParams, prompt: list[int] | None, new: list[int]) -> SampledRow | None:
    return SampledRow(params.extra_args, prompt or [], new) if params.extra_args else None


def _batch_of(rows: dict[int, SampledRow], device: torch.device) -> dict[str, Tensor]:
    """The rows' positions in vLLM's batch and their sampling, as tensors (rows,)."""
    params = [row.params for row in rows.values()]
    return {
        "index": torch.tensor(list(rows), device=device),
        "seed": torch.tensor([p["seed"] for p in params], device=device),
        "temperature": torch.tensor([p["temperature"] for p in params], dtype=torch.float64, device=device),
        "top_p": torch.tensor([p["top_p"] for p in params], dtype=torch.float64, device=device),
        "penalty": torch.tensor(
            [p["repetition_penalty"] for p in params], dtype=torch.float32, device=device
        ),
    }


def sample(rows: list[SampledRow], batch: dict[str, Tensor], logits: Tensor) -> Tensor:
    """The next token of every row (rows,): as the transformers engine samples it, and an end token for a row whose logits
    are not finite, which is noted."""
    steps = [len(row.new) for row in rows]
    own = logits[batch["index"]]
    if any(row.params["repetition_penalty"] != 1 for row in rows):
        seen = torch.stack([row.seen(own.shape[-1], own.device) for row in rows])
        own = _sampling.penalize(own, seen, batch["penalty"])
    step = torch.tensor(steps, device=own.device)
    tokens: Tensor = _sampling.draw(own, batch["temperature"], batch["top_p"], batch["seed"], step)
    for i in (tokens < 0).nonzero().flatten().tolist():
        _note_not_finite(rows[i].params["id"], steps[i])
        tokens[i] = (rows[i].params["ends"] or [0])[0]
    return tokens


def _note_not_finite(number: int, step: int) -> None:
    with open(os.environ[NOT_FINITE], "a") as file:
        file.write(f"{number} {step}\n")


# ---------------------------------------------------------------- requests


class Worker:
    """vLLM with one model and its adapters, driven by the messages of a socket.

    Args:
        settings: the first message.
        channel: the socket.
    """

    def __init__(self, settings: dict[str, Any], channel: "Channel") -> None:
        self.channel = channel
        self.adapters: dict[str, LoRARequest] = {
            name: LoRARequest(name, number, folder)
            for number, (name, folder) in enumerate(settings["adapters"].items(), start=1)
        }
        self.engine = open_vllm(settings, len(self.adapters))
        self.not_finite: dict[int, int] = {}
        self._noted = open(os.environ[NOT_FINITE])  # noqa: SIM115

    def effects(self, probe: list[int]) -> dict[str, float]:
        """For each adapter, the largest difference between the log-probabilities of ``probe`` with and without it."""
        base = self._log_probabilities(probe, None)
        return {
            name: max(abs(a - b) for a, b in zip(self._log_probabilities(probe, adapter), base, strict=True))
            for name, adapter in self.adapters.items()
        }

    def run(self) -> None:
        """Answers requests until the socket is closed."""
        beat = time.monotonic()
        while True:
            for message in self.channel.waiting(block=not self.engine.has_unfinished_requests()):
                if message is None:
                    return
                self._add(message)
            done = [self._finished(output) for output in self.engine.step() if output.finished]
            if done or time.monotonic() - beat > BEAT_S:
                self.channel.send({"done": done})
                beat = time.monotonic()

    def _add(self, request: dict[str, Any]) -> None:
        names = ("id", "ends", "seed", "temperature", "top_p", "repetition_penalty")
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request["limit"],
            stop_token_ids=request["ends"],
            # Its own end tokens are among them.
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={name: request[name] for name in names},
        )
        adapter = self.adapters[request["adapter"]] if request["adapter"] is not None else None
        self.engine.add_request(
            str(request["id"]), {"prompt_token_ids": request["prompt"]}, params, lora_request=adapter
        )

    def _finished(self, output: Any) -> dict[str, Any]:
        for line in self._noted:
            number, step = map(int, line.split())
            self.not_finite.setdefault(number, step)
        number, reply = int(output.request_id), output.outputs[0]
        tokens = list(reply.token_ids)
        if number in self.not_finite:
            return {"id": number, "tokens": tokens[: self.not_finite.pop(number)], "finish": "error"}
        return {"id": number, "tokens": tokens, "finish": reply.finish_reason}

    def _log_probabilities(self, probe: list[int], adapter: LoRARequest | None) -> list[float]:
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        self.engine.add_request("probe", {"prompt_token_ids": probe}, params, lora_request=adapter)
        found: Any = None
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                found = output.prompt_logprobs
        # The first token has none.
        return [
            position[token].logprob
            for position, token in zip(found, probe, strict=True)
            if position is not None
        ]


def open_vllm(settings: dict[str, Any], adapters: int) -> LLMEngine:
    """vLLM with the model of ``settings`` and room for ``adapters``."""
    lora: dict[str, Any] = {}
    if adapters:
        # On CPUs vLLM takes rows without an adapter for rows of the last slot, so one slot stays empty.
        lora = {
            "enable_lora": True,
            "max_loras": adapters + 1,
            "max_cpu_loras": adapters + 1,
            "max_lora_rank": settings["rank"],
        }
    engine: LLMEngine = LLMEngine.from_engine_args(
        EngineArgs(
            model=settings["model"],
            dtype=settings["dtype"],
            max_model_len=settings["context"],
            max_num_seqs=settings["batch_size"],
            tensor_parallel_size=settings["tensor_parallel"],
            gpu_memory_utilization=settings["memory_share"],
            enable_prefix_caching=True,
            # Its sampled tokens would reach the logits processor a step late.
            async_scheduling=False,
            enforce_eager=current_platform.is_cpu(),
            skip_tokenizer_init=True,
            generation_config="vllm",
            disable_log_stats=True,
            logits_processors=[DrawProcessor],
            **lora,
        )
    )
    return engine


# ---------------------------------------------------------------- the process


class Channel:
    """Messages over a socket. A thread receives them, so that the engine can always send."""

    def __init__(self, descriptor: int) -> None:
        # The processes that vLLM starts do not inherit it.
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def waiting(self, block: bool) -> Iterator[dict[str, Any] | None]:
        """The messages that have arrived, at least one if ``block``; None: the socket is closed."""
        if block:
            yield self._queue.get()
        while not self._queue.empty():
            yield self._queue.get()

    def _receive(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                self._queue.put(json.loads(line))
        self._queue.put(None)
        time.sleep(EXIT_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    channel = Channel(int(sys.argv[1]))
    settings = next(channel.waiting(block=True))
    if settings is None:
        return
    status = 0
    try:
        with tempfile.NamedTemporaryFile(prefix="offscript-not-finite-") as file:
            os.environ[NOT_FINITE] = file.name
            worker = Worker(settings, channel)
            effects = worker.effects(settings["probe"]) if worker.adapters else {}
            versions = {"vllm": vllm.__version__, "torch": torch.__version__}
            channel.send({"ready": {"versions": versions, "device": _device(), "effects": effects}})
            worker.run()
        worker.engine.engine_core.shutdown()
    except Exception as error:
        traceback.print_exc()
        status = 1
        channel.send({"refused": f"{type(error).__name__}: {error}"})
    sys.stdout.flush()
    sys.stderr.flush()
    # What torch and vLLM would do otherwise takes seconds.
    os._exit(status)


def _device() -> str:
    return "cpu" if current_platform.is_cpu() else str(current_platform.get_device_name())


if __name__ == "__main__":
    main()
