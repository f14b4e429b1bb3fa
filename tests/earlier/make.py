"""Makes the archives of this folder: what commands of an earlier version have written.

    python tests/earlier/make.py --tree=TREE --work=WORK --out=OUT

TREE is a checkout of the version whose files are to be kept, WORK a folder that is not there yet,
OUT the place of the archives. Those beside this file were made by the commit in `made_by.txt`, once
and for all: made again by a later version they would guard nothing. The commands are those of
`commands.json`, started in WORK; every file that names WORK has @FOLDER@ in its place in the
archives. (The videos of a prepared folder are named as they lie below WORK: evaluations and
verdicts are of questions that say why a video has none, by its name as it was given.)
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import inputs

HERE = Path(__file__).parent
COMMANDS = json.loads((HERE / "commands.json").read_text())
STAGE = 4  # updates of the first stage
TRIES = 20  # until a process is ended at the moment that is wanted


class Maker:
    def __init__(self, tree: Path, work: Path, out: Path):
        self.tree, self.work, self.out = tree.resolve(), work.resolve(), out.resolve()
        self.work.mkdir(parents=True)
        self.out.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *more: str, out=None) -> subprocess.Popen:
        texts = [text.replace("@FOLDER@", str(self.work)) for text in (*COMMANDS[name], *more)]
        texts = [text.replace("@ROOT@", str(self.tree)) for text in texts]
        command = [sys.executable, "-m", f"rvllm_jax.{texts[0]}", *texts[1:]]
        environment = os.environ | {"PYTHONPATH": str(self.tree), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(command, cwd=self.work, env=environment, stdout=out)

    def run(self, name: str, *more: str, code: int = 0) -> str:
        process = self.start(name, *more, out=subprocess.PIPE)
        told = process.communicate()[0].decode()
        if process.returncode != code:
            raise SystemExit(f"{name}: ended with {process.returncode}, expected {code}:\n{told}")
        return told

    def stop(self, name: str, made: str, number: int, ready: Callable[[], bool], stopped) -> None:
        """Ends the command by the signal `number` as soon as it is `ready`; with what it has made
        removed (a pattern), it is started again until `stopped` says that the moment was met."""
        for _ in range(TRIES):
            process = self.start(name)
            while process.poll() is None and not ready():
                time.sleep(0.0002)
            process.send_signal(number)
            process.wait()
            if stopped(process.returncode):
                return
            for path in self.work.glob(made):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise SystemExit(f"{name}: was never ended at the moment that is wanted")

    def aside(self, name: str, to: str) -> None:
        (self.work / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.work / name, self.work / to, symlinks=True)

    def pack(self, archive: str, *names: str) -> None:
        """Packs files and folders of WORK; text that names WORK names @FOLDER@."""
        here, there = str(self.work).encode(), b"@FOLDER@"
        for name in names:
            path = self.work / name
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file() and not file.is_symlink() and here in file.read_bytes():
                    status = file.stat()
                    file.write_bytes(file.read_bytes().replace(here, there))
                    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        with tarfile.open(self.out / f"{archive}.tar.xz", "w:xz", preset=9) as tar:
            for name in names:
                tar.add(self.work / name, name, filter=nobody)


def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Who made it is nobody's business, and events and pictures are written anew."""
    if entry.name.endswith((".png", "/tensorboard")) or "/tensorboard/" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def write_start(maker: Maker) -> None:
    """Weights to start from, as an exported folder: of an encoder whose numbers repeat, so that
    they pack well, and of a decoder whose answers are text and depend on what it sees."""
    work = maker.work
    (work / "start").mkdir()
    (work / "start" / "config.json").write_text(json.dumps(inputs.SIZES))
    first = ["--config.schedule=visual", "--config.stages.visual.steps=1"]
    first += ["--config.stages.visual.warmup=0", "--config.model.weights="]
    maker.run("train", *first)
    shutil.rmtree(work / "start")
    maker.run("convert", f"--out={work}/start")
    (work / "start" / "training_videos.json").unlink()
    shutil.rmtree(work / "run")
    inputs.write_weights(work / "start" / "model.safetensors")


def make_run(maker: Maker) -> None:
    """A run that SIGTERM stopped in its second stage, and what it gives when it goes on."""
    run, newest = maker.work / "run", lambda: max(map(int, os.listdir(run / "checkpoints")))
    maker.stop(
        "train", "run", signal.SIGTERM, (run / "best" / "joint" / str(STAGE + 4)).is_dir,
        lambda code: code == 75 and STAGE + 4 <= newest() < STAGE + 10,
    )  # fmt: skip
    maker.aside("run", "stopped")
    maker.run("train")
    (maker.work / "expected").mkdir()
    shutil.copy(run / "metrics.jsonl", maker.work / "expected")
    shutil.copy(run / "report" / "results.json", maker.work / "expected")
    maker.run("convert")
    maker.run("convert_decoder")
    shutil.rmtree(run)
    maker.aside("stopped", "run")


def make_chat(maker: Maker) -> None:
    """Questions about videos to the stopped run, of which some have their answers."""
    folder = maker.work / "chat"
    folder.mkdir()
    asked = [{"video": f"{n}.mp4", "question": "What colour is it?"} for n in range(8)]
    several = ["Is it red?", "Which number is this?"]
    asked[1] = {"id": "both", "video": "1.mp4", "questions": several}
    asked.append({"video": "bad.mp4", "question": "What colour is it?"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    answers = folder / "answers.jsonl"
    maker.stop(
        "chat", "chat/answers*", signal.SIGKILL, lambda: lines(answers) >= 3,
        lambda code: 3 <= lines(answers) < 7,
    )  # fmt: skip
    half = {path.name: path.read_bytes() for path in folder.glob("answers*")}
    maker.run("chat", code=3)
    shutil.copy(answers, maker.work / "expected" / "answers.jsonl")
    for name, content in half.items():
        (folder / name).write_bytes(content)


def make_results(maker: Maker) -> None:
    """A prepared folder, and an evaluation on it that was killed; then whole, and judged."""
    work = maker.work
    maker.run("prepare")
    maker.run("evaluate")
    inputs.take_as_truths(work / "test.json", work / "results" / "own" / "answers.jsonl")
    shutil.rmtree(work / "prepared")
    shutil.rmtree(work / "results")
    maker.run("prepare_training")
    maker.run("prepare")
    maker.stop(
        "evaluate", "results", signal.SIGKILL,
        lambda: lines(work / "results" / "own" / "answers.jsonl") >= 6,
        lambda code: 6 <= lines(work / "results" / "own" / "answers.jsonl") < 16,
    )  # fmt: skip
    maker.aside("results", "half")
    maker.run("evaluate")
    maker.run("judge")
    maker.run("judge_officially")
    told = {"compare": maker.run("compare")}
    maker.run("report")
    told["show_prompt"] = maker.run("show_prompt")
    (work / "told.json").write_text(json.dumps(told, indent=1))


def make_preparation(maker: Maker) -> None:
    """A preparation that was killed while it stored the second video of its last shard."""
    work = maker.work
    inputs.write_many(work)
    shutil.rmtree(work / "prepared")
    frames = work / "prepared" / "frames"

    def begun() -> list[Path]:
        return [path for path in frames.glob("journal-*") if path.stat().st_size]

    maker.stop(
        "prepare_many", "prepared", signal.SIGKILL, begun,
        lambda code: begun() and (work / "prepared" / "look.journal").is_file(),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tree", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    maker = Maker(**vars(parser.parse_args()))
    inputs.write_videos(maker.work)
    write_start(maker)
    make_run(maker)
    make_chat(maker)
    make_results(maker)
    maker.pack(
        "run", "videos", "train.json", "validation.json", "store", "run", "chat", "expected"
    )  # fmt: skip
    maker.pack(
        "results", "videos", "train.json", "test.json", "ours", "theirs", "prepared", "half",
        "results", "told.json",
    )  # fmt: skip
    make_preparation(maker)
    maker.pack("preparation", "many", "many.json", "prepared")
    commit = ["git", "-C", str(maker.tree), "rev-parse", "HEAD"]
    done = subprocess.run(commit, check=True, capture_output=True, text=True)
    (maker.out / "made_by.txt").write_text(done.stdout)


if __name__ == "__main__":
    main()
