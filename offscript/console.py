"""What a person sees while work goes on: short lines on stderr, progress with an estimate of what is left."""

import logging
import os
import sys
import time
import warnings

PLAIN_EVERY_S = 15.0
LIVE_EVERY_S = 0.2


def say(text: str) -> None:
    """One line to the person at the terminal (stderr: stdout is for results)."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``."""
    seconds = int(max(0, round(seconds)))
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class Progress:
    """``label  37/120 rows  12.3/s  7s left  note``: rewritten in place on a terminal, a line now and then elsewhere."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.first = 0
        self.note = ""
        self.live = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()

    def begin(self, done: int) -> None:
        """So much was there already: it is no part of the rate."""
        self.done = self.first = done

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self.done, self.total, self.note = done, total or self.total, note
        now = time.monotonic()
        if now - self.shown >= (LIVE_EVERY_S if self.live else PLAIN_EVERY_S) and self.done < self.total:
            self.shown = now
            print(
                ("\r\x1b[2K" if self.live else "") + self.line(),
                end="" if self.live else "\n",
                file=sys.stderr,
                flush=True,
            )

    def advance(self, note: str = "") -> None:
        self.update(self.done + 1, note=note)

    def line(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.first) / elapsed if elapsed > 0 else 0.0
        left = duration((self.total - self.done) / rate) + " left" if rate else "estimating"
        parts = [f"  {self.label}", f"{self.done}/{self.total} {self.unit}", f"{rate:.1f}/s", left, self.note]
        return "  ".join(p for p in parts if p)

    def close(self) -> float:
        """Ends the display; returns the seconds it ran."""
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        return time.monotonic() - self.started


def quiet_libraries() -> None:
    """Silences what a reader of the console cannot act on. To be called before torch or transformers are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("DS_ACCELERATOR_LOG_LEVEL", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("ignore")
    for name in (
        "deepspeed",
        "DeepSpeed",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "accelerate",
        "torch",
        "wandb",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
