import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from offscript.errors import MissingInput, UserError
from offscript.storage import files, locks, manifests
from offscript.storage.rows import RowWriter, read_rows


def lines(path, *texts):
    path.write_text("".join(texts))
    return path


def test_a_reader_refuses_a_torn_last_line_and_names_the_command(tmp_path):
    path = lines(tmp_path / "rows.jsonl", '{"a": 1}\n', '{"a": 2')
    with pytest.raises(
        UserError, match=r"line 2: the last line is torn .* complete it with: offscript rollout x"
    ):
        read_rows(path, "offscript rollout x")
    assert path.read_text().endswith('{"a": 2')


def test_a_writer_cuts_an_incomplete_last_line_and_resumes(tmp_path):
    path = lines(tmp_path / "rows.jsonl", '{"a": 1}\n', '{"a": 2')
    with RowWriter(path) as writer:
        assert writer.rows == [{"a": 1}] and writer.cut == 7
        writer.append({"a": "é\n"})
    assert read_rows(path, "") == [{"a": 1}, {"a": "é\n"}]


@pytest.mark.parametrize("opened", [RowWriter, lambda p: read_rows(p, "")])
@pytest.mark.parametrize(
    "bad", ["{nonsense}\n", "[1]\n", "\0\n", "[" * 9999 + "\n", '{"a": 1, "a": 2}\n', '{"a": "\\ud800"}\n']
)
def test_a_bad_line_in_the_middle_is_refused_by_both_and_kept(tmp_path, opened, bad):
    path = lines(tmp_path / "rows.jsonl", '{"a": 1}\n', bad, '{"a": 3}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: "):
        opened(path)
    assert path.read_bytes() == before


def test_a_missing_file_names_its_command_and_a_folder_is_not_rows(tmp_path):
    with pytest.raises(MissingInput, match="make it with: offscript rollout"):
        read_rows(tmp_path / "none.jsonl", "offscript rollout")
    with pytest.raises(UserError, match="is a folder"):
        read_rows(tmp_path, "")
    with pytest.raises(UserError, match="a folder stands where a file is needed"):
        RowWriter(tmp_path)


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(UserError, match="runs: a file stands where a folder is needed"):
        files.write_json(tmp_path / "runs" / "a" / "b.json", {})
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"x": float("nan")})
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_an_artifact_whose_file_was_deleted_is_not_finished(tmp_path):
    rows = tmp_path / "chat-eval-01234567.jsonl"
    rows.write_text("")
    manifests.write_manifest(rows, {"key": "k"})
    assert manifests.read_manifest(rows) == {"key": "k"}
    rows.unlink()
    assert manifests.read_manifest(rows) is None


def test_one_writer_at_a_time(tmp_path):
    held, order = threading.Event(), []

    def second():
        held.wait()
        with locks.claim(tmp_path / "a", poll_s=0.01):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locks.claim(tmp_path / "a"):
        held.set()
        with (
            pytest.raises(locks.Busy, match="is being written by process"),
            locks.claim(tmp_path / "a", wait=False),
        ):
            pass
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path):
    code = f"""
import time
from pathlib import Path
from offscript.storage.locks import claim
with claim(Path({str(tmp_path / "a")!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(locks.Busy), locks.claim(tmp_path / "a", wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locks.claim(tmp_path / "a", poll_s=0.01):
        pass


def test_a_claim_of_another_host_expires_without_heartbeat(tmp_path):
    lock = tmp_path / ".a.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": "x"}))
    with pytest.raises(locks.Busy), locks.claim(tmp_path / "a", wait=False):
        pass
    old = time.time() - 2 * locks.STALE_S
    os.utime(lock, (old, old))
    with locks.claim(tmp_path / "a", poll_s=0.01):
        assert json.loads(lock.read_text())["host"] != "elsewhere"


def test_a_new_folder_is_created_atomically(tmp_path):
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "adapter") as scratch:
        (scratch / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(tmp_path / "adapter") as scratch:
        (scratch / "whole").write_text("")
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["whole"]


def test_a_relative_path_is_looked_up_here_and_then_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.locate("offscript") == files.HOME / "offscript"
    (tmp_path / "offscript").mkdir()
    assert str(files.locate("offscript")) == "offscript"
