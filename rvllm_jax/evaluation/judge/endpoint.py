"""Endpoints that speak OpenAI's chat protocol: one question, one answer, whatever goes wrong.

POST BASE_URL/chat/completions with `model` and `messages`, as
https://platform.openai.com/docs/api-reference/chat describes it; vLLM, SGLang, llama.cpp, Ollama
and many services speak it too.

By hand over http.client, since most of it decides what is tried again, after how long, and what is
refused at once, which is no client's to know. Over httpx2 2.16, passing the same tests but for the
names of errors, it had 259 lines in place of 273, an event loop in a thread (httpx2 limits the time
of a read, not of a whole request), and 0.2 s more to import.
"""

import dataclasses
import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from absl import logging

from rvllm_jax.evaluation.judge.chat import Completion, JudgeError, NoReply, Stopped

_LARGEST = 4 << 20  # bytes of a reply
_PIECE = 1 << 16
_SHOWN = 200  # characters of a reply that messages show
_REFUSED = (400, 413, 422)  # this request, perhaps no other one


class _Passing(Exception):
    """What may go better next time; `after`: seconds that the endpoint asks for, or None.

    advice: what to correct, where it will hardly go better by itself.
    """

    def __init__(self, reason: str, after: float | None = None, advice: str = ""):
        super().__init__(reason)
        self.after, self.advice = after, advice


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds: of a whole request, of the first wait, of the longest; and attempts a question.

    A wait is drawn between half and all of first * 2 ** n, and lasts at least as long as the
    endpoint's Retry-After; neither counts for more than `longest`.
    """

    timeout: float = 120.0
    attempts: int = 8
    first: float = 1.0
    longest: float = 60.0


class Endpoint:
    """Asks an endpoint; from any number of threads, each with its own connection.

    parameters: what goes into each request beside model and messages. `stop`, once set, ends all
    waiting. Raises JudgeError for a base URL or key that cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None,
        parameters: Mapping[str, Any],
        patience: Patience = Patience(),
        stop: threading.Event | None = None,
    ):
        try:
            parts = urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of brackets that are no address, of a port that is none
            valid = False
        if not valid:
            raise JudgeError(
                f"base URL {base_url!r}: expected http(s)://HOST[:PORT]/PATH, such as "
                "http://localhost:8000/v1, with a port from 1 to 65535"
            )
        if key is not None and (not key.isascii() or not key.isprintable() or " " in key):
            raise JudgeError("the key holds spaces, line ends or other than ASCII: correct it")
        self.base_url, self.model, self.parameters = base_url, model, dict(parameters)
        self._patience, self.stop = patience, stop or threading.Event()
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self._path += f"?{parts.query}" if parts.query else ""
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._local = threading.local()
        self._not_before = 0.0  # by time.monotonic(): when the endpoint wants to be asked again
        self.reached = False  # whether any request has got a reply of the protocol

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> Completion:
        """The reply to `messages`.

        Raises NoReply where no attempt brought one, JudgeError where none can, Stopped. What
        needs correcting (a refused key, another protocol) is one at the first contact; of an
        endpoint that has replied before, only after all attempts.
        """
        body = json.dumps({"model": self.model, "messages": list(messages)} | self.parameters)
        reason = advice = ""
        for attempt in range(self._patience.attempts):
            self._wait(self._not_before - time.monotonic())
            try:
                completion = self._once(body.encode())
            except _Passing as error:
                reason, advice = str(error), error.advice
                self._close()
                if not self.reached:
                    if advice:
                        raise JudgeError(f"{self._at}: {reason}. {advice}") from error
                    logging.warning("%s: attempt %d: %s", self.base_url, attempt + 1, reason)
                if error.after is not None:  # for all threads
                    self._not_before = time.monotonic() + min(error.after, self._patience.longest)
                if attempt + 1 < self._patience.attempts:
                    wait = min(self._patience.first * 2**attempt, self._patience.longest)
                    self._wait(wait * random.uniform(0.5, 1))
                continue
            self.reached = True
            return completion
        reason = f"{self._patience.attempts} attempts, the last: {reason}"
        if advice:
            raise JudgeError(
                f"{self._at} replied before, and no longer does: {reason}. {advice}; what was "
                "judged is kept: then repeat the command"
            )
        raise NoReply(reason)

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise Stopped

    def _once(self, body: bytes) -> Completion:
        try:
            status, headers, content = self._exchange(body)
        except ssl.SSLCertVerificationError as error:
            raise JudgeError(f"{self.base_url}: {error}") from error
        except TimeoutError as error:
            raise _Passing(f"no reply within {self._patience.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"{type(error).__name__}: {error}"[:_SHOWN]) from error
        shown = content[:_SHOWN].decode("utf-8", "replace")
        if status in _REFUSED:
            if not self.reached:
                raise JudgeError(
                    f"{self._at}: HTTP {status}: {shown!r}. Correct the model ({self.model!r}) or "
                    f"the parameters ({json.dumps(self.parameters)}; --extra changes them)"
                )
            raise NoReply(f"HTTP {status}: {shown!r}")
        if status != 200:
            to = f" to {headers['Location']}" if "Location" in headers else ""
            spent = status == 429 and b"insufficient_quota" in content  # no wait brings it back
            raise _Passing(
                f"HTTP {status}{to}: {shown!r}",
                _seconds(headers.get("Retry-After")),
                _SPENT if spent else _ADVICE.get(status, ""),
            )
        return self._read(content, headers.get_content_type(), shown)

    def _exchange(self, body: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and content of one request, within the time that one may take."""
        end = time.monotonic() + self._patience.timeout
        reused = getattr(self._local, "connection", None) is not None
        try:
            return self._send(body, end)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._close()
            if not reused:
                raise
        return self._send(body, end)  # a kept connection may have been closed meanwhile

    def _send(self, body: bytes, end: float) -> tuple[int, Any, bytes]:
        connection = self._connection()
        if connection.sock is not None:
            connection.sock.settimeout(max(0.001, end - time.monotonic()))
        connection.request("POST", self._path, body, self._headers)
        connection.sock.settimeout(max(0.001, end - time.monotonic()))
        response = connection.getresponse()
        expected, pieces, size = response.length, [], 0
        while size != expected and (piece := response.read1(_PIECE)):
            pieces.append(piece)
            size += len(piece)
            if size > _LARGEST:
                raise http.client.HTTPException(f"a reply of more than {_LARGEST} bytes")
            if time.monotonic() > end:
                raise TimeoutError
            if connection.sock is not None:
                connection.sock.settimeout(max(0.001, end - time.monotonic()))
        if expected is not None and size != expected:
            raise http.client.IncompleteRead(b"".join(pieces), expected - size)
        response.close()
        if response.will_close:
            self._close()
        return response.status, response.headers, b"".join(pieces)

    def _connection(self) -> http.client.HTTPConnection:
        if getattr(self._local, "connection", None) is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._local.connection = kind(self._host, self._port, timeout=self._patience.timeout)
        return self._local.connection

    def _close(self) -> None:
        if getattr(self._local, "connection", None) is not None:
            self._local.connection.close()
            self._local.connection = None

    @property
    def _at(self) -> str:
        return f"{self.base_url} ({self._path})"

    def _read(self, content: bytes, kind: str, shown: str) -> Completion:
        reply = None
        try:
            reply = json.loads(content)
            text = reply["choices"][0]["message"].get("content")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            reason = (
                f"{kind} that is no chat completion: {shown!r}; expected JSON with "
                "choices[0].message.content"
            )
            advice = _ADDRESS if _is_another_protocol(kind, reply) else ""
            raise _Passing(reason, advice=advice) from error
        usage = reply.get("usage")
        tokens = {
            name: usage[name]
            for name in ("prompt_tokens", "completion_tokens")
            if isinstance(usage, dict) and type(usage.get(name)) is int
        }
        model = reply.get("model")
        named = model if isinstance(model, str) else ""
        return Completion(text if isinstance(text, str) else "", named, tokens)


_ADDRESS = (
    "Correct --base_url, which ends where /chat/completions begins (often in /v1), or --model"
)
_KEY = "Correct the key, in the variable that --key_env names, or --base_url"
_SPENT = "The key's account has nothing left: add to it, or give another key by --key_env"
_MOVED = "Give the address that it points to by --base_url"
_ADVICE = {
    **dict.fromkeys((404, 405, 410, 501), _ADDRESS),
    **dict.fromkeys((401, 403), _KEY),
    **dict.fromkeys((301, 302, 303, 307, 308), _MOVED),
    402: _SPENT,
}


def _is_another_protocol(kind: str, reply: Any) -> bool:
    """Whether a whole reply of status 200 shows that something else is spoken at this address: no
    JSON, or JSON without choices[0].message that tells no error either."""
    if "json" not in kind:
        return True
    if reply is None:  # malformed, or cut off
        return False
    if not isinstance(reply, dict):
        return True
    if "error" in reply:
        return False
    choices = reply.get("choices")
    if isinstance(choices, list) and choices:
        return not isinstance(choices[0], dict) or "message" not in choices[0]
    return "choices" not in reply


def _seconds(value: str | None) -> float | None:
    """What a Retry-After header says, in seconds from now; None: nothing."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if value.strip().isdigit() else max(
            0.0, parsedate_to_datetime(value).timestamp() - time.time()
        )  # fmt: skip
    except (ValueError, TypeError):
        return None
