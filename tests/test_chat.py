"""python -m rvllm_jax.chat as a person and as a program meet it."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rvllm_jax.data.annotations.read import read_llava

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
OWN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
PATIENCE = 240  # seconds; of a machine with much else to do


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "rvllm_jax.chat", *map(str, arguments)]


def start(*arguments) -> subprocess.Popen:
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command(*arguments), env=ENV, text=True, **pipes)


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, folder: Path, *arguments):
        self._end, theirs = pty.openpty()
        # Not pty.fork: JAX has threads in this process.
        self._process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *command(*arguments)],
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
            cwd=folder,
            env=ENV,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen, self._read = "", 0

    def until(self, pattern: str) -> str:
        """What comes up to and with `pattern`."""
        ends = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen[self._read :])):
            assert time.monotonic() < ends, self.seen[-3000:]
            self._more(1)
        new = self.seen[self._read :][: found.end()]
        self._read += found.end()
        return new

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def ended(self) -> int:
        """The exit code."""
        while self._more(PATIENCE):
            pass
        return self._process.wait(PATIENCE)

    def _more(self, seconds: float) -> bool:
        if not select.select([self._end], [], [], seconds)[0]:
            return False
        try:
            new = os.read(self._end, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self.seen += new.decode(errors="replace")
        return bool(new)


@pytest.mark.slow
def test_a_conversation_at_a_terminal(talker, tmp_path):
    """Answers stream; Ctrl-C stops one and keeps it, and at the prompt it is the end."""
    video = talker / "videos" / "a.mp4"
    chat = Terminal(tmp_path, video, f"--model={talker}", "--max_new=3500")
    chat.until("encoded in")
    chat.until("> ")
    chat.type("what moves?\n")
    chat.until(r"what moves\?\r\n(\x1b\S*)*.{3}")  # more comes while we read
    chat.type("\x03")
    chat.until("what was said is kept")
    tokens = int(re.search(r"(\d+) tokens in", chat.until("tokens/s")).group(1))
    assert 1 <= tokens < 3500
    chat.until("> ")
    chat.type("/frames\n")
    chat.until("frames.png: written")
    chat.type("/save\n")
    chat.until("1 turns")
    chat.until("> ")
    chat.type("\x03")
    assert chat.ended() == 0 and "Traceback" not in chat.seen
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")
    (example,) = read_llava(tmp_path / "conversation.json")
    (turn,) = example.turns
    assert turn.question == "what moves?" and len(turn.answer) >= 1


def test_one_question_gives_one_answer(talker, answered):
    """The answer alone on the standard output, the rest on the other one."""
    done = start(
        *(talker / "videos" / "a.mp4", f"--model={talker}", "--max_new=5", "--question=what moves?")
    )
    out, err = done.communicate(timeout=PATIENCE)
    assert done.returncode == 0, err
    assert out == answered + "\n"
    for part in ("the checkpoint, step 3", "frames seen", "encoded in", "5 tokens in", "tokens/s"):
        assert part in err


@pytest.fixture(scope="module")
def answered(talker) -> str:
    """What the model says to "what moves?" in 5 tokens, by the room alone."""
    from rvllm_jax.experiments.answerer import Answerer
    from rvllm_jax.experiments.saved.open import describe_model

    answerer = Answerer(describe_model(talker))
    seen = answerer.load_video(talker / "videos" / "a.mp4")
    return answerer.session(seen, "a").ask("what moves?", max_new=5)


def test_a_file_of_questions(talker, answered, tmp_path):
    asked = [
        {"video": "a.mp4", "question": "what moves?"},
        {"video": "absent.mp4", "question": "what moves?"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out = tmp_path / "out.jsonl"
    done = start(
        *(f"--model={talker}", f"--questions={tmp_path / 'in.jsonl'}", f"--out={out}"),
        *(f"--videos={talker / 'videos'}", "--max_new=5"),
    )
    _, err = done.communicate(timeout=PATIENCE)
    assert done.returncode == 3, err
    assert err.splitlines()[-1] == f"1 answered, 1 failed: {out}"
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == asked[0] | {"answer": answered}
    assert "absent.mp4: is not there" in second["error"]


def test_what_cannot_be_done_is_refused_in_a_sentence(talker, tmp_path):
    video, model = talker / "videos" / "a.mp4", f"--model={talker}"
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    cases = [
        ((tmp_path / "absent.mp4", model), "absent.mp4: is not there"),
        ((tmp_path / "broken.mp4", model, "--question=what?"), "not a readable video"),
        ((video, f"--model={tmp_path}"), "neither a working directory"),
        ((video, model, "--question= "), "the question is empty"),
        ((video, model, f"--question={'left ' * 5000}"), "the context is 4096"),
        ((video, model, "--template=folder"), "no chat_template"),
        ((video, model, "--top_p=0"), "top_p=0.0: expected"),
        ((video, model, "--clips=25x1", "--fusion=vote"), "ask by --question or --questions"),
        ((video, model, "--cache=bfloat16"), "--cache: is called --cache_dtype now"),
        ((model,), "give either one VIDEO"),
    ]
    runs = []
    for number, (arguments, message) in enumerate(cases):
        runs.append((start(*arguments), message))
        if number % 3 == 2:  # a few at a time
            [run.wait(PATIENCE) for run, _ in runs]
    for run, message in runs:
        out, err = run.communicate(timeout=PATIENCE)
        assert run.returncode == 1 and message in err and out == "", (message, err)
        assert "Traceback" not in err and "parameters" not in err
