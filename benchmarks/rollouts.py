"""Episodes per second of the scheduler, compared with one conversation at a time through ``generate()``.

    python benchmarks/rollouts.py                                  # the embedded model, random adapters
    python benchmarks/rollouts.py --adapters runs/demo/adapters/pocket/*/full-* --scenarios 30

Both run the same episodes (every scenario of a format once per adapter) with the same model and adapters, in one process,
one after the other. The baseline runs one episode after another with ``model.generate()``, the adapter active and the
sampling of transformers. Its texts differ from the scheduler's (other random numbers), so tokens per second are printed
too. On a shared machine, the ratio in processor time is more reliable than the one in wall time.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offscript import threads
from offscript.errors import UserError
from offscript.models.adapters import attach
from offscript.models.chat_templates import render
from offscript.models.loading import load_model, load_tokenizer, pick_device
from offscript.rollouts.engines.base import Completion, EngineStats, Request, Sampling
from offscript.rollouts.engines.rendering import stop_tokens
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.settings import EngineSettings, ModelSettings, SamplingSettings, TemplateSettings
from offscript.storage.files import HOME
from offscript.tasks.formats import get_format
from offscript.tasks.formats.base import Rules
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import select

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCES = {"agentic_email": "data/pocket/office/*.yaml", "chat": "data/pocket/chat.jsonl"}


class PlainEngine:
    """One request at a time with ``model.generate()``. ``loaded``: see ``TransformersEngine``."""

    def __init__(
        self,
        model: ModelSettings,
        adapters: dict[str, Path],
        device: str,
        loaded: "PreTrainedModel | None" = None,
    ) -> None:
        self.settings, self.device, self.stats = model, device, EngineStats()
        self.tokenizer = load_tokenizer(model)
        loaded = loaded if loaded is not None else load_model(model, device)
        self.stops = sorted(stop_tokens(loaded.generation_config, self.tokenizer, model.template))
        self.model = attach(loaded, adapters) if adapters else loaded
        self.waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def pending(self) -> int:
        return len(self.waiting)

    def info(self) -> dict[str, str]:
        return {"engine": "plain"}

    def step(self) -> list[Completion]:
        request = self.waiting.pop(0)
        prompt = render(self.tokenizer, request.messages, self.settings.template, prefix=request.prefix)
        limit = min(request.sampling.max_tokens, self.settings.context - len(prompt))
        if limit < 1:
            return [Completion(request.id, "", "length", len(prompt), 0)]
        if request.adapter is not None:
            self.model.base_model.set_adapter(request.adapter)
        ids = torch.tensor([prompt], device=self.device)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=True,
                temperature=request.sampling.temperature,
                top_p=request.sampling.top_p,
                top_k=0,
                eos_token_id=self.stops,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = out[0, len(prompt) :].tolist()
        self.stats.tokens_in += len(prompt)
        self.stats.tokens_out += len(new)
        ended = "stop" if new[-1] in self.stops else "length"
        text = request.prefix + self.tokenizer.decode(new, skip_special_tokens=True)
        return [Completion(request.id, text, ended, len(prompt), len(new))]


def random_adapters(model: ModelSettings, folder: Path, n: int = 3) -> dict[str, Path]:
    """LoRA adapters of rank 16 on all linear layers, with weights so small that they hardly change the texts."""
    from peft import LoraConfig, get_peft_model

    made = {}
    for seed in range(n):
        torch.manual_seed(seed)
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        wrapped = get_peft_model(load_model(model, "cpu"), config)
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=1e-3)
        made[f"random{seed}"] = folder / f"random{seed}"
        wrapped.save_pretrained(str(made[f"random{seed}"]))
    return made


def measure(
    engine: Any, fmt: str, adapters: dict[str, Path], scenarios: list[Any], max_live: int, max_tokens: int
) -> dict[str, Any]:
    """Runs every scenario once per adapter: seconds, rows, tokens and why the episodes ended."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            CellRun(
                key=name,
                path=Path(folder) / f"{name}.jsonl",
                labels={},
                format=get_format(fmt),
                scenarios=scenarios,
                samples=1,
                rules=Rules(options=get_format(fmt).defaults),
                adapter=name,
                sampling=Sampling(max_tokens=max_tokens),
            )
            for name in adapters
        ]
        before = engine.stats.tokens_in, engine.stats.tokens_out
        start, start_cpu = time.perf_counter(), time.process_time()
        counts = run_episodes(runs, engine, max_live)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "seconds": seconds,
        "cpu": cpu,
        "episodes": sum(c.written for c in counts.values()),
        "emitted": sum(c.emitted for c in counts.values()),
        "in": engine.stats.tokens_in - before[0],
        "out": engine.stats.tokens_out - before[1],
    }


def show(fmt: str, plain: dict[str, Any], ours: dict[str, Any]) -> None:
    for side, m in (("one at a time", plain), ("scheduler", ours)):
        rate, tokens = m["episodes"] / m["seconds"], m["out"] / m["seconds"]
        print(
            f"{fmt:14} {side:14} {m['episodes']:5} episodes {m['seconds']:8.1f} s {rate:8.1f} episodes/s"
            f" {tokens:8.0f} tokens/s   {m['in'] / m['episodes']:6.0f} in, {m['out'] / m['episodes']:5.0f} out,"
            f" {m['emitted'] / m['episodes']:.2f} emitted"
        )
    wall, cpu = (
        plain[clock] / plain["episodes"] / ours[clock] * ours["episodes"] for clock in ("seconds", "cpu")
    )
    print(f"{fmt:14} ratio {wall:.1f}x in episodes/s of wall time, {cpu:.1f}x of processor time")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="assets/pocket", help="model folder (default: %(default)s)")
    add("--adapters", nargs="*", type=Path, help="adapter folders (default: three random ones)")
    add("--scenarios", type=int, default=30, help="scenarios a format (default: %(default)s)")
    add("--plain-scenarios", type=int, help="fewer for the slow side alone (default: the same)")
    add("--formats", nargs="*", default=list(SOURCES), choices=list(SOURCES))
    add("--batch-size", type=int, default=64)
    add("--merge-from", type=int, default=EngineSettings.model_fields["merge_from"].default)
    add("--max-tokens", type=int, default=128, help="per reply (default: %(default)s)")
    add("--device", default="auto")
    add("--threads", type=int, help="torch threads (default: torch's own choice)")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    threads.limit()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = ModelSettings(
        name="benchmark",
        path=options.model,
        dtype="float32",
        context=1024,
        max_reply_tokens=options.max_tokens,
        sampling=SamplingSettings(),
        template=TemplateSettings(tool_role="native"),
    )
    settings = EngineSettings(
        name="transformers",
        batch_size=options.batch_size,
        merge_from=options.merge_from,
        device=options.device,
    )
    with tempfile.TemporaryDirectory() as folder:
        given = {f"adapter{i}": path for i, path in enumerate(options.adapters or [])}
        adapters = given or random_adapters(model, Path(folder))
        plain = PlainEngine(model, adapters, pick_device(options.device))
        ours = TransformersEngine(model, adapters, settings)
        print(f"{options.model}, {len(adapters)} adapters, {torch.get_num_threads()} threads, {ours.device}")
        for fmt in options.formats:
            compare(plain, ours, fmt, adapters, options)
        print(f"the scheduler's replies by mode: {dict(ours.stats.by_mode)}")


def compare(
    plain: PlainEngine,
    ours: TransformersEngine,
    fmt: str,
    adapters: dict[str, Path],
    options: argparse.Namespace,
) -> None:
    """Measures both on the same episodes of one format."""
    found = load_scenarios(str(HOME / SOURCES[fmt]))
    scenarios = select(found, "eval", {"eval": 1.0}, "benchmark", options.scenarios)
    # One episode each first, so that neither measurement contains the cost of first calls.
    for side in (plain, ours):
        measure(side, fmt, adapters, scenarios[:1], 1, options.max_tokens)
    one = measure(plain, fmt, adapters, scenarios[: options.plain_scenarios], 1, options.max_tokens)
    many = measure(ours, fmt, adapters, scenarios, ours.settings.max_live, options.max_tokens)
    show(fmt, one, many)


if __name__ == "__main__":
    try:
        main(arguments())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
