"""How the time of rollouts grows with episodes, personas and turns.

    python benchmarks/scaling.py                     # the embedded model, random adapters, about four minutes

Each case makes one number 1 to 11 times as large, in turns, and fits time = a x number^exponent. An exponent of 1 is linear.
Below 1, a fixed cost is shared by more work: small batches are not full. Turns are above 1 if prompts dominate, since
every turn reads its whole conversation again.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairs import add_options, cpu_seconds, machine
from rollouts import PERSONAS, SOURCES, random_adapters

from offscript import threads
from offscript.rollouts.engines.base import Sampling
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.settings import EngineSettings, ModelSettings, SamplingSettings, TemplateSettings
from offscript.storage.files import HOME
from offscript.tasks.formats.base import Ask, Episode, Format, Outcome, Rules
from offscript.tasks.messages import Message
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario

STEPS = (1, 2, 4, 8)
PERSONA_STEPS = (1, 2, 4, PERSONAS)


@dataclass(frozen=True)
class Grid:
    """What is run: ``episodes`` scenarios of each of ``personas`` adapters, in conversations of ``turns`` replies."""

    episodes: int
    personas: int
    turns: int


def of_turns(turns: int) -> Format:
    """The question of a scenario, asked ``turns`` times in one conversation."""

    def episode(scenario: Scenario, rules: Rules) -> Episode:
        messages: list[Message] = []
        for _ in range(turns):
            messages += scenario.messages
            reply = yield Ask(tuple(messages))
            messages.append({"role": "assistant", "content": reply.text})
        return Outcome(messages[-1]["content"], tuple(messages), "turns")

    return Format("turns", version=1, source="chat", episode=episode, templates={})


def seconds_of(engine: TransformersEngine, grid: Grid, max_tokens: int) -> tuple[float, float]:
    """Wall and processor seconds of one run."""
    scenarios = load_scenarios(str(HOME / SOURCES["chat"]))
    repeats = -(-grid.episodes // len(scenarios))
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            CellRun(
                key=name,
                path=Path(folder) / f"{name}.jsonl",
                labels={},
                format=of_turns(grid.turns),
                scenarios=scenarios,
                samples=repeats,
                rules=Rules(),
                adapter=name,
                sampling=Sampling(max_tokens=max_tokens),
                limit=grid.episodes,
            )
            for name in engine.weights.adapters[: grid.personas]
        ]
        start, start_cpu = time.perf_counter(), cpu_seconds()
        run_episodes(runs, engine, max_live=512)
        return time.perf_counter() - start, cpu_seconds() - start_cpu


def measure(
    case: str, grids: dict[int, Grid], engine: TransformersEngine, options: argparse.Namespace
) -> dict[str, Any]:
    """Runs every grid once to warm up, then ``pairs`` times in turns, and fits the medians."""
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in grids}
    for turn in range(options.pairs + 1):
        for number, grid in grids.items():
            measured = seconds_of(engine, grid, options.max_tokens)
            if turn:
                found[number].append(measured)
    wall, cpu = ([statistics.median(m[clock] for m in found[n]) for n in grids] for clock in (0, 1))
    return {
        "case": case,
        "pairs": options.pairs,
        "numbers": list(grids),
        "seconds": wall,
        "cpu_seconds": cpu,
        "exponent": exponent(list(grids), wall),
        "exponent_cpu": exponent(list(grids), cpu),
    }


def exponent(numbers: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(number), by least squares."""
    x, y = ([math.log(value) for value in values] for values in (numbers, seconds))
    return statistics.linear_regression(x, y).slope


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--episodes", type=int, default=48, help="of the smallest size (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=48, help="per reply (default: %(default)s)")
    add_options(parser)
    options = parser.parse_args()
    threads.limit()
    model = ModelSettings(
        name="benchmark",
        path="assets/pocket",
        dtype="float32",
        context=1024,
        max_reply_tokens=options.max_tokens,
        sampling=SamplingSettings(),
        template=TemplateSettings(tool_role="native"),
    )
    n = options.episodes
    with tempfile.TemporaryDirectory() as folder:
        adapters = random_adapters(model, Path(folder), PERSONAS)
        engine = TransformersEngine(model, adapters, EngineSettings(name="transformers"))
        cases = {
            "episodes": {step: Grid(n * step, 1, 1) for step in STEPS},
            "personas": {step: Grid(n, step, 1) for step in PERSONA_STEPS},
            "turns": {step: Grid(n, 1, step) for step in STEPS},
        }
        results = [measure(case, grids, engine, options) for case, grids in cases.items()]
    show(results, options.out)


def show(results: Sequence[dict[str, Any]], out: Path) -> None:
    where = machine()
    print(f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads; commit {where['commit']}")
    for result in results:
        times = ", ".join(
            f"{number}x {s:.2f} s" for number, s in zip(result["numbers"], result["seconds"], strict=True)
        )
        print(
            f"{result['case']:10}{times}; exponent {result['exponent']:.2f}, of processor time {result['exponent_cpu']:.2f}"
        )
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "scaling.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps({**where, **result}) + "\n" for result in results)


if __name__ == "__main__":
    main()
