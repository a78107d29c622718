"""The cluster of these tests: started if SLURM is installed, and stopped afterwards unless it ran before."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.slurm.client import Slurm
from tests.slurm.cluster import Cluster, is_installed


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """A running cluster. SLURM's commands and submitit find it by SLURM_CONF."""
    if not is_installed():
        pytest.skip("SLURM is not installed: run `make slurm` or `python tests/slurm/cluster.py install`")
    if os.geteuid():
        pytest.skip("the nodes of the test cluster need root")
    ours = Cluster.from_environment()
    with ours.in_use(), pytest.MonkeyPatch.context() as patch:
        # Variables of a job that the tests run in must not reach the jobs that they submit.
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(ours.conf))
        yield Slurm(ours)


@pytest.fixture(scope="module", autouse=True)
def _one_module_at_a_time() -> Iterator[None]:
    """Runs one module at a time, since all pytest processes share one cluster, its nodes and its queue."""
    if not is_installed() or os.geteuid():
        yield
        return
    with Cluster.from_environment().folder().joinpath("turn").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@pytest.fixture
def idle_cluster(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster with no jobs and all nodes idle, before and after the test."""
    cluster.reset()
    yield cluster
    cluster.reset()
