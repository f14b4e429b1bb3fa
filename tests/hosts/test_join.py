"""Which hosts a run has, found or given; that they join is tested by the whole command."""

import inspect
import re

import jax
import pytest
from jax._src import clusters, distributed

from rvllm_jax.hosts.join import Cluster, _completed, joined
from rvllm_jax.hosts.rendezvous import HostsError, versions
from rvllm_jax.hosts.sync import HERE

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[007-009],other",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "3",
}


@pytest.fixture
def slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


def test_a_slurm_job_is_found_and_what_is_given_counts_more(slurm):
    found = _completed(Cluster(find=True, wait=7))
    assert (found.hosts, found.host, found.wait) == (3, 2, 7)
    server, port = found.coordinator.split(":")
    assert server == "node007" and 1 << 10 < int(port) < 1 << 16  # of the job, the same everywhere
    given = _completed(Cluster(find=True, coordinator="here:5", host=1))
    assert (given.coordinator, given.hosts, given.host) == ("here:5", 3, 1)


@pytest.mark.parametrize(
    "cluster",
    [Cluster(find=True), Cluster(coordinator="here:5", hosts=2), Cluster(hosts=2, host=0)],
)
def test_hosts_that_are_neither_found_nor_given_are_asked_for(cluster):
    with pytest.raises(HostsError, match="--coordinator=HOST:PORT --hosts=N --host=I"):
        with joined(cluster, {}):
            pass


def test_one_host_stays_alone(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    for cluster in (Cluster(), Cluster(hosts=1), Cluster(find=True)):
        with joined(cluster, {}):
            assert HERE.count == jax.process_count() == 1
        with pytest.raises(SystemExit), joined(cluster, {}):
            raise SystemExit(75)


def test_the_versions_tell_one_source_from_another(tmp_path, monkeypatch):
    own = versions()
    assert own["jax"] == jax.__version__ and own == versions()
    (tmp_path / "hosts").mkdir()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "model.py").write_text(text)
        monkeypatch.setattr("rvllm_jax.hosts.rendezvous.__file__", str(tmp_path / "hosts" / "v.py"))
        assert versions().items() - own.items() == {
            ("source of rvllm_jax", versions()["source of rvllm_jax"])
        }
        own = versions()


def test_what_is_used_of_jax_s_internals_is_there_in_these_versions():
    """Another version of JAX: look at hosts/join.py, then add it here."""
    assert re.match(r"0\.(10|11)\.", jax.__version__)
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    assert [name for name in inspect.signature(detect).parameters] == [
        "coordinator_address", "num_processes", "process_id", "local_device_ids",
        "cluster_detection_method", "initialization_timeout",
    ]  # fmt: skip
    assert isinstance(distributed.global_state, distributed.State)
    assert distributed.global_state.client is None
