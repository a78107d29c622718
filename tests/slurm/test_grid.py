"""A grid on SLURM: the results of a run in one process, commands that can be repeated, and one line for each mistake."""

import json
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.experiment.backends.slurm_site import check_cluster
from tests.composed import settings_of
from tests.slurm import grid
from tests.slurm.client import Slurm

pytestmark = pytest.mark.slurm
QUICK = ("experiment=smoke", "tracking=off", "cluster=slurm")


def submit(root: Path, *overrides: str, code: int = 0) -> str:
    """Runs ``offscript submit`` and returns its output."""
    done = grid.command("submit", f"root={root}", *overrides)
    assert done.code == code, done.err
    return done.out + done.err


def supervisors_end(slurm: Slurm, root: Path, wanted: str = "COMPLETED", timeout: float = 400) -> None:
    """Waits for the supervisor of the newest launch; one that submits jobs again is followed by another."""
    while True:
        before = grid.jobs(root)["supervisor"]
        slurm.wait_for_state(before, {"COMPLETED", wanted}, timeout)
        if grid.jobs(root)["supervisor"] == before:
            slurm.wait_for_state(before, wanted)
            return


def test_a_grid_that_runs_a_snapshot_has_the_results_of_a_run_in_one_process(idle_cluster: Slurm, tmp_path):
    """The jobs wait for another job; meanwhile the snapshot is changed, and the command is run again."""
    other = idle_cluster.submit_script("sleep 300")
    options = (
        *grid.SHORT,
        "cluster=slurm",
        "cluster.snapshot=true",
        f"+cluster.extra.dependency=afterany:{other}",
    )
    assert "not made yet: submitted" in submit(tmp_path, *options)
    (launch,) = (tmp_path / "smoke" / "launch").glob("*/plan.json")
    code = launch.parent / "code" / "offscript" / "experiment" / "backends" / "plan.py"
    marker = tmp_path / "ran-the-snapshot"
    code.write_text(code.read_text() + f"\nPath({str(marker)!r}).touch()\n")

    again = submit(tmp_path, *options)
    assert "in flight: left alone" in again and "submitted" not in again
    status = grid.status(tmp_path, *grid.SHORT, "cluster=slurm")
    assert status["code"] == 1 and status["states"] == {"waiting": len(status["entries"])}

    idle_cluster.cancel(other)
    supervisors_end(idle_cluster, tmp_path)
    assert grid.cells(tmp_path) == grid.inline(grid.SHORT)
    assert marker.exists(), "the jobs did not run the snapshot"
    assert grid.duplicate_rows(tmp_path) == []
    status = grid.status(tmp_path, *grid.SHORT, "cluster=slurm")
    assert status["code"] == 0 and status["rows"] == status["planned"] and status["jobs"] == 0
    assert "nothing to do" in submit(tmp_path, *options[:-1])
    assert len(list((tmp_path / "smoke" / "launch").glob("*/plan.json"))) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("cluster.partition=gpus",),
            "cluster.partition: no partition 'gpus'; allowed: graceful, main, urgent",
        ),
        (("cluster.default.cpus=64",), "cluster.default.cpus: asks for 64; allowed: at most 2"),
        (("cluster.default.nodes=9",), "cluster.default.nodes: asks for 9; allowed: at most 4, the nodes"),
        (("+cluster.jobs.adapter={gpus:3}",), "cluster.jobs.adapter.gpus: asks for 3; allowed: at most 2"),
        (("cluster.default.minutes=9000",), "cluster.default.minutes: asks for 9000; allowed: at most 1440"),
        (("+cluster.extra.dependency=afterok:999999",), "cluster.extra.dependency: afterok:999999"),
    ],
)
def test_jobs_that_would_never_start_are_refused(cluster: Slurm, overrides, message):
    with pytest.raises(UserError) as caught:
        check_cluster(settings_of(*QUICK, *overrides).cluster, ["adapter", "rollout"])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.partition=gpus", "error: cluster.partition: no partition 'gpus'"),
        ("+cluster.extra.no_such_key=1", "unrecognized option '--no-such-key=1'"),
        ("cluster.constraint=h100", "error: sbatch (0-rollout): "),
    ],
)
def test_a_refused_submission_is_one_line_and_leaves_no_job(idle_cluster: Slurm, tmp_path, override, message):
    text = submit(tmp_path, *QUICK, override, code=2)
    assert message in next(line for line in text.splitlines() if line.startswith("error: "))
    assert "Traceback" not in text
    assert idle_cluster.cluster.run_command("squeue", "-h") == "", "a job was left in the queue"


def test_jobs_of_other_settings_in_the_same_folder_are_refused(idle_cluster: Slurm, tmp_path):
    other = idle_cluster.submit_script("sleep 300")
    waits = f"+cluster.extra.dependency=afterany:{other}"
    submit(tmp_path, *QUICK, waits)
    text = submit(tmp_path, *QUICK, waits, "classifier.epochs=5", code=2)
    assert "with another classifier, are in flight; cancel them with: offscript cancel" in text

    cancelled = grid.command("cancel", *QUICK, f"root={tmp_path}")
    assert cancelled.code == 0 and "cancelled: " in cancelled.err
    idle_cluster.wait_for_state(grid.jobs(tmp_path)["supervisor"], "CANCELLED")
    assert "no job is in flight" in grid.command("cancel", *QUICK, f"root={tmp_path}").err
    # The accounting is updated a little later than the queue.
    idle_cluster.wait_until(
        lambda: grid.status(tmp_path, *QUICK)["entries"][0]["state"] == "failed",
        "the first job to have failed",
    )
    status = grid.status(tmp_path, *QUICK)
    first = status["entries"][0]
    assert (first["state"], status["jobs"]) == ("failed", 0) and first["reason"].endswith("cancelled")
    assert "failed before: submitted again" in submit(tmp_path, *QUICK, waits)


def test_the_status_is_read_from_files_while_the_controller_is_down(
    idle_cluster: Slurm, tmp_path, monkeypatch
):
    other = idle_cluster.submit_script("sleep 300")
    submit(tmp_path, *QUICK, f"+cluster.extra.dependency=afterany:{other}")
    conf = tmp_path / "slurm.conf"
    port = f"SlurmctldPort={idle_cluster.cluster.port}"
    conf.write_text(idle_cluster.cluster.conf.read_text().replace(port, "SlurmctldPort=1"))
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        status = grid.status(tmp_path, *QUICK)
    assert "the cluster cannot be queried" in status["notes"][0]
    assert status["states"] == {"missing": len(status["entries"])}


def test_a_launch_without_a_supervisor_gets_one_from_the_next_submission(idle_cluster: Slurm, tmp_path):
    other = idle_cluster.submit_script("sleep 300")
    options = (*QUICK, f"+cluster.extra.dependency=afterany:{other}")
    submit(tmp_path, *options)
    supervisor = grid.jobs(tmp_path)["supervisor"]
    idle_cluster.cancel(supervisor)
    (path,) = (tmp_path / "smoke" / "launch").glob("*/submitted.json")
    before = json.loads(path.read_text())["jobs"]
    path.write_text(json.dumps({"jobs": before[:-1]}))
    assert "which had none" in submit(tmp_path, *options)
    assert set(idle_cluster.states(grid.jobs(tmp_path)["supervisor"]).values()) == {"PENDING"}
