"""The command `python -m rvllm_jax.prepare`: its arguments, its exit codes, and kills."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.video import encode

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path):
    """Forty videos of noise, large enough that storing them takes a moment, and their questions."""
    rng = np.random.default_rng(0)
    (tmp_path / "videos").mkdir()
    frames = rng.integers(0, 256, (40, 96, 96, 3), np.uint8)
    encode.write(tmp_path / "one.mp4", frames, fps=10)
    rows = []
    for number in range(40):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes((tmp_path / "one.mp4").read_bytes())
        rows.append({"q": "Which?", "a": str(number), "video_id": str(number)})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def command(place, *more, out="out") -> list[str]:
    return [
        *(sys.executable, "-m", "rvllm_jax.prepare", f"--videos={place / 'videos'}"),
        *(f"--annotations={place / 'rows.json'}", f"--out={place / out}", "--split=train"),
        *("--stride=1", "--short_side=96", "--encoding=raw", "--workers=1", *more),
    ]


def start(place, *more, out="out", **how):
    how = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | how
    # Where the tests run in the background it would ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command(place, *more, out=out), **how)
    finally:
        signal.signal(signal.SIGINT, before)


def end(place, *more, largest_file=None, **how) -> tuple[int, str, str]:
    process = start(place, *more, **how)
    if largest_file is not None:  # bytes, before it has imported anything
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def stored(folder) -> dict[str, bytes]:
    wanted = re.compile(r"frames-.*|times-.*|(index|features|dataset_info|train)\.json")
    paths = [p for p in folder.rglob("*") if wanted.fullmatch(p.name)]
    assert (folder / "tfds" / "frames" / "1.0.0" / "features.json").is_file()
    return {path.name: path.read_bytes() for path in paths}


def test_it_prepares_shows_progress_and_says_where_the_report_is(place):
    code, stdout, stderr = end(place, "--thumbnails=1")
    assert code == 0, stderr
    assert "40 videos" in stdout and f"report: {place / 'out'}/report.html" in stdout
    assert re.search(r"decode: +\d+%.* \d+/40 \[\d\d:\d\d<.*videos/s\]", stderr)
    assert (place / "out" / "frames" / "features.json").is_file()


def test_a_killed_preparation_continues_and_ends_with_the_same_bytes(place):
    process = start(place, start_new_session=True)
    done = lambda: sorted((place / "out" / "frames").glob("shard-*.json"))  # noqa: E731
    until = time.monotonic() + 100
    while len(done()) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in done()}
    assert 3 <= len(kept) < 16, "it was to be killed in the middle"
    assert not (place / "out" / "train.json").exists()
    seen = place / "out" / "look.journal"
    assert seen.stat().st_size > 40 * 100
    assert end(place)[0] == 0
    assert not seen.exists()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # finished shards stand
    assert end(place, out="whole")[0] == 0
    assert stored(place / "out") == stored(place / "whole")
    assert len(stored(place / "out")) == 2 * 16 + 4


def _deaf(parent: int) -> list[bool]:
    """Of each worker of a process, whether it takes no notice of Ctrl-C (Linux's SigBlk)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            worker = b"spawn_main" in (path / "cmdline").read_bytes()
            lines = (path / "status").read_text().splitlines()
        except OSError:
            continue
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if worker and int(status["PPid"]) == parent:
            found.append(bool(int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1))
    return found


@pytest.mark.parametrize("part", ["look", "decode"])
def test_ctrl_c_ends_it_with_a_line_and_the_same_command_continues(part, place):
    """It reaches the workers too, in whatever they are at, as from a terminal."""
    process = start(place, start_new_session=True)
    shown = ""
    while f"{part}:" not in shown and (read := os.read(process.stderr.fileno(), 1000)):
        shown += read.decode()
    deaf = _deaf(process.pid)
    assert all(deaf) and (deaf or part == "look")  # which may be over already
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in shown + stderr, stderr
    assert "\ninterrupted; start the same command again, it continues\n" in stderr
    if part == "decode":
        assert end(place)[0] == 0


def test_a_disk_that_is_full_is_named_with_what_is_needed_and_nothing_half_is_left(place):
    # Fails as a full disk does.
    code, _, stderr = end(place, "--workers=2", "--thumbnails=1", largest_file=300_000)
    frames = place / "out" / "frames"
    assert code == 1 and "cannot be written" in stderr and f"bytes free in {frames}" in stderr
    (needed,) = re.findall(r"the frames need about ([\d,]+) bytes in all; [\d,]+ are", stderr)
    assert int(needed.replace(",", "")) == 40 * 40 * 96 * 96 * 3
    # The other worker's journal is no half shard: the next preparation goes on behind it.
    left = [path.name for path in frames.iterdir() if not path.name.startswith("journal-")]
    assert left == ["lock"]


def test_exit_codes_tell_apart_what_is_refused_unusable_and_partial(place):
    code, _, stderr = end(place, "--stride=4", "--check")
    assert code == 1 and "refused: --stride=4 must divide --interval=6" in stderr
    code, _, stderr = end(place, "--format=tgif", "--check")
    assert code == 1 and "has the keys of the format 'video_instruct'" in stderr
    (place / "videos" / "0.mp4").write_bytes(b"")
    code, stdout, _ = end(place, "--check")
    assert code == 3 and "1 of 40 videos are unusable" in stdout
    assert end(place, "--check", "--max_bad=0.025")[0] == 0
    rows = [{"video_name": "v_" + "a" * 11, "Q": "Who?", "A": "He."}]
    (place / "rows.json").unlink()
    (place / "temporal_qa.json").write_text(json.dumps(rows))
    (place / "videos" / "1.mp4").rename(place / "videos" / f"v_{'a' * 11}.mp4")
    own = (f"--annotations={place / 'temporal_qa.json'}", "--split=test", "--check")
    code, stdout, _ = end(place, *own)
    assert code == 4 and "1 of 499 questions" in stdout
    assert end(place, *own, "--allow_partial")[0] == 0
    assert not (place / "out" / "frames").exists()


def test_arguments_that_are_unknown_are_refused_unless_they_are_those_of_a_runner(place):
    code, _, stderr = end(place, "--stridee=2")
    assert code == 1 and "--stridee=2" in stderr
    assert not (place / "out").exists()
