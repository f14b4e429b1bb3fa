"""What make.py gives to the commands: small videos, questions about them, and weights."""

import json
import os
from pathlib import Path

import av
import numpy as np
from safetensors.numpy import load_file, save_file

MODIFIED = 1_700_000_000  # of all videos: a store knows them by size and time of modification
WORDS = ("red", "green", "blue", "white")
SPECIAL_AND_BYTES = 259  # the first ids of a trained tokenizer
SIZES = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", vocab_size=288,
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    intermediate_size=16, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip


def write_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    options = {"crf": "18", "preset": "ultrafast", "threads": "1"}
    with av.open(str(path), "w", format="mp4", options={"fflags": "bitexact"}) as out:
        stream = out.add_stream("libx264", rate=8, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for array in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode())
    os.utime(path, (MODIFIED, MODIFIED))


def record(number: int, video: str = "") -> dict:
    turns = [
        ("colour", "What colour is it?", WORDS[number % 4]),
        ("number", "Which number is this?", str(number)),
    ]
    said = []
    for kind, question, answer in turns:
        said.append({"from": "human", "value": question, "type": kind})
        said.append({"from": "gpt", "value": answer})
    said[0]["value"] = "<video>\n" + said[0]["value"]
    own = {"id": video or str(number), "video": video or f"{number}.mp4"}
    return own | {"caption": f"It is number {number}.", "conversations": said}


def write_videos(work: Path) -> None:
    """Eight videos and one that does not decode, and what is asked of them."""
    rng = np.random.default_rng(0)
    for number in range(8):
        small = rng.integers(0, 256, (12, 2, 2, 3), dtype=np.uint8)
        write_video(work / "videos" / f"{number}.mp4", small.repeat(8, 1).repeat(8, 2))
    bad = work / "videos" / "bad.mp4"
    bad.write_bytes(b"this is no video")
    os.utime(bad, (MODIFIED, MODIFIED))
    records = [record(number) for number in range(8)]
    broken = record(0, "bad.mp4")
    for name, own in (
        ("train", [*records[:6], broken]), ("validation", records[6:]), ("test", [*records, broken])
    ):  # fmt: skip
        (work / f"{name}.json").write_text(json.dumps(own, indent=0))


def write_many(work: Path) -> None:
    """Seventeen videos, so that one of sixteen shards holds two: the last takes long to decode."""
    rng = np.random.default_rng(2)
    for number in range(16):
        small = rng.integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
        write_video(work / "many" / f"{number:02}.mp4", small.repeat(8, 1).repeat(8, 2))
    write_video(work / "many" / "16.mp4", np.zeros((300, 256, 256, 3), np.uint8))
    records = [record(number, f"{number:02}.mp4") for number in range(17)]
    (work / "many.json").write_text(json.dumps(records, indent=0))


def write_weights(path: Path) -> None:
    """Changes exported weights: an encoder whose numbers repeat, so that they pack well, and a
    decoder whose answers are text and depend on what it sees."""
    rng, arrays = np.random.default_rng(1), load_file(path)
    for name, x in arrays.items():
        if name.startswith("encoder/") and name.endswith("kernel"):
            inputs = int(np.prod(x.shape[:-1]))
            numbers = np.resize(rng.normal(size=251), x.shape) * (2 / inputs) ** 0.5
            arrays[name] = numbers.astype(np.float32)
        elif name.startswith("decoder/") and x.ndim > 1 and "norm" not in name:
            arrays[name] = x * 4
    arrays["decoder/head/kernel"][:, :SPECIAL_AND_BYTES] = 0
    save_file(arrays, path)


def take_as_truths(test: Path, answers: Path) -> None:
    """Makes the model right about every third question, and about another third by one of the two
    rules of judging alone."""
    lines = map(json.loads, answers.read_text().splitlines())
    said = {line["question_id"]: line["answer"] for line in lines if not line["control"]}
    records, n = json.loads(test.read_text()), 0
    for own in records:
        for number, turn in enumerate(own["conversations"][1::2], 1):
            if n % 3 < 2 and said[f"{own['id']}/{number}"]:
                turn["value"] = said[f"{own['id']}/{number}"] + "." * (n % 3)
            n += 1
    test.write_text(json.dumps(records, indent=0))
