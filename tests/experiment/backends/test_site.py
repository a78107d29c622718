"""Checks of the cluster settings against the limits of a site, before a submission."""

import re

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
        UserError, match=r"no SLURM here \(sbatch is not on the path\); run this on a login node"
    ):
        site.check_cluster(settings_of("experiment=smoke", "cluster=slurm").cluster, ["rollout"])
    with pytest.raises(UserError, match="no SLURM here"):
        site.run_command("squeue")


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1",
         "sinfo: Could not establish a configuration source; is the SLURM controller up"),
        ("echo 'sinfo: error: Invalid user' >&2; echo 'see the manual' >&2; exit 1", "sinfo: Invalid user"),
        ("exit 3", "sinfo: exit code 3"),
        ("sleep 5", "sinfo: no answer in 1 seconds; is the SLURM controller up"),
        ("echo 'This site is in maintenance.'",
         "sinfo: its output has the line 'This site is in maintenance.', with 1 of 5 columns"),
        ("printf '\\377|a\n'", "sinfo: its output has the line"),
    ],
)  # fmt: skip
def test_a_site_whose_sinfo_fails_or_prints_something_else(monkeypatch, tmp_path, script, line):
    for name in ("sinfo", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(site.run_command, "__kwdefaults__", {"timeout_s": 1.0})
    with pytest.raises(UserError, match="^" + re.escape(line)):
        site.check_cluster(settings_of("experiment=smoke", "cluster=slurm").cluster, ["rollout"])


@pytest.mark.parametrize(
    ("config", "tasks"),
    [
        ("Configuration data\nMaxArraySize            = 1001\nMaxJobCount = 9\n", 1001),
        ("MaxArraySize = 75000\nSchedulerParameters = bf_continue,max_array_tasks=500,x=1\n", 500),
        ("MaxArraySize = 0\n", 1),
        ("nothing of that\n", 1000),
        (UserError("scontrol", "no answer"), 1000),
    ],
)
def test_the_size_of_an_array_is_asked_of_the_cluster(monkeypatch, config, tasks):
    """The largest index is one less than MaxArraySize, and the first is 0."""

    def run_command(*command, **_):
        assert command == ("scontrol", "show", "config")
        if isinstance(config, UserError):
            raise config
        return config

    monkeypatch.setattr(site, "run_command", run_command)
    assert site.max_array_tasks() == tasks
