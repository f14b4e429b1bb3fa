"""The recipe of the paper's size says what the paper says, and marks what it leaves open."""

import ast
from pathlib import Path

import pytest

from rvllm_jax.config.check import resolve

JOINT = Path(__file__).parents[1] / "configs" / "joint.py"


@pytest.fixture(scope="module")
def recipe(joint):
    return resolve(joint("paper"))


def test_paper_is_the_paper_s_recipe(recipe):
    """arXiv 2504.14432, section 3: SGD, then AdamW; 100 frames of 224 pixels, ResNet, Vicuna."""
    visual, joint = recipe.stages
    sgd, adamw = visual.optimizers["sgd"], joint.optimizers["adamw"]
    assert (visual.epochs, sgd.kind, sgd.lr, sgd.decay) == (150, "sgd", 0.01, 1e-4)
    assert (joint.epochs, adamw.kind, adamw.lr, adamw.decay) == (50, "adamw", 1.5e-4, 0.05)
    assert (visual.steps, joint.steps) == (0, 0) and joint.table == ((".*", "adamw"),)
    assert (recipe.data.frames, recipe.data.interval, recipe.data.crop) == (100, 6, 224)
    assert (recipe.model.encoder, recipe.model.decoder) == ("resnet50", "vicuna-7b")
    assert (recipe.layout.kind, recipe.layout.tokens) == ("global", 100)
    assert recipe.llama.vocab_size == 32000


# What the paper says, by key.
STATED = {
    *("data.frames", "data.interval", "data.crop", "model.tokens", "model.random"),
    *("stages.visual.epochs", "stages.joint.epochs", "stages.joint.table"),
}


def paper_lines() -> dict[str, str]:
    """The lines of `_paper` that set a value, by key: {"data.crop": "crop=224,"}."""
    text = JOINT.read_text()
    (paper,) = (f for f in ast.parse(text).body if getattr(f, "name", "") == "_paper")
    found = {}

    def visit(call: ast.Call, where: str):
        for keyword in call.keywords:
            key = f"{where}.{keyword.arg}"
            if isinstance(keyword.value, ast.Call) and keyword.arg != "optimizers":
                visit(keyword.value, key)
            else:
                found[key] = text.splitlines()[keyword.lineno - 1].strip()

    for node in ast.walk(paper):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".update"):
            visit(node, ast.unparse(node.func).removeprefix("config.").removesuffix(".update"))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "config.stages":
            visit(node.value, "stages")
    return found


def test_what_the_paper_leaves_open_is_written_out_and_marked_our_choice():
    lines = paper_lines()
    open_keys = {
        *("data.videos", "data.conversations", "data.template", "data.independent_turns"),
        *("model.encoder", "model.norm", "model.projector", "model.decoder", "model.dtype"),
        *(
            f"stages.{stage}.{key}"
            for stage in ("visual", "joint")
            for key in ("batch", "warmup", "schedule", "clip", "optimizers")
        ),
    }
    assert open_keys | STATED <= lines.keys()
    neither = {k for k, line in lines.items() if "changes no result" not in line} - STATED
    assert {key for key in neither if "our choice" not in lines[key]} == set()
    assert {key for key in STATED if "our choice" in lines[key]} == set()
    assert 'tokenizer.folder = "weights/vicuna-7b-v1.5"  # our choice' in JOINT.read_text()


def test_what_the_paper_leaves_open_is_chosen(recipe):
    assert recipe.tokenizer.folder == "weights/vicuna-7b-v1.5"
    assert recipe.data.videos == "data/video_instruct_100k/videos"
    assert recipe.data.conversations == "data/video_instruct_100k/train.json"
    for stage in recipe.stages:
        assert (stage.batch, stage.warmup, stage.schedule, stage.clip) == (64, 500, "cosine", 1.0)
    sgd, adamw = recipe.stages[0].optimizers["sgd"], recipe.stages[1].optimizers["adamw"]
    assert sgd.momentum == 0.9 and (adamw.b1, adamw.b2, adamw.eps) == (0.9, 0.999, 1e-8)
    assert (recipe.model.projector, recipe.model.norm) == ("linear", "batch")
    assert (recipe.model.dtype, recipe.data.template) == ("bfloat16", "vicuna_v1")
