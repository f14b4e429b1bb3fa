"""Commands, and what is kept of a conversation."""

import io

import matplotlib.image
import numpy as np
import pytest

from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.experiments.conversation import Talk, lines_of
from rvllm_jax.generation.prompts import PromptError
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.generation.streaming import text_of


@pytest.fixture
def start(answerer, talker, tmp_path, monkeypatch):
    """start(lines) -> (Talk, what it wrote, what it told) after these lines about video a."""
    monkeypatch.chdir(tmp_path)

    def start(*lines, **how):
        out, told, waiting = io.StringIO(), [], iter(lines)
        talk = Talk(answerer, GenerationConfig(max_new=6, **how), out, told.append)
        talk.open(talker / "videos" / "a.mp4")

        def read():
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        talk.run(read)
        return talk, out.getvalue(), told

    return start


def said(talk) -> list[str]:
    decode = talk._session.engine.tokenizer.decode
    return [text_of(decode, turn.ids).strip() for turn in talk._session.turns]


def test_answers_are_shown_and_turns_follow_each_other(start, answerer, talker):
    talk, written, told = start("what moves?\n", "", "  and then? ")
    session = answerer.session(answerer.load_video(talker / "videos" / "a.mp4"), "a")
    expected = [session.ask(question, max_new=6) for question in ("what moves?", "and then?")]
    assert said(talk) == expected and all(expected)
    shown = "".join("\ufffd" if ord(c) < 32 and c not in "\t\n" else c for c in "\n".join(expected))
    assert written.split() == shown.split()
    assert sum("6 tokens in" in line and "tokens/s" in line for line in told) == 2


def test_a_conversation_is_saved_as_a_record_that_is_read_again(start, talker, tmp_path):
    talk, _, told = start("what moves? é", "/save", "and then?", "/save", "/save other/x.json")
    (example,) = read_llava(tmp_path / "conversation.json")
    assert example.video == "a.mp4"
    assert [turn.question for turn in example.turns] == ["what moves? é", "and then?"]
    assert [turn.answer for turn in example.turns] == said(talk)
    assert any(str(talker / "videos") in line for line in told)
    assert "No such file" in told[-1]
    before = (tmp_path / "conversation.json").read_bytes()
    *_, told = start("what?", "/save")
    assert "is there already" in told[-2]
    assert (tmp_path / "conversation.json").read_bytes() == before


def test_a_mark_of_the_video_is_read_as_training_reads_it(start, tmp_path):
    talk, written, told = start("/save", "<video> what?", "and <image>?", "/save")
    assert "nothing was said yet" in told[0] and not any("tokens in" in line for line in told[2:-2])
    assert "<image> where no video can go" in told[-3]
    (example,) = read_llava(tmp_path / "conversation.json")
    assert [turn.question for turn in example.turns] == ["what?"]
    assert start("what?")[1] == written


def test_frames_are_a_picture(start, tmp_path):
    _, _, told = start("/frames", "/frames x.png")
    picture = matplotlib.image.imread(tmp_path / "frames.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20
    assert (tmp_path / "x.png").exists() and "x.png: written" in told[-1]


def test_where_an_answer_looks_is_a_picture(start, tmp_path):
    _, _, told = start("/attention", "what moves?", "and then?", "/attention")
    assert "nothing was said yet" in told[0] and "attention.png: written" in told[-1]
    picture = matplotlib.image.imread(tmp_path / "attention.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20


def test_other_videos_and_new_conversations(start, answerer, talker):
    other = talker / "videos" / "b.mp4"
    talk, _, told = start("what?", "/reset", "what moves?", f"/video {other}", "what moves?")
    assert len(talk._session.turns) == 1 and talk._path == other
    session = answerer.session(answerer.load_video(other), "b")
    assert said(talk) == [session.ask("what moves?", max_new=6)]
    talk, _, told = start("what?", "/video absent.mp4", "/odd", "/video", "/help", "/quit", "more?")
    assert "absent.mp4: is not there" in "".join(told)
    assert sum("no such command" in line for line in told) == 2
    assert len(talk._session.turns) == 1  # the conversation stayed, and ended at /quit


def test_bad_lines_leave_the_conversation_as_it_was(start):
    broken = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    talk, written, told = start("left " * 5000, broken, "what \udcff?", "what moves?")
    assert "the context is 4096" in told[0] and "not UTF-8" in told[1] and "not UTF-8" in told[2]
    assert len(talk._session.turns) == 1 and len(written) > 1


@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupted_answer_keeps_what_was_said(start, answerer, monkeypatch, at):
    """At step 0 nothing was said: the question is taken back."""
    real, calls = answerer.engine.advance, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*args)

    def broken(*args):
        raise KeyboardInterrupt

    name, way = ("advance", interrupted) if at else ("read_asked", broken)
    monkeypatch.setattr(answerer.engine, name, way)
    talk, _, told = start("what moves?", KeyboardInterrupt(), "never asked")
    if at:
        assert [len(turn.ids) for turn in talk._session.turns] == [2]
        assert "stopped; what was said is kept" in told
    else:
        assert talk._session.turns == [] and "the question is taken back" in told[-1]


def test_a_question_that_cannot_be_asked_is_refused_before_the_video_is_encoded(answerer, talker):
    told = []
    talk = Talk(answerer, GenerationConfig(), io.StringIO(), told.append)
    with pytest.raises(PromptError, match="the question is empty"):
        talk.open(talker / "videos" / "a.mp4", "what?", "")
    with pytest.raises(VideoError, match="not there"):
        talk.open("absent.mp4")
    assert not told


def test_lines_come_from_a_pipe():
    read = lines_of(io.StringIO("one\n\ntwo"))
    assert [read(), read(), read()] == ["one\n", "\n", "two"]
    with pytest.raises(EOFError):
        read()
