"""The engine and the training steps at the size of Llama-3.1-8B, with random weights, on one GPU.

    python benchmarks/gpu.py --minutes 8           # the important cases first; the rest is reported as not run
    python benchmarks/gpu.py --small               # the same code on a CPU with small shapes; no GPU figures
    python benchmarks/gpu.py --no-cudnn-attention --adapter-dtype bfloat16   # what the engine would gain

Measures the card's ceilings, prefill and decoding by batch and context (base, one adapter, ten adapters mixed),
``model.generate()``, agentic episodes through the scheduler and one at a time, and a DPO and an SFT step. Every figure is a
median of at least 5 repetitions after warm-up; of episodes, one run. A case that fails or does not fit the memory is
recorded, and the next one runs. Results are appended to ``gpu.jsonl`` below ``--out``, one line per case.

A decode step's share of the bandwidth is (weights + adapters + key-value cache) / time / bandwidth of a copy.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from gpu_measure import (  # noqa: E402
    GIB,
    LLAMA_8B,
    SMALL,
    Bench,
    Loop,
    Skipped,
    TimeLimit,
    ceilings,
    decoding,
    episodes,
    open_adapters,
    open_model,
    plain_episodes,
    plain_generate,
    prefill,
    release_hooks,
    release_merged,
    training,
)

from offscript.errors import UserError, one_of  # noqa: E402
from offscript.experiment.folder import code_revision, versions  # noqa: E402
from offscript.storage.files import HOME  # noqa: E402

PREDECESSOR_HOURS = 75
"""The published study's estimate for 6,000 agentic episodes, one conversation at a time."""


@dataclass(frozen=True)
class Case:
    """A measurement. It may take ``limit`` seconds, and does not begin if fewer than ``spare`` would be left after it for
    the cases that must still run."""

    name: str
    measure: Callable[[Bench], dict[str, Any]]
    limit: float = 30.0
    spare: float = 0.0


def cases(small: bool) -> list[Case]:
    """In order of importance. ``spare`` keeps the time of the training steps, which come last because they need the
    memory of everything else."""
    short, middle, long = (16, 64, 128) if small else (512, 2048, 8192)
    batches = (1, 2, 4) if small else (1, 8, 32, 64, 128, 256)
    usual = 4 if small else 64
    loop = (
        Loop(episodes=4, prompt=40, replies=3, reply=16, result=4, share=0.5) if small else Loop(episodes=32)
    )
    one, twice = (replace(loop, episodes=n) for n in (1, 2 * loop.episodes))
    steps = 0 if small else 75

    def part(
        kind: str, sizes: list[tuple[int, int]], prompts: bool = False, spare: float = steps
    ) -> list[Case]:
        measure = prefill if prompts else decoding
        return [
            Case(
                f"{'prefill' if prompts else 'decode'} {kind} {batch} x {context}",
                functools.partial(measure, kind=kind, batch=batch, context=context),
                limit=25,
                spare=spare,
            )
            for batch, context in sizes
        ]

    def agentic(kind: str, loop: Loop) -> list[Case]:
        name = f"episodes {kind}, {loop.episodes} at a time"
        return [Case(name, functools.partial(episodes, loop=loop, kind=kind), 150, steps)]

    first = [(usual, middle), (1, middle), (batches[1], middle), (batches[-2], middle), (usual, short)]
    prompts = [(batches[1], middle), (1, middle), (usual, short), (1, long)]
    rest = [(b, c) for c in (middle, short, long) for b in batches if (b, c) not in first]
    mixed = [(b, c) for c in (short, middle, long) for b in batches[2:] if b * c <= 2**18]
    more_prompts = [(batches[2], middle), (1, short), (batches[1], long), (batches[1], short)]
    if small:
        rest, mixed, more_prompts = rest[-1:], mixed[-1:], []
    everything = [
        Case("ceilings", ceilings),
        Case("model", open_model, limit=90),
        *part("base", first),
        *part("base", prompts, prompts=True),
        Case(
            "generate() one at a time",
            functools.partial(plain_generate, context=loop.prompt, tokens=5 if small else 64),
            limit=40,
        ),
        Case("episodes one at a time", functools.partial(plain_episodes, loop=one), 75, steps),
        Case("adapters", open_adapters, 120, steps),
        *part("one adapter", [(usual, middle)]),
        *part("ten adapters", [(usual, middle)]),
        *agentic("one adapter", loop),
        *part("one adapter, merged", [(usual, middle)]),
        *part("one adapter", [(batches[1], middle)], prompts=True),
        *part("ten adapters", [(batches[1], middle)], prompts=True),
        *part("ten adapters", [(batches[1], middle), (batches[-2], middle)]),
        *part("one adapter", [(batches[1], middle), (1, middle)]),
        *part("base", rest),
        *part("base", more_prompts, prompts=True),
        *part("ten adapters", mixed),
        *agentic("one adapter", twice),
        *agentic("base", loop),
        Case(
            "DPO step",
            functools.partial(training, method="dpo", rows=2, length=64 if small else 1024),
            60,
            25,
        ),
        Case("SFT step", functools.partial(training, method="sft", rows=1, length=96 if small else 3072), 60),
    ]
    return list({case.name: case for case in everything}.values())


# ---------------------------------------------------------------- running the cases


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Context that raises TimeLimit after ``seconds``."""

    def stop(*_: object) -> None:
        raise TimeLimit(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(case: Case, bench: Bench, deadline: float, log: Any) -> dict[str, Any]:
    """The result of a case, with ``status``: ok, out of memory, time limit, failed, or not run."""
    left = deadline - time.monotonic() - case.spare
    if left < 5:
        return {"case": case.name, "status": "not run", "note": "no time left"}
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    started, result = time.perf_counter(), {}
    try:
        with limited(min(case.limit, left)):
            result = {"status": "ok", **case.measure(bench)}
    except KeyboardInterrupt:
        raise
    except (Exception, TimeLimit) as error:
        result = {"status": _status(error), "note": _reason(error)}
        traceback.print_exc(file=log)
    if bench.is_gpu:
        result["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        result["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    # The exception and its frames, which hold tensors, are gone only here.
    try:
        _clean(bench, case, result["status"])
    except Exception:
        # A GPU that has failed may refuse this too; the table is printed all the same.
        traceback.print_exc(file=log)
    return {"case": case.name, **result, "case_seconds": round(time.perf_counter() - started, 2)}


def _status(error: BaseException) -> str:
    if isinstance(error, Skipped):
        return "not run"
    if isinstance(error, TimeLimit):
        return "time limit"
    chain = [error, error.__cause__, error.__context__]
    return "out of memory" if any(isinstance(e, torch.OutOfMemoryError) for e in chain) else "failed"


def _reason(error: BaseException) -> str:
    line = (str(error).splitlines() or [""])[0][:100]
    return line if isinstance(error, (Skipped, TimeLimit)) else f"{type(error).__name__}: {line}"


def _clean(bench: Bench, case: Case, status: str) -> None:
    if status != "ok":
        release_hooks(bench)
    if "step" in case.name or (case.name in ("model", "adapters") and status != "ok"):
        bench.free()
    release_merged(bench)
    bench.collect()


# ---------------------------------------------------------------- output


def machine(device: str, options: argparse.Namespace) -> dict[str, Any]:
    """What every line of the results says about where and how it was measured."""
    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    memory = torch.cuda.get_device_properties(0).total_memory / GIB if device == "cuda" else None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": code_revision(),
        "card": card,
        "card_gib": memory,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "cudnn_attention": not options.no_cudnn_attention,
        "adapter_dtype": options.adapter_dtype or "float32",
    }


LEGEND = (
    "of ceiling: of a copy's bandwidth for decoding (weights, adapters and KV cache read once a step), of a matrix product's"
    " rate for prefill; KV GiB: the cache of the batch; n: repetitions; s: seconds of the case"
)
HEAD = ("case", "tokens/s", "ms", "of ceiling", "KV GiB", "peak GiB", "n", "s", "")


def columns(result: dict[str, Any]) -> tuple[str, ...]:
    def shown(name: str, form: str) -> str:
        value = result.get(name)
        return "" if value is None else format(value, form)

    note = str(result.get("note", ""))
    if result["status"] != "ok":
        note = f"{result['status']}: {note}"
    return (
        result["case"],
        shown("tokens_s", ",.1f" if result.get("tokens_s", 0) < 1000 else ",.0f"),
        shown("ms", ",.1f"),
        shown("share", ".0%"),
        shown("kv_gib", ".2f"),
        shown("peak_gib", ".1f"),
        shown("repetitions", "d"),
        shown("case_seconds", ".0f"),
        note,
    )


def table(results: list[dict[str, Any]]) -> str:
    lines = [HEAD, *map(columns, results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(t.rjust(w) for t, w in zip(line[1:-1], widths[1:-1], strict=True)),
                line[-1],
            ]
        ).rstrip()
        for line in lines
    )


def estimates(results: list[dict[str, Any]]) -> list[str]:
    """Hours of 6,000 agentic episodes, and the ratio to one at a time."""
    hours = {r["case"]: r["hours_6000"] for r in results if "hours_6000" in r}
    plain = hours.get("episodes one at a time")
    lines = []
    for name, value in hours.items():
        ratio = f", {plain / value:.1f}x faster than one at a time" if plain and value != plain else ""
        lines.append(f"6,000 episodes, {name.removeprefix('episodes ')}: {value:.2f} h{ratio}")
    return [*lines, f"6,000 episodes, published estimate, one at a time: {PREDECESSOR_HOURS} h"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="time for all cases (default: %(default)s)")
    add("--small", action="store_true", help="small shapes, on a CPU; results are written with --out only")
    add("--out", type=Path, help="folder of gpu.jsonl (default: benchmarks/results; with --small none)")
    add("--no-cudnn-attention", action="store_true", help="attention by PyTorch's other kernels")
    add("--adapter-dtype", default="", help="such as bfloat16 (default: as the engine loads them, float32)")
    add("--only", nargs="*", default=[], help="only cases whose name contains one of these texts")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    if not options.small and not torch.cuda.is_available():
        raise UserError("benchmarks/gpu.py", "no GPU on this machine", "allowed: --small, on a CPU")
    device = "cpu" if options.small else "cuda"
    out = options.out or (None if options.small else HOME / "benchmarks/results")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in cases(options.small) if not options.only or any(t in c.name for t in options.only)]
    if not chosen:
        raise UserError("--only", " ".join(options.only), one_of(c.name for c in cases(options.small)))
    # Time is kept for the training steps only if they are to run.
    if not any("step" in case.name for case in chosen):
        chosen = [replace(case, spare=0.0) for case in chosen]
    if options.no_cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(False)
    deadline = STARTED + 60 * options.minutes
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, open(out / "gpu.log" if out else os.devnull, "w") as log:
        shapes = SMALL if options.small else LLAMA_8B
        bench = Bench(shapes, device, Path(folder), adapter_dtype=options.adapter_dtype)
        where = machine(device, options)
        print(json.dumps(where), flush=True)
        try:
            for case in chosen:
                results.append(run(case, bench, deadline, log))
                print(
                    f"[{time.monotonic() - STARTED:5.0f} s] " + "  ".join(filter(None, columns(results[-1]))),
                    flush=True,
                )
                if out is not None:
                    with open(out / "gpu.jsonl", "a") as file:
                        file.write(json.dumps({**where, **results[-1]}) + "\n")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        text = "\n".join(["", table(results), "", LEGEND, *estimates(results)])
        if options.small:
            text += "\nA CPU with small shapes: this shows that the code runs. GPU figures are missing."
        print(text, flush=True)
        if out is not None:
            (out / "gpu.txt").write_text(json.dumps(where) + "\n" + text + "\n")


if __name__ == "__main__":
    try:
        main(arguments())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
