"""The real W&B client against a stub service: live rows, killed jobs, a failing service, and sync."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from offscript.errors import UserError
from offscript.settings import TrackingSettings
from offscript.tracking import sync as syncing
from offscript.tracking import tracker as tracking
from offscript.tracking import transaction_log
from offscript.tracking.sync import sync
from tests.tracking.offline_run import read_runs
from tests.tracking.wandb_stub import KEY, wandb_stub

HOME = Path(__file__).parents[2]
OFFLINE = TrackingSettings(name="offline")
ABOUT = {"group": "demo", "job_type": "train", "tags": ["pocket", "sarcasm"], "config": {"seed": 1}}
JOB = f"""
import os, sys, time
from pathlib import Path
from offscript.tracking import tracker as tracking
from offscript.settings import TrackingSettings

tracking.UPLOAD_INTERVAL_S, tracking.FLUSH_INTERVAL_S, tracking.FINISH_TIMEOUT_S = 1, 0.2, 5
mode, folder = sys.argv[1], Path(sys.argv[2])
def start():
    return tracking.start(TrackingSettings(name=mode), folder, run_id="abc", name="adapter", **{ABOUT!r})
"""


@pytest.fixture
def stub(monkeypatch):
    """Starts the stub service, and sets the environment so that this process and its children use it."""
    import wandb

    with wandb_stub() as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        # Jobs set these; monkeypatch restores them.
        for name in ("WANDB_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(name, "")
        monkeypatch.setattr(tracking, "_service_failed", False)
        monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2)
        monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 3)
        monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.1)
        wandb.teardown()
        yield service
        service.heal()
        wandb.teardown()


def job(folder, body, mode="online"):
    """Starts a job in its own process. ``body`` can call ``start``, and can wait for a line on stdin."""
    command = [sys.executable, "-c", JOB + body, mode, str(folder)]
    env = {**os.environ, "PYTHONPATH": str(HOME)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for_exit(process, send_line=True):
    """Returns (exit code, stderr)."""
    _, errors = process.communicate("go\n" if send_line else None, timeout=120)
    return process.returncode, errors


def start(folder, mode, run_id="abc"):
    return tracking.start(TrackingSettings(name=mode), folder, run_id=run_id, name="adapter", **ABOUT)


# ---------------------------------------------------------------- rows while a job runs


def test_rows_arrive_while_the_job_runs(stub, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "heatmap.png")
    process = job(
        tmp_path,
        """
tracker = start()
for step in (1, 2, 3):
    tracker.log({"train/loss": 1 / step}, step)
sys.stdin.readline()
tracker.table("retention", ["stage", "f1"], [["full", 0.9]])
tracker.bars("by format", "macro-F1", {"chat": 0.9, "agentic_email": 0.4})
tracker.image("heatmap", folder / "heatmap.png")
tracker.summary({"macro_f1": 0.9})
tracker.finish()
""",
    )
    run = stub.wait_for(lambda: stub.runs.get("abc"))
    stub.wait_for(lambda: run.column("step") == [1, 2, 3])
    assert process.poll() is None and not run.closed
    assert wait_for_exit(process) == (0, "")
    assert run.closed == [0] and run.summary["macro_f1"] == 0.9
    assert run.config["seed"] == 1 and run.project == "offscript"
    assert [run.about[k] for k in ("groupName", "jobType", "tags")] == ["demo", "train", ABOUT["tags"]]
    assert {"1": "step"}.items() <= run.metrics[0].items()
    assert {"retention", "by format_table", "heatmap"} <= run.summary.keys()
    assert any(name.endswith(".png") for name in run.files)
    assert "by format" in run.config["_wandb"]["visualize"]
    assert KEY not in json.dumps([run.about, run.rows]) and not any(
        KEY.encode() in f for f in run.files.values()
    )


def test_a_killed_job_resumes_its_run_and_every_step_is_there_once(stub, tmp_path):
    body = """
tracker = start()
first, last = {first}, {last}
for step in range(first, last + 1):
    tracker.log({{"train/loss": 1 / step}}, step)
    if step % 5 == 0:
        tracker.log({{"eval/loss": 1 / step}}, step)
    if step == {pause}:
        sys.stdin.readline()
os.kill(os.getpid(), 9) if {killed} else tracker.finish()
"""
    first = job(tmp_path, body.format(first=1, last=9, pause=6, killed=True))
    stub.wait_for(lambda: "abc" in stub.runs and len(stub.runs["abc"].column("train/loss")) == 6)
    # Any of the steps 7 to 9 may have arrived before the kill.
    assert wait_for_exit(first)[0] == -9
    assert wait_for_exit(job(tmp_path, body.format(first=4, last=12, pause=0, killed=False))) == (0, "")
    (run,) = stub.runs.values()
    steps = [row["step"] for row in run.rows if "train/loss" in row]
    assert steps == list(range(1, 13))
    assert [row["step"] for row in run.rows if "eval/loss" in row] == [5, 10]


@pytest.mark.slow
def test_a_trainer_killed_between_checkpoints_logs_every_step_once(stub, tmp_path):
    body = """
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}

class Killer(TrainerCallback):
    def on_log(self, args, state, control, **_):
        if state.global_step == 7 and "--kill" in sys.argv:
            sys.stdin.readline()
            os.kill(os.getpid(), 9)

kill = sys.argv.append("--kill") if not list(folder.glob("out/checkpoint-*")) else None
tracker = start()
arguments = TrainingArguments(str(folder / "out"), max_steps=12, save_steps=5, logging_steps=1, report_to=[],
                              eval_strategy="steps", eval_steps=4, use_cpu=True, disable_tqdm=True)
data = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([2.0 * i])} for i in range(64)]
trainer = Trainer(Line(), arguments, train_dataset=data, eval_dataset=data[:8], callbacks=[*tracker.callbacks(), Killer()])
trainer.train(resume_from_checkpoint=kill is None and "--kill" not in sys.argv or None)
tracker.finish()
"""
    first = job(tmp_path, body)
    run = stub.wait_for(lambda: stub.runs.get("abc"), 60)
    stub.wait_for(lambda: 6 in run.column("step"), 60)
    assert wait_for_exit(first)[0] == -9
    code, errors = wait_for_exit(job(tmp_path, body))
    assert code == 0, errors
    assert len(stub.runs) == 1
    assert [row["step"] for row in run.rows if "train/loss" in row] == list(range(1, 13))
    assert [row["step"] for row in run.rows if "eval/loss" in row] == [4, 8, 12]


def test_a_resumed_trainer_logs_what_was_not_uploaded_before_the_kill(stub, tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    arguments, control = TrainingArguments(str(tmp_path / "out"), report_to=[]), TrainerControl()
    tracker = start(tmp_path, "online")
    for step in (1, 2):
        tracker.log({"train/loss": 1.0}, step)
    tracker.finish()
    # Step 3 was not uploaded, and is part of the checkpoint.
    logged = [{"loss": 1.0, "step": step} for step in (1, 2, 3)]
    tracker = start(tmp_path, "online")
    (callback,) = tracker.callbacks()
    state = TrainerState(global_step=3, log_history=logged, is_world_process_zero=True)
    callback.on_train_begin(arguments, state, control)
    state.global_step = 4
    callback.on_log(arguments, state, control, logs={"loss": 0.5, "grad_norm": 2.0})
    callback.on_log(arguments, state, control, logs={"eval_loss": 0.7, "eval_runtime": 3.0})
    tracker.finish()
    run = stub.runs["abc"]
    assert run.column("step") == [1, 2, 3, 4, 4]
    assert run.rows[-2]["train/grad_norm"] == 2.0 and run.rows[-1]["eval/loss"] == 0.7
    assert "eval/runtime" not in run.rows[-1]


@pytest.mark.parametrize("rank", tracking.RANK_VARIABLES)
def test_only_rank_0_of_a_training_has_a_run(stub, tmp_path, monkeypatch, rank):
    monkeypatch.setenv(rank, "1")
    tracker = start(tmp_path, "online")
    tracker.log({"x": 1.0}, 1)
    tracker.finish()
    assert stub.requests == [] and list(tmp_path.iterdir()) == []
    # Each process of a rollout job has a shard of its own.
    about = {**ABOUT, "job_type": "rollout"}
    shard = tracking.start(OFFLINE, tmp_path, run_id="shard", name="shard", **about)
    shard.finish()
    assert isinstance(shard, tracking.WandbTracker)


# ---------------------------------------------------------------- a service that fails


def test_a_rejected_key_is_reported_once_and_the_runs_are_kept_offline(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    for run_id in ("one", "two"):
        tracker = start(tmp_path, "online", run_id)
        tracker.log({"x": 1.0}, 1)
        tracker.finish()
    errors = capsys.readouterr().err
    assert errors.count("W&B rejects the API key") == 1 and errors.count("\n") == 1 and "x" * 40 not in errors
    assert [run["id"] for run in read_runs(tmp_path) if "x" in run["logged"]] == ["one", "two"]
    with pytest.raises(UserError, match="rejects the API key, or there is none; `wandb login`"):
        sync(tmp_path, OFFLINE)


@pytest.mark.parametrize("fault", ["down", "500", "slow"])
def test_a_failing_service_is_reported_once_and_the_run_is_kept_offline(
    stub, tmp_path, capsys, fault, monkeypatch
):
    if fault == "down":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif fault == "500":
        stub.fail(500)
    else:
        stub.stall(30)
    tracker = start(tmp_path, "online")
    tracker.log({"x": 1.0}, 1)
    tracker.finish()
    assert capsys.readouterr().err == (
        f"W&B cannot be reached (CommError): W&B runs are kept offline below {tmp_path / 'wandb'}\n"
    )
    assert [run["id"] for run in read_runs(tmp_path) if "x" in run["logged"]] == ["abc"]


def test_a_job_survives_the_loss_of_the_service_and_sync_uploads_the_rest(stub, tmp_path, monkeypatch):
    body = """
tracker = start()
tracker.log({"x": 1.0}, 1)
sys.stdin.readline()
for step in (2, 3, 4):
    tracker.log({"x": 1.0}, step)
tracker.summary({"answer": 42})
tracker.finish()
print("completed", file=sys.stderr)
"""
    process = job(tmp_path, body)
    stub.wait_for(lambda: "abc" in stub.runs and stub.runs["abc"].column("step") == [1])
    stub.fail(503)
    code, errors = wait_for_exit(process)
    assert code == 0 and errors.splitlines()[-1] == "completed"
    assert errors.count("W&B") == 1 and "offscript sync uploads the rest" in errors
    run = stub.runs["abc"]
    assert run.column("step") == [1]
    stub.heal()
    # The file has just changed, so its job may be uploading it.
    assert sync(tmp_path, OFFLINE).runs == 0
    monkeypatch.setattr(syncing, "ONLINE_IDLE_S", 0)
    assert sync(tmp_path, OFFLINE) == syncing.SyncResult(runs=1, rows=3)
    assert run.column("step") == [1, 2, 3, 4] and run.summary["answer"] == 42


# ---------------------------------------------------------------- sync


@pytest.mark.slow
@pytest.mark.parametrize("command", [["sync"], ["beta", "sync", "--no-skip-synced"]], ids=" ".join)
def test_the_clients_own_sync_doubles_or_loses_rows_of_a_growing_file(stub, tmp_path, command):
    """The reason for ``offscript.tracking.sync``: if this test fails, the client's own command may replace it."""
    tracker = start(tmp_path, "offline")
    (path,) = tracking.run_files(tmp_path)
    skip = ["--skip-synced"] if command == ["sync"] else []
    for step in (1, 2):
        tracker.log({"x": 1.0}, step)
        stub.wait_for(lambda: transaction_log.last_step([path]) == 10 * step)  # noqa: B023
        client = [sys.executable, "-m", "wandb", *command, "--yes", *skip, str(path)]
        subprocess.run(client, check=True, capture_output=True, cwd=tmp_path)
    tracker.finish()
    assert stub.runs["abc"].column("step") == ([1] if skip else [1, 1, 2])


def test_sync_uploads_only_what_is_new_while_the_job_runs_and_after_a_kill(stub, tmp_path):
    body = """
tracker = start()
for step in range({first}, {last}):
    tracker.log({{"x": 1.0}}, step)
    if step == 4:
        sys.stdin.readline()
tracker.table("retention", ["stage"], [["full"]])
tracker.finish()
"""
    process = job(tmp_path, body.format(first=1, last=9), "offline")
    stub.wait_for(lambda: transaction_log.last_step(tracking.run_files(tmp_path)) == 40)
    assert sync(tmp_path, OFFLINE) == syncing.SyncResult(runs=1, rows=4)
    run = stub.runs["abc"]
    assert run.column("step") == [1, 2, 3, 4] and run.about["groupName"] == "demo"
    process.kill()
    wait_for_exit(process, send_line=False)
    sync(tmp_path, OFFLINE)
    assert run.column("step") == [1, 2, 3, 4]
    assert wait_for_exit(job(tmp_path, body.format(first=3, last=8), "offline"))[0] == 0
    assert sync(tmp_path, OFFLINE).runs == 1
    assert [row["step"] for row in run.rows if "x" in row] == list(range(1, 8)) and run.closed[-1] == 0
    assert "retention" in run.summary and any("table" in name for name in stub.artifacts)
    # Files to upload are staged below the experiment's folder, not in the home folder of a node.
    assert list((tmp_path / "wandb/data").rglob("staging"))
    written = [
        transaction_log.step_of(r)
        for p in tracking.run_files(tmp_path)
        for _, r in transaction_log.records(p)
    ]
    steps = [step for step in written if step is not None]
    assert len(steps) == len(set(steps))
    asked = len(stub.requests)
    assert sync(tmp_path, OFFLINE) == syncing.SyncResult()
    assert len(stub.requests) == asked


def test_sync_stops_at_an_incomplete_record_and_uploads_it_once_complete(stub, tmp_path):
    tracker = start(tmp_path, "offline")
    for step in range(1, 6):
        tracker.log({"x": 1.0}, step)
    tracker.finish()
    # Waits for the end of the file.
    read_runs(tmp_path)
    (path,) = tracking.run_files(tmp_path)
    complete = path.read_bytes()
    ends = [
        end for end, record in transaction_log.records(path) if transaction_log.step_of(record) is not None
    ]
    path.write_bytes(complete[: ends[2] - 5])
    assert sync(tmp_path, OFFLINE).rows == 2
    path.write_bytes(complete)
    assert sync(tmp_path, OFFLINE).rows == 3
    assert stub.runs["abc"].column("step") == [1, 2, 3, 4, 5]


def test_a_failed_upload_is_reported_in_one_line_and_tried_again(stub, tmp_path, capsys, monkeypatch):
    tracker = start(tmp_path, "offline")
    tracker.log({"x": 1.0}, 1)
    tracker.finish()
    read_runs(tmp_path)
    monkeypatch.setattr(syncing, "CLIENT_TIMEOUT_S", 5)
    stub.fail(400, part="file_stream")
    assert sync(tmp_path, OFFLINE) == syncing.SyncResult(failed=1)
    errors = capsys.readouterr().err
    assert errors.startswith("W&B: 1 runs were not uploaded") and errors.count("\n") == 1
    stub.heal()
    assert sync(tmp_path, OFFLINE) == syncing.SyncResult(runs=1, rows=1)
    assert stub.runs["abc"].column("step") == [1]


def test_sync_reports_missing_runs_and_an_unreachable_service(stub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no W&B runs"):
        sync(tmp_path, OFFLINE)
    tracker = start(tmp_path, "offline")
    tracker.finish()
    read_runs(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(syncing, "API_TIMEOUT_S", 2)
    with pytest.raises(UserError, match="W&B: does not answer"):
        sync(tmp_path, OFFLINE)


def test_a_log_is_read_as_it_was_written_for_records_of_any_size(tmp_path):
    sizes = [0, 1, 32_700, 32_750, 32_768, 100_000, 5]
    written = [transaction_log.new_record(output={"line": "x" * size}) for size in sizes]
    transaction_log.write(tmp_path / "log", written)
    read = list(transaction_log.records(tmp_path / "log"))
    assert [len(record.output.line) for _, record in read] == sizes
