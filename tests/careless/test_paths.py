"""Every command and every path that it is given: in words, at once, and nothing is left behind."""

import json
import os
import subprocess

import pytest

from rvllm_jax.system.lines import dump

FOLDER, FILE = "a folder", "a file"
FULL, READ_ONLY = "a full disk", "a read-only disk"
# (command, flag, is it written, folder or file)
PATHS = [
    ("main", "workdir", True, FOLDER),
    ("main", "cache", True, FOLDER),
    ("main", "config", False, FILE),
    ("main", "config.data.videos", False, FOLDER),
    ("main", "config.data.conversations", False, FILE),
    ("main", "config.data.validation", False, FILE),
    ("main", "config.data.test", False, FILE),
    ("main", "config.data.store", True, FOLDER),
    ("main", "config.tokenizer.folder", False, FOLDER),
    ("main", "config.model.decoder", False, FOLDER),
    ("main", "config.model.weights", False, FOLDER),
    ("prepare", "videos", False, FOLDER),
    ("prepare", "annotations", False, FILE),
    ("prepare", "out", True, FOLDER),
    ("build", "manual_dir", False, FOLDER),
    ("build", "data_dir", True, FOLDER),
    ("convert", "source", False, FOLDER),
    ("convert", "out", True, FOLDER),
    ("chat", "model", False, FOLDER),
    ("chat", "questions", False, FILE),
    ("chat", "videos", False, FOLDER),
    ("chat", "out", True, FILE),
    ("evaluate", "model", False, FOLDER),
    ("evaluate", "data", False, FOLDER),
    ("evaluate", "out", True, FOLDER),
    ("judge", "results", True, FOLDER),
    ("judge predictions", "predictions", False, FILE),
    ("judge annotations", "annotations", False, FILE),
    ("judge prompts", "prompts", False, FILE),
    ("judge compare", "compare", False, FILE),
    ("report", "results", True, FOLDER),
    ("plan", "config", False, FILE),
    ("bench step", "config", False, FILE),
    ("bench step", "json", True, FILE),
    ("bench step", "cache", True, FOLDER),
    ("bench checkpoint", "folder", True, FOLDER),
    ("bench input", "store", False, FOLDER),
    ("bench load", "folder", False, FOLDER),
]
OTHERS_WORDS = {
    "prepare again": "prepare", "Judge under": "judge", "another --workdir": "main",
    "another --results": "judge", "another --data_dir": "build",
}  # fmt: skip


@pytest.fixture(scope="module")
def given(talker, tmp_path_factory):
    """{command: its arguments}, all of them right; {out} is where it writes."""
    folder = tmp_path_factory.mktemp("given")
    said = [{"from": "human", "value": "What moves?"}, {"from": "gpt", "value": "left"}]
    records = [{"id": v, "video": v, "conversations": said} for v in ("a.mp4", "b.mp4")]
    (folder / "own.json").write_text(json.dumps(records))
    (folder / "in.jsonl").write_text(dump({"video": "a.mp4", "question": "What moves?"}))
    config = "--config=configs/joint.py"
    data = [f"--config.data.videos={talker / 'videos'}",
            f"--config.data.conversations={folder / 'own.json'}"]  # fmt: skip
    return {
        "main": [config, *data, "--config.data.store={out}/store", "--workdir={out}/run"],
        "prepare": [f"--videos={talker / 'videos'}", f"--annotations={folder / 'own.json'}",
                    "--out={out}/own", "--split=test", "--workers=0"],
        "build": ["msvd_qa", f"--manual_dir={folder}", "--data_dir={out}/tfds"],
        "convert": [f"--source={talker}", "--out={out}/model"],
        "chat": [f"--model={talker}", f"--questions={folder / 'in.jsonl'}",
                 f"--videos={talker / 'videos'}", "--out={out}/answers.jsonl"],
        "evaluate": ["--benchmarks=own", f"--model={talker}", f"--data={folder}",
                     "--out={out}/results"],
        "judge": ["--results={out}/results"],
        "judge predictions": ["--results={out}/results", f"--annotations={folder / 'own.json'}",
                              "--own", "--split=test"],
        "judge annotations": ["--results={out}/results", f"--predictions={folder / 'in.jsonl'}",
                              "--own", "--split=test"],
        "judge prompts": ["--results={out}/results", "--backend=openai", "--model=none"],
        "judge compare": [],
        "report": ["--results={out}/results"],
        "plan": [config, "--topology=h200:1", "--nocompile"],
        "bench step": ["step", "--rounds=1"],
        "bench checkpoint": ["checkpoint", "--rounds=1"],
        "bench input": ["input", "--rounds=1"],
        "bench load": ["load", "--rounds=1"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """{FULL: a folder, READ_ONLY: a folder} of disks of that kind; without the right to mount,
    of read-only ones /proc alone."""
    made, mounted = {READ_ONLY: "/proc"}, []
    for name, options in ((FULL, "size=4k"), (READ_ONLY, "ro")):
        folder = tmp_path_factory.mktemp("disk")
        mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if not subprocess.run(mount, capture_output=True, check=False).returncode:
            mounted.append(folder)
            made[name] = str(folder)
            if name == FULL:
                (folder / "full").write_bytes(b"x" * 4096)
    yield made
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def wrong_paths(place, written: bool, kind: str, disks) -> dict[str, str]:
    """Paths by what is wrong with them, below `place`, which is the home folder too."""
    (place / "file").write_text("this is nothing\n")
    (place / "folder").mkdir()
    os.symlink("loop", place / "loop")
    paths = {
        "below a file": f"{place}/file/x",
        "a loop": f"{place}/loop",
        "a loop at home": "~/loop",
        "no home": "~nobody-of-that-name/x",
        "long": f"{place}/{'x' * 300}",
        "the other": f"{place}/{'file' if kind == FOLDER else 'folder'}",
    }
    if not written:
        return paths | {"missing": f"{place}/missing", "unreadable": "/proc/self/mem"}
    return paths | {name: f"{folder}/x" for name, folder in disks.items()}


QUICK = ("prepare", "build", "report")  # the others start slowly, or read a model
CASES = [
    each if each[0] in QUICK else pytest.param(*each, marks=pytest.mark.slow) for each in PATHS
]


@pytest.mark.parametrize(("name", "flag", "written", "kind"), CASES)
def test_a_path_that_is_wrong_is_refused_in_words(
    name, flag, written, kind, given, disks, command, tmp_path
):
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "out").mkdir()
    start, wrong = command(name.split()[0]), []
    for reason, path in wrong_paths(place, written, kind, disks).items():
        before = sorted(place.rglob("*"))
        others = [each.format(out=tmp_path / "out") for each in given[name]]
        others = [each for each in others if not each.startswith(f"--{flag}=")]
        code, output, seconds = start([*others, f"--{flag}={path}"], home=place)
        faults = []
        if "Traceback" in output or code not in (1, 2, 4):
            faults.append(f"code {code}")
        whole = path.replace("~/", f"{place}/")
        if whole.rstrip("x").rstrip("/")[:100] not in output:
            faults.append("the path is not named")
        faults += [f"{word!r} is {of}'s" for word, of in OTHERS_WORDS.items()
                   if word in output and of != name.split()[0]]  # fmt: skip
        if "Compiled by JAX" in output:
            faults.append("something was compiled before")
        if sorted(place.rglob("*")) != before or os.path.lexists("~"):
            faults.append("something is left")
        if faults:
            wrong.append(f"{reason}: {faults}: {output[-1200:]}")
    assert not wrong, "\n\n".join(wrong)
