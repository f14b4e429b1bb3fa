"""Before JAX connects the hosts: are all there, and do they agree?

JAX ends a process whose partners do not come, with a page of C++ that names nobody, and lets run
what differs. So host 0 first listens at the coordinator's address itself. Every other host sends a
line of JSON there and gets one back; the port is free again before JAX takes it.
"""

import contextlib
import importlib.metadata
import json
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import SHORT, digest

_HELLO = "rvllm_jax"  # by which a line is known from that of a stranger
_RETRY = 0.2  # seconds
_LONGEST = 1 << 22  # bytes of a line
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class HostsError(RvllmError, RuntimeError):
    """The hosts are not all there or do not agree; the message names them."""


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide what is computed, and the source of
    this package as a digest."""
    package = Path(__file__).parents[1]
    facts = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    files = sorted(package.rglob("*.py"))
    parts = [(str(path.relative_to(package)).encode(), path.read_bytes()) for path in files]
    facts["source of rvllm_jax"] = digest((b"\0".join([*part, b""]) for part in parts), SHORT)
    return facts | {"python": ".".join(platform.python_version_tuple()[:2])}


def call(
    address: str, hosts: int, host: int, facts: Mapping[str, str], *, seconds: float
) -> tuple[str, ...]:
    """Returns the names of all hosts, once all are there with the same facts.

    Args:
      address: HOST:PORT, of host 0.
      facts: what must be the same everywhere, by name.
      seconds: how long to wait for the others.

    Raises:
      HostsError, on every host: hosts that did not come, by number; what differs, and where.
    """
    mine = {"hello": _HELLO, "host": host, "hosts": hosts, "name": socket.gethostname()}
    mine["facts"] = dict(facts)
    server, _, port = address.rpartition(":")
    if not server or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise HostsError(
            f"--coordinator={address}: expected HOST:PORT, of the machine of host 0, with a port "
            "from 1 to 65535"
        )
    if not 0 <= host < hosts:
        raise HostsError(f"--host={host}: expected a number from 0 to {hosts - 1}, of --hosts")
    if host == 0:
        answer = _listen(int(port), mine, seconds)
    else:
        answer = _ask(server.strip("[]"), int(port), mine, seconds)
    if "error" in answer:
        raise HostsError(answer["error"])
    return tuple(answer["names"])


def _listen(port: int, mine: dict, seconds: float) -> dict:
    """Host 0: hears every other host, and gives all of them one answer."""
    until = time.monotonic() + seconds
    present, connections = [mine], []
    with contextlib.ExitStack() as ends, _serve(port) as server:
        while len({line["host"] for line in present}) == len(present) < mine["hosts"]:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                connection = ends.enter_context(server.accept()[0])
            except TimeoutError:
                break
            line = _read(connection, 5)
            if line and line.get("hello") == _HELLO:  # else somebody who looks at ports
                present.append(line)
                connections.append(connection)
        answer = _answer(mine, present, seconds)
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


def _ask(server: str, port: int, mine: dict, seconds: float) -> dict:
    """Every other host: names itself, as soon as somebody listens, and hears the answer."""
    until, answer = time.monotonic() + seconds, None
    failed: Exception | None = None
    while time.monotonic() < until:
        try:
            with socket.create_connection((server, port), timeout=_RETRY * 25) as connection:
                connection.sendall(json.dumps(mine).encode() + b"\n")
                # Host 0 waits as long for the others, and may have come later than this one.
                answer = _read(connection, 2 * seconds)
            if answer is not None:
                return answer
        except OSError as error:
            failed = error
        time.sleep(_RETRY)
    raise HostsError(
        f"host {mine['host']} ({mine['name']}): no host 0 at {server}:{port} for {seconds:.0f} "
        f"seconds ({failed or 'no answer'}). Look whether host 0 runs, and whether --coordinator "
        "names its machine and a port that can be reached"
    )


def _read(connection: socket.socket, seconds: float) -> dict | None:
    """A line of JSON; None where none comes."""
    until, content = time.monotonic() + seconds, b""
    try:
        while not content.endswith(b"\n"):
            connection.settimeout(max(until - time.monotonic(), 0.01))
            more = connection.recv(1 << 16)
            if not more or len(content) > _LONGEST:
                return None
            content += more
        line = json.loads(content)
    except (OSError, ValueError):
        return None
    return line if isinstance(line, dict) else None


def _answer(mine: dict, present: Sequence[dict], seconds: float) -> dict[str, Any]:
    """What every host is answered: the names of all, or why they cannot go on."""
    present = sorted(present, key=lambda line: line["host"])
    names = [f"{line['host']} ({line['name']})" for line in present]
    numbers = [line["host"] for line in present]
    missing = [str(number) for number in range(mine["hosts"]) if number not in numbers]
    tables = [{"--hosts": str(line["hosts"]), **line["facts"]} for line in present]
    if different := differences(names, tables):
        return {"error": "the hosts differ:\n  " + "\n  ".join(different)}
    if len(set(numbers)) < len(numbers):
        return {"error": f"two hosts have one number: {', '.join(names)}. Give each its own --host"}
    if missing:
        return {
            "error": f"host {', '.join(missing)} of {mine['hosts']} did not come within "
            f"{seconds:.0f} seconds; there are {', '.join(names)}. Look at the log of what is "
            "missing, or give more time by --wait"
        }
    return {"names": [line["name"] for line in present]}


def differences(names: Sequence[str], tables: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for every key whose values differ: "jax: 0.10.2 on host 0 (a), 0.11.2 on host 1 (b)".

    names, tables: of each host, "0 (a)" and its facts.
    """
    lines = []
    for key in sorted(set().union(*tables)):
        hosts: dict[str, list[str]] = {}
        for name, table in zip(names, tables, strict=True):
            hosts.setdefault(table.get(key, "absent"), []).append(name)
        if len(hosts) > 1:
            values = (f"{value} on host {', '.join(of)}" for value, of in hosts.items())
            lines.append(f"{key}: {', '.join(values)}")
    return lines
