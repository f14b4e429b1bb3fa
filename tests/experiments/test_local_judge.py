"""A model of ours as judge: it reads the text alone, and replies like any other judge."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import train
from rvllm_jax.evaluation.judge.chat import ChatJudge, NoReply
from rvllm_jax.evaluation.judge.local import LocalJudge
from rvllm_jax.evaluation.judge.prompts import Prompts
from rvllm_jax.evaluation.judging import judge_benchmark
from rvllm_jax.evaluation.score.scores import Scoring
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.streaming import text_of
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import VisualLayout

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # compiles for half a minute and more

MESSAGES = [{"role": "system", "content": "red?"}, {"role": "user", "content": "left or up?"}]
TEMPLATE, CONTEXT, MAX_NEW = TEMPLATES["short"], 128, 5


@pytest.fixture(scope="module")
def parts():
    tokenizer = train(["which way does the red circle go? it goes left and then up"] * 3, 300)
    llama = LlamaConfig(tokenizer.vocab_size, 16, 2, 4, 2, 8, 24, context=CONTEXT)
    pure = FunctionalModel.of(
        lambda rngs: VideoLLM(
            ResNetConfig((1,), False, (8,), stem="small"), llama, VisualLayout("global", 3),
            rngs=rngs,
        )
    )  # fmt: skip
    params, stats = jax.jit(pure.init)(jax.random.key(3))
    large = {n: p * 10 if n.startswith("decoder/") and p.ndim > 1 else p for n, p in params.items()}
    model = pure.merge(large, stats)
    return model, tokenizer, LocalJudge(Engine(model, tokenizer, TEMPLATE), "run, step 3", MAX_NEW)


def test_it_reads_the_messages_as_one_question_and_no_video(parts):
    model, tokenizer, ask = parts
    before, after = prompt.prefix_ids(tokenizer, TEMPLATE)
    ids = [*before, *after, *prompt.question_ids(tokenizer, TEMPLATE, "red?\n\nleft or up?")]
    start = len(ids)

    @jax.jit
    def logits(row):
        x, places = model.decoder.embed(row), jnp.arange(CONTEXT)[None]
        return model.decoder.logits(model.decoder(x, places, jnp.zeros_like(row))[0])[0]

    for _ in range(MAX_NEW):
        row = jnp.asarray([ids + [0] * (CONTEXT - len(ids))], jnp.int32)
        ids.append(int(np.argmax(logits(row)[len(ids) - 1])))
        if ids[-1] == tokenizer.eos_id:
            break
    said = [id for id in ids[start:] if id != tokenizer.eos_id]
    completion = ask(MESSAGES)
    assert completion.text == text_of(tokenizer.decode, said).strip() and said
    assert completion.model == "run, step 3"
    assert completion.tokens["prompt_tokens"] == len(tokenizer.encode("red?\n\nleft or up?"))
    assert ask(MESSAGES) == completion  # nothing is remembered


def test_too_long_a_prompt_is_no_reply(parts):
    with pytest.raises(NoReply, match="the context is 128"):
        parts[2]([{"role": "user", "content": "which way? " * 200}])


@pytest.fixture
def answered(tmp_path):
    """OUT/own with two answers."""
    folder = tmp_path / "out/own"
    folder.mkdir(parents=True)
    (folder / "info.json").write_text('{"benchmark": "own", "split": "test"}')
    line = (
        '{"question_id": "q%d", "video": "v", "question": "?", "truth": "a", "type": "", '
        '"criteria": [], "pair": "", "control": "", "answer": "b", "failed": ""}\n'
    )
    (folder / "answers.jsonl").write_text(line % 1 + line % 2)
    return folder


def test_a_judge_of_nonsense_fails_every_item_and_keeps_what_it_said(parts, answered):
    prompts = Prompts({"QA": {"user": "{answer} {prediction}?"}})
    by = ChatJudge(parts[2], "run", prompts, backend="local", parameters={}, tries=1)
    result, done = judge_benchmark(answered, by, Scoring())
    assert done.judged == 2 and result["failed"]["unjudged"] == 2
    assert result["accuracy"]["value"] is None  # what nobody could read says nothing
    assert result["judge"]["models"] == {"run, step 3": 2}


def test_the_command_tells_its_verdicts_and_nothing_of_reading_the_model(
    run_folder, answered, tmp_path
):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"QA": {"user": "{answer} {prediction}?"}}')
    done = subprocess.run(
        [sys.executable, "-m", "rvllm_jax.judge", f"--results={answered.parent}", "--tries=1",
         "--backend=local", f"--model={run_folder}", f"--prompts={prompts}", "--max_tokens=4"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "own test, judged by" in done.stdout, done.stderr
    assert not re.search(r"^I\d{4} ", done.stderr, re.MULTILINE), done.stderr


def test_no_such_model(answered, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rvllm_jax.judge", f"--results={answered.parent}",
         "--backend=local", f"--model={tmp_path}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "refused: " in done.stderr
    assert "neither a working directory" in done.stderr and "Traceback" not in done.stderr
