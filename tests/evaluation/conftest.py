"""Folders of answers, and a judge's endpoint: a real server with faults by script."""

import http.server
import json
import re
import threading
from collections import Counter

import pytest

from rvllm_jax.evaluation.answers.answer_file import Answer
from rvllm_jax.system.lines import dump


def record(id="q0", **changes) -> dict:
    """A line of answers.jsonl."""
    return {
        "question_id": id, "video": "v0", "question": f"What is {id}?", "truth": "yes", "type": "",
        "criteria": [], "pair": "", "control": "", "prompt": "", "answer": "no", "ids": [],
        "clips": [], "seconds": 0.1, "failed": "",
    } | changes  # fmt: skip


@pytest.fixture
def answer():
    """answer(id, **changes) -> Answer."""

    def answer(id="q0", **changes):
        fields = record(id, **changes)
        fields["criteria"] = tuple(fields["criteria"])
        return Answer(**{name: fields[name] for name in Answer.__slots__})

    return answer


@pytest.fixture
def folder(tmp_path):
    """folder(records, **info) -> OUT/BENCHMARK with answers.jsonl and info.json."""

    def folder(records, name="msvd_qa", out="out", **changes):
        place = tmp_path / out / name
        place.mkdir(parents=True, exist_ok=True)
        records = [record(**r) if "ids" not in r else r for r in records]
        (place / "answers.jsonl").write_text("".join(map(dump, records)))
        info = {"benchmark": name, "split": "test", "questions": 0, "model": "M"} | changes
        (place / "info.json").write_text(json.dumps(info))
        return place

    return folder


@pytest.fixture
def many(folder):
    """many(count) -> a folder with so many answers, ten a video."""

    def many(count, **changes):
        rows = (dict(id=f"q{n}", video=f"v{n // 10}", answer=f"a{n}") for n in range(count))
        return folder([record(**row) for row in rows], questions=count, **changes)

    return many


def verdict_of(id: str) -> dict:
    """What the server's judge says of an item."""
    pred, score = "yes" if int(id, 16) % 3 else "no", int(id, 16) % 51 / 10
    return {"id": id, "pred": pred, "score": score, "claims": 4, "supported": 1}


class JudgeServer(http.server.ThreadingHTTPServer):
    """Speaks OpenAI's chat protocol. `script(id, n)` names the fault of the n-th request about an
    item, from 0; "" is none. `reached[n]` is set when n readable verdicts were sent."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.lock = script, threading.Lock()
        self.asked, self.good, self.bodies, self.keys = Counter(), Counter(), [], set()
        self.reached: dict[int, threading.Event] = {}
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that were killed, and connections cut by the script


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        id = re.search(r"Item: (\w+)", request["messages"][1]["content"])[1]
        with self.server.lock:
            number = self.server.asked[id]
            self.server.asked[id] += 1
            self.server.keys.add(self.headers["Authorization"])
            if len(self.server.bodies) < 10:
                self.server.bodies.append((self.path, request))
        fault = self.server.script(id, number)
        if fault in ("", "slow", "python"):
            with self.server.lock:
                self.server.good[id] += 1
                for count, event in self.server.reached.items():
                    if self.server.good.total() >= count:
                        event.set()
        getattr(self, f"do_{fault}" if fault else "do_well")(id)

    def send(self, content: bytes, status=200, length=None, kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def say(self, text):
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        reply = {"model": "judge-2026-01-01", "choices": [{"message": message}], "usage": usage}
        self.send(json.dumps(reply).encode())

    def do_well(self, id):
        self.say(json.dumps(verdict_of(id)))

    def do_python(self, id):
        self.say(f"```python\n{verdict_of(id)}\n```")

    def do_429(self, id):
        self.send(b"{}", 429)

    def do_429_after(self, id):
        self.send(b"{}", 429, Retry_After="0")

    def do_500(self, id):
        self.send(b"oops", 500, kind="text/plain")

    def do_502_page(self, id):
        self.send(b"<html>Bad gateway</html>", 502, kind="text/html")

    def do_hang(self, id):
        self.server.ended.wait(30)

    def do_slow(self, id):
        self.server.ended.wait(0.05)
        self.do_well(id)

    def do_cut(self, id):
        self.close_connection = True

    def do_cut_inside(self, id):
        self.send(b'{"choices": [{"mess', length=500)
        self.close_connection = True

    def do_malformed(self, id):
        self.send(b'{"choices": [{"message": {"content": "{')

    def do_no_choices(self, id):
        self.send(b'{"error": {"message": "overloaded"}}')

    def do_prose(self, id):
        self.say(f"I would say {verdict_of(id)}.")

    def do_truncated(self, id):
        self.say(json.dumps(verdict_of(id))[:-9])

    def do_wrong_keys(self, id):
        self.say(json.dumps({"id": id, "verdict": "yes", "score": 3}))

    def do_not_a_number(self, id):
        self.say(json.dumps(verdict_of(id) | {"score": float("nan")}))

    def do_another(self, id):
        self.say(json.dumps(verdict_of("0" * 8)))

    def do_nothing(self, id):
        self.say(None)

    def do_400(self, id):
        self.send(b'{"error": "filtered"}', 400)

    def do_401(self, id):
        self.send(b'{"error": "bad key"}', 401)

    def do_404(self, id):
        self.send(b"<html>Not found</html>", 404, kind="text/html")

    def do_page(self, id):
        self.send(b"<!doctype html><title>Welcome</title>", kind="text/html")

    def do_plain(self, id):
        self.send(b"OK", kind="text/plain")

    def do_other_json(self, id):
        self.send(b'{"type": "message", "content": [{"type": "text", "text": "{}"}]}')

    def do_list(self, id):
        self.send(b"[]")

    def do_old_completion(self, id):
        self.send(b'{"choices": [{"text": "{}"}]}')

    def do_no_choice_yet(self, id):
        self.send(b'{"choices": []}')

    def do_quota(self, id):
        self.send(b'{"error": {"code": "insufficient_quota"}}', 429)


PASSING = (
    *("429", "429_after", "500", "502_page", "cut", "cut_inside", "malformed", "no_choices"),
    "no_choice_yet",
)
UNREADABLE = ("prose", "truncated", "wrong_keys", "not_a_number", "another", "nothing")


@pytest.fixture
def faults():
    """What goes wrong below a reply, and in it."""
    return PASSING, UNREADABLE


@pytest.fixture
def said():
    """said(id) -> what the server's judge says of an item."""
    return verdict_of


@pytest.fixture
def serve():
    """serve(script) -> a running JudgeServer."""
    servers = []

    def serve(script=lambda id, number: ""):
        server = JudgeServer(script)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    yield serve
    for server in servers:
        server.ended.set()
        server.shutdown()
        server.server_close()
