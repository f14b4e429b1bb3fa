"""A trained model, ready to be asked about loose video files."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from rvllm_jax.data.batches.loose_videos import VideoClips, load_video, load_videos
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.text.template import ChatError
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.experiments.saved.open import Described, read_arrays
from rvllm_jax.generation import prompts
from rvllm_jax.generation.prompts import PromptError
from rvllm_jax.generation.sampling import GREEDY, Sampling
from rvllm_jax.generation.session import Engine, Session

# What may be wrong with a video or a question while the model is fine.
REFUSALS = (VideoError, FrameStoreError, PromptError, ChatError)


@dataclasses.dataclass(frozen=True)
class How:
    """How answers are made: as `Session.stream` takes it. Raises ValueError for a bad value."""

    sampling: Sampling = GREEDY
    max_new: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.max_new < 1:
            raise ValueError(f"max_new={self.max_new}: an answer needs room for 1 token at least")
        if not all(self.stop):
            raise ValueError("a stop string is empty: it would end every answer at once")


class Answerer:
    """Sees videos as the model was trained on them; reads the model when it is first asked.

    clips: the test clips of a video, which answer in lock-step, a key of `data.clips.VIEWS`.
    cache_dtype: as in `Engine`. say: takes a line of what is being done.
    """

    def __init__(
        self,
        described: Described,
        *,
        clips: str = "1x1",
        cache_dtype=None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.described, self.clips, self.say = described, clips, say
        self._cache_dtype = cache_dtype

    def look(self, path: str | Path) -> VideoClips:
        """The clips of a video file; raises VideoError or FrameStoreError."""
        return load_video(path, **self._frames())

    def look_each(self, paths: Sequence[str | Path]) -> Iterator[VideoClips | VideoError]:
        """The clips of each file, decoded by watched processes; raises FrameStoreError."""
        return load_videos(paths, **self._frames())

    def _frames(self) -> dict:
        data = self.described.recipe.data
        return dict(
            sampling=data.sampling,
            options=data.store_options,
            crop=data.crop,
            views=self.clips,
        )

    def check(self, seen: VideoClips, question: str) -> None:
        """Refuses a first question that cannot be asked, by PromptError; needs no model."""
        recipe, tokenizer = self.described.recipe, self.described.tokenizer
        template = self.described.template
        prefix = prompts.prefix_length(tokenizer, template, recipe.layout, seen.mask)
        sizes = dict(prefix=prefix, context=recipe.llama.context)
        prompts.asked(tokenizer, template, question, [], **sizes)

    @functools.cached_property
    def engine(self) -> Engine:
        """The model itself, read now."""
        start = time.perf_counter()
        opened = read_arrays(self.described)
        sizes = [(leaf.size, leaf.nbytes) for leaf in opened.params.values()]
        count, taken = map(sum, zip(*sizes, strict=True))
        engine = Engine(
            opened.module,
            opened.tokenizer,
            self.described.template,
            cache_dtype=self._cache_dtype,
            mesh=opened.layout.mesh,
        )
        self.say(
            f"{opened.told}; {count / 1e6:.1f} million parameters, {taken / 1e6:,.0f} MB, on "
            f"{len(jax.devices())} {jax.devices()[0].device_kind}; {_since(start)}"
        )
        return engine

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
