"""Token ids to text while they come: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Sequence

from rvllm_jax.data.text.tokenizer import Tokenizer

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no UTF-8, or not yet


class TextStream:
    """The text of one answer.

    decode: ids to text. Parts decoded apart must join to the text of the whole, except within a
        character, as `data.tokenizer.Tokenizer.decode` does.
    stop: strings, none of them empty, that end the answer; they and what follows are no part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self._decode, self._stop = decode, tuple(stop)
        self._pending: list[int] = []  # ids whose last character may be unfinished
        self._whole = ""  # the text of all ids before them
        self._given = 0  # characters handed out
        self.stopped = False

    @property
    def text(self) -> str:
        """What was handed out."""
        return self._whole[: self._given]

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; may be empty."""
        if self.stopped:
            return ""
        self._pending.append(int(token))
        text = self._decode(self._pending)
        if text.endswith(_BROKEN):
            return ""  # the rest of the character may come
        self._pending = []
        return self._append(text)

    def finish(self) -> str:
        """What was held back; nothing comes after it."""
        last, self._pending = self._decode(self._pending), []
        new = "" if self.stopped else self._append(last)
        if self.stopped:
            return new
        start, self._given = self._given, len(self._whole)
        return new + self._whole[start:]

    def _append(self, text: str) -> str:
        self._whole += text
        ends = [self._whole.find(each, self._given) for each in self._stop]
        if ends := [end for end in ends if end >= 0]:
            end, self.stopped = min(ends), True
            self._whole = self._whole[:end]
        else:
            end = len(self._whole) - self._uncertain()
        start, self._given = self._given, end
        return self._whole[start:end]

    def _uncertain(self) -> int:
        """Characters at the end with which a stop string may begin."""
        return max(
            (
                length
                for each in self._stop
                for length in range(1, len(each))
                if self._whole.endswith(each[:length])
            ),
            default=0,
        )


def text_of(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> str:
    """The text of an answer's ids, as a stream gives it: where a model writes bytes that are no
    UTF-8, characters before them that were whole stay."""
    stream = TextStream(decode)
    return "".join([*map(stream.add, ids), stream.finish()])


def cut_ids(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """The ids of an answer that a stop string cut to `text`: as many of `ids` as give a beginning
    of it, and those of the rest."""
    texts = ((n, text_of(tokenizer.decode, ids[:n])) for n in range(len(ids), -1, -1))
    count, start = next((n, start) for n, start in texts if text.startswith(start))
    return [*ids[:count], *tokenizer.encode(text[len(start) :])]


def read_ids(
    tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()
) -> tuple[str, list[int]]:
    """The text of an answer's ids up to the first of the texts `stop`, and the ids of that text."""
    if not stop and _BROKEN not in (text := tokenizer.decode(ids)):
        return text, list(ids)  # as a stream would give it, in one call
    stream = TextStream(tokenizer.decode, stop)
    for token in ids:
        stream.add(token)
    stream.finish()
    return stream.text, cut_ids(tokenizer, ids, stream.text) if stream.stopped else list(ids)
