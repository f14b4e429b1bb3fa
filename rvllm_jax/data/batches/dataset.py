"""Examples over a frame store: tokenized once, grouped by video, packed into sequences."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from rvllm_jax.data.batches import packing
from rvllm_jax.data.batches.clips import FrameSampling, View, evaluation_views, load_clip, read_view
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import ChatTemplateError, Template
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import Batch, Example, Turn, VisualLayout

READABLE, UNREADABLE = 0, 1  # values of Batch.errors
ERRORS = {UNREADABLE: "the frame store could not read the clip"}
INPUTS = ("video", "caption_in_slot")


class DatasetError(RvllmError, ValueError):
    """Data that does not fit together; the message lists what was given and what to do."""


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """How examples become sequences.

    layout: the visual tokens of a clip; sampling: its frames, as many as the layout has; crop: its
        side H = W, pixels. flip: mirrors one training clip in two.
    context: L, the tokens of a sequence. max_segments: so many stand behind one prefix at most.
    independent_turns: each turn is a segment of its own; False: the turns of an example follow each
        other in one, with a loss on every answer.
    input: "video", or "caption_in_slot", which puts the caption's text where the visual tokens
        would be and gives clips of no frames.
    views: the test views of a video, a key of clips.VIEWS.
    Raises DatasetError for an unknown input.
    """

    layout: VisualLayout
    sampling: FrameSampling
    crop: int
    context: int
    max_segments: int = 1
    independent_turns: bool = True
    input: str = "video"
    flip: bool = False
    views: str = "1x1"

    def __post_init__(self):
        if self.input not in INPUTS:
            raise DatasetError(f"stage.input is {self.input!r}; expected one of {INPUTS}")

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """T, H, W, 3 of a sequence's frames."""
        return self.layout.frames * (self.input == "video"), self.crop, self.crop, 3


class Dataset:
    """Examples, tokenized and packed, over a store of frames. Picklable for the workers.

    Examples of one video share sequences; where captions stand in the videos' place, each example
    counts as a video of its own. Videos are numbered in order of first appearance, and
    `first_examples` has the number of each one's first example, which names it in Batch.examples.
    Examples whose video the store has set aside are left out and listed in `left_out` {id: reason};
    how many may be is the caller's to decide.
    questions: (example, turn) of each question; it is asked alone, without history.
    prefix_length, question_length: P and Lq, the longest of all.

    store: None is allowed where captions stand in the videos' place.
    Raises PackingError for what does not fit the context, DatasetError for what does not fit
    together, both before anything is read.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        store: FrameStore | None,
        tokenizer: Tokenizer,
        template: Template,
        options: DatasetOptions,
    ):
        if options.input == "video" and store is None:
            raise DatasetError("stage.input = 'video' needs a frame store; got none")
        self.examples, self.store, self.options = list(examples), store, options
        self.left_out: dict[str, str] = {}
        groups = self._group_by_video()
        self.first_examples = [numbers[0] for numbers in groups]
        self._before, self._after = prompt.prefix_ids(tokenizer, template)
        self._captions = None
        if options.input == "caption_in_slot":
            texts = [self.examples[number].caption for number in self.first_examples]
            self._captions = [tokenizer.encode(text) for text in texts]
        owners = self._tokenize(groups, tokenizer, template)
        self.sequences = self._pack(owners)

    def steps_per_epoch(self, batch: int) -> int:
        """Batches of `batch` sequences an epoch, the last one padded with empty ones."""
        return -(-len(self.sequences) // batch)

    def num_steps(self, epochs: int, batch: int) -> int:
        """Batches of `batch` sequences in `epochs` epochs."""
        return epochs * self.steps_per_epoch(batch)

    def video_name(self, video: int) -> str:
        """The name of video number `video` in the store."""
        return self.examples[self.first_examples[video]].video

    def prefix(self, video: int) -> packing.Prefix:
        """What stands before the questions about video number `video`."""
        if self._captions is not None:
            return packing.prefix(self._before, self._after, text=self._captions[video])
        stored = self.store.entries[self.video_name(video)].num_frames
        visual = self.options.layout.filled(self.options.sampling.filled(stored))
        return packing.prefix(self._before, self._after, visual=visual)

    def views(self, video: int) -> list[View | None]:
        """The test views of video number `video`, each that differs once, with its count.

        [None], the centred clip, where the video's times cannot be read: loading that gives an
        empty sequence and a warning. Raises DatasetError where captions stand in the videos'
        place.
        """
        options = self.options
        if options.input != "video":
            raise DatasetError(
                f"stage.input = {options.input!r} has no test views; expected 'video'"
            )
        entry = self.store.entry(self.video_name(video))
        try:
            times = self.store.timestamps(self.video_name(video))
        except FrameStoreError:
            return [None]
        return evaluation_views(
            times,
            entry.height,
            entry.width,
            sampling=options.sampling,
            crop=options.crop,
            views=options.views,
        )

    def load(
        self,
        video: int,
        segments: Sequence[int],
        rng: np.random.Generator | None,
        out: np.ndarray | None = None,
        *,
        view: View | None = None,
    ) -> Batch:
        """One sequence, as types.Batch without its first dimension; video -1 gives an empty one.

        segments: their numbers among the video's. rng: chooses start and crop; None takes the
        centre. view: one of `views(video)`, shown instead. out: uint8[T, H, W, 3], where the frames
        go; made if None. A clip that cannot be read gives a sequence of zero weight, with the
        example's number and the error's code.
        """
        clip, error = None, READABLE
        if video >= 0 and self.options.input == "video":
            try:
                clip = self._read_clip(video, rng, out, view)
            except FrameStoreError as unreadable:
                logging.warning("sequence emptied: %s", unreadable)
                error = UNREADABLE
        if clip is None:
            frames = np.empty(self.options.clip_shape, np.uint8) if out is None else out
            frames[:] = 0
            clip = frames, np.zeros(len(frames), bool)
        if video < 0 or error:
            fields = packing.empty_sequence(self.options.context)
        else:
            parts = [self._segments[self._first_segment[video] + s] for s in segments]
            fields = packing.pack_sequence(self.prefix(video), parts, self.options.context)
        example = self.first_examples[video] if video >= 0 else -1
        return Batch(*clip, examples=np.int32(example), errors=np.int32(error), **fields)

    def reopened(self) -> "Dataset":
        """The same dataset with file handles of its own: a store's readers serve one thread."""
        other = copy.copy(self)
        other.store = copy.copy(self.store)
        return other

    def question_ids(self, number: int) -> np.ndarray:
        """The ids int32[n] of question `number`, up to where its answer starts."""
        return self._questions[number][0]

    @property
    def turns(self) -> list[Turn]:
        """The turn of each question."""
        return [self.examples[number].turns[turn] for number, turn in self.questions]

    @property
    def question_videos(self) -> list[int]:
        """The number of each question's video."""
        counts = np.diff(self._first_question)
        return np.repeat(np.arange(len(self.first_examples)), counts).tolist()

    def _group_by_video(self) -> list[list[int]]:
        """The numbers of each video's examples, in order of first appearance."""
        if self.options.input != "video":
            groups = {str(number): [number] for number in range(len(self.examples))}
        else:
            groups = {}
            for number, example in enumerate(self.examples):
                if example.video in self.store.bad:
                    reason = self.store.bad[example.video]
                    self.left_out[example.id] = f"{example.video}: {reason}"
                    continue
                self._check_video(example)
                groups.setdefault(example.video, []).append(number)
        if not groups:
            raise DatasetError(
                f"no example is left of {len(self.examples)} ({len(self.left_out)} with "
                "unreadable videos); see the frame store's report"
            )
        return list(groups.values())

    def _check_video(self, example: Example) -> None:
        entry, crop = self.store.entries.get(example.video), self.options.crop
        if entry is None:
            raise DatasetError(
                f"example {example.id!r}: video {example.video!r} is not in the frame store; "
                "prepare the videos again with these annotations"
            )
        if min(entry.height, entry.width) < crop:
            raise DatasetError(
                f"example {example.id!r}: a crop of {crop} pixels does not fit the stored frames "
                f"of {example.video!r}, {entry.height} x {entry.width}: lower config.data.crop, or "
                "raise config.data.short_side"
            )

    def _tokenize(self, groups, tokenizer, template) -> list[int]:
        """Fills the segments and the questions, video by video; returns each segment's example."""
        segments, questions, owners, self.questions = [], [], [], []
        ends = [(0, 0)]
        for numbers in groups:
            for number in numbers:
                turns = self.examples[number].turns
                parts = [(t,) for t in turns] if self.options.independent_turns else [turns]
                try:
                    segments += [prompt.segment_ids(tokenizer, template, part) for part in parts]
                except ChatTemplateError as error:
                    raise DatasetError(f"example {self.examples[number].id!r}: {error}") from error
                owners += [number] * len(parts)
                ids = [prompt.question_ids(tokenizer, template, turn.question) for turn in turns]
                questions += [(each, [0] * len(each)) for each in ids]
                self.questions += [(number, place) for place in range(len(turns))]
            ends.append((len(segments), len(questions)))
        self._first_segment, self._first_question = np.asarray(ends).T
        self._segments, self._questions = packing.Ragged(segments), packing.Ragged(questions)
        self.question_length = int(self._questions.lengths.max())
        return owners

    def _pack(self, owners: list[int]) -> packing.Sequences:
        context, ends = self.options.context, self._first_segment
        prefixes = np.asarray([len(self.prefix(v)) for v in range(len(self.first_examples))])
        self.prefix_length = int(prefixes.max())
        lengths = self._segments.lengths
        needed = np.repeat(prefixes, np.diff(ends)) + lengths
        if (needed > context).any():
            worst = int(needed.argmax())
            prompt_is = (
                f"example {self.examples[owners[worst]].id!r}: its prompt has {needed[worst]} "
                f"tokens ({needed[worst] - lengths[worst]} up to the video's end, {lengths[worst]} "
                f"of question and answer) where stage.input is {self.options.input!r}, "
                f"{(needed > context).sum()} prompts pass"
            )
            raise packing.ContextError(
                context, {self.options.input: (int(needed[worst]), prompt_is)}
            )
        of_video = [lengths[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
        return packing.plan_sequences(of_video, context - prefixes, self.options.max_segments)

    def _read_clip(self, video: int, rng, out, view: View | None) -> tuple[np.ndarray, np.ndarray]:
        options, name = self.options, self.video_name(video)
        if view is not None:
            return read_view(self.store, name, view, frames=options.layout.frames, out=out)
        sizes = dict(crop=options.crop, flip=options.flip)
        return load_clip(self.store, name, options.sampling, **sizes, rng=rng, out=out)
