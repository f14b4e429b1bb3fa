"""One question to an endpoint; what whole runs go through is in test_judging.py."""

import socket
import threading
import time

import pytest

from rvllm_jax.evaluation.judge import judges
from rvllm_jax.evaluation.judge.chat import JudgeError, NoReply, Stopped
from rvllm_jax.evaluation.judge.endpoint import Endpoint, Patience
from rvllm_jax.evaluation.judge.prompts import load_prompts

MESSAGES = [{"role": "system", "content": "."}, {"role": "user", "content": "Item: 12ab"}]
QUICK = Patience(timeout=5.0, attempts=4, first=0.001, longest=0.01)


def endpoint(url, **changes):
    given = dict(key="secret", parameters={"temperature": 0.0}, patience=QUICK) | changes
    return Endpoint(url, "m", **given)


def test_what_is_sent_and_what_comes_back(serve):
    server = serve()
    for url in (server.url, server.url + "/"):
        reply = endpoint(url)(MESSAGES)
        assert reply.model == "judge-2026-01-01" and '"id": "12ab"' in reply.text
        assert reply.tokens == {"prompt_tokens": 100, "completion_tokens": 10}
    for path, request in server.bodies:
        assert path == "/v1/chat/completions"
        assert request == {"model": "m", "messages": MESSAGES, "temperature": 0.0}
    assert server.keys == {"Bearer secret"}
    endpoint(server.url, key=None)(MESSAGES)
    assert None in server.keys


def test_attempts_end(serve):
    server = serve(lambda id, number: "500")
    asks = endpoint(server.url)
    with pytest.raises(NoReply, match="4 attempts, the last: HTTP 500: 'oops'"):
        asks(MESSAGES)
    assert server.asked["12ab"] == 4


def test_waits_double_up_to_the_longest(serve, monkeypatch):
    server, waits = serve(lambda id, number: "500"), []
    asks = endpoint(server.url, patience=Patience(5.0, 7, 1.0, 8.0))
    monkeypatch.setattr(asks.stop, "wait", lambda seconds: waits.append(seconds))
    with pytest.raises(NoReply):
        asks(MESSAGES)
    assert len(waits) == 6
    for wait, most in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= wait <= most


@pytest.mark.parametrize("value, least", [("7", 6), ("9999", 29), ("soon", 0)])
def test_retry_after_is_waited_for_by_all_up_to_the_longest_wait(serve, monkeypatch, value, least):
    server = serve(lambda id, number: "" if number else "429_after")
    asks = endpoint(server.url, patience=Patience(5.0, 3, 0.001, 30.0))
    monkeypatch.setattr(
        server.RequestHandlerClass, "do_429_after",
        lambda self, id: self.send(b"{}", 429, Retry_After=value),
    )  # fmt: skip
    waits = []
    monkeypatch.setattr(asks.stop, "wait", lambda seconds: waits.append(seconds))
    asks(MESSAGES)
    before = [wait for wait in waits if wait > 1]
    assert (before and least <= before[0] <= 30) if least else not before


def test_retry_after_may_be_a_date(serve, monkeypatch):
    server = serve(lambda id, number: "" if number else "429_after")
    when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 20))
    monkeypatch.setattr(
        server.RequestHandlerClass, "do_429_after",
        lambda self, id: self.send(b"{}", 429, Retry_After=when),
    )  # fmt: skip
    asks, waits = endpoint(server.url, patience=Patience(5.0, 3, 0.001, 60.0)), []
    monkeypatch.setattr(asks.stop, "wait", lambda seconds: waits.append(seconds))
    asks(MESSAGES)
    assert 10 < max(waits) <= 20


def raw_server(talk):
    """A server that does `talk(connection)` to each connection; its URL."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_a_reply_that_drips_is_cut_off_by_the_time_of_the_whole_request():
    gone = threading.Event()

    def drip(connection):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while not gone.wait(0.05):
                connection.sendall(b" ")
        except OSError:
            gone.set()  # the client left

    listening, url = raw_server(drip)
    with listening, pytest.raises(NoReply, match="no reply within 0.4 s"):
        endpoint(url, patience=Patience(0.4, 1, 0.001, 0.01))(MESSAGES)
    gone.set()


def test_a_reply_without_end_is_not_kept_in_memory():
    def pour(connection):
        connection.recv(1 << 16)
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b" " * (1 << 16))
        except OSError:
            connection.close()

    listening, url = raw_server(pour)
    with listening, pytest.raises(NoReply, match="a reply of more than 4194304 bytes"):
        endpoint(url, patience=Patience(30.0, 1, 0.001, 0.01))(MESSAGES)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.9\r\n", b"", b"\x15\x03\x01\x00\x02"])
def test_another_protocol_is_told(greeting):
    def greet(connection):
        connection.recv(1 << 16)
        connection.sendall(greeting)
        connection.close()

    listening, url = raw_server(greet)
    with (
        listening,
        pytest.raises(NoReply, match="BadStatusLine|RemoteDisconnected|ConnectionResetError"),
    ):
        endpoint(url)(MESSAGES)


def test_a_reply_shorter_than_announced_is_not_taken():
    body = b'{"choices": [{"message": {"content": "x"}}]}'

    def cut(connection):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + body)
        connection.close()

    listening, url = raw_server(cut)
    with listening, pytest.raises(NoReply, match="IncompleteRead"):
        endpoint(url)(MESSAGES)


def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt():
    body = b'{"choices": [{"message": {"content": "x"}}]}'
    served = []

    def once(connection):
        connection.recv(1 << 16)
        served.append(connection)
        length = str(len(body)).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + body)
        connection.close()  # without having said so

    listening, url = raw_server(once)
    with listening:
        asks = endpoint(url, patience=Patience(5.0, 1, 0.001, 0.01))
        assert asks(MESSAGES).text == asks(MESSAGES).text == "x"
    assert len(served) == 2


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(NoReply, match="ConnectionRefusedError"):
        endpoint(f"http://127.0.0.1:{port}/v1")(MESSAGES)


ADDRESS = "--base_url, which ends where /chat/completions begins"


@pytest.mark.parametrize(
    "fault, told",
    [
        ("401", "HTTP 401.*Correct the key.*--key_env"),
        ("404", f"HTTP 404.*{ADDRESS}"),
        ("page", f"text/html that is no chat completion.*expected JSON.*{ADDRESS}"),
        ("plain", f"text/plain that is no chat completion: 'OK'.*{ADDRESS}"),
        ("other_json", f'application/json that is no.*"type": "message".*{ADDRESS}'),
        ("list", rf"no chat completion: '\[\]'.*{ADDRESS}"),
        ("old_completion", f'no chat completion.*"text".*{ADDRESS}'),
        ("quota", "HTTP 429.*insufficient_quota.*nothing left"),
        ("400", "HTTP 400.*--extra changes them"),
    ],
)
def test_what_no_wait_mends_is_refused_by_the_first_request(serve, fault, told):
    server = serve(lambda id, number: fault)
    with pytest.raises(JudgeError, match=told):
        endpoint(server.url)(MESSAGES)
    assert list(server.asked.values()) == [1]


@pytest.mark.parametrize("fault", ["401", "404", "page", "quota"])
def test_of_an_endpoint_that_replied_before_it_is_tried_again(serve, fault):
    server = serve(lambda id, number: fault if number in (1, 2) else "")
    asks = endpoint(server.url)
    assert asks(MESSAGES).text == asks(MESSAGES).text
    assert server.asked["12ab"] == 4


def test_called_off_it_stops_waiting(serve):
    server = serve(lambda id, number: "500")
    stop = threading.Event()
    asks = endpoint(server.url, patience=Patience(5.0, 100, 3600, 3600), stop=stop)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        asks(MESSAGES)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http:///v1", ""])
def test_a_base_url_that_is_none(url):
    with pytest.raises(JudgeError, match=r"base URL .*expected http\(s\)://"):
        endpoint(url)


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel"])
def test_a_key_that_cannot_be_one_is_not_shown(key):
    with pytest.raises(JudgeError) as refused:
        endpoint("http://host", key=key)
    assert key not in str(refused.value)


def test_keys_come_from_the_environment(monkeypatch, serve):
    def make(key_env="MY_KEY", model="m", url="http://host/v1"):
        return judges.endpoint_judge(
            url, model, load_prompts(None), key_env=key_env, parameters={}, patience=QUICK,
            stop=threading.Event(),
        )  # fmt: skip

    for value in (None, "", "  "):
        monkeypatch.delenv("MY_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(JudgeError, match="MY_KEY holds no key"):
            make()
    make(key_env="")
    with pytest.raises(JudgeError, match="--model"):
        make(key_env="", model="")
    monkeypatch.setenv("MY_KEY", "secret-1\n")
    by = make()
    assert "secret" not in repr(by.made_with("msvd_qa"))


@pytest.mark.parametrize("extra", ["{", "[]", '{"messages": []}', '{"stream": true}'])
def test_fields_that_a_request_cannot_have(extra):
    with pytest.raises(JudgeError, match="--extra"):
        judges.request_parameters(0.0, 10, None, extra)


def test_fields_of_a_request():
    extra = '{"max_tokens": null, "max_completion_tokens": 9}'
    found = judges.request_parameters(0.0, 10, 3, extra)
    assert found == {"temperature": 0.0, "seed": 3, "max_completion_tokens": 9}
