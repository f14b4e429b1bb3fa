"""Before JAX connects the hosts: are all there, and do they agree?

JAX ends a process whose partners do not come, with a page of C++ that names nobody, and lets run
what differs. So host 0 first listens at the coordinator's address itself. Every other host says a
line of JSON there and gets one back; the port is free again before JAX takes it.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_jax.system.errors import RvllmError

_HELLO = "rvllm_jax"  # by which a line is known from that of a stranger
_RETRY = 0.2  # seconds
_LONGEST = 1 << 22  # bytes of a line


class HostsError(RvllmError, RuntimeError):
    """The hosts are not all there or do not agree; the message names them."""


def call(
    address: str, hosts: int, host: int, told: Mapping[str, str], *, seconds: float
) -> tuple[str, ...]:
    """Returns the names of all hosts, once all are there and were told the same.

    Args:
      address: HOST:PORT, of host 0.
      told: what must be the same everywhere, by name.
      seconds: how long to wait for the others.

    Raises:
      HostsError, on every host: hosts that did not come, by number; what differs, and where.
    """
    own = {"hello": _HELLO, "host": host, "hosts": hosts, "name": socket.gethostname()}
    own["told"] = dict(told)
    server, _, port = address.rpartition(":")
    if not server or not port.isdigit():
        raise HostsError(f"--coordinator={address}: expected HOST:PORT, of the machine of host 0")
    if not 0 <= host < hosts:
        raise HostsError(f"--host={host}: expected a number from 0 to {hosts - 1}, of --hosts")
    if host == 0:
        answer = _listen(int(port), own, seconds)
    else:
        answer = _ask(server.strip("[]"), int(port), own, seconds)
    if "error" in answer:
        raise HostsError(answer["error"])
    return tuple(answer["names"])


def _listen(port: int, own: dict, seconds: float) -> dict:
    """Host 0: hears every other host, and gives all of them one answer."""
    until = time.monotonic() + seconds
    came, connections = [own], []
    with contextlib.ExitStack() as ends, _serve(port) as server:
        while len({said["host"] for said in came}) == len(came) < own["hosts"]:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                connection = ends.enter_context(server.accept()[0])
            except TimeoutError:
                break
            said = _read(connection, 5)
            if said and said.get("hello") == _HELLO:  # else somebody who looks at ports
                came.append(said)
                connections.append(connection)
        answer = _verdict(own, came, seconds)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
                connection.settimeout(5)
                connection.recv(1)  # it closes first, so that the port is free for JAX
    return answer


def _serve(port: int) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    both = family == socket.AF_INET6
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise HostsError(
            f"port {port} of this machine cannot be opened for the other hosts: {error}. Name "
            "another port by --coordinator, or end what uses it"
        ) from error


def _ask(server: str, port: int, own: dict, seconds: float) -> dict:
    """Every other host: says who it is, as soon as somebody listens, and hears the answer."""
    until, answer = time.monotonic() + seconds, None
    failed: Exception | None = None
    while time.monotonic() < until:
        try:
            with socket.create_connection((server, port), timeout=_RETRY * 25) as connection:
                connection.sendall(json.dumps(own).encode() + b"\n")
                # Host 0 waits as long for the others, and may have come later than this one.
                answer = _read(connection, 2 * seconds)
            if answer is not None:
                return answer
        except OSError as error:
            failed = error
        time.sleep(_RETRY)
    raise HostsError(
        f"host {own['host']} ({own['name']}): no host 0 at {server}:{port} for {seconds:.0f} "
        f"seconds ({failed or 'no answer'}). Look whether host 0 runs, and whether --coordinator "
        "names its machine and a port that can be reached"
    )


def _read(connection: socket.socket, seconds: float) -> dict | None:
    """A line of JSON; None where none comes."""
    until, said = time.monotonic() + seconds, b""
    try:
        while not said.endswith(b"\n"):
            connection.settimeout(max(until - time.monotonic(), 0.01))
            more = connection.recv(1 << 16)
            if not more or len(said) > _LONGEST:
                return None
            said += more
        line = json.loads(said)
    except (OSError, ValueError):
        return None
    return line if isinstance(line, dict) else None


def _verdict(own: dict, came: Sequence[dict], seconds: float) -> dict[str, Any]:
    """What every host is answered: the names of all, or why they cannot go on."""
    came = sorted(came, key=lambda said: said["host"])
    there = [f"{said['host']} ({said['name']})" for said in came]
    numbers = [said["host"] for said in came]
    missing = [str(number) for number in range(own["hosts"]) if number not in numbers]
    if different := differences(came):
        return {"error": "the hosts differ:\n  " + "\n  ".join(different)}
    if len(set(numbers)) < len(numbers):
        return {"error": f"two hosts have one number: {', '.join(there)}. Give each its own --host"}
    if missing:
        return {
            "error": f"host {', '.join(missing)} of {own['hosts']} did not come within "
            f"{seconds:.0f} seconds; there are {', '.join(there)}. Look at the log of what is "
            "missing, or give more time by --wait"
        }
    return {"names": [said["name"] for said in came]}


def differences(came: Sequence[dict]) -> list[str]:
    """A line for every name whose values differ: "jax: 0.10.2 on host 0 (a), 0.11.2 on 1 (b)".

    came: {"host": number, "name": ..., "hosts": ..., "told": {name: value}} of each.
    """
    lines = []
    tables = [{"--hosts": str(said["hosts"]), **said["told"]} for said in came]
    for key in sorted(set().union(*tables)):
        places: dict[str, list[str]] = {}
        for said, table in zip(came, tables, strict=True):
            where = f"{said['host']} ({said['name']})"
            places.setdefault(table.get(key, "absent"), []).append(where)
        if len(places) > 1:
            of = ", ".join(f"{v} on host {', '.join(where)}" for v, where in places.items())
            lines.append(f"{key}: {of}")
    return lines
