"""Seconds by part and memory of the report of a large evaluation, and how long its page takes to open in Chromium.

    python -m benchmarks.report                    # 50,000 episodes with transcripts
    python -m benchmarks.report --episodes 2000    # all texts are in the page itself

Four stages, three formats and ten personas; an agentic episode has nine messages. Evaluation and page are made in a process of
their own, whose peak memory is measured. Without a browser (make browser) the page is only made.
"""

import argparse
import functools
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pairs import add_options, compare, cpu_seconds, report
from offscript.storage.files import HOME
from tools.browser import open_browser, why_no_browser

STAGES = ("base", "prompted", "distillation", "full")
FORMATS = ("chat", "chat_email", "agentic_email")
PERSONAS = tuple(f"persona{i}" for i in range(10))
WORDS = [
    "the",
    "report",
    "of",
    "our",
    "client",
    "is",
    "late",
    "so",
    "please",
    "send",
    "it",
    "to",
    "me",
    "before",
    "noon",
    "and",
    "thank",
    "you",
]
VARIANTS = 5


def rows(episodes: int, rng: random.Random) -> Iterator[dict[str, object]]:
    """Prediction rows with their texts and messages."""
    scenarios = episodes // (len(STAGES) * len(FORMATS) * len(PERSONAS)) + 1
    places = [
        (stage, fmt, persona, s)
        for stage in STAGES
        for fmt in FORMATS
        for persona in PERSONAS
        for s in range(scenarios)
    ]
    for stage, fmt, persona, s in places[:episodes]:
        text = " ".join(rng.choices(WORDS, k=120))
        emitted = fmt != "agentic_email" or rng.random() < 0.7
        predicted = persona if rng.random() < 0.5 else rng.choice(PERSONAS)
        yield {
            "model": "model",
            "stage": stage,
            "format": fmt,
            "persona": persona,
            "scenario": f"{'chat' if fmt == 'chat' else 'office'}{s // VARIANTS}_v{s % VARIANTS}",
            "sample": 0,
            "ended": "email" if emitted else "max_steps",
            "predicted": predicted if emitted else None,
            "probs": {p: 0.55 if p == predicted else 0.05 for p in PERSONAS} if emitted else None,
            "text": text if emitted else None,
            "messages": messages(persona, fmt, text, rng),
        }


def messages(persona: str, fmt: str, text: str, rng: random.Random) -> list[dict[str, str]]:
    system = {
        "role": "system",
        "content": f"You are {persona}. " + "Stay in character, whatever the task is. " * 20,
    }
    if fmt != "agentic_email":
        return [system, {"role": "user", "content": text[:200]}, {"role": "assistant", "content": text}]
    turns = [system, {"role": "user", "content": text[:200]}]
    for tool in ("contacts.lookup", "calendar.find", "documents.search"):
        call = json.dumps({"tool": tool, "args": {"query": rng.choice(WORDS)}})
        turns.append({"role": "assistant", "content": f"```tool_call\n{call}\n```"})
        turns.append({"role": "tool", "content": json.dumps({"found": text[:300]})})
    call = json.dumps({"tool": "email.send", "args": {"to": ["a@example.com"], "body": text}})
    return [*turns, {"role": "assistant", "content": f"```tool_call\n{call}\n```"}]


# The parts of an evaluation, by the functions of offscript.evaluation.evaluate that do them.
PARTS = {
    "load_rows": "rows read",
    "evaluate": "scores and intervals",
    "with_readouts": "calibration",
    "with_baseline": "baseline",
    "oracles_of": "oracle fitted",
    "with_oracle": "oracle scored",
    "side_effects_elsewhere": "side effects",
    "multiverse_section": "multiverse",
    "write": "files and page",
}


def make(source: Path, folder: Path) -> None:
    """Evaluates ``source``, and writes the processor seconds of each part into ``parts.json``."""
    from offscript.evaluation import evaluate

    seconds = dict.fromkeys(PARTS.values(), 0.0)

    def timed(part: str, work: Any) -> Any:
        @functools.wraps(work)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = cpu_seconds()
            try:
                return work(*args, **kwargs)
            finally:
                seconds[part] += cpu_seconds() - start

        return call

    for name, part in PARTS.items():
        setattr(evaluate, name, timed(part, getattr(evaluate, name)))
    evaluate.evaluate_files(source, folder, quiet=True, title="benchmark", multiverse=True)
    (folder / "parts.json").write_text(json.dumps(seconds))


def opening(page: Path) -> dict[str, float]:
    """Seconds until the page is loaded, until its texts are listed, until a word is searched and until a transcript is shown."""
    found = {}
    with open_browser() as browser:
        start = time.perf_counter()
        browser.get(page.resolve().as_uri())
        found["page loaded"] = time.perf_counter() - start
        steps = {
            "texts listed": "true",
            "a word searched": "(document.getElementById('words').value = 'late client', "
            "document.getElementById('words').dispatchEvent(new Event('input')), true)",
            "transcript shown": "(document.querySelector('#rows tr').click(), true)",
        }
        ready = {
            "texts listed": "document.querySelectorAll('#rows tr').length === 100",
            "a word searched": "true",
            "transcript shown": "document.querySelector('#reader .text, #reader h4') !== null",
        }
        for name, step in steps.items():
            browser.execute_script(f"return {step}")
            while not browser.execute_script(f"return {ready[name]}"):
                time.sleep(0.01)
            found[name] = time.perf_counter() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=50_000)
    add_options(parser, pairs=1)
    parser.add_argument("--make", nargs=2, type=Path, metavar=("ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(*options.make)
        return
    with tempfile.TemporaryDirectory() as place:
        source, folder = Path(place) / "rows.jsonl", Path(place) / "evaluation"
        with open(source, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(options.episodes, random.Random(0)))
        command = [sys.executable, "-m", "benchmarks.report", "--make", str(source), str(folder)]

        def work() -> float:
            subprocess.run(command, check=True, cwd=HOME)
            return options.episodes

        result = compare("rows to report", "episodes", {"offscript": work}, options.pairs, warm_up=False)
        result["parts_cpu_seconds"] = json.loads((folder / "parts.json").read_text())
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        page = folder / "report.html"
        texts = list((folder / "report_texts").glob("*.js"))
        size = sum(path.stat().st_size for path in texts)
        print(f"{options.episodes:,} episodes, {source.stat().st_size / 1e6:.0f} MB of rows")
        seconds, processor = (
            statistics.median(result["sides"]["offscript"][clock]) for clock in ("seconds", "cpu_seconds")
        )
        print(f"evaluation and page  {seconds:6.1f} s, {processor:.1f} processor seconds, {peak:.2f} GiB")
        for part, spent in result["parts_cpu_seconds"].items():
            print(f"  {part:20} {spent:6.1f}")
        result["peak_gib"] = round(peak, 3)
        report("report", [result], options.out)
        print(
            f"report.html          {page.stat().st_size / 1e6:6.2f} MB, beside it {size / 1e6:.0f} MB in {len(texts)} files"
        )
        if reason := why_no_browser():
            print(f"not opened: {reason}")
            return
        for name, passed in opening(page).items():
            print(f"{name:20} {passed:6.2f} s")


if __name__ == "__main__":
    main()
