"""The one way from questions to answers.

    frames, questions -> `Engine` -> `Prediction`

Validation in training, the evaluation of a run, `evaluate`, `chat`, its files of questions and the
local judge all ask an `Engine`: in batches (`predict`), where a video's questions are answered
behind one copy of its prefix, or in a `Session` about one video, with turns and streaming. Both run
the functions of generation/decode.py and make one answer of several views in the same way
(generation/clip_fusion.py).
"""

import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from rvllm_jax.data.batches.clips import View
from rvllm_jax.data.batches.dataset import ERRORS, UNREADABLE
from rvllm_jax.data.batches.loader import question_batches
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import Template
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.generation import decode
from rvllm_jax.generation.clip_fusion import FUSIONS, LOCK_STEP, vote
from rvllm_jax.generation.grouping import Group, Grouping
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.generation.session import Session
from rvllm_jax.generation.streaming import read_ids
from rvllm_jax.generation.unrolled import UnrolledLlama, unroll
from rvllm_jax.hosts.sync import compiled_together
from rvllm_jax.models.kv_cache import KVCache
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.types import Questions


class Prediction(NamedTuple):
    """What a model answered to one question."""

    question: int  # its number in the dataset, or among those that were asked together
    text: str  # without outer white space
    ids: list[int]  # without what ends the answer
    failed: str = ""  # why it was not asked: no view of its video could be read
    views: tuple[View | None, ...] = ()  # those that counted; None: the centred one
    seconds: float = 0.0  # of its batch, shared among the questions


class Engine:
    """A model that answers: its arrays on their devices, its texts, and its compiled programs.

    model: with arrays or, where `with_model` gives them later, their shapes. For conversations its
        layers are best taken apart before (`unrolled.unroll`): the caller's own arrays can go then.
    config: how answers are made, where a question does not come with something else.
    fusion: how several views of a video give one answer, one of clip_fusion.FUSIONS.
    devices: the layout that the arrays lie in. A batch is split over it, and with several hosts
        each reads its share and gets all predictions; of a session the heads of the cache are split
        over the axis "tensor", where they can be, and rows are not. None: one device.
    context: tokens of a video, its questions and answers together, at most the decoder's own.
    cache_dtype: of a session's cache, bfloat16 or float32; the model's own if None. Attention is
        computed in the model's dtype all the same: bfloat16 halves the cache and costs the rounding
        of keys and values.

    Raises ValueError for another `fusion`.
    """

    def __init__(
        self,
        model: VideoLLM,
        tokenizer: Tokenizer,
        template: Template,
        *,
        config: GenerationConfig | None = None,
        fusion: str = LOCK_STEP,
        devices: Layout | None = None,
        context: int | None = None,
        cache_dtype=None,
    ):
        if fusion not in FUSIONS:
            raise ValueError(f"fusion={fusion!r}: expected one of {', '.join(FUSIONS)}")
        self.tokenizer, self.template, self.layout = tokenizer, template, model.layout
        self.config, self.fusion, self.devices = config or GenerationConfig(), fusion, devices
        self._options = dict(config=config, fusion=fusion, devices=devices, context=context)
        self._options["cache_dtype"] = cache_dtype
        self.context = min(context or model.decoder.config.context, model.decoder.config.context)
        self.vocab_size = model.decoder.config.vocab_size
        self.stop_ids = prompt.stop_ids(tokenizer, template)
        self._graph, self._arrays = nnx.split(model)
        self._is_unrolled = isinstance(model.decoder, UnrolledLlama)
        self._answering: dict[tuple[int, bool], Callable] = {}  # programs by views and blindness
        mesh = getattr(devices, "mesh", None)
        in_cache, self._in_answers = decode.shardings(mesh, model.decoder.config.kv_heads)
        read = functools.partial(decode.read_prefix, free=0, cache_dtype=cache_dtype)
        self._prefix = self._program(read, out_shardings=in_cache)
        # A conversation's own cache is given away and comes back, written in place.
        given = dict(donate_argnums=1, out_shardings=self._in_answers)
        read = functools.partial(decode.read_asked, stop_ids=self.stop_ids)
        advance = functools.partial(decode.advance, stop_ids=self.stop_ids)
        self._read = self._program(read, static_argnums=4, **given)
        self._advance = self._program(advance, static_argnums=3, **given)

    def _program(self, function: Callable, **options) -> Callable:
        graph = self._graph

        def run(arrays, *rest):
            return function(nnx.merge(graph, arrays), *rest)

        return jax.jit(run, **options)

    @property
    def model(self) -> VideoLLM:
        """The model, its layers as this engine has them."""
        return nnx.merge(self._graph, self._arrays)

    def with_model(self, model: VideoLLM) -> "Engine":
        """The same, compiled programs included, for other arrays of the same model."""
        other = copy.copy(self)
        other.__dict__.pop("_for_sessions", None)
        other._arrays = nnx.split(model)[1]
        return other

    # Batches

    def predict(
        self,
        grouping: Grouping,
        batches: Sequence[Sequence[Group]] | None = None,
        *,
        blind: bool = False,
        permute_seed: int | None = None,
    ) -> Iterator[list[Prediction]]:
        """The answers to the batches, in their order; to all questions of `grouping` by default.

        Each question is answered as if it were asked alone. Where no view of its video can be read
        its prediction has the empty text and `failed`: it stays in every denominator.

        blind: with the normalised frames zeroed. permute_seed: with the order of the frames
        permuted, by this seed.
        """
        batches = grouping.batches() if batches is None else list(batches)
        if not batches:
            return
        host, hosts = (0, 1) if self.devices is None else self.devices.share
        loaded = question_batches(
            grouping.dataset,
            grouping.rows(batches),
            batch=grouping.videos * grouping.views,
            max_questions=grouping.together,
            permute_seed=permute_seed,
            host=host,
            hosts=hosts,
        )
        last = time.perf_counter()
        for batch, questions in zip(batches, loaded, strict=True):
            tokens, ids = self.tokens(questions, views=grouping.views, blind=blind)
            now = time.perf_counter()
            seconds = (now - last) / sum(len(group.questions) for group in batch)
            last = now
            predictions = self._predictions(batch, grouping.views, tokens, ids)
            yield [prediction._replace(seconds=seconds) for prediction in predictions]

    def tokens(
        self, questions: Questions, *, views: int = 1, blind: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids int32[G, Q, max_new] of the answers to a batch of G videos in `views` rows each,
        and which question each of its rows asked, int32[G * views, Q], -1 for none; of all hosts.

        With "vote" each row answers: int32[G * views, Q, max_new].
        """
        together = views if self.fusion == LOCK_STEP else 1
        if (together, blind) not in self._answering:
            self._answering[together, blind] = self._answers(together, blind)
        answers = self._answering[together, blind]
        if self.devices is None:
            return jax.device_get(answers(self._arrays, questions))
        return self.devices.fetch(answers(self._arrays, self.devices.evaluation_batch(questions)))

    def _answers(self, views: int, blind: bool) -> Callable:
        config = self.config

        def answer(model: VideoLLM, questions: Questions):
            G, Q = len(questions.ids) // views, questions.ids.shape[1]
            number_GQ = questions.ids.reshape(G, views, Q).max(axis=1)
            return decode.generate(
                model,
                questions,
                sampling=config.sampling,
                max_new=config.max_new,
                stop_ids=self.stop_ids,
                seed=number_GQ + config.seed,
                views=views,
                blind=blind,
            ), questions.ids

        return compiled_together(self._program(answer))

    def _predictions(
        self, batch: Sequence[Group], views: int, tokens: np.ndarray, ids: np.ndarray
    ) -> Iterator[Prediction]:
        """Of a batch with `views` rows a group; `tokens` and `ids` as `tokens` gives them."""
        for number, group in enumerate(batch):
            rows = dict(enumerate(group.views, number * views))
            for place, question in enumerate(group.questions):
                read = {r: view for r, view in rows.items() if ids[r, place] == question}
                if not read:
                    yield Prediction(question, "", [], ERRORS[UNREADABLE])
                    continue
                answered = [number] if self.fusion == LOCK_STEP else list(read)
                counts = [1 if view is None else view.count for view in read.values()]
                answers = tokens[answered, place]
                prediction = self.prediction(question, answers, counts, self.config.stop)
                yield prediction._replace(views=tuple(read.values()))

    def prediction(
        self,
        question: int,
        answers: Sequence[np.ndarray],
        counts: Sequence[int],
        stop: Sequence[str],
    ) -> Prediction:
        """The answer that counts, of those that the views gave or of the one that they gave
        together: ids int32[M] each, with what ends them. counts: of the views, int[C]. stop: texts
        that end an answer, as the stop ids do."""
        ended = [decode.before_stop(ids, self.stop_ids).tolist() for ids in answers]
        read = [read_ids(self.tokenizer, ids, stop) for ids in ended]
        texts = [text.strip() for text, _ in read]
        chosen = vote(texts, counts) if len(texts) > 1 else 0
        return Prediction(question, texts[chosen], read[chosen][1])

    # Conversations

    def session(
        self, frames: np.ndarray, frame_mask: np.ndarray, counts: Sequence[int] | None = None
    ) -> Session:
        """A conversation about a video, which is encoded now.

        frames: uint8[T, H, W, 3] and frame_mask: bool[T], or [C, ...] of C views of the video,
        which give one answer by `fusion`, weighted by `counts`, int[C].
        """
        if frames.ndim == 4:
            frames, frame_mask = frames[None], frame_mask[None]
        return Session(self._for_sessions, frames, frame_mask, counts)

    @functools.cached_property
    def _for_sessions(self) -> "Engine":
        """Itself where the decoder's layers are apart, else an engine of a copy where they are."""
        if self._is_unrolled:
            return self
        return Engine(unroll(self.model), self.tokenizer, self.template, **self._options)

    def read_prefix(self, questions: Questions) -> KVCache:
        """`decode.read_prefix`, compiled, as are the next two."""
        return self._prefix(self._arrays, questions)

    def read_asked(self, answers: decode.Answers, *arguments) -> decode.Answers:
        """`decode.read_asked`; it gives `answers` away."""
        return self._read(self._arrays, answers, *arguments)

    def advance(self, answers: decode.Answers, *arguments) -> decode.Answers:
        """`decode.advance`; it gives `answers` away."""
        return self._advance(self._arrays, answers, *arguments)

    def placed(self, answers: decode.Answers) -> decode.Answers:
        """Answers where the programs return them: left to itself the compiler may split what comes
        in otherwise, which then cannot be given away."""
        return answers if self._in_answers is None else jax.device_put(answers, self._in_answers)
