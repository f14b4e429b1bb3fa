"""What the hosts of a run exchange outside of the devices; without others nothing happens.

It goes through the key-value store of JAX's coordination service, so that no device waits. Every
host makes the same calls in the same order. That a host is lost while others wait for it is seen by
hosts/watch.py, which ends them.
"""

import contextlib
import dataclasses
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.hosts.rendezvous import HostsError, differences
from rvllm_jax.system.lock import locked

_PART = 1000  # milliseconds of a wait, between which Python hears signals
_VISIBLE = 60  # seconds until a file of one host is seen by another


@dataclasses.dataclass
class Hosts:
    """This host among all; `client` is JAX's distributed client, None for a run of one host."""

    client: Any = None
    index: int = 0
    names: tuple[str, ...] = (socket.gethostname(),)
    _calls: int = 0

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def is_first(self) -> bool:
        """Whether this is the one host that writes metrics, reports and bars."""
        return self.index == 0

    def named(self, host: int) -> str:
        return f"{host} ({self.names[host]})"

    def gather(self, value: Any, what: str, *, seconds: float | None = None) -> list[Any]:
        """The JSON values of all hosts, in their order; also a barrier, of the name `what`.

        seconds: HostsError names the hosts that did not come by then; None: waits for ever.
        """
        if self.count == 1:
            return [value]
        call = self._next(what)
        self.client.key_value_set(f"{call}/{self.index}", json.dumps(value))
        until = None if seconds is None else time.monotonic() + seconds
        texts = [self._get(f"{call}/{host}", until) for host in range(self.count)]
        missing = [self.named(host) for host, text in enumerate(texts) if text is None]
        if missing:
            raise HostsError(f"{what}: host {', '.join(missing)} did not come in {seconds} seconds")
        return [json.loads(text) for text in texts]

    def any(self, flag: bool, what: str) -> bool:
        """Whether `flag` is true on any host."""
        return any(self.gather(flag, what))

    def from_first(self, value: Any, what: str) -> Any:
        """The JSON value that host 0 gives."""
        return self.gather(value if self.is_first else None, what)[0]

    def same(self, facts: Mapping[str, str], what: str) -> None:
        """Raises HostsError, on every host, where the values of a name differ."""
        if self.count == 1:
            return
        tables = self.gather(dict(facts), what)
        if lines := differences([self.named(i) for i in range(self.count)], tables):
            raise HostsError(f"the hosts differ in {what}:\n  " + "\n  ".join(lines))

    @contextlib.contextmanager
    def first_then_others(self, what: str) -> Iterator[None]:
        """Host 0 does it while the others wait; they find what it left, or make their own.

        Where host 0 fails the others are ended with its error, and wait no longer.
        """
        call = self._next(what) if self.count > 1 else ""
        if call and not self.is_first:
            self._get(call, None)
        yield
        if call and self.is_first:
            self.client.key_value_set(call, "done")

    @contextlib.contextmanager
    def locked(self, target: Path, **how: Any) -> Iterator[None]:
        """Within it no other job writes `target`: host 0 holds its lock, for all. how: of
        system.lock.locked, which raises LockError."""
        self.gather(None, f"before locking {target}")  # else one that refuses leaves a folder
        with contextlib.ExitStack() as ends:
            with self.first_then_others(f"locking {target}"):
                if self.is_first:
                    ends.enter_context(locked(target, **how))
            yield

    def check_shared(self, folder: Path) -> None:
        """Raises HostsError where `folder`, which host 0 has made, is not the same on all hosts."""
        if self.count == 1:
            return
        mark = folder / f".hosts-{self.from_first(uuid.uuid4().hex, 'mark')}"
        if self.is_first:
            mark.touch()
        until = time.monotonic() + _VISIBLE
        self.gather(None, "mark made")
        while not (seen := mark.exists()) and time.monotonic() < until:
            time.sleep(0.2)
            list(folder.parent.glob(f"{folder.name}/*"))  # makes a network file system look
        blind = [i for i, seen in enumerate(self.gather(seen, "mark seen")) if not seen]
        if self.is_first:
            mark.unlink()
        if blind:
            raise HostsError(
                f"{folder.absolute()} of host {self.named(0)} is not that of host "
                f"{', '.join(map(self.named, blind))}: all hosts write one checkpoint together. "
                "Name a --workdir on a file system that all of them see at the same path"
            )

    def _next(self, what: str) -> str:
        self._calls += 1
        return f"rvllm_jax/{self._calls}/{what.replace('/', '-')}"

    def _get(self, key: str, until: float | None) -> str | None:
        while (left := _PART if until is None else int(1000 * (until - time.monotonic()))) > 0:
            try:
                return self.client.blocking_key_value_get(key, min(_PART, left))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        try:  # another host took all the time: this one may have come long before
            return self.client.key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return None


HERE = Hosts()  # this process; hosts/join.py makes it one of many


def compiled_together(jitted: Callable) -> Callable:
    """`jitted`, for positional arrays; with several hosts none calls it while another compiles.

    Else the first one would wait for the others in its first collective, and on a CPU that gives up
    after half a minute. Every host makes the same calls.
    """
    if HERE.count == 1:
        return jitted
    programs: dict[Any, Callable] = {}

    def call(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        if key not in programs:
            programs[key] = jitted.lower(*arguments).compile()
            HERE.gather(None, "compiled")
        return programs[key](*arguments)

    return call
