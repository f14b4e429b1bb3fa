"""Examples over a frame store: tokenized once, grouped by clip, packed into rows."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from rvllm_jax.data.annotations.example import Example, Turn
from rvllm_jax.data.batches import packing
from rvllm_jax.data.batches.clips import FrameSampling, View, evaluation_views, load_clip, read_view
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import Batch, VisualLayout

READABLE, UNREADABLE = 0, 1  # values of Batch.errors
ERRORS = {UNREADABLE: "the frame store could not read the clip"}
INPUTS = ("video", "caption_in_slot")


class PipelineError(RvllmError, ValueError):
    """Data that does not fit together; says what was given and what to do."""


class Dataset:
    """Examples, tokenized and packed, over a store of frames. Picklable for the workers.

    examples: all of a split; their numbers here are those of Batch.rows and `questions`.
    store: None is allowed where input is "caption_in_slot", which puts the caption's text where
        the visual tokens would be and gives clips of no frames.
    step: stored frames between two frames of a clip. crop: H = W of the clips.
    short, long: how clips are taken from short and from long videos, as in clips.FrameSampling.
    flip: mirrors one training clip in two. test_clips: which ones `views` gives, a key of
        clips.VIEWS.
    independent_turns: each turn is a segment of its own; False: the turns of an example follow
        each other in one, with a loss on every answer.

    Examples of one video share rows. Those whose video the store has set aside are left out
    and named in `left_out` {id: reason}; how many may be is the caller's to say.
    questions: (example, turn) a question asked alone, without history.
    Raises PackingError for what does not fit the context, PipelineError for what does not fit
    together, both before anything is read.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        store: FrameStore | None,
        tokenizer: Tokenizer,
        template: prompt.Template,
        layout: VisualLayout,
        *,
        input: str = "video",
        context: int,
        max_segments: int,
        independent_turns: bool = True,
        step: int = 1,
        crop: int,
        short: str = "pad",
        long: str = "window",
        flip: bool = False,
        test_clips: str = "1x1",
    ):
        if input not in INPUTS:
            raise PipelineError(f"stage.input is {input!r}; expected one of {INPUTS}")
        if input == "video" and store is None:
            raise PipelineError("stage.input = 'video' needs a frame store; got none")
        self.examples, self.store, self.layout = list(examples), store, layout
        self.input, self.context, self.crop = input, context, crop
        self.sampling = FrameSampling(layout.frames, step, short, long)
        self.flip, self.test_clips = flip, test_clips
        self.frames = layout.frames if input == "video" else 0
        self.left_out: dict[str, str] = {}
        members = self._members()
        self.clips = [own[0] for own in members]  # the example that names each clip
        self._before, self._after = prompt.prefix_ids(tokenizer, template)
        self._captions = None
        if input == "caption_in_slot":
            texts = [self.examples[number].caption for number in self.clips]
            self._captions = [tokenizer.encode(text) for text in texts]
        owners = self._tokenize(members, tokenizer, template, independent_turns)
        self.sequences = self._plan(owners, max_segments)

    def steps_per_epoch(self, batch: int) -> int:
        """Batches of `batch` rows an epoch, the last one padded with empty rows."""
        return -(-len(self.sequences) // batch)

    def num_steps(self, epochs: int, batch: int) -> int:
        """Batches of `batch` rows in `epochs` epochs."""
        return epochs * self.steps_per_epoch(batch)

    def prefix(self, clip: int) -> packing.Prefix:
        """What stands before the questions of clip number `clip`."""
        if self._captions is not None:
            return packing.prefix(self._before, self._after, text=self._captions[clip])
        stored = self.store.entries[self._video(clip)].num_frames
        visual = self.layout.filled(self.sampling.filled(stored))
        return packing.prefix(self._before, self._after, visual=visual)

    def views(self, clip: int) -> list[View]:
        """The test clips of clip number `clip`, each once, with its count.

        Raises FrameStoreError where the video's times cannot be read, PipelineError where the
        dataset has captions in the videos' place.
        """
        if self.input != "video":
            raise PipelineError(f"stage.input = {self.input!r} has no test clips; expected 'video'")
        entry, times = (of(self._video(clip)) for of in (self.store.entry, self.store.timestamps))
        how = dict(sampling=self.sampling, crop=self.crop, views=self.test_clips)
        return evaluation_views(times, entry.height, entry.width, **how)

    def load(
        self,
        clip: int,
        segments: Sequence[int],
        rng: np.random.Generator | None,
        out: np.ndarray | None = None,
        *,
        view: View | None = None,
    ) -> Batch:
        """One row, as types.Batch without its first dimension; clip -1 gives an empty row.

        rng: chooses start and crop; None takes the centre. out: uint8[T, H, W, 3], where the frames
        go; made if None. view: one of `views(clip)`, shown instead. A clip that cannot be read
        gives a row of zero weight, its example's number and the error's code.
        """
        if clip < 0:
            return self._row(
                packing.empty_sequence(self.context), *self._no_frames(out), -1, READABLE
            )
        try:
            frames, mask = self._read(clip, rng, out, view)
        except FrameStoreError as error:
            logging.warning("row emptied: %s", error)
            fields = packing.empty_sequence(self.context)
            return self._row(fields, *self._no_frames(out), self.clips[clip], UNREADABLE)
        parts = [self._segments[self._first_segment[clip] + s] for s in segments]
        fields = packing.pack_sequence(self.prefix(clip), parts, self.context)
        return self._row(fields, frames, mask, self.clips[clip], READABLE)

    def reopened(self) -> "Dataset":
        """The same dataset with file handles of its own: a store's readers serve one thread."""
        other = copy.copy(self)
        other.store = copy.copy(self.store)
        return other

    def question(self, number: int) -> np.ndarray:
        """The ids int32[n] of question `number`, up to where its answer starts."""
        return self._asked[number][0]

    @property
    def turns(self) -> list[Turn]:
        """The turn of each question."""
        return [self.examples[number].turns[turn] for number, turn in self.questions]

    @property
    def question_videos(self) -> list[int]:
        """The number of each question's clip."""
        return np.repeat(np.arange(len(self.clips)), np.diff(self._first_question)).tolist()

    def question_groups(
        self, most: int, shown: Sequence[int] | None = None
    ) -> list[tuple[int, list[int]]]:
        """(clip, the questions asked about it), at most `most` questions each.

        shown: the clip that each question is asked about, its own by default.
        """
        about: dict[int, list[int]] = {}
        clips = self.question_videos if shown is None else shown
        for question, clip in zip(range(len(self.questions)), clips, strict=True):
            about.setdefault(clip, []).append(question)
        return [
            (clip, own[first : first + most])
            for clip, own in sorted(about.items())
            for first in range(0, len(own), most)
        ]

    def _members(self) -> list[list[int]]:
        """The examples of each clip, by number, in order of first appearance."""
        clips: dict[str | int, list[int]] = {}
        for number, example in enumerate(self.examples):
            key: str | int = number
            if self.input == "video":
                key = example.video
                if key in self.store.bad:
                    self.left_out[example.id] = f"{key}: {self.store.bad[key]}"
                    continue
                if key not in self.store.entries:
                    raise PipelineError(
                        f"example {example.id!r}: video {key!r} is not in the frame "
                        "store; prepare the videos again with these examples"
                    )
                self._check_crop(example)
            clips.setdefault(key, []).append(number)
        if not clips:
            raise PipelineError(
                f"no example is left of {len(self.examples)} ({len(self.left_out)} with "
                "unreadable videos); see the frame store's report"
            )
        return list(clips.values())

    def _check_crop(self, example: Example) -> None:
        entry = self.store.entries[example.video]
        if min(entry.height, entry.width) < self.crop:
            raise PipelineError(
                f"example {example.id!r}: a crop of {self.crop} pixels does not fit the "
                f"stored frames of {example.video!r}, {entry.height} x {entry.width}: "
                "lower config.data.crop, or raise config.data.short_side"
            )

    def _tokenize(self, members, tokenizer, template, independent_turns: bool) -> list[int]:
        """Fills the segments and the questions, clip by clip; returns each segment's owner."""
        segments, asked, owners, self.questions = [], [], [], []
        ends = [(0, 0)]
        for own in members:
            for number in own:
                turns = self.examples[number].turns
                parts = [(turn,) for turn in turns] if independent_turns else [turns]
                try:
                    segments += [prompt.segment_ids(tokenizer, template, part) for part in parts]
                except prompt.ChatError as error:
                    raise PipelineError(f"example {self.examples[number].id!r}: {error}") from error
                owners += [number] * len(parts)
                ids = [prompt.question_ids(tokenizer, template, turn.question) for turn in turns]
                asked += [(each, [0] * len(each)) for each in ids]
                self.questions += [(number, place) for place in range(len(turns))]
            ends.append((len(segments), len(asked)))
        self._first_segment, self._first_question = np.asarray(ends).T
        self._segments, self._asked = packing.Ragged(segments), packing.Ragged(asked)
        return owners

    def _plan(self, owners: list[int], max_segments: int) -> packing.Sequences:
        prefixes = np.asarray([len(self.prefix(clip)) for clip in range(len(self.clips))])
        lengths = self._segments.lengths
        ends = self._first_segment
        needed = np.repeat(prefixes, np.diff(ends)) + lengths
        if (needed > self.context).any():
            worst = int(needed.argmax())
            raise packing.PackingError(
                f"example {self.examples[owners[worst]].id!r}: its prompt has "
                f"{needed[worst]} tokens ({needed[worst] - lengths[worst]} up to the video's end, "
                f"{lengths[worst]} of question and answer), {(needed > self.context).sum()} "
                f"prompts pass config.data.context = {self.context}: raise it to {needed[worst]} "
                "or more"
            )
        own = [lengths[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self.prefix_length = int(prefixes.max())
        self.question_length = int(self._asked.lengths.max())
        return packing.plan_sequences(own, self.context - prefixes, max_segments)

    def _video(self, clip: int) -> str:
        return self.examples[self.clips[clip]].video

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """T, H, W, 3 of a row's frames."""
        return self.frames, self.crop, self.crop, 3

    def _no_frames(self, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        frames = np.empty(self.frames_shape, np.uint8) if out is None else out
        frames[:] = 0
        return frames, np.zeros(self.frames, bool)

    def _read(self, clip: int, rng, out, view: View | None) -> tuple[np.ndarray, np.ndarray]:
        if self.input != "video":
            return self._no_frames(out)
        if view is not None:
            return read_view(self.store, self._video(clip), view, frames=self.frames, out=out)
        how = dataclasses.asdict(self.sampling) | {"crop": self.crop, "flip": self.flip}
        return load_clip(self.store, self._video(clip), **how, rng=rng, out=out)

    @staticmethod
    def _row(fields: dict, frames, mask, number: int, error: int) -> Batch:
        return Batch(frames, mask, examples=np.int32(number), errors=np.int32(error), **fields)
