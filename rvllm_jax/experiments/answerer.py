"""A saved model that is asked about loose video files: `chat`, and its files of questions."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from rvllm_jax.data.batches.loose_videos import VideoClips, load_video, load_videos
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.experiments.saved.open import ModelDescription, read_arrays
from rvllm_jax.generation import prompts
from rvllm_jax.generation.clip_fusion import LOCK_STEP
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.session import Session
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.system.page import count, size


class Answerer:
    """Sees videos as the model was trained on them; reads the model when it is first asked.

    clips: the test views of a video, a key of `clips.VIEWS`. fusion: how several give one answer,
    one of clip_fusion.FUSIONS. cache_dtype: as in `Engine`. say: takes a line of what is done.
    """

    def __init__(
        self,
        description: ModelDescription,
        *,
        clips: str = "1x1",
        fusion: str = LOCK_STEP,
        cache_dtype=None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.description, self.clips, self.fusion, self.say = description, clips, fusion, say
        self.cache_dtype = cache_dtype

    def load_video(self, path: str | Path) -> VideoClips:
        """The clips of a video file; raises VideoError or FrameStoreError."""
        return load_video(path, **self._frames())

    def load_videos(self, paths: Sequence[str | Path]) -> Iterator[VideoClips | VideoError]:
        """The clips of each file, decoded by watched processes; raises FrameStoreError."""
        return load_videos(paths, **self._frames())

    def _frames(self) -> dict:
        data = self.description.recipe.data
        return dict(
            sampling=data.sampling,
            options=data.store_options,
            crop=data.crop,
            views=self.clips,
        )

    def check(self, seen: VideoClips, question: str) -> None:
        """Refuses a first question that cannot be asked, by PromptError; needs no model."""
        recipe, tokenizer = self.description.recipe, self.description.tokenizer
        template = self.description.template
        prefix = prompts.prefix_length(tokenizer, template, recipe.layout, seen.mask)
        sizes = dict(prefix=prefix, context=recipe.llama.context)
        prompts.asked(tokenizer, template, question, [], **sizes)

    @functools.cached_property
    def engine(self) -> Engine:
        """The model itself, read now."""
        start = time.perf_counter()
        loaded = read_arrays(self.description)
        self._fingerprint = loaded.fingerprint
        sizes = [(leaf.size, leaf.nbytes) for leaf in loaded.params.values()]
        parameters, taken = map(sum, zip(*sizes, strict=True))
        engine = Engine(
            unroll(loaded.module),
            loaded.tokenizer,
            self.description.template,
            fusion=self.fusion,
            devices=loaded.layout,
            cache_dtype=self.cache_dtype,
        )
        self.say(
            f"{loaded.source}; {count(parameters)} parameters, {size(taken)}, on "
            f"{len(jax.devices())} {jax.devices()[0].device_kind}; {_since(start)}"
        )
        return engine

    @property
    def fingerprint(self) -> str:
        """Names the model's content; reads it."""
        _ = self.engine
        return self._fingerprint

    def session(self, seen: VideoClips, name: str) -> Session:
        """The video, encoded."""
        engine, start = self.engine, time.perf_counter()
        session = engine.session(seen.frames, seen.mask, seen.counts)
        tokens = session.wait()
        clips = "" if len(seen.frames) == 1 else f"{len(seen.frames)} clips, "
        self.say(
            f"{name}: {seen.info.width} x {seen.info.height}, {clips}{int(seen.mask.sum())} frames "
            f"seen, {tokens} tokens, encoded in {_since(start)}"
            + (f"; {seen.note}" if seen.note else "")
        )
        return session


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.2f} s"
