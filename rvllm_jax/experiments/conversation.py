"""A conversation at a terminal, or in a pipe, about one video after another."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from jax.errors import JaxRuntimeError

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.llava import llava_example, write_llava
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.report import frame_map, frame_picture
from rvllm_jax.generation.answer_attention import answer_attention
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.generation.streaming import text_of
from rvllm_jax.system.atomic import write_bytes
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import Example, Turn

HELP = """/frames [FILE.png]     a picture of the frames that the model sees, with their times
/attention [FILE.png]  a picture of which frames the tokens of the last answer look at
/video FILE            look at another video, in a new conversation
/reset                 a new conversation about the same video
/save [FILE.json]      the conversation as a LLaVA record
/quit                  the end, as Ctrl-D, or Ctrl-C where nothing is being said
Ctrl-C while the model answers stops it and keeps what was said."""
_CONTROLS = dict.fromkeys(range(32), "\ufffd") | dict.fromkeys(range(127, 160), "\ufffd")
_SHOWN = _CONTROLS | {9: "\t", 10: "\n"}  # what an answer may do to a terminal


class Talk:
    """Questions and answers about a video, with commands.

    out: where answers go. say: takes everything else, a line at a time.
    """

    def __init__(
        self, answerer: Answerer, config: GenerationConfig, out: TextIO, say: Callable[[str], None]
    ):
        self._answerer, self._config, self._out, self._say = answerer, config, out, say
        self._written: set[Path] = set()  # files of this conversation, which may be written again

    def open(self, path: str | Path, *questions: str) -> None:
        """Looks at a video and encodes it; `questions` are to come and are refused before that.

        Raises PromptError, what `Answerer.load_video` raises, and what `Answerer.engine` does.
        """
        seen = self._answerer.load_video(path)
        for question in questions:
            self._answerer.check(seen, question)
        session = self._answerer.session(seen, str(path))
        self._path, self._seen, self._session = Path(path), seen, session

    def ask(self, question: str) -> str:
        """The whole answer to the next turn; raises PromptError."""
        start = time.perf_counter()
        answer = self._session.ask(question, **vars(self._config))
        self._report(start, None)
        return answer

    def run(self, read: Callable[[], str]) -> None:
        """Takes lines from `read` until it raises EOFError or KeyboardInterrupt, or at /quit."""
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            except UnicodeDecodeError as error:
                self._say(f"this line is not UTF-8 ({error.reason}): write it again")
                continue
            try:
                if line == "/quit":
                    return
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                elif line:
                    self._stream(line)
            except KeyboardInterrupt:
                self._say("stopped")
            except (RvllmError, OSError) as error:
                self._say(str(error))
            except JaxRuntimeError as error:
                self._say(f"the device failed: {str(error).splitlines()[0]}")

    def _stream(self, question: str) -> None:
        start, first, stopped = time.perf_counter(), None, False
        stream = self._session.stream(question, **vars(self._config))
        before = len(self._session.turns)
        try:
            with contextlib.closing(stream):
                for piece in stream:
                    if first is None and not (piece := piece.lstrip()):
                        continue
                    first = first or time.perf_counter() - start
                    self._out.write(piece.translate(_SHOWN))
                    self._out.flush()
        except KeyboardInterrupt:
            stopped = True
        self._out.write("\n")
        self._out.flush()
        if stopped and not any(turn.ids for turn in self._session.turns[before:]):
            del self._session.turns[before:]
            self._say("stopped before anything was said; the question is taken back")
            return
        if stopped:
            self._say("stopped; what was said is kept")
        self._report(start, first)

    def _report(self, start: float, first: float | None) -> None:
        seconds = time.perf_counter() - start
        tokens = len(self._session.turns[-1].ids)
        speed = f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s"
        self._say(speed + ("" if first is None else f", the first words after {first:.2f} s"))

    def _command(self, name: str, argument: str = "") -> None:
        if name == "/help":
            self._say(HELP)
        elif name == "/reset":
            self._session.reset()
            self._say("a new conversation about the same video")
        elif name == "/frames":
            picture = frame_picture.draw(self._seen, str(self._path))
            self._write(argument or "frames.png", picture)
        elif name == "/attention":
            self._draw_attention(argument or "attention.png")
        elif name == "/save":
            self._save(argument or "conversation.json")
        elif name == "/video" and argument:
            self.open(argument)
        else:
            self._say(f"{name}: no such command, or its file is missing.\n{HELP}")

    def _draw_attention(self, file: str) -> None:
        """Of the first clip, where several are shown; the mean of layers and heads."""
        engine, turns = self._session.engine, self._session.turns
        if not turns or not turns[-1].ids:
            self._say("nothing was said yet whose attention could be drawn")
            return
        clip, mask = self._seen.frames[0], self._seen.mask[0]
        parts = engine.model, engine.tokenizer, engine.template
        attention = answer_attention(*parts, clip, mask, turns)
        shares = attention.frames.mean(0)[:, mask]
        question = turns[-1].question
        self._write(file, frame_map.draw(
            shares, clip[mask], attention.pieces, title=question, unit="attention",
        ))  # fmt: skip

    def _save(self, file: str) -> None:
        """Writes what `annotations.read.read_llava` reads as this conversation."""
        decode = self._session.engine.tokenizer.decode
        asked = [(turn.question, text_of(decode, turn.ids)) for turn in self._session.turns]
        turns = tuple(Turn(q.strip(), a.strip()) for q, a in asked if a.strip())
        if not turns:
            self._say("nothing was said yet that could be saved")
            return
        caption = " ".join(turn.answer for turn in turns)
        name = self._path.name
        content = write_llava([Example(self._path.stem, name, turns, caption)])
        try:
            llava_example(json.loads(content)[0])
        except AnnotationError as error:
            raise AnnotationError(f"this conversation, for {file}: {error}") from error
        self._write(file, content)
        left = len(asked) - len(turns)
        self._say(
            f"{len(turns)} turns; the folder of its video is {self._path.absolute().parent}"
            + (f"; {left} empty answers are left out" if left else "")
        )

    def _write(self, file: str, content: bytes) -> None:
        path = Path(file).expanduser().absolute()
        if path.exists() and path not in self._written:
            self._say(f"{path}: is there already; remove it or give another name")
            return
        write_bytes(path, content, advice="Give another name")
        self._written.add(path)
        self._say(f"{path}: written")


def lines_of(stream: TextIO) -> Callable[[], str]:
    """A reader for `Talk.run`: with editing and a prompt where a person types."""
    if stream is sys.stdin and stream.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, from now on `input` edits lines
        return lambda: input("> ")

    def read() -> str:
        line = stream.readline()
        if not line:
            raise EOFError
        return line

    return read
