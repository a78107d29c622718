"""The cluster of these tests: started for them where SLURM is installed, and left as it was found."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.slurm.client import Slurm
from tests.slurm.cluster import Cluster, is_installed


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """A running cluster, which SLURM's commands and submitit find by SLURM_CONF. It stops at the end if it did not run before."""
    if not is_installed():
        pytest.skip("SLURM is not installed: run `make slurm` or `python tests/slurm/cluster.py install`")
    if os.geteuid():
        pytest.skip("the nodes of the test cluster need root")
    ours = Cluster.from_environment()
    with ours.borrowed(), pytest.MonkeyPatch.context() as patch:
        # Tests may themselves run inside a job: nothing of it may reach the jobs that they submit.
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(ours.conf))
        yield Slurm(ours)


@pytest.fixture(scope="module", autouse=True)
def _one_module_at_a_time() -> Iterator[None]:
    """Modules in several pytest processes take turns: they lose nodes and fill the queue, and all share one cluster."""
    if not is_installed() or os.geteuid():
        yield
        return
    with Cluster.from_environment().folder().joinpath("turn").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@pytest.fixture
def quiet_cluster(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster without jobs and with all nodes idle, before and after the test."""
    cluster.quiet()
    yield cluster
    cluster.quiet()
