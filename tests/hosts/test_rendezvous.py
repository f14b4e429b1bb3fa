"""Hosts that call the roll over loopback, each in a thread."""

import concurrent.futures
import functools
import socket
import threading

import pytest

from rvllm_jax.hosts import rendezvous
from rvllm_jax.hosts.rendezvous import HostsError

HERE = socket.gethostname()


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def roll(port, *hosts, seconds=1.0, count=None):
    """Calls the roll on (number, told) hosts at once -> what each returned, or its error's text."""
    count, found = count or len(hosts), {}

    def call(place, number, told):
        try:
            address = f"localhost:{port}"
            found[place] = rendezvous.call(address, count, number, told, seconds=seconds)
        except HostsError as error:
            found[place] = str(error)

    threads = [
        threading.Thread(target=call, args=(place, *host)) for place, host in enumerate(hosts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(hosts))]


def test_all_come_in_any_order_and_the_port_is_free_again(port):
    hosts = [(2, {"a": "1"}), (0, {"a": "1"}), (1, {"a": "1"})]
    assert roll(port, *hosts, seconds=30) == [(HERE,) * 3] * 3
    socket.create_server(("", port)).close()


def test_hosts_that_do_not_come_are_named_to_all_that_did(port):
    told = roll(port, (0, {}), (2, {}), count=4)
    assert told[0] == told[1]
    assert f"host 1, 3 of 4 did not come within 1 seconds; there are 0 ({HERE})" in told[0]


def test_hosts_that_differ_are_told_in_what_and_which(port):
    hosts = [(0, {"jax": "1", "config.seed": "0"}), (1, {"jax": "1", "config.seed": "7"})]
    for told in roll(port, *hosts, seconds=30):
        assert f"config.seed: 0 on host 0 ({HERE}), 7 on host 1 ({HERE})" in told
        assert "jax" not in told


def test_two_hosts_of_one_number_are_refused(port):
    for told in roll(port, (0, {}), (1, {}), (1, {}), count=4, seconds=30):
        assert "two hosts have one number" in told


def test_a_stranger_at_the_port_is_no_host(port):
    call = functools.partial(rendezvous.call, f"localhost:{port}", 2, facts={}, seconds=30)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(call, 0)
        while not knocked(port):
            pass
        assert call(1) == first.result() == (HERE,) * 2


def knocked(port):
    try:
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    except ConnectionRefusedError:
        return False
    return True


def test_a_coordinator_that_is_not_there_is_named(port):
    (told,) = roll(port, (1, {}), count=2)
    assert f"no host 0 at localhost:{port} for 1 seconds" in told and "refused" in told


@pytest.mark.parametrize(
    ("address", "host", "said"),
    [("localhost", 1, "expected HOST:PORT"), ("localhost:1", 2, "expected a number from 0 to 1")],
)
def test_wrong_flags_are_refused(address, host, said):
    with pytest.raises(HostsError, match=said):
        rendezvous.call(address, 2, host, {}, seconds=1)


def test_a_port_in_use_is_named(port):
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        with pytest.raises(HostsError, match=f"port {port} of this machine cannot be opened"):
            rendezvous.call(f"localhost:{port}", 2, 0, {}, seconds=1)
