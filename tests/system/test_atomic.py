import json
import os
import resource
import subprocess
import sys

import pytest

from rvllm_jax.system import atomic
from rvllm_jax.system.atomic import JsonError, WriteError, read_json, write_bytes, write_json


class RoomError(Exception):
    pass


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": "ü\udc80"})
    write_json(path, {"b": [1, None]}, indent=None, synced=True)
    assert path.read_text() == '{"b": [1, null]}\n'
    assert os.listdir(tmp_path) == ["x.json"]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")}, allow_nan=False)
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    assert atomic.make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/c: cannot be written"):
        atomic.make_folder(tmp_path / "file" / "c")


def test_the_same_content_is_not_written_again_where_only_new_is_asked(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"a")
    before = path.stat().st_ino
    write_bytes(path, b"a", only_new=True)
    assert path.stat().st_ino == before
    write_bytes(path, b"b", only_new=True)
    assert path.read_bytes() == b"b"


def test_a_folder_that_takes_nothing_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "file" / "x.json"
    path.parent.write_text("")
    with pytest.raises(WriteError, match="x.json: cannot be written .*start the same command"):
        write_bytes(path, b"")
    with pytest.raises(RoomError, match="bytes free in .*Restore it"):
        write_bytes(tmp_path / "absent" / "x", b"", advice="Restore it", error=RoomError)


def test_a_full_disk_is_named_with_the_room_that_is_left(tmp_path):
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from rvllm_jax.system.atomic import write_bytes\n"
        "write_bytes(sys.argv[1], bytes(2000))"
    )
    path = tmp_path / "x"
    path.write_bytes(b"before")
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True
    )
    assert "File too large" in done.stderr and "1,000 allowed a file (ulimit -f)" in done.stderr
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["x"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.parametrize("content, told", [
    ("{", "cannot be read as JSON"), ("[1]", "holds no JSON object but a list"),
    ("[" * 100_000, "cannot be read as JSON"), ("\x00", "cannot be read as JSON"),
])  # fmt: skip
def test_a_broken_file_of_json_is_named_by_the_caller_s_error(tmp_path, content, told):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(RoomError, match=f"x.json: {told}.*; train again"):
        read_json(path, absent={}, advice="train again", error=RoomError)
    assert atomic.read_json_or_empty(path) == {}


def test_an_absent_file_of_json_is_an_error_or_what_the_caller_says(tmp_path):
    with pytest.raises(
        JsonError, match="x.json: cannot be read, it is not there; restore the file"
    ):
        read_json(tmp_path / "x.json")
    assert read_json(tmp_path / "x.json", absent={"a": 1}) == {"a": 1}
    assert atomic.read_json_or_empty(tmp_path / "x.json") == {}


def test_json_of_any_encoding_that_json_allows_is_read(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "x").write_bytes(json.dumps({"ü": 1}, ensure_ascii=False).encode(encoding))
        assert read_json(tmp_path / "x") == {"ü": 1}
