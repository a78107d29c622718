"""Episodes per second of the engine, compared with ``generate()`` one conversation at a time and in lockstep batches.

    python benchmarks/rollouts.py                                  # the embedded model, random adapters, about six minutes
    python benchmarks/rollouts.py --adapters runs/demo/adapters/pocket/*/full-*
    python benchmarks/rollouts.py --formats chat --no-vllm

Cases: chat and the tool loop, each with one persona and with all of them. Sides, with the same model and adapters:

    one at a time   an episode after another, a reply at a time, the adapter of its persona switched on
    lockstep        all episodes turn by turn: the replies of a turn as batches of ``generate()``, an adapter at a time
    offscript       the scheduler and the transformers engine
    vLLM            the scheduler and engine=vllm, where .venv-vllm has it (its processor seconds are not counted)

A rate is per episode, so the slow sides run fewer of them: every n-th scenario. The sides sample different texts
(``generate()`` has random numbers of its own), so tokens per second are in the results too.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pairs import add_options, compare, report

from offscript import threads
from offscript.errors import UserError
from offscript.models.adapters import attach
from offscript.models.loading import load_model, load_tokenizer, pick_device
from offscript.rollouts.engines import open_engine
from offscript.rollouts.engines.base import Completion, Engine, EngineStats, Request, Sampling
from offscript.rollouts.engines.rendering import Renderer, Row, stop_tokens
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.settings import EngineSettings, ModelSettings, SamplingSettings, TemplateSettings
from offscript.storage.files import HOME
from offscript.tasks.formats import get_format
from offscript.tasks.formats.base import Rules
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario, select

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCES = {"agentic_email": "data/pocket/office/*.yaml", "chat": "data/pocket/chat.jsonl"}
PERSONAS = 11
MAX_LIVE = 512
VLLM = HOME / ".venv-vllm" / "bin" / "python"


class GenerateEngine:
    """Answers with ``model.generate()`` and the sampling of transformers, ``batch_size`` requests of one adapter at a time.
    ``loaded``: see ``TransformersEngine``."""

    def __init__(
        self,
        model: ModelSettings,
        adapters: dict[str, Path],
        batch_size: int,
        device: str,
        loaded: "PreTrainedModel | None" = None,
    ) -> None:
        self.batch_size, self.device, self.stats = batch_size, device, EngineStats()
        self.tokenizer = load_tokenizer(model)
        self.renderer = Renderer(self.tokenizer, model)
        loaded = loaded if loaded is not None else load_model(model, device)
        self.stops = stop_tokens(loaded.generation_config, self.tokenizer, model.template)
        self.model = attach(loaded, adapters) if adapters else loaded
        self.waiting: list[Row] = []

    def submit(self, request: Request) -> None:
        self.waiting.append(self.renderer.row(request))

    def pending(self) -> int:
        return len(self.waiting)

    def info(self) -> dict[str, str]:
        return {"engine": "generate"}

    def close(self) -> None:
        pass

    def step(self) -> list[Completion]:
        """Answers all waiting requests."""
        rows, self.waiting = self.waiting, []
        by_adapter = sorted((row for row in rows if row.finish is None), key=self._adapter)
        for _, group in itertools.groupby(by_adapter, self._adapter):
            together = list(group)
            for start in range(0, len(together), self.batch_size):
                self._generate(together[start : start + self.batch_size])
        completions = [self.renderer.completion(row) for row in rows]
        for completion in completions:
            self.stats.add(completion, "generate")
        return completions

    @staticmethod
    def _adapter(row: Row) -> str:
        return row.request.adapter or ""

    def _generate(self, rows: Sequence[Row]) -> None:
        if rows[0].request.adapter is not None:
            self.model.base_model.set_adapter(rows[0].request.adapter)
        sampling = rows[0].request.sampling
        ids = {"input_ids": [row.prompt for row in rows]}
        prompts = self.tokenizer.pad(ids, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            out = self.model.generate(
                **prompts.to(self.device),
                max_new_tokens=max(row.limit for row in rows),
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                eos_token_id=sorted(self.stops),
                pad_token_id=self.tokenizer.pad_token_id,
            )
        for row, tokens in zip(rows, out[:, prompts["input_ids"].shape[1] :].tolist(), strict=True):
            for token in tokens:
                row.take(token, self.stops)


def random_adapters(model: ModelSettings, folder: Path, count: int) -> dict[str, Path]:
    """LoRA adapters of rank 16 on all linear layers, with weights so small that they hardly change the texts."""
    from peft import LoraConfig, get_peft_model

    made = {}
    for seed in range(count):
        torch.manual_seed(seed)
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        wrapped = get_peft_model(load_model(model, "cpu"), config)
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=1e-3)
        made[f"random{seed}"] = folder / f"random{seed}"
        wrapped.save_pretrained(str(made[f"random{seed}"]))
    return made


def work(
    engine: Engine, fmt: str, adapters: Sequence[str], scenarios: Sequence[Scenario], live: int, tokens: int
) -> Callable[[], float]:
    """Runs every scenario once per adapter, and returns the number of episodes.

    The system text has the number of the run. Otherwise an engine would know the prompts of the run before.
    """
    numbers = itertools.count(1)

    def run() -> float:
        system = f"Run {next(numbers)}."
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                CellRun(
                    key=name,
                    path=Path(folder) / f"{name}.jsonl",
                    labels={},
                    format=get_format(fmt),
                    scenarios=scenarios,
                    samples=1,
                    rules=Rules(system, get_format(fmt).defaults),
                    adapter=name,
                    sampling=Sampling(max_tokens=tokens),
                )
                for name in adapters
            ]
            return sum(c.written for c in run_episodes(runs, engine, live).values())

    return run


def measure(
    fmt: str, personas: int, engines: dict[str, Engine], adapters: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """One case: ``personas`` adapters, the slow sides with fewer scenarios."""
    found = load_scenarios(str(HOME / SOURCES[fmt]))
    scenarios = select(found, "eval", {"eval": 1.0}, "benchmark", max(1, options.episodes // personas))
    names, tokens = adapters[:personas], options.max_tokens
    episodes = {"one at a time": options.slow, "lockstep": 3 * options.slow}
    before = {side: engine.stats.tokens_out for side, engine in engines.items()}
    sides = {
        side: work(
            engine,
            fmt,
            names,
            _spread(scenarios, episodes.get(side, options.episodes) // personas),
            1 if side == "one at a time" else MAX_LIVE,
            tokens,
        )
        for side, engine in engines.items()
    }
    result = compare(f"{fmt}, {personas} persona{'s' * (personas > 1)}", "episodes", sides, options.pairs)
    for side, engine in engines.items():
        seconds = sum(result["sides"][side]["seconds"])
        # Each side ran once more, to warm up.
        counted = (engine.stats.tokens_out - before[side]) * options.pairs / (options.pairs + 1)
        result["sides"][side]["tokens_out_per_second"] = counted / seconds
    return result


def _spread(scenarios: Sequence[Scenario], count: int) -> Sequence[Scenario]:
    """At most ``count`` scenarios (but one at least), evenly spread over all."""
    return scenarios[:: -(-len(scenarios) // max(1, count))]


def open_engines(
    model: ModelSettings, adapters: dict[str, Path], options: argparse.Namespace
) -> dict[str, Engine]:
    device = pick_device(options.device)
    ours = EngineSettings(name="transformers", device=options.device)
    engines: dict[str, Engine] = {
        "one at a time": GenerateEngine(model, adapters, 1, device),
        "lockstep": GenerateEngine(model, adapters, options.lockstep, device),
        "offscript": open_engine(model, adapters, {}, ours),
    }
    if options.vllm and VLLM.exists():
        settings = EngineSettings(name="vllm", python=str(VLLM), batch_size=ours.batch_size)
        engines["vLLM"] = open_engine(model, adapters, {}, settings)
    return engines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="assets/pocket", help="model folder (default: %(default)s)")
    add("--adapters", nargs="*", type=Path, help=f"adapter folders (default: {PERSONAS} random ones)")
    add("--episodes", type=int, default=99, help="episodes of a case (default: %(default)s)")
    add("--slow", type=int, default=11, help="episodes one at a time, and a third of those in lockstep")
    add("--formats", nargs="*", default=list(SOURCES), choices=list(SOURCES))
    add("--lockstep", type=int, default=64, help="rows of a lockstep batch (default: %(default)s)")
    add("--max-tokens", type=int, default=128, help="per reply (default: %(default)s)")
    add("--device", default="auto")
    add("--no-vllm", dest="vllm", action="store_false", help="leave vLLM out")
    add_options(parser)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    threads.limit()
    model = ModelSettings(
        name="benchmark",
        path=options.model,
        dtype="float32",
        context=1024,
        max_reply_tokens=options.max_tokens,
        sampling=SamplingSettings(),
        template=TemplateSettings(tool_role="native"),
    )
    with tempfile.TemporaryDirectory() as folder:
        given = {f"adapter{i}": path for i, path in enumerate(options.adapters or [])}
        adapters = given or random_adapters(model, Path(folder), PERSONAS)
        engines = open_engines(model, adapters, options)
        counts = sorted({1, len(adapters)})
        results = [
            measure(fmt, personas, engines, list(adapters), options)
            for fmt in options.formats
            for personas in counts
        ]
        for engine in engines.values():
            engine.close()
    report("rollouts", results, options.out)


if __name__ == "__main__":
    try:
        main(arguments())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
