"""Mutated files: whatever the bytes, frames or a named error come out, in bounded memory."""

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]

# A process of its own, since a crash would end the tests. It works through the inputs by number,
# and says which one it is at, so that a crash or hang is named.
PROGRAM = """
    import os, signal, sys
    import numpy as np
    from rvllm_jax.data.video import decode as video
    from rvllm_jax.data.video.container import VideoError

    folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    originals = [open(path, "rb").read() for path in sys.argv[4:]]

    def mutated(data, rng):
        data = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(len(data)))
            kind = rng.integers(4)
            if kind == 0:
                data[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                data[at : at + 4] = rng.bytes(4)
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 200))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 200)))
            if not data:
                break
        return bytes(data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.1 else data)

    path = os.path.join(folder, "input.mp4")
    decoded = refused = 0
    for number in range(first, last):
        rng = np.random.default_rng(number)
        with open(path, "wb") as file:
            file.write(mutated(originals[number % len(originals)], rng))
        print("at", number, flush=True)
        signal.alarm(20)  # a hang ends the process
        try:
            decoding = video.Decoding(path, stride=2, short_side=16, min_decoded=0.5)
            shapes, seconds = [], [-1.0]
            for frame, second in decoding:
                shapes.append(frame.shape)
                assert second > seconds[-1] or len(seconds) == 1, second
                seconds.append(second)
                assert len(shapes) < 5000, "frames without end"
            assert len(set(shapes)) == 1 and min(shapes[0][:2]) == 16, shapes
            decoded += 1
        except VideoError as error:
            assert path in str(error)
            refused += 1
    # Not getrusage: its peak is also that of the process that this one was forked from.
    peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]  # KB
    print(decoded, refused, int(peak) >> 10)
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory, write_with, moving_bar):
    folder = tmp_path_factory.mktemp("originals")
    fast = {"options": {"movflags": "+faststart"}}
    small = moving_bar(12, 24, 32)
    noise = np.random.default_rng(0).integers(0, 255, (6, 24, 32, 3), np.uint8)
    return [
        write_with(folder / "a.mp4", small),
        write_with(folder / "b.gif", small, codec="gif", pixels="rgb8"),
        write_with(folder / "c.webm", small, codec="libvpx-vp9"),
        write_with(folder / "d.mp4", noise, **fast),
    ]


@pytest.mark.parametrize(
    "count", [400, pytest.param(2000, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_no_mutated_file_crashes_hangs_or_takes_memory(originals, tmp_path, count):
    program = tmp_path / "fuzz.py"
    program.write_text(textwrap.dedent(PROGRAM))
    result = subprocess.run(
        [sys.executable, program, tmp_path, "0", str(count), *originals],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1800,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert result.returncode == 0, (lines[-1:], result.returncode, result.stderr[-3000:])
    decoded, refused, megabytes = map(int, lines[-1].split())
    print(f"{decoded} decoded, {refused} refused, {megabytes} MB")
    assert decoded + refused == count
    assert decoded > count / 10 and refused > count / 20  # the mutations are neither void nor fatal
    assert megabytes < 500
