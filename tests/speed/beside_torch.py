"""Training steps beside the same model in torch: one command prints times and ratios.

    python tests/speed/beside_torch.py

The peer is transformers' ResNet, a linear projector and transformers' Llama, run eagerly with the
same weights in the same dtype. It reads a row for each question, and so encodes the video for each.
Both run in this process, in turns, so that what else runs on the machine falls on each alike.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError
from rvllm_jax.config.schema import FROZEN, Recipe, Stage
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import IMAGENET_MEAN, IMAGENET_STD
from rvllm_jax.sharding import layouts
from rvllm_jax.speed import measure as speed
from rvllm_jax.speed.step import read_recipe
from rvllm_jax.speed.step_parts import ENCODER, EVALUATION, draw_arrays, draw_batch, make_parts
from rvllm_jax.system.malloc import keep_all_freed_memory_on_cpu
from rvllm_jax.training.stages import label_parameters
from rvllm_jax.types import Batch
from rvllm_jax.weights.hf_config import llama_values
from rvllm_jax.weights.names import LLAMA, MATRIX, RESNET_HF, NameTable, Rule
from rvllm_jax.weights.save import save_published

PROJECTOR = NameTable(
    (
        Rule("weight", "projector/linear_1/kernel", MATRIX),
        Rule("bias", "projector/linear_1/bias"),
    )
)
COLUMNS = speed.Columns(
    34, {"ours": "10.1f", "torch": "10.1f", "best": "8.2f", "median": "8.2f", "goal": "7.2f"}
)
PARTS = {"encoder": RESNET_HF, "projector": PROJECTOR, "decoder": LLAMA}


def their_names(arrays: Mapping[str, jax.Array]) -> dict[str, torch.Tensor]:
    """Arrays by our paths -> tensors under the names of the Peer."""
    found = {}
    for part, table in PARTS.items():
        own = {path: x for path, x in arrays.items() if path.startswith(f"{part}/")}
        with tempfile.TemporaryDirectory() as folder:
            save_published(folder, own, table, {})
            for file in Path(folder).glob("*.safetensors"):
                found |= {f"{part}.{name}": x for name, x in load_file(file).items()}
    return found


class Peer(torch.nn.Module):
    """A video's frames and questions to the loss, as a user of torch would write it."""

    def __init__(self, resnet: ResNetConfig, llama: LlamaConfig, dtype: torch.dtype):
        super().__init__()
        values = llama_values(llama, str(dtype).removeprefix("torch."))
        expansion = 4 if resnet.bottleneck else 1
        config = transformers.ResNetConfig(
            embedding_size=resnet.widths[0],
            hidden_sizes=[width * expansion for width in resnet.widths],
            depths=list(resnet.blocks),
            layer_type="bottleneck" if resnet.bottleneck else "basic",
        )
        self.encoder = transformers.ResNetModel(config)
        self.projector = torch.nn.Linear(resnet.features, llama.width)
        self.decoder = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(values))
        for name, pixel in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(pixel, dtype=dtype).view(3, 1, 1), False)
        self.to(dtype)

    def load(self, arrays: Mapping[str, jax.Array]) -> "Peer":
        """Itself, with the arrays of our model: all of them, or RuntimeError."""
        missing, unexpected = self.load_state_dict(their_names(arrays), strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise RuntimeError(f"not the same model: missing {missing}, unexpected {unexpected}")
        return self

    def encode(self, frames: torch.Tensor):
        """transformers' output for uint8[N, H, W, 3]."""
        x = frames.permute(0, 3, 1, 2).contiguous().to(self.mean.dtype)
        return self.encoder((x / 255 - self.mean) / self.std)

    def forward(self, frames: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss of int64[B, n] questions, each behind its own uint8[B, T, H, W, 3] frames."""
        B, T = frames.shape[:2]
        pooled = self.encode(frames.flatten(0, 1)).pooler_output.reshape(B, T, -1)
        text = self.decoder.get_input_embeddings()(tokens)
        rows = torch.cat([self.projector(pooled), text], 1)
        logits = self.decoder(inputs_embeds=rows, use_cache=False).logits[:, T:-1]
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def questions_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A packed batch, questions of equal length -> frames and tokens of a row a question."""
    count = batch.segments.max()
    asked = [row[own == q + 1] for row, own in zip(batch.tokens, batch.segments, strict=True)
             for q in range(count)]  # fmt: skip
    frames = torch.tensor(batch.frames).repeat_interleave(int(count), 0)
    return frames, torch.tensor(np.stack(asked), dtype=torch.long)


class Row(NamedTuple):
    """One line of the table: what of ours runs beside what of theirs."""

    name: str
    changes: tuple[str, ...]  # of the recipe, for ours
    part: str  # of ours; theirs is of the unchanged recipe
    theirs: Callable[[Recipe], Callable[[], Any]]
    goal: str
    questions: int = 1  # of a clip, for ours


def _peer(recipe: Recipe) -> tuple[Peer, Batch]:
    arrays = draw_arrays(recipe, build_model(recipe), layouts.make("jit", recipe.mesh))
    peer = Peer(recipe.resnet, recipe.llama, getattr(torch, recipe.model.dtype))
    return peer.load(arrays["params"] | arrays["stats"]), draw_batch(recipe, recipe.stages[-1])


def _optimizers(peer: Peer, stage: Stage) -> list[torch.optim.Optimizer]:
    labels, found = label_parameters(stage, [f"{part}/kernel" for part in PARTS]), []
    for part in PARTS:
        module, label = getattr(peer, part), labels[f"{part}/kernel"]
        module.requires_grad_(label != FROZEN)
        if label == FROZEN:
            continue
        spec, weights = stage.optimizers[label], list(module.parameters())
        options = dict(lr=spec.lr * 1e-3, weight_decay=spec.decay, fused=True)  # its fastest
        if spec.kind == "sgd":
            found.append(torch.optim.SGD(weights, momentum=spec.momentum, **options))
        else:
            betas = (spec.b1, spec.b2)
            found.append(torch.optim.AdamW(weights, betas=betas, eps=spec.eps, **options))
    return found


def _their_step(number: int) -> Callable[[Recipe], Callable[[], Any]]:
    def start(recipe: Recipe):
        (peer, batch), stage = _peer(recipe), recipe.stages[number]
        optimizers, (frames, tokens) = _optimizers(peer.train(), stage), questions_of(batch)
        trained = [weight for weight in peer.parameters() if weight.requires_grad]

        def call():
            for one in optimizers:
                one.zero_grad()
            loss = peer(frames, tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, stage.clip)
            for one in optimizers:
                one.step()
            return loss.item()

        return call

    return start


def _their_encoder(recipe: Recipe):
    peer, batch = _peer(recipe)
    frames = torch.tensor(batch.frames).flatten(0, 1)

    def call():
        peer.encoder.zero_grad()
        peer.train().encode(frames).last_hidden_state.square().mean().backward()

    return call


def _their_loss(recipe: Recipe):
    peer, batch = _peer(recipe)
    frames, tokens = questions_of(batch)
    return torch.inference_mode()(lambda: peer.eval()(frames, tokens).item())


def rows_of(recipe: Recipe) -> dict[str, Row]:
    """The table's rows by their short names."""
    V, L = recipe.layout.tokens, recipe.data.context
    packed = (f"data.context={V + 7 * (L - V)}", "data.questions=7")
    first, last = (f"stage {recipe.stages[n].name}" for n in (0, -1))
    deep = ("model.encoder=resnet50",)
    return {
        "stage1": Row("stage 1", (), first, _their_step(0), "1.25"),
        "stage2": Row("stage 2", (), last, _their_step(-1), "1.40"),
        "resnet50": Row("ResNet-50, forward and backward", deep, ENCODER, _their_encoder, "1.30"),
        "evaluation": Row("evaluation, forward", (), EVALUATION, _their_loss, "1.10"),
        "packed": Row("stage 2, seven questions", packed, last, _their_step(-1), "0.25", 7),
    }


def measure(row: Row, config: str, changes: list[str], rounds: int) -> str:
    """One line: milliseconds of a question of each, and their ratio, both best and median."""
    ours = read_recipe(config, [*changes, *row.changes])
    same = ours if row.questions == 1 else read_recipe(config, changes)
    part = next(part for part in make_parts(ours) if part.name == row.part)
    times = speed.time_calls(rounds, ours=part.start().call, theirs=row.theirs(same))
    # A call of theirs is of one question a clip.
    ours, theirs = (speed.best(times, way) / part.clips for way in ("ours", "theirs"))
    ratio = speed.ratio(times, "ours", "theirs") / row.questions
    return COLUMNS.line(
        row.name,
        1e3 * ours / row.questions,
        1e3 * theirs,
        ours / row.questions / theirs,
        ratio,
        row.goal,
    )


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The report's lines, as they are known."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield COLUMNS.line("ms a question", *COLUMNS.heads)
    rows = rows_of(read_recipe(arguments.config, arguments.set))
    for name in arguments.rows or rows:
        yield measure(rows[name], arguments.config, arguments.set, arguments.rounds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/joint.py:bench")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="its keys")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each")
    short = ["stage1", "stage2", "resnet50", "evaluation", "packed"]
    parser.add_argument("--rows", nargs="*", choices=short, default=[], help="none: all")
    try:
        for line in run(parser.parse_args(argv)):
            print(line, flush=True)
    except ConfigError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    keep_all_freed_memory_on_cpu()  # as training does; the peer has it too
    main()
