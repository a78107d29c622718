"""Progress: whole lines at intervals in a log, one rewritten line on a terminal."""

import fcntl
import os
import pty
import struct
import sys
import termios
from types import SimpleNamespace

from offscript import console


def test_a_log_gets_no_line_before_the_interval_has_passed(capsys):
    progress = console.Progress("train", 1000, "steps")
    for step in range(1000):
        progress.update(step, note="loss 0.5")
    progress.close()
    assert capsys.readouterr().err == ""


def test_a_log_gets_whole_lines_and_rows_of_an_earlier_run_do_not_count_towards_the_rate(capsys, monkeypatch):
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    progress = console.Progress("rollout", 100, "rows")
    progress.begin(90)
    progress.advance("7 tokens")
    progress.advance()
    assert progress.bar.format_dict["initial"] == 90
    progress.close()
    text = capsys.readouterr().err
    lines = text.splitlines()[1:]
    assert [line.split("  ")[1:3] for line in lines] == [
        ["rollout", "91/100 rows"],
        ["rollout", "92/100 rows"],
    ]
    assert "\r" not in text and all(line.endswith("s, 7 tokens") for line in lines)


def test_the_time_left_is_estimated_from_what_follows_the_first_unit(capsys, monkeypatch):
    """The first of 100 rows takes 60 s, the others one second each: 100 minutes would be wrong."""
    seconds = iter([60.0, 61.0, 80.0])
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    progress = console.Progress("rollout", 100, "rows")
    for done in (1, 2, 21):
        progress.update(done)
    progress.close()
    _, first, second, third = capsys.readouterr().err.splitlines()
    assert "left" not in first + second and third.endswith(", 1m19s left")


def test_control_characters_are_escaped_and_line_ends_stay(capsys):
    console.say("a\x1b[31mred\x9b\x07\tb")
    console.show("\x1b]0;title\x07\nnext\r")
    output = capsys.readouterr()
    assert output.err == "a\\x1b[31mred\\x9b\\x07\tb\n" and output.out == "\\x1b]0;title\\x07\nnext\\x0d\n"


def test_a_terminal_gets_one_line_that_is_rewritten_and_removed(monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setattr(console, "TERMINAL_EVERY_S", 0.0)
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        progress = console.Progress("fit", 1, "steps")
        progress.update(2, 4)
        assert progress.close() >= 0
        text = os.read(master, 4096).decode()
    os.close(master)
    assert "2/4 steps" in text and "\n" not in text and text.endswith(" \r")
