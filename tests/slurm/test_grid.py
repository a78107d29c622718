"""A grid on SLURM from the first command to the last: the same numbers as in one process, commands that are safe to
repeat, and one line for what cannot be."""

import json
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.experiment.backends import slurm_site as site
from tests.composed import settings_of
from tests.slurm import grid
from tests.slurm.client import Slurm

pytestmark = pytest.mark.slurm
QUICK = ("experiment=smoke", "tracking=off", "cluster=slurm")


def submit(root: Path, *overrides: str, code: int = 0) -> str:
    """Everything that the command says."""
    done = grid.command("submit", f"root={root}", *overrides)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def supervisors_end(slurm: Slurm, root: Path, wanted: str = "COMPLETED", timeout: float = 400) -> None:
    """Waits for the last job of the newest launch; one that submitted again is followed by another."""
    while True:
        before = grid.jobs(root)["supervisor"]
        slurm.wait_for_state(before, {"COMPLETED", wanted}, timeout)
        if grid.jobs(root)["supervisor"] == before:
            slurm.wait_for_state(before, wanted)
            return


def test_the_same_numbers_as_in_one_process_from_a_copy_of_the_code(quiet_cluster: Slurm, tmp_path):
    """The jobs wait for another; meanwhile the copy that they are to run is marked, and the command is given again."""
    other = quiet_cluster.submit_script("sleep 300")
    options = (
        *grid.FULL,
        "cluster=slurm",
        "cluster.snapshot=true",
        f"+cluster.extra.dependency=afterany:{other}",
    )
    said = submit(tmp_path, *options)
    assert "not made yet: submitted" in said
    (launch,) = (tmp_path / "smoke" / "launch").glob("*/plan.json")
    code = launch.parent / "code" / "offscript" / "cluster" / "plan.py"
    marker = tmp_path / "ran-the-copy"
    code.write_text(code.read_text() + f"\nPath({str(marker)!r}).touch()\n")

    again = submit(tmp_path, *options)
    assert "under way: left alone" in again and "submitted" not in again
    seen = grid.status(tmp_path, *grid.FULL, "cluster=slurm")
    assert seen["code"] == 1 and seen["states"] == {"waiting": len(seen["entries"])}

    quiet_cluster.cancel(other)
    supervisors_end(quiet_cluster, tmp_path)
    assert grid.cells(tmp_path) == grid.inline(grid.FULL)
    assert marker.exists(), "the jobs ran another code than the copy"
    assert grid.rows_twice(tmp_path) == []
    seen = grid.status(tmp_path, *grid.FULL, "cluster=slurm")
    assert seen["code"] == 0 and seen["rows"] == seen["planned"] and seen["jobs"] == 0
    assert "nothing to do" in submit(tmp_path, *options[:-1])
    assert len(list((tmp_path / "smoke" / "launch").glob("*/plan.json"))) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("cluster.partition=gpus",),
            "cluster.partition: no partition 'gpus'; allowed: graceful, main, urgent",
        ),
        (("cluster.default.cpus=64",), "cluster.default.cpus: asks for 64; allowed: at most 2"),
        (("cluster.default.nodes=9",), "cluster.default.nodes: asks for 9; 4 of the partition's nodes"),
        (("+cluster.jobs.adapter={gpus:3}",), "cluster.jobs.adapter.gpus: asks for 3; allowed: at most 2"),
        (("cluster.default.minutes=9000",), "cluster.default.minutes: asks for 9000; allowed: at most 1440"),
        (("+cluster.extra.dependency=afterok:999999",), "cluster.extra.dependency: afterok:999999"),
    ],
)
def test_what_would_never_start_is_refused(cluster: Slurm, overrides, said):
    with pytest.raises(UserError) as caught:
        site.check(settings_of(*QUICK, *overrides).cluster, ["adapter", "rollout"])
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition=gpus", "error: cluster.partition: no partition 'gpus'"),
        ("+cluster.extra.no_such_key=1", "unrecognized option '--no-such-key=1'"),
        ("cluster.constraint=h100", "error: sbatch (0-rollout): "),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing_in_the_queue(
    quiet_cluster: Slurm, tmp_path, override, said
):
    text = submit(tmp_path, *QUICK, override, code=2)
    assert said in next(line for line in text.splitlines() if line.startswith("error: "))
    assert "Traceback" not in text
    assert quiet_cluster.cluster.ask("squeue", "-h") == "", "something was left in the queue"


def test_jobs_of_other_settings_in_the_same_folder_are_refused(quiet_cluster: Slurm, tmp_path):
    other = quiet_cluster.submit_script("sleep 300")
    waits = f"+cluster.extra.dependency=afterany:{other}"
    submit(tmp_path, *QUICK, waits)
    text = submit(tmp_path, *QUICK, waits, "classifier.epochs=5", code=2)
    assert "with another classifier are under way; end them with: python launch/cancel.py" in text

    cancelled = grid.command("cancel", *QUICK, f"root={tmp_path}")
    assert cancelled.returncode == 0 and "cancelled: " in cancelled.stderr
    quiet_cluster.wait_for_state(grid.jobs(tmp_path)["supervisor"], "CANCELLED")
    assert "no job is under way" in grid.command("cancel", *QUICK, f"root={tmp_path}").stderr
    quiet_cluster.wait_until(  # the accounting hears of it a little later than the queue
        lambda: grid.status(tmp_path, *QUICK)["entries"][0]["state"] == "failed",
        "the first job to have failed",
    )
    seen = grid.status(tmp_path, *QUICK)
    first = seen["entries"][0]
    assert (first["state"], seen["jobs"]) == ("failed", 0) and first["reason"].endswith("cancelled")
    assert "failed before: submitted again" in submit(tmp_path, *QUICK, waits)


def test_status_is_still_useful_while_the_controller_is_down(quiet_cluster: Slurm, tmp_path, monkeypatch):
    other = quiet_cluster.submit_script("sleep 300")
    submit(tmp_path, *QUICK, f"+cluster.extra.dependency=afterany:{other}")
    conf = tmp_path / "slurm.conf"
    port = f"SlurmctldPort={quiet_cluster.cluster.port}"
    conf.write_text(quiet_cluster.cluster.conf.read_text().replace(port, "SlurmctldPort=1"))
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        seen = grid.status(tmp_path, *QUICK)
    assert "the cluster cannot be asked" in seen["notes"][0]
    assert seen["states"] == {"missing": len(seen["entries"])}


def test_half_a_launch_is_given_the_supervisor_that_it_lacks(quiet_cluster: Slurm, tmp_path):
    other = quiet_cluster.submit_script("sleep 300")
    options = (*QUICK, f"+cluster.extra.dependency=afterany:{other}")
    submit(tmp_path, *options)
    supervisor = grid.jobs(tmp_path)["supervisor"]
    quiet_cluster.cancel(supervisor)
    (note,) = (tmp_path / "smoke" / "launch").glob("*/submitted.json")
    before = json.loads(note.read_text())["jobs"]
    note.write_text(json.dumps({"jobs": before[:-1]}))
    assert "which had none" in submit(tmp_path, *options)
    assert set(quiet_cluster.states(grid.jobs(tmp_path)["supervisor"]).values()) == {"PENDING"}
