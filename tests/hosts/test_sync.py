import threading
import time

import pytest

from rvllm_jax.hosts.sync import Hosts, HostsError
from rvllm_jax.system.lock import LockError, locked


def test_all_get_what_each_one_says(each):
    assert (
        each(lambda host: host.gather({"n": host.index}, "n"))
        == [[{"n": 0}, {"n": 1}, {"n": 2}]] * 3
    )
    assert each(lambda host: host.any(host.index == 2, "stop")) == [True] * 3
    assert each(lambda host: host.any(False, "stop")) == [False] * 3
    assert each(lambda host: host.from_first(host.names[host.index], "said")) == ["a"] * 3


def test_who_does_not_come_in_time_is_named_to_the_others(each):
    come = threading.Barrier(2)  # one whose thread starts late would be missing too

    def gather(host):
        come.wait()
        return host.gather(0, "saving", seconds=1)

    for error in each(gather, 0, 2):
        assert isinstance(error, HostsError)
        assert str(error) == "saving: host 1 (b) did not come in 1 seconds"


def test_a_value_that_is_there_is_found_when_all_time_is_over(hosts):
    hosts[1].client.key_value_set("said", "1")
    assert hosts[0]._get("said", 0.0) == "1" and hosts[0]._get("unsaid", 0.0) is None


def test_host_0_does_it_first_and_the_others_when_it_has(each):
    log = []

    def do(host):
        with host.first_then_others("preparing"):
            if host.is_first:
                time.sleep(0.3)
            log.append(host.index)

    assert each(do) == [None] * 3
    assert log[0] == 0 and sorted(log) == [0, 1, 2]


def test_one_job_s_hosts_are_one_writer(each, tmp_path):
    writing = threading.Barrier(3)

    def do(host):
        with host.locked(tmp_path):
            writing.wait(20)  # all of them at once
            with pytest.raises(LockError):
                locked(tmp_path).__enter__()
            writing.wait(20)

    assert each(do) == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_told_on_all_hosts(each):
    told = {"pairs": "6", "tokenizer": "x"}
    assert each(lambda host: host.same(told, "data")) == [None] * 3
    for error in each(lambda host: host.same(told | {"pairs": str(host.index // 2)}, "data")):
        assert isinstance(error, HostsError)
        differ = "pairs: 0 on host 0 (a), 1 (b), 1 on host 2 (c)"
        assert str(error) == f"the hosts differ in data:\n  {differ}"


def test_a_folder_that_one_host_does_not_see_is_refused(each, tmp_path, monkeypatch):
    monkeypatch.setattr("rvllm_jax.hosts.sync._VISIBLE", 0.5)
    assert each(lambda host: host.check_shared(tmp_path)) == [None] * 3
    (tmp_path / "other").mkdir()
    places = [tmp_path, tmp_path / "other", tmp_path]
    for error in each(lambda host: host.check_shared(places[host.index])):
        assert isinstance(error, HostsError)
        assert "of host 0 (a) is not that of host 1 (b):" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]  # its mark is gone


def test_one_host_alone_asks_nobody(tmp_path):
    alone = Hosts()
    assert alone.gather(5, "n") == [5] and alone.any(True, "n") and alone.from_first(1, "n") == 1
    alone.same({"a": "b"}, "n")
    alone.check_shared(tmp_path / "not there")
    with alone.first_then_others("n"):
        pass
    assert alone.is_first and alone.count == 1


def test_an_error_of_host_0_is_its_own():
    with pytest.raises(OSError), Hosts().first_then_others("preparing"):
        raise OSError("full")
