"""The data that crosses the rooms, the legend of dimensions and the glossary.

B sequences (clips) of a batch     T frames a clip            H, W pixels
V visual tokens a clip             L tokens a sequence        P prefix tokens
Q questions a video                D decoder width            E encoder features
N attention heads                  K key/value heads          S cache slots

example       one annotated record: a video, its turns of question and answer, and its caption
question, answer  the two texts of a turn
prediction    what a model answered; reference: the right answer that it is compared with
benchmark     a published set of questions; control: the same questions with changed input
verdict       what a judge makes of a prediction; metric: a number over many of them
split         train, validation, test, heldout: examples that are used for one purpose
frame         one picture of a video, as it is stored
clip          the T frames of a video that a model sees at once
view          where a clip is taken: its frames and the square of them; "25x1" is 25 test views
visual token  a vector of the encoder's features, spliced in among the tokens; its slot: where
prefix        what stands before the first question: system text and visual tokens
segment       a question and its answer behind a prefix; it sees the prefix and itself
sequence      one packed row of a batch: a prefix and its segments
stage         a part of training with a table of what trains, its own length, batch and input
step          one update of the parameters, of one batch
train state   parameters, statistics, optimizer state and step
checkpoint    a train state on disk, with the position in the data
run           a working directory and what trained in it; recipe: its checked configuration
host          one process of a job with its devices; mesh: all devices, by axes
"""

import dataclasses
from typing import NamedTuple

import numpy as np

PREFIX, PADDING = 0, -1  # values of `segments`; questions are 1, 2, ...
NO_SLOT = -1  # value of `slots` where a token is text

VISUAL_KINDS = ("global", "grid", "spatiotemporal")


@dataclasses.dataclass(frozen=True)
class VisualLayout:
    """Which visual tokens a clip of `frames` frames becomes, and their order.

    `global`: one token a frame (ResNetVLLM, section 3). `grid`: each frame pooled to grid x grid
    tokens, frame by frame, row by row. `spatiotemporal`: one token a frame, then grid x grid
    tokens, each one place averaged over the real frames (Video-ChatGPT, section 3.1).
    """

    kind: str
    frames: int
    grid: int = 4

    @property
    def tokens(self) -> int:
        """V, the number of visual tokens of a clip without padding."""
        return {
            "global": self.frames,
            "grid": self.frames * self.grid**2,
            "spatiotemporal": self.frames + self.grid**2,
        }[self.kind]

    def filled(self, num_frames: int) -> np.ndarray:
        """The indices `int32[n]` of the tokens that the first `num_frames` frames fill."""
        if num_frames == 0:
            return np.zeros(0, np.int32)
        if self.kind == "spatiotemporal":
            whole = np.arange(self.frames, self.tokens)
            return np.concatenate([np.arange(num_frames), whole]).astype(np.int32)
        return np.arange(num_frames * self.tokens // self.frames, dtype=np.int32)


class VideoInfo(NamedTuple):
    """What a video file declares of itself.

    Width and height are pixels as shown: after rotation, and with square pixels. Frames and
    seconds are what the header declares: 0 where it leaves them open or cannot be believed; `fps`
    is the average of the file's frames a second, 0 if unknown.
    """

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question about a video, without the video's mark, and its answer."""

    question: str
    answer: str
    kind: str = ""  # the question's type, or "" where the file gives none


@dataclasses.dataclass(frozen=True)
class Example:
    """The turns about one video, in the file's order."""

    id: str
    video: str  # file name, relative to the folder of videos
    turns: tuple[Turn, ...]
    caption: str  # as given, else the answers joined by spaces


class Batch(NamedTuple):
    """Sequences: one clip each, with one or more question-answer segments behind its prefix."""

    frames: np.ndarray  # uint8[B, T, H, W, 3]; T = 0 in a stage that reads captions instead
    frame_mask: np.ndarray  # bool[B, T]; False: padding behind a short video, or an empty row
    tokens: np.ndarray  # int32[B, L]; 0 where a slot or padding is
    slots: np.ndarray  # int32[B, L]; the visual token spliced in here, or NO_SLOT
    positions: np.ndarray  # int32[B, L]; RoPE positions, restarting at the prefix's end
    segments: np.ndarray  # int32[B, L]; PREFIX, 1.. a question, PADDING
    targets: np.ndarray  # int32[B, L]; the token that should come next
    weights: np.ndarray  # float32[B, L]; 1 where `targets` counts in the loss, else 0
    examples: np.ndarray  # int32[B]; number of the example whose video is shown, -1: empty
    errors: np.ndarray  # int32[B]; 0, or why the sequence is empty (ERRORS in batches.dataset)


class Questions(NamedTuple):
    """Clips with up to Q questions each to answer, the prefix apart from the questions."""

    frames: np.ndarray  # uint8[B, T, H, W, 3]
    frame_mask: np.ndarray  # bool[B, T]
    tokens: np.ndarray  # int32[B, P]; the prefix
    slots: np.ndarray  # int32[B, P]
    positions: np.ndarray  # int32[B, P]
    segments: np.ndarray  # int32[B, P]; PREFIX or PADDING (on the right)
    question_tokens: np.ndarray  # int32[B, Q, Lq]; questions, up to where the answer starts
    question_mask: np.ndarray  # bool[B, Q, Lq]; False: padding (on the right)
    ids: np.ndarray  # int32[B, Q]; number of the question in the split, or -1 for none
    view_counts: np.ndarray  # int32[B]; how many test clips of the video are this one
