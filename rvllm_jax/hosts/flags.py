"""The flags by which a command is started on several hosts, the same for each that can be."""

from absl import flags

from rvllm_jax.hosts.join import Cluster

MULTIHOST = flags.DEFINE_bool("multihost", False, "Runs on all hosts of the slice or the job.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of host 0, free for this run.")
HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts there are.", lower_bound=1)
HOST = flags.DEFINE_integer("host", None, "The number of this one, from 0.", lower_bound=0)
WAIT = flags.DEFINE_float("wait", 300, "Seconds to wait for the other hosts at the start.")
LOST_AFTER = flags.DEFINE_float(
    "lost_after", 60, "Seconds without a sign of life of a host after which all others end."
)


def cluster() -> Cluster:
    """The hosts that the command line asks for."""
    return Cluster(
        MULTIHOST.value, COORDINATOR.value, HOSTS.value, HOST.value, WAIT.value, LOST_AFTER.value
    )
