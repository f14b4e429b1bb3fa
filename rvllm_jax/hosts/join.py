"""Makes this process one of several that run together, before JAX touches a device.

`flags.adopt_module_key_flags(join)` gives a command the flags by which it is started on several
hosts, and `cluster()` what they ask for.
"""

import contextlib
import dataclasses
import functools
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping

import jax
from absl import flags, logging

# Nowhere public: the rule by which jax.distributed.initialize finds a cluster, which is asked
# before it connects, and the client of the coordination service, which hosts/sync.py speaks
# through. tests/hosts/test_join.py names the versions of JAX that this holds for.
from jax._src import clusters, distributed

from rvllm_jax.hosts import rendezvous
from rvllm_jax.hosts.rendezvous import HostsError
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.hosts.watch import LastWord, Watch
from rvllm_jax.system.errors import RvllmError

MULTIHOST = flags.DEFINE_bool("multihost", False, "Runs on all hosts of the slice or the job.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of host 0, free for this run.")
HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts there are.", lower_bound=1)
HOST = flags.DEFINE_integer("host", None, "The number of this one, from 0.", lower_bound=0)
WAIT = flags.DEFINE_float("wait", 300, "Seconds to wait for the other hosts at the start.")
LOST_AFTER = flags.DEFINE_float(
    "lost_after", 60, "Seconds without a sign of life of a host after which all others end."
)

_EXIT = 20  # seconds in which all hosts come to an exit, where they exit together


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Which hosts there are: found by JAX (Cloud TPU, Slurm), or given."""

    find: bool = False  # `coordinator`, `hosts` and `host` are found where they are not given
    coordinator: str = ""  # HOST:PORT, of host 0
    hosts: int | None = None
    host: int | None = None  # number of this one, from 0
    wait: float = 300.0  # seconds for the others to come
    lost_after: float = 60.0  # seconds without a sign of life after which a host is lost


def cluster() -> Cluster:
    """The hosts that the command line asks for."""
    given = (MULTIHOST, COORDINATOR, HOSTS, HOST, WAIT, LOST_AFTER)
    return Cluster(*(flag.value for flag in given))


def _completed(cluster: Cluster) -> Cluster:
    """With what JAX finds of a Cloud TPU slice or a Slurm job, where it is not given."""
    coordinator, hosts, host, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        cluster.coordinator or None, cluster.hosts, cluster.host, [], None, int(cluster.wait)
    )
    return dataclasses.replace(cluster, coordinator=coordinator or "", hosts=hosts, host=host)


@contextlib.contextmanager
def joined(cluster: Cluster, facts: Mapping[str, str]) -> Iterator[None]:
    """Inside, `sync.HERE` and all of JAX's devices are those of all hosts of `cluster`.

    One host alone, or none asked for, changes nothing. Otherwise all hosts end together: where one
    fails, is lost or exits for itself, the others end too, with a line that says so, and with its
    exit code.

    facts: what must be the same on every host beside the program itself, by name.

    Raises:
      HostsError: no cluster is found, hosts do not come or differ; they are named.
    """
    several = bool(cluster.find or cluster.coordinator or cluster.hosts)
    cluster = _completed(cluster) if cluster.find else cluster
    if not several or cluster.hosts == 1:
        yield
        return
    if not cluster.coordinator or cluster.hosts is None or cluster.host is None:
        raise HostsError(
            "which hosts there are was not found, neither a Cloud TPU slice nor a Slurm job, "
            "and not given: --coordinator=HOST:PORT --hosts=N --host=I (I from 0 on)"
        )
    _connect(cluster, facts)
    word = LastWord(HERE)
    watch = Watch(HERE, cluster.lost_after, end=functools.partial(_leave_now, word))
    try:
        # All at once: devices exist only when every host has asked for its own.
        devices = f"{jax.local_device_count()} {jax.local_devices()[0].device_kind}"
        HERE.same({"devices": devices}, "devices")
        logging.info("host %s of %d: %s", HERE.named(HERE.index), HERE.count, devices)
        yield
        HERE.gather(None, "the end")
    except SystemExit as error:
        _exit(watch, word, error)
        _part(watch, word)
        raise
    except BaseException as error:
        _fail(watch, word, cluster, error)
    _part(watch, word)


def _connect(cluster: Cluster, facts: Mapping[str, str]) -> None:
    facts = rendezvous.versions() | dict(facts)
    names = rendezvous.call(
        cluster.coordinator, cluster.hosts, cluster.host, facts, seconds=cluster.wait
    )
    # It would take SIGTERM for itself; training has all hosts stop at one step.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.hosts,
        cluster.host,
        local_device_ids=[],  # all of them: Slurm's rule would take a single GPU
        initialization_timeout=int(cluster.wait),
        heartbeat_timeout_seconds=int(3 * cluster.lost_after),
    )
    HERE.client, HERE.index, HERE.names = distributed.global_state.client, cluster.host, names


def _part(watch: Watch, word: LastWord) -> None:
    """At an end to which all hosts came."""
    watch.leave()
    HERE.gather(None, "all leave")
    word.keep()
    distributed.global_state.client.shutdown()
    distributed.global_state.client = None
    if HERE.is_first:
        time.sleep(1)  # its service ends last: JAX aborts a host that it leaves in its goodbye
    jax.distributed.shutdown()


def _exit(watch: Watch, word: LastWord, error: SystemExit) -> None:
    """Returns after an exit that was agreed on; of another one the others hear."""
    try:
        HERE.gather(None, "exit", seconds=_EXIT)
    except HostsError:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        text = error.code if isinstance(error.code, str) else ""
        if text:  # the interpreter, which would print it, is not reached
            print(text, file=sys.stderr, flush=True)
        watch.fail(text or f"it exited with code {code}", code)
        _leave_now(word, code)


def _fail(watch: Watch, word: LastWord, cluster: Cluster, error: BaseException) -> None:
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        # Most likely another host is gone, which the watch finds and prints.
        logging.error("%s; looking whether another host is lost", str(error).splitlines()[0])
        time.sleep(1.5 * cluster.lost_after)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RvllmError):
        print(text, file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    watch.fail(text, 1)
    sys.stdout.flush()
    _leave_now(word, 1)


def _leave_now(word: LastWord, code: int) -> None:
    """Without JAX's shutdown, which waits for hosts that do not come."""
    word.keep()
    os._exit(code)
