"""The real W&B client against the stub: rows while a job runs, jobs that are killed, a service that fails, and sync."""

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

tracking.STREAM_S, tracking.FLUSH_S, tracking.FINISH_TIMEOUT_S = 1, 0.2, 5
mode, folder = sys.argv[1], Path(sys.argv[2])
def start():
    return tracking.start(TrackingSettings(name=mode), folder, run_id="abc", name="adapter", **{ABOUT!r})
"""


@pytest.fixture
def stub(monkeypatch):
    """The service, which this process's client and its children are led to."""
    import wandb

    with wandb_stub() as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("WANDB_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(name, "")  # set by jobs: put back afterwards
        monkeypatch.setattr(tracking, "_gave_up", False)
        monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2)
        monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 3)
        monkeypatch.setattr(tracking, "FLUSH_S", 0.1)
        wandb.teardown()
        yield service
        service.heal()
        wandb.teardown()


def job(folder, body, mode="online"):
    """A job in its own process: ``body`` runs with ``start`` at hand; a line on its stdin is its cue, if it waits."""
    command = [sys.executable, "-c", JOB + body, mode, str(folder)]
    env = {**os.environ, "PYTHONPATH": str(HOME)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(process, say_go=True):
    """(exit code, what it said)"""
    _, errors = process.communicate("go\n" if say_go else None, timeout=120)
    return process.returncode, errors


def start(folder, mode, run_id="abc"):
    return tracking.start(TrackingSettings(name=mode), folder, run_id=run_id, name="adapter", **ABOUT)


# ---------------------------------------------------------------- rows while a job runs


def test_rows_arrive_while_the_job_runs_and_say_what_they_belong_to(stub, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "heatmap.png")
    process = job(tmp_path, """
tracker = start()
for step in (1, 2, 3):
    tracker.log({"train/loss": 1 / step}, step)
sys.stdin.readline()
tracker.table("retention", ["stage", "f1"], [["full", 0.9]])
tracker.bars("by format", "macro-F1", {"chat": 0.9, "agentic_email": 0.4})
tracker.image("heatmap", folder / "heatmap.png")
tracker.summary({"macro_f1": 0.9})
tracker.finish()
""")  # fmt: skip
    run = stub.wait_for(lambda: stub.runs.get("abc"))
    stub.wait_for(lambda: run.column("step") == [1, 2, 3])
    assert process.poll() is None and not run.closed
    assert ended(process) == (0, "")
    assert run.closed == [0] and run.summary["macro_f1"] == 0.9
    assert run.config["seed"] == 1 and run.project == "offscript"
    assert [run.about[k] for k in ("groupName", "jobType", "tags")] == ["demo", "train", ABOUT["tags"]]
    assert {"1": "step"}.items() <= run.metrics[0].items()  # every column is drawn over it
    assert {"retention", "by format_table", "heatmap"} <= run.summary.keys()
    assert any(name.endswith(".png") for name in run.files)
    assert "by format" in run.config["_wandb"]["visualize"]
    assert KEY not in json.dumps([run.about, run.rows]) and not any(
        KEY.encode() in f for f in run.files.values()
    )


def test_a_killed_job_goes_on_with_its_own_run_and_no_step_is_lost_or_told_twice(stub, tmp_path):
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
    assert ended(first)[0] == -9  # of 7 to 9 any may have arrived
    assert ended(job(tmp_path, body.format(first=4, last=12, pause=0, killed=False))) == (0, "")
    (run,) = stub.runs.values()
    steps = [row["step"] for row in run.rows if "train/loss" in row]
    assert steps == list(range(1, 13))
    assert [row["step"] for row in run.rows if "eval/loss" in row] == [5, 10]


@pytest.mark.slow
def test_a_trainer_killed_between_checkpoints_leaves_every_step_once(stub, tmp_path):
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
    assert ended(first)[0] == -9
    code, errors = ended(job(tmp_path, body))
    assert code == 0, errors
    assert len(stub.runs) == 1
    assert [row["step"] for row in run.rows if "train/loss" in row] == list(range(1, 13))
    assert [row["step"] for row in run.rows if "eval/loss" in row] == [4, 8, 12]


def test_a_resumed_trainer_tells_what_the_service_did_not_receive_before_the_kill(stub, tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    arguments, control = TrainingArguments(str(tmp_path / "out"), report_to=[]), TrainerControl()
    tracker = start(tmp_path, "online")
    for step in (1, 2):
        tracker.log({"train/loss": 1.0}, step)
    tracker.finish()
    logged = [{"loss": 1.0, "step": step} for step in (1, 2, 3)]  # 3 was lost, and lies before the checkpoint
    tracker = start(tmp_path, "online")
    (follower,) = tracker.callbacks()
    state = TrainerState(global_step=3, log_history=logged, is_world_process_zero=True)
    follower.on_train_begin(arguments, state, control)
    state.global_step = 4
    follower.on_log(arguments, state, control, logs={"loss": 0.5, "grad_norm": 2.0})
    follower.on_log(arguments, state, control, logs={"eval_loss": 0.7, "eval_runtime": 3.0})
    tracker.finish()
    run = stub.runs["abc"]
    assert run.column("step") == [1, 2, 3, 4, 4]
    assert run.rows[-2]["train/grad_norm"] == 2.0 and run.rows[-1]["eval/loss"] == 0.7
    assert "eval/runtime" not in run.rows[-1]


@pytest.mark.parametrize("rank", tracking.RANKS)
def test_only_the_first_process_of_a_job_tells_anything(stub, tmp_path, monkeypatch, rank):
    monkeypatch.setenv(rank, "1")
    tracker = start(tmp_path, "online")
    tracker.log({"x": 1.0}, 1)
    tracker.finish()
    assert stub.requests == [] and list(tmp_path.iterdir()) == []
    about = {**ABOUT, "job_type": "rollout"}  # its processes each have a shard of their own
    shard = tracking.start(OFFLINE, tmp_path, run_id="shard", name="shard", **about)
    shard.finish()
    assert isinstance(shard, tracking.WandbTracker)


# ---------------------------------------------------------------- a service that fails


def test_a_refused_key_is_told_once_and_the_runs_are_kept_offline(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    for run_id in ("one", "two"):
        tracker = start(tmp_path, "online", run_id)
        tracker.log({"x": 1.0}, 1)
        tracker.finish()
    errors = capsys.readouterr().err
    assert errors.count("W&B refuses the API key") == 1 and errors.count("\n") == 1 and "x" * 40 not in errors
    assert [run["id"] for run in read_runs(tmp_path) if "x" in run["logged"]] == ["one", "two"]
    with pytest.raises(UserError, match="refuses the API key, or there is none; `wandb login`"):
        sync(tmp_path, OFFLINE)


@pytest.mark.parametrize("trouble", ["down", "500", "slow"])
def test_a_service_in_trouble_is_told_once_and_the_run_is_kept_offline(
    stub, tmp_path, capsys, trouble, monkeypatch
):
    if trouble == "down":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif trouble == "500":
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


def test_a_service_that_goes_away_costs_the_job_nothing_and_sync_brings_what_it_missed(
    stub, tmp_path, monkeypatch
):
    body = """
tracker = start()
tracker.log({"x": 1.0}, 1)
sys.stdin.readline()
for step in (2, 3, 4):
    tracker.log({"x": 1.0}, step)
tracker.summary({"answer": 42})
tracker.finish()
print("made it", file=sys.stderr)
"""
    process = job(tmp_path, body)
    stub.wait_for(lambda: "abc" in stub.runs and stub.runs["abc"].column("step") == [1])
    stub.fail(503)
    code, errors = ended(process)
    assert code == 0 and errors.splitlines()[-1] == "made it"
    assert errors.count("W&B") == 1 and "launch/sync.py uploads the rest" in errors
    run = stub.runs["abc"]
    assert run.column("step") == [1]
    stub.heal()
    assert sync(tmp_path, OFFLINE).runs == 0  # it was written to a moment ago: its job may be uploading it
    monkeypatch.setattr(syncing, "QUIET_S", 0)
    assert sync(tmp_path, OFFLINE) == syncing.Synced(runs=1, rows=3)
    assert run.column("step") == [1, 2, 3, 4] and run.summary["answer"] == 42


# ---------------------------------------------------------------- sync


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
    stub.wait_for(lambda: transaction_log.last_step(tracking.files(tmp_path)) == 40)
    assert sync(tmp_path, OFFLINE) == syncing.Synced(runs=1, rows=4)
    run = stub.runs["abc"]
    assert run.column("step") == [1, 2, 3, 4] and run.about["groupName"] == "demo"
    process.kill()
    ended(process, say_go=False)
    sync(tmp_path, OFFLINE)
    assert run.column("step") == [1, 2, 3, 4]
    assert ended(job(tmp_path, body.format(first=3, last=8), "offline"))[0] == 0
    assert sync(tmp_path, OFFLINE).runs == 1
    assert [row["step"] for row in run.rows if "x" in row] == list(range(1, 8)) and run.closed[-1] == 0
    assert "retention" in run.summary and any("table" in name for name in stub.artifacts)
    assert list(
        (tmp_path / "wandb/data").rglob("staging")
    )  # what is uploaded later does not lie in a node's home
    written = [
        transaction_log.step_of(r) for p in tracking.files(tmp_path) for _, r in transaction_log.records(p)
    ]
    steps = [step for step in written if step is not None]
    assert len(steps) == len(set(steps))
    asked = len(stub.requests)
    assert sync(tmp_path, OFFLINE) == syncing.Synced()
    assert len(stub.requests) == asked


def test_sync_stops_at_a_torn_record_and_goes_on_once_it_is_whole(stub, tmp_path):
    tracker = start(tmp_path, "offline")
    for step in range(1, 6):
        tracker.log({"x": 1.0}, step)
    tracker.finish()
    read_runs(tmp_path)  # waits for the end of the file
    (path,) = tracking.files(tmp_path)
    whole = path.read_bytes()
    ends = [
        end for end, record in transaction_log.records(path) if transaction_log.step_of(record) is not None
    ]
    path.write_bytes(whole[: ends[2] - 5])
    assert sync(tmp_path, OFFLINE).rows == 2
    path.write_bytes(whole)
    assert sync(tmp_path, OFFLINE).rows == 3
    assert stub.runs["abc"].column("step") == [1, 2, 3, 4, 5]


def test_a_failed_upload_is_one_line_and_is_made_up_for(stub, tmp_path, capsys, monkeypatch):
    tracker = start(tmp_path, "offline")
    tracker.log({"x": 1.0}, 1)
    tracker.finish()
    read_runs(tmp_path)
    monkeypatch.setattr(syncing, "CLIENT_TIMEOUT_S", 5)
    stub.fail(400, part="file_stream")
    assert sync(tmp_path, OFFLINE) == syncing.Synced(failed=1)
    errors = capsys.readouterr().err
    assert errors.startswith("W&B: 1 runs were not uploaded") and errors.count("\n") == 1
    stub.heal()
    assert sync(tmp_path, OFFLINE) == syncing.Synced(runs=1, rows=1)
    assert stub.runs["abc"].column("step") == [1]


def test_sync_says_what_is_missing(stub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no W&B runs"):
        sync(tmp_path, OFFLINE)
    tracker = start(tmp_path, "offline")
    tracker.finish()
    read_runs(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(syncing, "API_TIMEOUT_S", 2)
    with pytest.raises(UserError, match="W&B: it does not answer"):
        sync(tmp_path, OFFLINE)


def test_a_log_is_read_back_as_it_was_written_whatever_the_size_of_its_records(tmp_path):
    sizes = [0, 1, 32_700, 32_750, 32_768, 100_000, 5]
    made = []
    for size in sizes:
        record = transaction_log.new_record()
        record.output.line = "x" * size
        made.append(record)
    transaction_log.write(tmp_path / "log", made)
    read = list(transaction_log.records(tmp_path / "log"))
    assert [len(record.output.line) for _, record in read] == sizes
    assert [r for _, r in transaction_log.records(tmp_path / "log", read[3][0])] == made[4:]
