"""A conversation about one video: it is encoded once, and what was read stays in the cache.

An `Engine` holds a model's compiled programs; each `Session` of it is one video, with any number of
questions and turns. The cache follows the conversation: a turn reads what is new in its prompt, and
nothing else, whatever the turns before it have become.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rvllm_jax.data.text import prompt as chat
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.generation import decode, prompts
from rvllm_jax.generation.prompts import PromptError, Turn
from rvllm_jax.generation.sampling import GREEDY, Sampling, seen_tokens
from rvllm_jax.generation.streaming import TextStream, cut_ids
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.models import kv_cache
from rvllm_jax.models.kv_cache import KVCache
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import NO_SLOT, PREFIX

__all__ = ["Engine", "PromptError", "Session", "Turn"]
_CACHE = 128  # tokens; a cache has room for a multiple, so that few sizes are compiled
_LOOK = 16  # tokens decoded between two looks for stop strings in answers given together


class Engine:
    """A model that answers: its arrays, its layers taken apart once, and its compiled programs.

    context: tokens of a video, its questions and answers together, at most the decoder's own.
    cache_dtype: bfloat16 or float32; the model's own if None. Attention is computed in the model's
        dtype all the same: bfloat16 halves the cache and costs the rounding of keys and values.
    mesh: that the model's arrays lie on, if they lie on several devices; the heads of the cache are
        then split over its axis "tensor", where they can be. Rows are not split.
    """

    def __init__(
        self,
        model: VideoLLM,
        tokenizer: Tokenizer,
        template: chat.Template,
        *,
        context: int | None = None,
        cache_dtype=None,
        mesh: Mesh | None = None,
    ):
        self.tokenizer, self.template, self.layout = tokenizer, template, model.layout
        self.context = min(context or model.decoder.config.context, model.decoder.config.context)
        self.vocab_size = model.decoder.config.vocab_size
        self.stop_ids = chat.stop_ids(tokenizer, template)
        graph, self._arrays = nnx.split(unroll(model))
        in_cache, self._in_answers = decode.places(mesh, model.decoder.config.kv_heads)

        def program(function, **options):
            def run(arrays, *rest):
                return function(nnx.merge(graph, arrays), *rest)

            return jax.jit(run, **options)

        read = functools.partial(decode.read_prefix, free=0, cache_dtype=cache_dtype)
        self._prefix = program(read, out_shardings=in_cache)
        # The conversation's own cache is given away and comes back, written in place.
        given = dict(donate_argnums=1, out_shardings=self._in_answers)
        self._read = program(decode.read_asked, static_argnums=(4, 5), **given)
        self._advance = program(decode.advance, static_argnums=(3, 4), **given)
        self.read_prefix = functools.partial(self._prefix, self._arrays)
        self.read_asked = functools.partial(self._read, self._arrays)
        self.advance = functools.partial(self._advance, self._arrays)

    def placed(self, answers: decode.Answers) -> decode.Answers:
        """Answers where the programs return them: left to itself the compiler may split what comes
        in otherwise, which then cannot be given away."""
        return answers if self._in_answers is None else jax.device_put(answers, self._in_answers)

    def session(
        self, frames: np.ndarray, frame_mask: np.ndarray, counts: Sequence[int] | None = None
    ) -> "Session":
        """A conversation about a video, which is encoded now.

        frames: uint8[T, H, W, 3] and frame_mask: bool[T], or [C, ...] of C clips of the video,
        which decode in lock-step (`decode.generate`), weighted by `counts`, int[C].
        """
        if frames.ndim == 4:
            frames, frame_mask = frames[None], frame_mask[None]
        return Session(self, frames, frame_mask, counts)


class Session:
    """One video and what was said about it, in `turns`, which the caller may shorten or clear."""

    def __init__(self, engine: Engine, frames, frame_mask, counts=None):
        self.engine, self.turns = engine, []
        self._questions = prompts.prefixes(
            engine.tokenizer, engine.template, engine.layout, frames, frame_mask, counts
        )
        self._starts = np.asarray(decode.prefix_ends(self._questions), np.int32)
        self._prefix = engine.read_prefix(self._questions)
        self._slots = self._prefix.segments.shape[1]
        self._cache, self._held = None, []  # of the conversation, and the ids behind the prefix

    def wait(self) -> int:
        """Returns when the video is encoded: the tokens up to its end."""
        jax.block_until_ready(self._prefix)
        return int(self._starts.max())

    def reset(self) -> None:
        """Begins a new conversation about the same video."""
        self.turns = []

    def ask(self, question: str, **options) -> str:
        """The whole answer to the next turn, without outer white space; options as in `stream`."""
        return "".join(self.stream(question, **options)).strip()

    def stream(
        self,
        question: str,
        *,
        sampling: Sampling = GREEDY,
        max_new: int = 256,
        stop: Sequence[str] = (),
        stop_ids: tuple[int, ...] = (),
        seed: int = 0,
    ) -> Iterator[str]:
        """The next turn's answer, piece by piece, in whole characters.

        It ends with one of `chat.stop_ids`, of `stop_ids` or of the strings `stop`, or after
        `max_new` tokens, fewer where the context ends. Closed or interrupted before, the turn keeps
        what was said. Raises PromptError, before anything is computed.
        """
        prompt = self._prompt(question, self.turns)
        _check_room(max_new)
        stop_ids = self._stop_ids(stop_ids)
        text = TextStream(self.engine.tokenizer.decode, stop)
        how = sampling, min(max_new, self._room(prompt)), stop_ids, seed
        return self._stream(question, prompt, text, *how)

    def _stream(self, question, prompt, text, sampling, max_new, stop_ids, seed):
        answers = self._begin(prompt, sampling, max_new, stop_ids, seed)
        said: list[int] = []
        try:
            while True:
                token = int(answers.tokens_AM[0, int(answers.step) - 1])
                if token in stop_ids:
                    break
                said.append(token)
                if piece := text.add(token):
                    yield piece
                if text.stopped or len(said) == max_new:
                    break
                answers = self._go_on(answers, prompt, said, sampling, stop_ids)
            if piece := text.finish():
                yield piece
        finally:
            if text.stopped:
                tokenizer = self.engine.tokenizer
                said = cut_ids(tokenizer.decode, tokenizer.encode, said, text.text)
            self.turns.append(Turn(question, said))

    def answers(
        self,
        questions: Sequence[str],
        *,
        sampling: Sampling = GREEDY,
        max_new: int = 256,
        stop: Sequence[str] = (),
        stop_ids: tuple[int, ...] = (),
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Answers to questions asked apart, without history, decoded together.

        They share the video's cache and leave the conversation as it is; each is what `ask` says
        to the question alone. Of one `seed`, question number n gets seed + n.
        """
        asked = [self._prompt(question, []) for question in questions]
        _check_room(max_new)
        TextStream(self.engine.tokenizer.decode, stop)  # refuses what is no stop string
        if not asked:
            return []
        count, limits = len(asked), [min(max_new, self._room(ids)) for ids in asked]
        seeds = seed + np.arange(count) if np.ndim(seed) == 0 else np.asarray(seed)
        asked += [asked[0]] * (prompts.batch_size(count) - count)
        seeds = np.resize(seeds, len(asked))
        most, stop_ids = max(limits), self._stop_ids(stop_ids)
        cache = self._grown(self._prefix, max(map(len, asked)) + most, len(asked))
        answers = self._unanswered(asked, cache, sampling, most, seeds)
        answers = self.engine.placed(answers._replace(ended_A=jnp.arange(len(asked)) >= count))
        answers = self.engine.read_asked(answers, *self._rows(asked), sampling, stop_ids)
        until, at_once = 0, _LOOK if stop else most
        while True:
            until = min(until + at_once, most)
            answers = self.engine.advance(answers, until, sampling, stop_ids)
            rows = np.asarray(answers.tokens_AM)[:count, : int(answers.step)].tolist()
            texts = [
                self._text(ids[:limit], stop, stop_ids)
                for ids, limit in zip(rows, limits, strict=True)
            ]
            ended = np.array(answers.ended_A)
            ended[:count] |= [text.stopped for text in texts]
            if until == most or ended.all():
                return [text.text.strip() for text in texts]
            answers = self.engine.placed(answers._replace(ended_A=jnp.asarray(ended)))

    def _stop_ids(self, given: Sequence[int]) -> tuple[int, ...]:
        return tuple(dict.fromkeys([*self.engine.stop_ids, *given]))

    def _text(self, ids: Sequence[int], stop, stop_ids) -> TextStream:
        """The text of an answer's ids up to the first that ends it."""
        text = TextStream(self.engine.tokenizer.decode, stop)
        for token in itertools.takewhile(lambda token: token not in stop_ids, ids):
            text.add(token)
        text.finish()
        return text

    def _begin(self, prompt, sampling, max_new, stop_ids, seed) -> decode.Answers:
        """Reads what of the prompt the cache does not hold, and chooses the first token."""
        if self._cache is None:
            self._cache, self._held = self._prefix, []
        # At least the last token is read: its logits are needed.
        kept = min(prompts.common(self._held, prompt), len(prompt) - 1)
        cache = self._grown(self._cache, len(prompt) + max_new)
        self._cache = None  # given away from here on; if interrupted, made anew by the next turn
        answers = self._unanswered([prompt], cache, sampling, max_new, [seed])
        answers = self.engine.placed(
            answers._replace(
                cache=cache._replace(length=jnp.int32(self._slots + kept)),
                position_R=answers.position_R + kept,
            )
        )
        new = self._rows([prompt[kept:]])
        return self._holding(self.engine.read_asked(answers, *new, sampling, stop_ids), prompt)

    def _go_on(self, answers, prompt, said, sampling, stop_ids) -> decode.Answers:
        self._cache = None
        answers = self.engine.advance(answers, len(said) + 1, sampling, stop_ids)
        return self._holding(answers, [*prompt, *said])

    def _holding(self, answers, ids) -> decode.Answers:
        """Notes what the cache holds; padding behind it is written over."""
        length = jnp.int32(self._slots + len(ids))
        self._cache, self._held = answers.cache._replace(length=length), ids
        return answers._replace(cache=self._cache)

    def _prompt(self, question: str, turns: Sequence[Turn]) -> list[int]:
        engine = self.engine
        sizes = dict(prefix=int(self._starts.max()), context=engine.context)
        return prompts.asked(engine.tokenizer, engine.template, question, turns, **sizes)

    def _room(self, prompt: Sequence[int]) -> int:
        return self.engine.context - int(self._starts.max()) - len(prompt)

    def _grown(self, cache: KVCache, tokens: int, times: int = 1) -> KVCache:
        """The cache, repeated, with room for so many tokens behind the prefix."""
        slots = self._slots + prompts.round_up(tokens + prompts.MULTIPLE, _CACHE)
        if times == 1 and cache is not self._prefix:
            slots = max(slots, cache.segments.shape[1])
        cache = kv_cache.grow(kv_cache.repeat(cache, times), slots)
        # Not the prefix's own array: it would be given away.
        return cache._replace(length=jnp.int32(self._slots))

    def _unanswered(self, asked, cache, sampling, max_new, seeds) -> decode.Answers:
        count, seen = len(asked), None
        if sampling.repetition_penalty != 1:
            head = self._questions
            text = head.tokens[0][(head.segments[0] == PREFIX) & (head.slots[0] == NO_SLOT)]
            seen = seen_tokens(
                *prompts.padded([[*text, *ids] for ids in asked]), self.engine.vocab_size
            )
        room = prompts.round_up(max_new, _CACHE)
        counts = jnp.asarray(self._questions.view_counts, jnp.float32)[None, :, None]
        return decode.Answers(
            step=jnp.int32(0),
            tokens_AM=jnp.full((count, room), self.engine.stop_ids[0], jnp.int32),
            ended_A=jnp.zeros(count, bool),
            seeds_A=jnp.asarray(np.asarray(seeds).astype(np.uint32)),
            seen_AV=seen,
            weights_GCQ=jnp.tile(counts, (1, 1, count)),
            position_R=jnp.asarray(np.repeat(self._starts, count) - 1),
            cache=cache,
        )

    def _rows(self, asked) -> tuple[np.ndarray, np.ndarray]:
        """The prompts of the answers, for every clip: [C * Q, L]."""
        clips = len(self._starts)
        return tuple(np.tile(field, (clips, 1)) for field in prompts.padded(asked))


def _check_room(max_new: int) -> None:
    if max_new < 1:
        raise PromptError(f"max_new={max_new}: an answer needs room for 1 token at least")
