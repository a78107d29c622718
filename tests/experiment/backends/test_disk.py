"""Full disks and suspended writers: files stay complete, and an artifact never has two writers."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from offscript.errors import UserError
from offscript.experiment import runner
from offscript.experiment.backends import plan
from offscript.storage import files, locks
from offscript.storage.rows import RowWriter, read_rows
from tests.composed import experiment_of


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place):
    with open(place / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)


def append_until_full(path):
    with RowWriter(path) as rows:
        for number in range(1_000_000):
            rows.append({"number": number, "text": "x" * 300})


def test_a_full_disk_is_a_user_error_and_leaves_complete_rows(small_disk):
    path = small_disk / "rows.jsonl"
    with pytest.raises(
        UserError, match=r"rows.jsonl: cannot be written \(No space left on device\); free some space"
    ):
        append_until_full(path)
    rows = read_rows(path, "the same command")
    assert [row["number"] for row in rows] == list(range(len(rows))) and len(rows) > 100

    # Frees space; the last line is then torn.
    os.truncate(path, len(path.read_bytes()) // 2)
    with RowWriter(path) as writer:
        writer.append({"number": -1})
        assert len(writer.rows) < len(rows)
    assert read_rows(path, "the same command")[-1] == {"number": -1}


def test_a_full_disk_leaves_existing_files_unchanged(small_disk):
    path = small_disk / "summary.json"
    files.write_json(path, {"x": 1})
    fill(small_disk)
    with pytest.raises(UserError, match="No space left on device"):
        files.write_json(path, {"x": ["long"] * 10_000})
    assert files.read_json(path) == {"x": 1}
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "summary.json"]
    with pytest.raises(UserError, match="No space left on device"), locks.claim(small_disk / "rows.jsonl"):
        pass


def test_a_full_disk_is_one_line_whatever_the_job_was_writing(small_disk, monkeypatch, capsys):
    experiment = experiment_of("experiment=smoke", f"root={small_disk.parent / 'runs'}")
    rollout = experiment.planner.cells()[0]
    monkeypatch.setitem(runner.RUN, rollout.kind, lambda *_: (small_disk / "a").write_bytes(b"x" * 2**20))
    (result,) = runner._run_job([rollout], experiment, None)
    assert isinstance(result.error, UserError)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"failed: {rollout}: the disk: No space left on device; free some space")


def test_a_read_only_disk_is_a_user_error(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    own = experiment_of("experiment=smoke", f"root={small_disk}")
    with pytest.raises(
        UserError, match=r"cannot make this folder \(Read-only file system\); choose another root="
    ):
        plan.write_plan(own, [], [])
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); choose another root="):
        files.write_json(small_disk / "x.json", {})


def test_a_row_that_exceeds_the_file_size_limit_is_removed_completely(tmp_path):
    path = tmp_path / "rows.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(UserError, match="File too large"):
            append_until_full(path)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [row["number"] for row in read_rows(path, "the same command")] == [0, 1, 2]


WRITER = """
import sys, time
from pathlib import Path
from offscript.storage import locks
from offscript.storage.rows import RowWriter
locks.HEARTBEAT_S, locks.STALE_S = 0.1, 0.5
with locks.claim(Path(sys.argv[1])), RowWriter(Path(sys.argv[1])) as rows:
    print("held", flush=True)
    for number in range(100_000):
        rows.append({"writer": sys.argv[2], "number": number})
        time.sleep(0.001)
"""


def test_a_writer_that_resumes_after_its_lock_was_taken_over_exits(tmp_path, monkeypatch):
    """As on a node that hung, or after a job was suspended."""
    path = tmp_path / "rows.jsonl"
    first = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, "first"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGSTOP)
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    with locks.claim(path, poll_s=0.05), RowWriter(path) as rows:
        before = len(rows.rows)
        rows.append({"writer": "second", "number": 0})
        os.kill(first.pid, signal.SIGCONT)
        _, stderr = first.communicate(timeout=30)
        rows.append({"writer": "second", "number": 1})
    assert first.returncode == 1 and "taken over by process" in stderr
    written = [json.loads(line)["writer"] for line in path.read_text().splitlines()][before:]
    assert written.count("second") == 2
    assert written.count("first") <= 1, "only the row that it was writing when it was stopped"


def test_a_lock_of_another_container_on_this_host_is_not_taken_over(tmp_path):
    """Process ids of another namespace say nothing about this one."""
    lock = tmp_path / ".a.lock"
    here = locks._host()
    lock.write_text(json.dumps({**here, "space": "pid:[1]", "pid": 2**22 - 1, "id": "x"}))
    with pytest.raises(locks.Busy), locks.claim(tmp_path / "a", wait=False):
        pass
    lock.write_text(json.dumps({**here, "pid": 2**22 - 1, "id": "x"}))
    with locks.claim(tmp_path / "a", poll_s=0.01):
        pass
