"""Checks of the cluster settings against the limits of a site, before a submission."""

import pytest

from offscript.errors import UserError
from offscript.experiment.backends import slurm_site as site
from tests.composed import settings_of

NODES = """\
cpu*|1-00:00:00|64|257000|(null)
cpu*|1-00:00:00|32|128000|(null)
gpu|2-12:00:00|48|515000|gpu:h100:4(S:0-1)
gpu|2-12:00:00|48|515000|gpu:h100:4(S:0-1)
gpu|2-12:00:00|128|64000|gpu:2,shard:8
"""


def check(monkeypatch, *overrides, kinds=("rollout", "adapter"), known=()):
    def run_command(program, *words, **_):
        if program == "sinfo":
            return NODES
        if words[-1] in known:
            return "JobId"
        raise UserError(program, "Invalid job id specified")

    monkeypatch.setattr(site.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(site, "run_command", run_command)
    site.check_cluster(settings_of("experiment=smoke", "cluster=slurm", *overrides).cluster, kinds)


def test_limits_are_parsed_from_the_output_of_sinfo():
    first, *_, last = site.parse_sinfo(NODES)
    assert first == site.NodeLimits("cpu", True, 1440, 64, 257000 / 1024, 0)
    assert (last.partition, last.default, last.minutes, last.gpus) == ("gpu", False, 3600, 2)
    assert site.count_gpus("gpu:a100:4(S:0-1),gpu:v100:2(S:0)") == 6
    assert [site.parse_minutes(t) for t in ("30:00", "12:00:00", "infinite")] == [30, 720, float("inf")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("cluster.partition=gpux",), "cluster.partition: no partition 'gpux'; allowed: cpu, gpu"),
        (("cluster.default.cpus=65",), "cluster.default.cpus: asks for 65; allowed: at most 64"),
        (("cluster.default.gpus=1",), "cluster.default.gpus: asks for 1; allowed: at most 0"),
        (
            ("cluster.partition=gpu", "+cluster.jobs.adapter={gpus: 4, cpus: 40}"),
            "cluster.jobs.adapter.cpus: asks for 160 (40 for each of 4 processes); allowed: at most 128",
        ),
        (
            ("cluster.partition=gpu", "+cluster.jobs.adapter={gpus: 4, nodes: 3}"),
            "cluster.jobs.adapter.nodes: asks for 3; allowed: at most 2, the nodes of the partition with all these",
        ),
        (("cluster.default.minutes=1441",), "cluster.default.minutes: asks for 1441; allowed: at most 1440"),
        (
            ("+cluster.extra.mem=4G",),
            "cluster.extra.mem: has a setting of its own; cluster.default.memory_gb",
        ),
        (("+cluster.extra.array=1-3",), "cluster.extra.array: is set by the launch itself; leave it out"),
        (
            ("+cluster.extra.dependency='afterok:12:13,after:14+5'",),
            "cluster.extra.dependency: afterok:12:13 (job 13: Invalid job id specified)",
        ),
    ],
)
def test_jobs_that_slurm_would_refuse_or_never_start_are_refused(monkeypatch, overrides, message):
    with pytest.raises(UserError) as caught:
        check(monkeypatch, *overrides, known={"12"})
    assert str(caught.value).startswith(message)


def test_jobs_within_the_limits_are_accepted(monkeypatch):
    check(monkeypatch)
    check(monkeypatch, "cluster.partition='cpu,gpu'", "+cluster.jobs.adapter={gpus: 4, nodes: 2, cpus: 12}")
    check(
        monkeypatch,
        "+cluster.extra.exclude='node[3-4]'",
        "+cluster.extra.dependency='after:14+5'",
        known={"14"},
    )


def test_a_machine_without_slurm_is_a_user_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"no SLURM here \(sbatch is not on the path\); cluster=local, or a login node"
    ):
        site.check_cluster(settings_of("experiment=smoke", "cluster=slurm").cluster, ["rollout"])
    with pytest.raises(UserError, match="no SLURM here"):
        site.run_command("squeue")
