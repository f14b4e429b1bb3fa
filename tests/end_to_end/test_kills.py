"""Each command killed ten times at random moments and started again: the same in the end.

Twice: at moments of the time that the work takes, and before changes that it makes to files, where
a clock seldom meets it. KILLS_SEED=N repeats the moments that a failure has printed.
"""

import http.server
import json
import re
import threading
import time
from collections import Counter

import numpy as np
import pytest

from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.video import encode
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.system.lines import dump
from rvllm_jax.weights.hf_config import llama_values

pytestmark = pytest.mark.slow
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
THREADS = 4  # of judging


def write_videos(folder, count, length=12, size=16):
    folder.mkdir()
    for number in range(count):
        frames = np.zeros((length, size, size, 3), np.uint8)
        frames[:] = list(COLOURS.values())[number % 4]
        frames[:, :, : 2 * number % size] //= 2
        encode.write(folder / f"{number}.mp4", frames, fps=8)
    (folder / "bad.mp4").write_bytes(b"this is no video")
    return folder


def record(video) -> dict:
    """A LLaVA record of three questions."""
    said = []
    for question in ("What colour is it?", "Which number is this?", "What moves?"):
        said.append({"from": "human", "value": question, "type": question.split()[1]})
        said.append({"from": "gpt", "value": f"{list(COLOURS)[len(said) % 4]} {video}"})
    said[0]["value"] = "<video>\n" + said[0]["value"]
    return {"id": video, "video": f"{video}.mp4", "conversations": said}


def write_records(path, *videos):
    path.write_text(json.dumps([record(video) for video in videos]))
    return path


def test_main(killed, tmp_path):
    videos, decoder = write_videos(tmp_path / "videos", 8), tmp_path / "decoder"
    decoder.mkdir()
    sizes = llama_values(LlamaConfig(300, 16, 1, 2, 2, 8, 24, context=128), "float32")
    (decoder / "config.json").write_text(json.dumps(sizes))
    keys = {
        "model.decoder": decoder,
        "data.videos": videos,
        "data.conversations": write_records(tmp_path / "train.json", *range(6), "bad"),
        "data.validation": write_records(tmp_path / "validation.json", 6, 7),
        "data.test": write_records(tmp_path / "test.json", 5, 6, 7),
        "data.store": "{out}/store",
        **{"data.max_bad": 0.2, "data.frames": 4, "data.interval": 2, "data.stride": 2},
        **{"data.short_side": 16, "data.context": 96, "data.questions": 3},
        **{"data.workers": 0, "tokenizer.vocab_size": 300, "model.grid": 2, "log_every": 1},
        **{"schedule": "visual,joint", "checkpoint.every": 2, "evaluation.every": 2},
        **{"evaluation.batch": 8, "evaluation.max_new": 4, "evaluation.probe_videos": 1},
        **{"evaluation.controls": False, "evaluation.clips": 2, "data.crop": 16},
    }
    for stage in ("visual", "joint"):
        keys |= {f"stages.{stage}.{k}": v for k, v in dict(steps=4, batch=4, warmup=1).items()}
    argv = ["--config=configs/joint.py", "--workdir={out}/run"]
    argv += [f"--config.{key}={value}" for key, value in keys.items()]
    run = killed("main", argv, "matplotlib.pyplot", "tensorboardX.event_file_writer")
    run.unbroken()
    run.kills("time")
    run.kills("changes")


@pytest.mark.parametrize("place", ["new", "prepared"])
def test_prepare(place, killed, tmp_path):
    """Into a new folder, by a worker; and in place of a preparation of other frames, by none."""
    videos = write_videos(tmp_path / "videos", 30, 80, 96)
    asked, inputs, workers = write_records(tmp_path / "asked.json", *range(30)), None, 1
    if place == "prepared":
        inputs, workers = tmp_path / "before", 0
        options = PrepareOptions(stride=2, short_side=36, no_benchmark=True)
        assert prepare(videos, [asked], inputs, "train", options, say=lambda _: None).code == 0
    argv = [
        f"--videos={videos}", f"--annotations={asked}", "--out={out}", "--split=train", "--own",
        "--stride=1", "--short_side=96", "--encoding=raw", f"--workers={workers}",
        "--thumbnails=3",
    ]  # fmt: skip
    preparation = killed("prepare", argv, "tensorflow_datasets", inputs=inputs)
    preparation.unbroken()
    preparation.kills("time")
    preparation.kills("changes")


@pytest.fixture(scope="module")
def prepared(talker, tmp_path_factory):
    """A prepared folder of questions about the talker's videos."""
    folder = tmp_path_factory.mktemp("data")
    asked = write_records(folder / "asked.json", "a", "b", "c", "gone")
    options = PrepareOptions(
        stride=2, short_side=36, encoding="raw", interval=6, no_benchmark=True, max_bad=0.5,
        thumbnails=0,
    )  # fmt: skip
    done = prepare(talker / "videos", [asked], folder / "own", "test", options, say=lambda _: None)
    assert done.code == 0, done.verdict
    return folder


def test_evaluate(killed, talker, prepared):
    argv = [
        "--benchmarks=own", f"--data={prepared}", f"--model={talker}", "--out={out}", "--videos=1",
        "--together=2", "--controls=9",
    ]  # fmt: skip
    evaluation = killed("evaluate", argv)
    evaluation.unbroken()
    evaluation.kills("time")
    evaluation.kills("changes")


def test_chat(killed, talker, tmp_path):
    asked = [{"video": f"{v}.mp4", "question": f"what {n}?"} for n in range(8) for v in "abc"]
    asked += [{"video": "a.mp4", "questions": ["left?", "up?"]}, {"video": "no.mp4", "question": 7}]
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "questions.jsonl").write_text("".join(map(dump, asked)))
    argv = [
        "--questions={out}/questions.jsonl", "--out={out}/answers.jsonl", "--batch=1",
        f"--model={talker}", f"--videos={talker}/videos", "--max_new=8",
    ]  # fmt: skip
    chat = killed("chat", argv, code=3, inputs=tmp_path / "asked")
    chat.unbroken()
    chat.kills("time")
    chat.kills("changes")


class Endpoint(http.server.ThreadingHTTPServer):
    """Judges each item in the same way, slowly, and counts how often it has replied."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.replies = threading.Lock(), Counter()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        id = re.search(r"Item: (\w+)", body["messages"][1]["content"])[1]
        time.sleep(0.05)
        verdict = {"id": id, "pred": ("yes", "no")[int(id, 16) % 2], "score": int(id, 16) % 6}
        reply = {"model": "m", "choices": [{"message": {"content": json.dumps(verdict)}}]}
        content = json.dumps(reply).encode()
        with self.server.lock:
            self.server.replies[id] += 1
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def write_answers(folder, count):
    folder.mkdir(parents=True)
    texts = {"type": "", "pair": "", "control": "", "failed": "", "truth": "yes"}
    rows = (
        texts | {"question_id": f"q{n}", "video": f"v{n // 10}", "question": f"Is it {n}?"}
        | {"answer": f"a{n}", "criteria": []} for n in range(count)
    )  # fmt: skip
    (folder / "answers.jsonl").write_text("".join(map(dump, rows)))
    info = {"benchmark": folder.name, "split": "test", "questions": count, "model": "M"}
    (folder / "info.json").write_text(json.dumps(info))
    return folder.parent


def test_judge(killed, tmp_path):
    endpoint = Endpoint()
    argv = [
        "--results={out}", "--backend=openai", "--model=judge", "--key_env=", "--resamples=20",
        f"--base_url=http://127.0.0.1:{endpoint.server_port}/v1", f"--concurrency={THREADS}",
    ]  # fmt: skip

    def check(kills: int) -> None:
        assert len(endpoint.replies) == 120
        paid_twice = endpoint.replies.total() - len(endpoint.replies)
        assert paid_twice <= kills * THREADS, f"{paid_twice} after {kills} kills"

    inputs = write_answers(tmp_path / "answers" / "msvd_qa", 120)
    how_to = dict(inputs=inputs, check=check, cleared=endpoint.replies.clear)
    judging = killed("judge", argv, **how_to)
    judging.unbroken()
    judging.kills("time")
    judging.kills("changes")
    endpoint.shutdown()
    endpoint.server_close()


def test_judge_local(killed, talker, tmp_path):
    argv = ["--results={out}", "--backend=local", f"--model={talker}", "--name=talker"]
    argv += ["--tries=1", "--max_tokens=8", "--resamples=20"]
    inputs = write_answers(tmp_path / "answers" / "msvd_qa", 30)
    judging = killed("judge", argv, "rvllm_jax.experiments.saved.open", inputs=inputs)
    judging.unbroken()
    judging.kills("time")
    judging.kills("changes")
