"""Output for the person at the terminal: short messages and progress with the time left, all on stderr."""

import logging
import os
import sys
import warnings

LOG_EVERY_S = 15.0
TERMINAL_EVERY_S = 0.2
BAR_FORMAT = "  {desc}  {n_fmt}/{total_fmt} {unit}  {rate_noinv_fmt}  {remaining} left{postfix}"
QUIET_LOGGERS = "deepspeed DeepSpeed transformers trl peft datasets accelerate torch wandb"


def say(text: str) -> None:
    """Prints one line on stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``."""
    seconds = int(max(0, round(seconds)))
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class _WholeLines:
    """A stream for tqdm that prints each display as a line of its own, for logs."""

    def write(self, text: str) -> None:
        if line := text.lstrip("\r").rstrip():
            say(line)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress:
    """A tqdm bar on stderr: ``label  37/120 rows  12.30rows/s  00:06 left, note``.

    On a terminal the line is rewritten in place; elsewhere a line is printed at most every ``LOG_EVERY_S`` seconds.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        live = sys.stderr.isatty()
        every_s = TERMINAL_EVERY_S if live else LOG_EVERY_S
        text = {"desc": label, "unit": unit, "bar_format": BAR_FORMAT, "dynamic_ncols": live, "leave": False}
        times = {"mininterval": every_s, "delay": every_s, "miniters": 1, "smoothing": 0}
        self.bar = tqdm(total=total, file=sys.stderr if live else _WholeLines(), **text, **times)

    def begin(self, done: int) -> None:
        """Sets how many units were done before this process started; they do not count towards the rate."""
        self.bar.initial = self.bar.n = self.bar.last_print_n = done

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Sets how many units are done and, where given, the total and the note at the end of the line."""
        self.bar.total = total or self.bar.total
        if note is not None:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)

    def advance(self, note: str | None = None) -> None:
        """Adds one unit."""
        self.update(self.bar.n + 1, note=note)

    def close(self) -> float:
        """Ends the display, and removes its line from a terminal; returns the seconds since the start."""
        self.bar.close()
        return float(self.bar.format_dict["elapsed"])


def quiet_libraries() -> None:
    """Silences library warnings that a user cannot act on. Call it before torch or transformers are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("DS_ACCELERATOR_LOG_LEVEL", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("ignore")
    for name in QUIET_LOGGERS.split():
        logging.getLogger(name).setLevel(logging.ERROR)
