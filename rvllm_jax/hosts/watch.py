"""Ends a host with one clear line when another one has ended or is heard of no more.

JAX's own watch says so in a page of C++ that names no machine; it stays behind this one, and ends
what this one cannot.
"""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from rvllm_jax.hosts.sync import Hosts

_ALIVE, _ENDED, _HEARD = "rvllm_jax/alive", "rvllm_jax/ended", "rvllm_jax/heard"
_GO_ON = ". What was saved is complete: start the same command again, on any number of hosts"


def _print(line: str) -> None:
    """Past Python's own buffers, which the thread that is ended may hold."""
    os.write(2, f"error: {line}\n".encode())


class LastWord:
    """A line on standard error if this process ends before `keep` is called, however it ends.

    JAX aborts a process where it finds that host 0 is gone, often before the watch can say so: what
    says it then is a shell that waits for this process to close their pipe.
    """

    def __init__(self, hosts: Hosts):
        gone = "" if hosts.is_first else f"host {hosts.named(0)} is gone, or "
        line = (
            f"error: host {hosts.named(hosts.index)} ends, because {gone}what runs here was ended "
            f"from outside{_GO_ON}"
        )
        script = "trap '' TERM INT HUP; read -r kept || printf '%s\\n' \"$0\" >&2"
        self._shell = subprocess.Popen(["/bin/sh", "-c", script, line], stdin=subprocess.PIPE)

    def keep(self) -> None:
        """The line is not needed: this process has said, or says, why it ends."""
        with contextlib.suppress(OSError, ValueError):
            self._shell.stdin.write(b"kept\n")
            self._shell.stdin.close()


class Watch:
    """A thread that gives a sign of life and looks for those of the others.

    It sleeps in a call to the coordination service: so it wakes at once where a host says that it
    ends, or where host 0, which holds that service, is gone.

    Args:
      lost_after: seconds without a sign of life after which a host is lost.
      report: called with the line that says why.
      end: called with the exit code; ends the process in the midst of whatever it does, as it may
        wait for what never comes.
    """

    def __init__(
        self,
        hosts: Hosts,
        lost_after: float,
        report: Callable[[str], None] = _print,
        end: Callable[[int], None] = os._exit,
    ):
        self._hosts, self._lost_after, self._report, self._end = hosts, lost_after, report, end
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """From now on this host's own end is under way, and that of others no longer matters."""
        self._leaving = True

    def fail(self, text: str, code: int) -> None:
        """Leaves, and has all other hosts end too, with `code` and a line that says why."""
        self.leave()
        hosts, client = self._hosts, self._hosts.client
        try:
            ended = {"host": hosts.index, "text": text, "code": code}
            client.key_value_set(f"{_HEARD}/{hosts.index}", "")
            client.key_value_set(_ENDED, json.dumps(ended))
        except jax.errors.JaxRuntimeError:
            pass  # another one failed first, or nobody is there
        until = time.monotonic() + 10
        # Host 0 stays until the others have heard it: with it the service ends.
        while hosts.is_first and time.monotonic() < until:
            if len(client.key_value_dir_get(f"{_HEARD}/")) >= hosts.count:
                break
            time.sleep(0.05)

    def _run(self) -> None:
        hosts, beat = self._hosts, 0
        heard = {host: ("", time.monotonic()) for host in range(hosts.count)}
        while not self._leaving:
            beat += 1
            try:
                sign = f"{_ALIVE}/{hosts.index}"
                hosts.client.key_value_set(sign, str(beat), allow_overwrite=True)
                ended = self._sleep()
                signs = dict(hosts.client.key_value_dir_get(f"{_ALIVE}/"))
            except jax.errors.JaxRuntimeError as error:
                first = str(error).splitlines()[0]
                return self._stop(f"host {hosts.named(0)}, which coordinates, is gone: {first}")
            if ended is not None:
                return self._follow(ended)
            now = time.monotonic()
            for host, (sign, when) in heard.items():
                new = signs.get(f"{_ALIVE}/{host}", "")
                heard[host] = (new, now) if new != sign else (sign, when)
            lost = [host for host, (_, when) in heard.items() if now - when > self._lost_after]
            if lost:
                names = ", ".join(map(hosts.named, lost))
                return self._stop(f"nothing was heard of host {names} for {self._lost_after:g} s")

    def _sleep(self) -> dict[str, Any] | None:
        """What a host said that ended meanwhile."""
        wait = int(1000 * self._lost_after / 6)
        try:
            return json.loads(self._hosts.client.blocking_key_value_get(_ENDED, wait))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            return None

    def _follow(self, ended: dict[str, Any]) -> None:
        if not self._leaving:
            hosts = self._hosts
            self._explain(f"host {hosts.named(ended['host'])} ended: {ended['text']}")
            hosts.client.key_value_set(f"{_HEARD}/{hosts.index}", "")
            self._end(ended["code"])

    def _stop(self, what: str) -> None:
        if not self._leaving:
            self._explain(what + _GO_ON)
            self._end(1)

    def _explain(self, what: str) -> None:
        self._report(f"host {self._hosts.named(self._hosts.index)} ends, because {what}")
