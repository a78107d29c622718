"""Output for the person at the terminal: results on stdout, short messages and progress with the time left on stderr."""

import io
import logging
import os
import signal
import sys
import time
import warnings

LOG_EVERY_S = 15.0
TERMINAL_EVERY_S = 0.2
ESTIMATE_AFTER_S = 10.0
"""Time between the first unit and the first estimate of the time left. The first unit itself does not count: it takes
longer than the others, since caches are filled and kernels are compiled."""
BAR_FORMAT = "  {desc}  {n_fmt}/{total_fmt} {unit}  {rate_noinv_fmt}{postfix}"
QUIET_LOGGERS = "deepspeed DeepSpeed transformers trl peft datasets accelerate torch wandb"


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """``text`` with its control characters as ``\\x1b``. Otherwise a name or a text of a model could move the cursor, set
    colours or change the title of the terminal. Line ends and tabs stay."""
    return text.translate(_CONTROL)


def counted(count: int, noun: str) -> str:
    """``1 turn``, ``2 turns``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say(text: str) -> None:
    """Prints one line on stderr; stdout is for results."""
    print(printable(text), file=sys.stderr, flush=True)


READER_GONE = 128 + signal.SIGPIPE
"""Exit code that a shell reports of a program whose reader has ended."""


class ReaderGone(Exception):
    """The reader of stdout has ended (``| head -1``): no result reaches anyone."""


def show(text: str, end: str = "\n") -> None:
    """Prints results on stdout.

    Raises:
        ReaderGone: nobody reads them.
    """
    try:
        print(printable(text), end=end, flush=True)
    except BrokenPipeError:
        drop_output()
        raise ReaderGone from None


def drop_output() -> None:
    """Sends stdout to the null device. Otherwise Python would report, when it exits, what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prepare_streams() -> None:
    """Makes stdin, stdout and stderr usable in every environment.

    A stream that was closed (``>&-``) is opened on the null device: the next file that is opened would get its number,
    and the output of a child process. A character that the terminal's encoding does not have is escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    """A tqdm bar on stderr: ``label  37/120 rows  12.30rows/s, 6s left, note``.

    On a terminal the line is rewritten in place; elsewhere a line is printed at most every ``LOG_EVERY_S`` seconds.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        live = sys.stderr.isatty()
        every_s = TERMINAL_EVERY_S if live else LOG_EVERY_S
        text = {"desc": label, "unit": unit, "bar_format": BAR_FORMAT, "dynamic_ncols": live, "leave": False}
        times = {"mininterval": every_s, "delay": every_s, "miniters": 1, "smoothing": 0}
        self.bar = tqdm(total=total, file=sys.stderr if live else _WholeLines(), **text, **times)
        self.first: tuple[float, int] | None = None
        self.note = ""

    def begin(self, done: int) -> None:
        """Sets how many units were done before this process started; they do not count towards the rate."""
        self.bar.initial = self.bar.n = self.bar.last_print_n = done

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Sets how many units are done and, where given, the total and the note at the end of the line."""
        self.bar.total = total or self.bar.total
        self.note = self.note if note is None else note
        parts = [text for text in (self._time_left(done), self.note) if text]
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        self.bar.update(done - self.bar.n)

    def _time_left(self, done: int) -> str:
        """The time left at the rate since the first unit; empty until that has been measured."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done)
        begin, units = self.first
        if now - begin < ESTIMATE_AFTER_S or done <= units:
            return ""
        return f"{duration((self.bar.total - done) * (now - begin) / (done - units))} left"

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
