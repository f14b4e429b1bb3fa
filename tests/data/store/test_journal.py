"""A shard that was stopped amid its videos: what is done is not decoded again, and not lost."""

import json
import os

import pytest

from rvllm_jax.data.store import shard_writer, shards
from rvllm_jax.data.store.journal import Journal
from rvllm_jax.data.store.shards import StoreOptions, Task

RECORDS = [b"first" * 9, b"", b"second", b"third"]


class Stopped(BaseException):
    """In place of a kill."""


def journal_of(path, facts=(1, 2)):
    journal = Journal(path)
    for fact in facts:
        for record in RECORDS[:fact]:
            journal.write(record)
        journal.end({"number": fact})
    return journal


def contents(path):
    journal = Journal(path)
    found = [(entry.facts["number"], list(journal.records(entry))) for entry in journal.entries]
    journal.close()
    return found


WHOLE = [(1, RECORDS[:1]), (2, RECORDS[:2])]


def test_what_was_written_is_read_again(tmp_path):
    journal_of(tmp_path / "j").close()
    assert contents(tmp_path / "j") == WHOLE
    journal_of(tmp_path / "j", facts=(3,)).close()
    assert contents(tmp_path / "j") == [*WHOLE, (3, RECORDS[:3])]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_end_costs_the_video_in_work_alone(tmp_path, cut):
    journal = journal_of(tmp_path / "j")
    journal.close()
    size = os.path.getsize(tmp_path / "j")
    with_third = journal_of(tmp_path / "j", facts=(3,))
    with_third.close()
    os.truncate(tmp_path / "j", size + cut)
    assert contents(tmp_path / "j") == WHOLE
    assert os.path.getsize(tmp_path / "j") == size  # the torn end is gone, and writing goes on
    journal_of(tmp_path / "j", facts=(2,)).close()
    assert contents(tmp_path / "j") == [*WHOLE, (2, RECORDS[:2])]


def test_what_never_reached_the_disk_is_not_believed(tmp_path):
    journal_of(tmp_path / "j", facts=(1, 3)).close()
    content = (tmp_path / "j").read_bytes()
    start = content.index(b"second")
    for place in (start - 9, start - 1, start, content.index(b'"number": 3')):
        damaged = bytearray(content)
        damaged[place] ^= 255  # kind, length, record, line
        (tmp_path / "j").write_bytes(damaged)
        assert contents(tmp_path / "j") == WHOLE[:1]


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_stopped_shard_goes_on_without_decoding_again(videos, tmp_path, stop_at):
    """The files that are done are spoiled, same size and time: they must not be read again."""
    names = ["v0.mp4", "v3.mp4", "v1.mp4", "v2.mp4"]  # v3 is text: set aside

    def task(folder):
        folder.mkdir()
        own = []
        for name in names:
            path = folder.parent / f"{folder.name}-{name}"
            path.write_bytes(videos[name].read_bytes())
            own.append((name, path))
        return Task(folder, 0, 1, own, StoreOptions(1, 36, "raw", 4), "f" * 64)

    whole, stopped = task(tmp_path / "whole"), task(tmp_path / "stopped")

    def stop(position):
        if position == stop_at:
            raise Stopped

    expected = shard_writer.write_shard(whole)
    with pytest.raises(Stopped):
        shard_writer.write_shard(stopped, stop)
    for _, path in stopped.videos[:stop_at]:
        path.write_bytes(b"\0" * path.stat().st_size)
    got = shard_writer.write_shard(stopped)
    for own in (expected, got):
        own["bad"] = sorted(own["bad"])
    assert json.dumps(got) == json.dumps(expected) and got["bad"] == ["v3.mp4"]
    for file in (shards.RECORDS, shards.TIMES):
        a, b = (each.path(file) for each in (whole, stopped))
        assert a.read_bytes() == b.read_bytes()
    assert not list(stopped.folder.glob("journal-*"))


def test_the_checksum_of_a_large_file_gives_signs_of_life(videos, tmp_path):
    def beats(megabytes):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        path = folder / "a.mp4"
        path.write_bytes(videos["v2.mp4"].read_bytes())
        os.truncate(path, path.stat().st_size + (megabytes << 20))
        task = Task(folder, 0, 1, [("a.mp4", path)], StoreOptions(1, 36, "raw", 4), "f" * 64)
        seen = []
        assert not shard_writer.write_shard(task, seen.append)["bad"]
        return seen.count(0)

    assert beats(9) == beats(0) + 9
