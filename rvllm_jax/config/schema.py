"""A checked configuration as plain values: what `config.resolve` makes of a ConfigDict."""

import dataclasses
import functools
from pathlib import Path

from rvllm_jax.config.stage import Stage
from rvllm_jax.data.batches.clips import FrameSampling
from rvllm_jax.data.batches.dataset import DatasetOptions
from rvllm_jax.models.llama_config import DECODERS, LlamaConfig
from rvllm_jax.models.lora import LoRA
from rvllm_jax.models.resnet import RESNETS, ResNetConfig
from rvllm_jax.types import VisualLayout
from rvllm_jax.weights.hf_config import read_llama_config


@dataclasses.dataclass(frozen=True)
class Data:
    """`config.data`; configs/joint.py says what each key means."""

    videos: str
    conversations: str
    validation: str
    test: str
    store: str
    max_bad: float
    frames: int
    interval: int
    stride: int
    short: str
    long: str
    short_side: int
    crop: int
    flip: bool
    encoding: str
    frames_per_record: int
    context: int
    questions: int
    independent_turns: bool
    template: str
    workers: int

    @property
    def step(self) -> int:
        """Stored frames from one frame of a clip to the next."""
        return self.interval // self.stride

    @property
    def sampling(self) -> FrameSampling:
        """Which stored frames make a clip."""
        return FrameSampling(self.frames, self.step, self.short, self.long)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """`config.tokenizer`."""

    folder: str
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class Model:
    """`config.model`."""

    encoder: str
    norm: str
    tokens: str
    grid: int
    projector: str
    decoder: str
    dtype: str
    remat: str
    loss_chunk: int
    weights: str = ""
    random: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`config.evaluation`."""

    every: int
    clips: int
    probe_videos: int
    train_videos: int
    batch: int
    test_clips: str
    max_new: int
    controls: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked configuration."""

    name: str
    seed: int
    parallel: str
    mesh: dict[str, int]
    data: Data
    tokenizer: Tokenizer
    model: Model
    stages: tuple[Stage, ...]
    evaluation: Evaluation
    checkpoint_every: int
    checkpoint_keep: int
    log_every: int
    max_skipped: int
    max_unreadable: int

    @property
    def layout(self) -> VisualLayout:
        return VisualLayout(self.model.tokens, self.data.frames, self.model.grid)

    @property
    def dataset_options(self) -> DatasetOptions:
        """How examples become sequences, of videos; a stage of captions replaces `input`."""
        data = self.data
        return DatasetOptions(
            self.layout,
            data.sampling,
            data.crop,
            data.context,
            max_segments=data.questions,
            independent_turns=data.independent_turns,
            flip=data.flip,
            views=self.evaluation.test_clips,
        )

    @property
    def resnet(self) -> ResNetConfig:
        return dataclasses.replace(RESNETS[self.model.encoder], norm=self.model.norm)

    @property
    def lora(self) -> LoRA | None:
        """The decoder's adapters: those of the stages that have some; None: of none."""
        return next((stage.lora for stage in self.stages if stage.lora is not None), None)

    @property
    def decoder_folder(self) -> tuple[str, ...]:
        """The folder that the decoder's sizes are read from; () where it has a name."""
        name = self.model.decoder
        return (name,) if name not in DECODERS and Path(name).is_dir() else ()

    @functools.cached_property
    def llama(self) -> LlamaConfig:
        """The decoder; the tiny one takes the vocabulary of the tokenizer trained for it."""
        if self.decoder_folder:
            return read_llama_config(self.model.decoder)
        decoder = DECODERS[self.model.decoder]
        if self.model.decoder == "tiny" and not self.tokenizer.folder:
            return dataclasses.replace(decoder, vocab_size=self.tokenizer.vocab_size)
        return decoder
