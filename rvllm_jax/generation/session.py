"""A conversation about one video: it is encoded once, and what was read stays in the cache.

Any number of questions and turns. The cache follows the conversation: a turn reads what is new in
its prompt, and nothing else, whatever the turns before it have become.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rvllm_jax.generation import decode, prompts
from rvllm_jax.generation.clip_fusion import VOTE
from rvllm_jax.generation.prompts import AnsweredTurn, PromptError
from rvllm_jax.generation.sampling import GenerationConfig, seen_tokens
from rvllm_jax.generation.streaming import TextStream, cut_ids, text_of
from rvllm_jax.models import kv_cache
from rvllm_jax.models.kv_cache import KVCache
from rvllm_jax.types import NO_SLOT, PREFIX

_CACHE = 128  # tokens; a cache has room for a multiple, so that few sizes are compiled
_LOOK = 16  # tokens decoded between two looks for stop strings in answers given together


class Session:
    """One video and what was said about it, in `turns`, which the caller may shorten or clear.

    engine: a `generation.engine.Engine` whose layers are apart; `Engine.session` makes sessions.
    Options of a question are the fields of GenerationConfig; the engine's config has the others.
    """

    def __init__(self, engine, frames, frame_mask, counts=None):
        self.engine, self.turns = engine, []
        self._questions = prompts.prefixes(
            engine.tokenizer, engine.template, engine.layout, frames, frame_mask, counts
        )
        self._starts = np.asarray(decode.prefix_ends(self._questions), np.int32)
        # How many answers there are to a question until they have voted.
        self._voters = len(self._starts) if engine.fusion == VOTE else 1
        self._prefix = engine.read_prefix(self._questions)
        self._slots = self._prefix.segments.shape[1]
        self._cache, self._cached = None, []  # of the conversation, and the ids behind the prefix

    def wait(self) -> int:
        """Returns when the video is encoded: the tokens up to its end."""
        jax.block_until_ready(self._prefix)
        return int(self._starts.max())

    def reset(self) -> None:
        """Begins a new conversation about the same video."""
        self.turns = []

    def ask(self, question: str, **options) -> str:
        """The whole answer to the next turn, without outer white space; otherwise as `stream`."""
        if self._voters == 1:
            return "".join(self.stream(question, **options)).strip()
        config, question = self._config(options), prompts.without_mark(question)
        asked = [self._prompt(question, self.turns)]
        (prediction,) = self._predict(asked, [config.seed], config)
        self.turns.append(AnsweredTurn(question, prediction.ids))
        return prediction.text

    def stream(self, question: str, **options) -> Iterator[str]:
        """The next turn's answer, piece by piece, in whole characters.

        It ends with one of the engine's stop ids or of the strings `stop`, or after `max_new`
        tokens, fewer where the context ends. Closed or interrupted before, the turn keeps what was
        said. Raises SamplingError for an option out of its range and, before anything is computed,
        PromptError: also where several views vote, since what they say is known when the last of
        them has ended.
        """
        config = self._config(options)
        if self._voters > 1:
            raise PromptError(
                f"an answer that {self._voters} views vote on cannot be shown while it is written: "
                "ask for whole answers, or let the views write one together (lock_step)"
            )
        question = prompts.without_mark(question)
        prompt = self._prompt(question, self.turns)
        config = dataclasses.replace(config, max_new=min(config.max_new, self._room(prompt)))
        return self._stream(question, prompt, config)

    def _stream(self, question, prompt, config):
        text = TextStream(self.engine.tokenizer.decode, config.stop)
        answers = self._begin(prompt, config)
        ids: list[int] = []
        try:
            while True:
                token = int(answers.tokens_AM[0, int(answers.step) - 1])
                if token in self.engine.stop_ids:
                    break
                ids.append(token)
                if piece := text.add(token):
                    yield piece
                if text.stopped or len(ids) == config.max_new:
                    break
                answers = self._go_on(answers, prompt, ids, config.sampling)
            if piece := text.finish():
                yield piece
        finally:
            if text.stopped:
                ids = cut_ids(self.engine.tokenizer, ids, text.text)
            self.turns.append(AnsweredTurn(question, ids))

    def answers(self, questions: Sequence[str], **options) -> list[str]:
        """The texts of `predict`."""
        return [prediction.text for prediction in self.predict(questions, **options)]

    def predict(
        self, questions: Sequence[str], *, seeds: Sequence[int] | None = None, **options
    ) -> list:
        """A `Prediction` for each of several questions, asked apart, without history, and decoded
        together.

        They share the video's cache and leave the conversation as it is; each is what `ask` says
        to the question alone. seeds: one a question; by default question number n gets the seed of
        the options + n. Raises as `stream` does.
        """
        config = self._config(options)
        asked = [self._prompt(question, []) for question in questions]
        if not asked:
            return []
        if seeds is None:
            seeds = [config.seed + number for number in range(len(asked))]
        return self._predict(asked, seeds, config)

    def _predict(self, asked, seeds, config):
        engine, count = self.engine, len(asked)
        limits = [min(config.max_new, self._room(ids)) for ids in asked]
        asked = [*asked, *[asked[0]] * (prompts.batch_size(count) - count)]
        most = max(limits)
        cache = self._grown(self._prefix, max(map(len, asked)) + most, len(asked))
        answers = self._unanswered(asked, cache, config, most, np.resize(seeds, len(asked)))
        padding = np.tile(np.arange(len(asked)) >= count, self._voters)
        answers = engine.placed(answers._replace(ended_A=jnp.asarray(padding)))
        answers = engine.read_asked(answers, *self._rows(asked), config.sampling)
        until, at_once = 0, _LOOK if config.stop else most
        while True:
            until = min(until + at_once, most)
            answers = engine.advance(answers, until, config.sampling)
            tokens = np.asarray(answers.tokens_AM)[:, : int(answers.step)]
            stopped = [self._has_stopped(ids, config.stop) for ids in tokens]
            ended = np.asarray(answers.ended_A) | stopped
            if until == most or ended.all():
                break
            answers = engine.placed(answers._replace(ended_A=jnp.asarray(ended)))
        tokens = tokens.reshape(self._voters, len(asked), -1)
        counts = self._questions.view_counts
        return [
            engine.prediction(n, tokens[:, n, :limit], counts, config.stop)
            for n, limit in enumerate(limits)
        ]

    def _config(self, options: dict) -> GenerationConfig:
        return dataclasses.replace(self.engine.config, **options)

    def _has_stopped(self, ids: np.ndarray, stop: tuple[str, ...]) -> bool:
        """Whether one of the texts `stop` is in an answer."""
        if not stop:
            return False
        text = text_of(self.engine.tokenizer.decode, decode.before_stop(ids, self.engine.stop_ids))
        return any(each in text for each in stop)

    def _begin(self, prompt, config) -> decode.Answers:
        """Reads what of the prompt the cache does not hold, and chooses the first token."""
        if self._cache is None:
            self._cache, self._cached = self._prefix, []
        # At least the last token is read: its logits are needed.
        kept = min(len(os.path.commonprefix([self._cached, prompt])), len(prompt) - 1)
        cache = self._grown(self._cache, len(prompt) + config.max_new)
        self._cache = None  # given away from here on; if interrupted, made anew by the next turn
        answers = self._unanswered([prompt], cache, config, config.max_new, [config.seed])
        answers = self.engine.placed(
            answers._replace(
                cache=cache._replace(length=jnp.int32(self._slots + kept)),
                position_R=answers.position_R + kept,
            )
        )
        new = self._rows([prompt[kept:]])
        answers = self.engine.read_asked(answers, *new, config.sampling)
        return self._with_cached(answers, prompt)

    def _go_on(self, answers, prompt, ids, sampling) -> decode.Answers:
        self._cache = None
        answers = self.engine.advance(answers, len(ids) + 1, sampling)
        return self._with_cached(answers, [*prompt, *ids])

    def _with_cached(self, answers, ids) -> decode.Answers:
        """Notes what the cache holds; padding behind it is written over."""
        length = jnp.int32(self._slots + len(ids))
        self._cache, self._cached = answers.cache._replace(length=length), ids
        return answers._replace(cache=self._cache)

    def _prompt(self, question: str, turns: Sequence[AnsweredTurn]) -> list[int]:
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

    def _unanswered(self, asked, cache, config, max_new, seeds) -> decode.Answers:
        count, voters, seen = len(asked), self._voters, None
        if config.sampling.repetition_penalty != 1:
            head = self._questions
            text = head.tokens[0][(head.segments[0] == PREFIX) & (head.slots[0] == NO_SLOT)]
            rows = prompts.padded([[*text, *ids] for ids in asked])
            seen = jnp.tile(seen_tokens(*rows, self.engine.vocab_size), (voters, 1))
        room = prompts.round_up(max_new, _CACHE)
        # The views of an answer: all of them, or each a group of its own, where they vote.
        counts = jnp.asarray(self._questions.view_counts, jnp.float32).reshape(voters, -1, 1)
        return decode.Answers(
            step=jnp.int32(0),
            tokens_AM=jnp.full((voters * count, room), self.engine.stop_ids[0], jnp.int32),
            ended_A=jnp.zeros(voters * count, bool),
            seeds_A=jnp.tile(jnp.asarray(np.asarray(seeds).astype(np.uint32)), voters),
            seen_AV=seen,
            weights_GCQ=jnp.tile(counts, (1, 1, count)),
            position_R=jnp.asarray(np.repeat(self._starts, count) - 1),
            cache=cache,
        )

    def _rows(self, asked) -> tuple[np.ndarray, np.ndarray]:
        """The prompts of the answers, for every view: [C * Q, L]."""
        views = len(self._starts)
        return tuple(np.tile(field, (views, 1)) for field in prompts.padded(asked))
