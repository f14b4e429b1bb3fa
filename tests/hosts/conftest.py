"""Three hosts in one process: JAX's own coordination service, with a client and a thread each."""

import concurrent.futures
import socket

import jax
import pytest
from jax._src import distributed

from rvllm_jax.hosts.sync import Hosts

COUNT = 3


@pytest.fixture(scope="module")
def clients():
    """The connected clients of hosts 0, 1 and 2; that of host 0 holds the service."""
    before = jax.config.jax_enable_preemption_service
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    states = [distributed.State() for _ in range(COUNT)]
    with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
        list(
            pool.map(
                lambda host: states[host].initialize(
                    address, COUNT, host, local_device_ids=[], initialization_timeout=60
                ),
                range(COUNT),
            )
        )
        yield [state.client for state in states]
        list(pool.map(lambda state: state.client.shutdown(), states))
    states[0].service.shutdown()  # last: a client that it leaves in its goodbye aborts the process
    jax.config.update("jax_enable_preemption_service", before)


class Prefixed:
    """A client whose keys are its test's own."""

    def __init__(self, client, prefix):
        self.client, self.prefix = client, prefix

    def key_value_set(self, key, value, **how):
        self.client.key_value_set(self.prefix + key, value, **how)

    def blocking_key_value_get(self, key, timeout):
        return self.client.blocking_key_value_get(self.prefix + key, timeout)

    def key_value_try_get(self, key):
        return self.client.key_value_try_get(self.prefix + key)

    def key_value_dir_get(self, key):
        found = self.client.key_value_dir_get(self.prefix + key)
        return [(name.removeprefix(self.prefix), value) for name, value in found]


@pytest.fixture
def hosts(clients, request):
    """Hosts 0, 1 and 2, named a, b and c."""
    prefix = f"{request.node.name}/"
    return [Hosts(Prefixed(c, prefix), i, ("a", "b", "c")) for i, c in enumerate(clients)]


@pytest.fixture
def each(hosts):
    """each(do, *numbers) -> what `do(host)` returned, or raised, on these hosts (all) at once."""

    def run(do, *numbers):
        with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
            done = [pool.submit(do, hosts[i]) for i in numbers or range(COUNT)]
            return [future.exception() or future.result() for future in done]

    return run
