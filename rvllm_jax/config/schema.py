"""Every key of a configuration, once: its type, unit, range and meaning; a `Recipe` holds them all.

From here come the check (check.py), the keys that `--help` lists, and the table in KEYS.md:

    python -m rvllm_jax.config.schema > rvllm_jax/config/KEYS.md
"""

import dataclasses
import functools
import os

from rvllm_jax.config.keys import key, markdown_table, path_key, section
from rvllm_jax.data.batches.clips import LONG, SHORT, VIEWS, FrameSampling
from rvllm_jax.data.batches.dataset import INPUTS, DatasetOptions
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.text.prompt import TEMPLATE_NAMES
from rvllm_jax.models.llama_config import DECODERS, LlamaConfig
from rvllm_jax.models.lora import MATRICES, LoRA
from rvllm_jax.models.projector import PROJECTOR_KINDS
from rvllm_jax.models.resnet import RESNETS, ResNetConfig
from rvllm_jax.types import VISUAL_KINDS, VisualLayout
from rvllm_jax.weights.hf_config import read_llama_config

FROZEN = "frozen"  # in a stage's table: trained by no optimizer


@dataclasses.dataclass(frozen=True)
class MeshKeys:
    """`config.mesh`: devices an axis; -1: all that remain, for one of them."""

    data: int = key("axis that splits the batch", unit="devices")
    fsdp: int = key("axis that splits the batch, parameters and moments", unit="devices")
    tensor: int = key("axis that splits heads and hidden units", unit="devices")


@dataclasses.dataclass(frozen=True)
class DataKeys:
    """`config.data`: videos, their annotations, how clips are taken and packed."""

    videos: str = path_key('a folder of videos, or "shapes": the embedded dataset')
    conversations: str = path_key("LLaVA JSON of the training videos")
    validation: str = path_key("LLaVA JSON; none: validation loss on training pairs")
    test: str = path_key("LLaVA JSON; none: only training pairs are asked")
    store: str = path_key("folder of the prepared frame stores")
    max_bad: float = key("largest share of videos that may fail to decode", least=0, below=1)
    frames: int = key("T, frames a clip", unit="frames", least=1)
    interval: int = key("distance between the frames of a clip", unit="video frames", least=1)
    stride: int = key(
        "distance between stored frames; divides `interval`", unit="video frames", least=1
    )
    short: str = key(
        "how T frames are taken of a video too short for them at `interval`", choices=SHORT
    )
    long: str = key(
        'how they are taken of a longer one: "window": at `interval` from one start; "spread": '
        "over all of the video",
        choices=LONG,
    )
    short_side: int = key("short side of the stored frames", unit="pixels", least=1)
    crop: int = key("side of a clip's frames", unit="pixels", least=1)
    flip: bool = key("mirrors half of the training clips; where no answer says left or right")
    encoding: str = key("how stored frames are encoded", choices=("raw", "jpeg"))
    frames_per_record: int = key("stored frames a record", unit="frames", least=1)
    context: int = key("L, length of a sequence", unit="tokens", least=1)
    questions: int = key(
        "most question-answer segments packed behind one video", unit="segments", least=1
    )
    independent_turns: bool = key("False: the turns of a dialogue see one another")
    template: str = key("chat template of prompts", choices=TEMPLATE_NAMES)
    workers: int = key("processes that load data; 0: threads of the main process", least=0)

    @property
    def step(self) -> int:
        """Stored frames from one frame of a clip to the next."""
        return self.interval // self.stride

    @property
    def sampling(self) -> FrameSampling:
        """Which stored frames make a clip."""
        return FrameSampling(self.frames, self.step, self.short, self.long)

    @property
    def store_options(self) -> StoreOptions:
        """How the frames of its videos are stored."""
        names = [field.name for field in dataclasses.fields(StoreOptions)]
        return StoreOptions(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class TokenizerKeys:
    """`config.tokenizer`."""

    folder: str = path_key(
        "folder of tokenizer.json or tokenizer.model; none: trained on the training text"
    )
    vocab_size: int = key("size of a trained tokenizer's vocabulary", unit="tokens")


@dataclasses.dataclass(frozen=True)
class ModelKeys:
    """`config.model`: encoder, visual tokens, projector, decoder, and how they compute."""

    encoder: str = key("the ResNet", choices=RESNETS)
    norm: str = key("norm layers of the encoder", choices=("batch", "group"))
    tokens: str = key('visual tokens of a clip; "global" is the paper\'s', choices=VISUAL_KINDS)
    grid: int = key("side of the grid of visual tokens", unit="tokens", least=1)
    projector: str = key(
        "layers from the encoder's features to the decoder's width", choices=PROJECTOR_KINDS
    )
    decoder: str = path_key(
        "a name, or a folder whose config.json has the sizes", choices=DECODERS, or_folder=True
    )
    dtype: str = key(
        "dtype of the computation and of frozen parameters",
        choices=("float32", "bfloat16", "float64"),
    )
    remat: str = key("what the backward pass recomputes", choices=("none", "dots", "full"))
    loss_chunk: int = key(
        "length of the pieces whose logits exist at once; 0: whole sequences",
        unit="tokens",
        least=0,
    )
    weights: str = path_key(
        "folders to start from, separated by commas; none: random (convert.py)", default=""
    )
    random: str = key(
        "regex of the parameters that those folders lack and that may be random", default=""
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """`sgd`: L2 decay before momentum, as torch; `adamw`: no decay on norms and biases."""

    kind: str = key("optimizer", choices=("sgd", "adamw"))
    lr: float = key("peak learning rate", least=0)
    decay: float = key("weight decay", least=0, default=0.0)
    momentum: float = key("sgd's momentum", least=0, below=1, default=0.9)
    b1: float = key("adamw's decay of the first moment", least=0, below=1, default=0.9)
    b2: float = key("adamw's decay of the second moment", least=0, below=1, default=0.999)
    eps: float = key("adamw's epsilon", least=0, default=1e-8)
    moments: str = key(
        "dtype of sgd's momentum and adamw's first moment",
        choices=("float32", "bfloat16"),
        default="float32",
    )


@dataclasses.dataclass(frozen=True)
class LoRAKeys:
    """`lora` of a stage; a `models.lora.LoRA` where it has a rank."""

    rank: int | None = key(
        "with one the decoder is frozen, and adapters beside its matrices train by the table's row "
        'of "decoder/layers/.*/lora/.*"; unset: no adapters',
        default=None,
    )
    alpha: float = key("A B is scaled by alpha / rank", default=16.0)
    targets: str = key(
        f"regex of the adapted matrices, of {', '.join(MATRICES)}", default="attention/(q|v)"
    )


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training as data. Either `steps` or `epochs` is positive; the other is 0."""

    name: str  # its key in config.stages
    input: str = key(
        '"video", or "caption_in_slot": the caption\'s text in the video\'s place', choices=INPUTS
    )
    batch: int = key("size of the global batch", unit="clips", least=1)
    table: tuple[tuple[str, str], ...] = key(
        "which parameters train: regex over whole parameter paths, and the name of an optimizer or "
        '"frozen"; the first match counts'
    )
    optimizers: dict[str, OptimizerSpec] = section(OptimizerSpec, each="NAME")
    steps: int = key("length of the stage", unit="updates", least=0, default=0)
    epochs: int = key(
        "length in passes over the training pairs, instead of `steps`", least=0, default=0
    )
    accumulate: int = key("micro-batches an update", least=1, default=1)
    warmup: int = key(
        "length of the linear warm-up of the learning rate", unit="updates", least=0, default=0
    )
    schedule: str = key(
        'learning rate after warm-up: "cosine" to zero, or "constant"',
        choices=("cosine", "constant"),
        default="cosine",
    )
    clip: float = key(
        "largest global gradient norm over all that trains; 0: no clipping", least=0, default=0.0
    )
    freeze_stats: bool = key("every BatchNorm keeps to its running statistics", default=False)
    lora: LoRA | None = section(LoRAKeys, default=None)  # None: no rank


@dataclasses.dataclass(frozen=True)
class EvaluationKeys:
    """`config.evaluation`: what is measured while training, and at its end."""

    every: int = key("updates from one validation loss to the next", unit="updates", least=1)
    clips: int = key("held-out videos of a validation loss", unit="videos", least=1)
    probe_videos: int = key(
        "validation videos asked beside each validation loss", unit="videos", least=1
    )
    train_videos: int = key("training videos asked at the end", unit="videos", least=1)
    batch: int = key("videos asked at once", unit="videos", least=1)
    test_clips: str = key("views of a video, starts x crops, asked at the end", choices=VIEWS)
    max_new: int = key("longest answer", unit="tokens", least=1)
    controls: bool = key("also asks blind, with shuffled frames and with another video's")
    fusion: str = key(
        'how several views give one answer: "lock_step": each token is chosen by the mean of their '
        'probabilities; "vote": each view answers, the answer of most counts',
        choices=("lock_step", "vote"),
        default="lock_step",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointKeys:
    """`config.checkpoint`."""

    every: int = key("updates from one checkpoint to the next", unit="updates", least=1)
    keep: int = key("checkpoints that are kept", least=1)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked configuration."""

    name: str = key("name of the recipe; runs/NAME is its working directory by default")
    seed: int = key("seed of parameters and of the order of the data", least=0, below=2**63)
    schedule: str = key("the stages to run, in this order, separated by commas")
    parallel: str = key('"jit": over the mesh; "pmap": replicated', choices=("jit", "pmap"))
    mesh: dict[str, int] = section(MeshKeys)
    data: DataKeys = section(DataKeys)
    tokenizer: TokenizerKeys = section(TokenizerKeys)
    model: ModelKeys = section(ModelKeys)
    stages: tuple[Stage, ...] = section(Stage, each="STAGE")  # those of the schedule
    evaluation: EvaluationKeys = section(EvaluationKeys)
    checkpoint: CheckpointKeys = section(CheckpointKeys)
    log_every: int = key("updates from one record of metrics to the next", unit="updates", least=1)
    max_skipped: int = key(
        "consecutive updates without a finite loss and gradient, after which training stops",
        unit="updates",
        least=1,
    )
    max_unreadable: int = key(
        "sequences of a stage whose stored frames are damaged, beyond which training stops", least=0
    )

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
    def decoder_folder(self) -> str:
        """The folder that the decoder's sizes are read from; "" where it has a name."""
        name = self.model.decoder
        return name if name not in DECODERS and os.path.isdir(name) else ""

    @functools.cached_property
    def llama(self) -> LlamaConfig:
        """The decoder; the tiny one takes the vocabulary of the tokenizer trained for it."""
        if self.decoder_folder:
            return read_llama_config(self.decoder_folder)
        decoder = DECODERS[self.model.decoder]
        if self.model.decoder == "tiny" and not self.tokenizer.folder:
            return dataclasses.replace(decoder, vocab_size=self.tokenizer.vocab_size)
        return decoder


if __name__ == "__main__":
    print(f"# Keys of a configuration\n\n{markdown_table(Recipe)}", end="")
