"""The vLLM engine: vLLM in a process and an environment of its own, which is sent token ids and sends token ids.

Chat templates, end tokens and the text of replies are those of the transformers engine (``rendering.py``), and tokens are
sampled by the same function (``draw.py``): in float32 both engines give the same texts.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offscript.console import say
from offscript.errors import UserError
from offscript.models.adapter_config import ranks_of, read_config
from offscript.models.adapters import check_effect
from offscript.models.chat_templates import render
from offscript.models.loading import load_generation_config, load_tokenizer
from offscript.models.served import served_adapter, served_model
from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.rollouts.engines.rendering import Renderer, Row, stop_tokens
from offscript.rollouts.engines.worker_process import WorkerLost, WorkerProcess
from offscript.settings import EngineSettings, ModelSettings
from offscript.storage.files import ensure_folder, locate, user_cache

WORKER = Path(__file__).with_name("vllm_worker.py")

RESTARTS = 3
"""How often in a row the process is started again without having finished a reply."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's max_lora_rank."""

DEFAULTS = {
    # Of the CPU build: GiB for keys and values, and no pinning of threads to the first cores, which others may use.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Environment variables of the process, unless they are set here."""

FIXED = {
    # The logits processor that samples is written for the first model runner.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class WorkerFailed(RuntimeError):
    """vLLM's process was started again RESTARTS times, and never finished a reply."""


class VllmEngine:
    """Answers requests with one base model and any number of adapters, all in one batch of vLLM.

    If vLLM's process ends, or sends nothing for ``settings.silence_s`` seconds, it is started again and asked again for
    the replies that it owes. In float32 a text is a function of its prompt, adapter and seed alone.

    Args:
        model: the base model. Its weights are read by vLLM only.
        adapters: adapter folders by name.
        settings: interpreter, batch size, GPUs, and how long to wait.
        scales: factor of an adapter's effect, by its name; 1 for an adapter without an entry.

    Raises:
        UserError: the model or an adapter cannot be loaded or served, an adapter has no effect, or vLLM does not start.
    """

    def __init__(
        self,
        model: ModelSettings,
        adapters: Mapping[str, Path],
        settings: EngineSettings,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.settings, self.model_settings = settings, model
        _check_device(settings.device)
        self._python = _interpreter(settings.python)
        self.tokenizer = load_tokenizer(model)
        self.stats = EngineStats()
        self.stops = stop_tokens(load_generation_config(model), self.tokenizer, model.template)
        self._renderer = Renderer(self.tokenizer, model)
        self._names = {name: (scales or {}).get(name, 1.0) for name in adapters}
        self._first_message = self._settings_message(adapters)
        self.log = _new_log()
        self._live: dict[int, Row] = {}
        self._unfit: list[Row] = []
        self._lost = 0
        say(f"  {model.name}: starting vLLM; its log is {self.log}")
        try:
            self._worker, self._ready = self._start()
        except WorkerLost as lost:
            raise self._cannot_start(lost) from None
        for name, difference in self._ready["effects"].items():
            check_effect(difference, str(adapters[name]))

    def submit(self, request: Request) -> None:
        """Sends a request to vLLM.

        Raises:
            UserError: the chat template refuses its messages, or does not speak its tool dialect.
            KeyError: the engine has no such adapter.
        """
        if request.adapter is not None and request.adapter not in self._names:
            raise KeyError(f"not given to the engine: {request.adapter}")
        row = self._renderer.row(request)
        if row.finish is not None:
            self._unfit.append(row)
            return
        self._live[request.id] = row
        try:
            self._send(row)
        except WorkerLost as lost:
            self._restart(lost)

    def step(self) -> list[Completion]:
        """Waits until vLLM has finished a reply. Requests whose prompt fills the context complete at once, with an empty
        text.

        Raises:
            WorkerFailed: vLLM's process does not finish a reply, however often it is started.
        """
        done, self._unfit = self._unfit, []
        while self._live and not done:
            try:
                done = self._receive()
            except WorkerLost as lost:
                self._restart(lost)
        completions = [self._renderer.completion(row) for row in done]
        for row, completion in zip(done, completions, strict=True):
            self.stats.add(completion, "vllm" if row.limit > 0 else "unfit")
        return completions

    def pending(self) -> int:
        return len(self._live) + len(self._unfit)

    def close(self) -> None:
        self._worker.close()

    def info(self) -> dict[str, str]:
        found = {
            "engine": "vllm",
            **self._ready["versions"],
            "device": self._ready["device"],
            "tensor_parallel": str(self.settings.tensor_parallel),
            "dtype": self.model_settings.dtype,
        }
        if self.model_settings.dtype != "float32":
            found["texts"] = f"in {self.model_settings.dtype} they differ from those of another engine"
        return found

    # ---------------------------------------------------------------- the process

    def _settings_message(self, adapters: Mapping[str, Path]) -> dict[str, object]:
        ranks = [rank for folder in adapters.values() for rank in (*ranks_of(folder), read_config(folder).r)]
        model = self.model_settings
        return {
            "model": str(served_model(model)),
            "dtype": model.dtype,
            "context": model.context,
            # An adapter at scale 0 is tested as it is; its rows are rows of the base.
            "adapters": {
                name: str(served_adapter(model, folder, self._names[name] or 1.0))
                for name, folder in adapters.items()
            },
            "rank": _allowed_rank(max(ranks, default=1)),
            "batch_size": self.settings.batch_size,
            "tensor_parallel": self.settings.tensor_parallel,
            "memory_share": self.settings.memory_share,
            "probe": render(self.tokenizer, [{"role": "user", "content": "Hello."}], model.template),
        }

    def _start(self) -> tuple[WorkerProcess, dict[str, Any]]:
        """A new process, and what it says of itself."""
        import torch

        if torch.cuda.is_initialized():
            # What this process has computed with before is kept for itself; vLLM takes a share of the whole memory.
            torch.cuda.empty_cache()
        # Isolated: the folder of the script has files named openai.py and transformers.py.
        command = [str(self._python), "-I", str(WORKER)]
        worker = WorkerProcess(command, {**DEFAULTS, **os.environ, **FIXED}, self.log)
        try:
            worker.send(self._first_message, self.settings.start_s)
            message: dict[str, Any] = worker.receive(self.settings.start_s)
            if "ready" not in message:
                raise WorkerLost(f"refused: {message.get('refused')}")
        except WorkerLost:
            worker.kill()
            raise
        return worker, message["ready"]

    def _restart(self, lost: WorkerLost) -> None:
        """Starts the process again, and sends it the live requests.

        Raises:
            WorkerFailed: that was in vain RESTARTS times.
        """
        while True:
            self._lost += 1
            self._worker.kill()
            if self._lost > RESTARTS:
                raise WorkerFailed(
                    f"vLLM's process was started {self._lost} times without finishing a reply; the last one {lost};"
                    f" see {self.log}"
                )
            say(
                f"vLLM's process {lost}; starting it again ({self._lost} of {RESTARTS}); its log is {self.log}"
            )
            try:
                self._worker, self._ready = self._start()
                for row in self._live.values():
                    self._send(row)
                return
            except WorkerLost as again:
                lost = again

    def _cannot_start(self, lost: WorkerLost) -> UserError:
        last = (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        if "No module named" in last:
            return UserError(
                "engine.python", f"{self._python} has no vLLM ({last})", "make vllm creates one that has"
            )
        return UserError("engine=vllm", f"vLLM's process {str(lost)[:500]}", f"its log is {self.log}")

    # ---------------------------------------------------------------- rows

    def _send(self, row: Row) -> None:
        sampling, adapter = row.request.sampling, row.request.adapter
        message = {
            "id": row.request.id,
            "prompt": row.prompt,
            "adapter": adapter if adapter is not None and self._names[adapter] != 0 else None,
            "limit": row.limit,
            "ends": sorted(self.stops | row.ends),
            "seed": row.request.seed % 2**63,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "repetition_penalty": sampling.repetition_penalty,
        }
        self._worker.send(message, self.settings.silence_s)

    def _receive(self) -> list[Row]:
        """The rows that the next message finishes."""
        message: dict[str, Any] = self._worker.receive(self.settings.silence_s)
        if "done" not in message:
            raise WorkerLost(f"failed: {message.get('refused')}")
        rows = []
        for done in message["done"]:
            row = self._live.pop(done["id"])
            row.new, row.finish = done["tokens"], done["finish"]
            rows.append(row)
        if rows:
            self._lost = 0
        return rows


def open_engine(
    model: ModelSettings, adapters: Mapping[str, Path], scales: Mapping[str, float], settings: EngineSettings
) -> VllmEngine:
    """See ``offscript.rollouts.engines.open_engine``."""
    return VllmEngine(model, adapters, settings, scales)


def _interpreter(python: str) -> Path:
    path = locate(python).absolute()
    if not path.is_file():
        raise UserError("engine.python", f"no Python at {path}", "make vllm creates the environment of vLLM")
    return path


def _check_device(device: str) -> None:
    if device != "auto":
        found = f"{device!r}, but vLLM runs where it was built for"
        raise UserError("engine.device", found, "allowed with engine=vllm: auto (see CUDA_VISIBLE_DEVICES)")


def _allowed_rank(rank: int) -> int:
    for allowed in RANKS:
        if rank <= allowed:
            return allowed
    raise UserError("engine=vllm", f"an adapter has rank {rank}", f"vLLM serves at most {RANKS[-1]}")


def _new_log() -> Path:
    folder = ensure_folder(user_cache() / "vllm")
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
