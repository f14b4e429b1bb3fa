"""Makes the archive of an older layout: a small run of a commit, and what that commit did with it.

    python tests/earlier/older.py --tree=TREE --work=WORK --out=OUT

TREE is a checkout of the commit, WORK a folder that is not there yet; OUT/COMMIT.tar.xz holds:

    run/              a run that SIGTERM stopped in its second stage, parameters drawn to pack well
    store/, videos/, train.json, validation.json    what it was trained on
    command.json      the command that trains it, with @ROOT@ for TREE and @FOLDER@ for WORK
    expected/         metrics.jsonl of the run at its end, answers.json to the training questions
    ours/, prepared/  what `convert` and `prepare` wrote, where the commit has these commands

Those beside this file were made once and for all, as COMMIT in their names says.
"""

import argparse
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import inputs
import numpy as np
from absl import flags
from make import Maker

KEYS = {
    "schedule": "visual,joint", "data.videos": "@FOLDER@/videos",
    "data.conversations": "@FOLDER@/train.json", "data.validation": "@FOLDER@/validation.json",
    "data.test": "@FOLDER@/validation.json", "data.store": "@FOLDER@/store", "data.max_bad": 0.2,
    "data.frames": 3, "data.interval": 2, "data.stride": 2, "data.short_side": 16, "data.crop": 16,
    "data.context": 64, "data.questions": 2, "data.workers": 0, "tokenizer.vocab_size": 288,
    "model.grid": 1, "stages.visual.steps": 4, "stages.visual.batch": 2,
    "stages.visual.warmup": 1, "stages.joint.steps": 12, "stages.joint.batch": 2,
    "stages.joint.warmup": 2, "evaluation.every": 2, "evaluation.clips": 2,
    "evaluation.probe_videos": 1, "evaluation.batch": 4, "evaluation.max_new": 6,
    "evaluation.controls": False, "log_every": 1,
    "stages.visual.table": '(("(encoder/stem|projector)/.*","sgd"),(".*","frozen"))',
    "stages.joint.table": '(("projector/.*","visual"),("decoder/norm/.*","language"),'
    '(".*","frozen"))',
}  # fmt: skip
MAIN = ["main", "--config=@ROOT@/configs/joint.py", "--workdir=@FOLDER@/run"]
MAIN += [f"--config.{key}={value}" for key, value in KEYS.items()]
PREPARE = [
    *("prepare", "--videos=videos", "--annotations=@FOLDER@/validation.json", "--split=test"),
    *("--out=@FOLDER@/prepared", "--own", "--stride=2", "--short_side=16", "--interval=2"),
    *("--frames_per_record=17", "--thumbnails=0", "--workers=0"),
]
CONVERT = ["convert", "--source=@FOLDER@/run", "--out=@FOLDER@/ours"]


def module(name: str) -> ModuleType:
    """A module of TREE, within a process of it."""
    return import_module(f"rvllm_jax.{name}")


def draw_packable() -> None:
    """Within a process of TREE: matrices repeat a few numbers."""
    PureModel = module("models.pure").PureModel
    init, numbers = PureModel.init, np.random.default_rng(1).integers(-8, 9, 23) / 8 + 1 / 16

    def packable(self, key):
        import jax.numpy as jnp

        params, stats = init(self, key)
        for path, x in params.items():
            if x.ndim > 1 and "places" not in path:
                encoder = path.startswith("encoder")
                inputs_of = int(np.prod(x.shape[:-1])) if encoder else x.shape[-2]
                scale = 2.0 ** np.ceil(np.log2((2 / inputs_of) ** 0.5)) * (1 if encoder else 2)
                params[path] = jnp.asarray(np.resize(numbers, x.shape) * scale, x.dtype)
        return params, stats

    PureModel.init = packable


def answer(path: str) -> None:
    """Within a process of TREE: what its evaluation answers, by the newest checkpoint."""
    main, config, run, loop = map(module, ("main", "config", "experiments.run", "training.loop"))
    flags.FLAGS(sys.argv)
    recipe, workdir = config.resolve(main.CONFIG.value), Path(main.WORKDIR.value)
    experiment, restored = run.Experiment.open(recipe, workdir), {}

    def stop(trainer, arrays, position):
        restored.update(arrays)
        raise StopIteration

    loop.Trainer._run_stage = stop
    try:
        experiment.train()
    except StopIteration:
        asker = experiment.asker(restored["params"], restored["stats"])
    dataset = run.asked_datasets(experiment)["train"]
    lines = [
        {
            "video": dataset.conversations[asked.conversation].video,
            "question": asked.turn.question,
            "answer": asked.answer,
        }
        for asked in asker.ask(dataset)
    ]
    Path(path).write_text(json.dumps(lines, indent=0))


class OlderMaker(Maker):
    def start(self, command: list[str], *more: str, out=None) -> subprocess.Popen:
        texts = [text.replace("@FOLDER@", str(self.work)) for text in command]
        texts = [text.replace("@ROOT@", str(self.tree)) for text in texts]
        environment = os.environ | {"PYTHONPATH": str(self.tree), "JAX_PLATFORMS": "cpu"}
        started = [sys.executable, __file__, "--within", *more, *texts]
        return subprocess.Popen(started, cwd=self.work, env=environment, stdout=out)

    def make(self) -> str:
        inputs.write_videos(self.work)
        run = self.work / "run"

        def stopped(code: int) -> bool:
            names = [path.name for path in (run / "checkpoints").glob("*")]
            return code == 75 and 8 <= max(int(name) for name in names if name.isdigit()) < 15

        self.stop(MAIN, "run", signal.SIGTERM, (run / "best" / "joint" / "8").is_dir, stopped)
        self.aside("run", "stopped")
        (self.work / "expected").mkdir()
        process = self.start(MAIN, f"--answer={self.work}/expected/answers.json")
        assert process.wait() == 0
        (self.work / "command.json").write_text(json.dumps(MAIN, indent=0))
        names = ["run", "store", "videos", "train.json", "validation.json", "command.json"]
        if (self.tree / "rvllm_jax" / "convert.py").is_file():
            self.run(CONVERT)
            self.run(PREPARE)
            names += ["ours", "prepared"]
        self.run(MAIN)
        shutil.copy(run / "metrics.jsonl", self.work / "expected")
        shutil.rmtree(run)
        self.aside("stopped", "run")
        commit = ["git", "-C", str(self.tree), "rev-parse", "--short=7", "HEAD"]
        name = subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip()
        self.pack(name, *names, "expected")
        return name


def within(argv: list[str]) -> None:
    draw_packable()
    to = argv.pop(0).partition("=")[2] if argv[0].startswith("--answer=") else ""
    sys.argv = argv
    if to:
        answer(to)
    else:
        runpy.run_module(f"rvllm_jax.{argv[0]}", run_name="__main__", alter_sys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tree", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    began = time.time()
    print(OlderMaker(**vars(parser.parse_args())).make(), f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    within(sys.argv[2:]) if sys.argv[1:2] == ["--within"] else main()
