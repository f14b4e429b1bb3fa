"""Whatever a newer version has written is refused as such, by its file, and stays as it is."""

import json

import pytest

from rvllm_jax.config.migrate import read
from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.batches.source import open_data
from rvllm_jax.data.prepare.folder import check_folder
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.evaluation.answers.answer_file import AnswerFile, read_info, read_info_if_any
from rvllm_jax.evaluation.benchmarks import open_benchmark
from rvllm_jax.evaluation.judge.verdicts import open_verdicts, read_made_with
from rvllm_jax.experiments.kept_answers import KeptAnswers
from rvllm_jax.experiments.report.results import read_results
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.experiments.saved.describe import describe_weights
from rvllm_jax.experiments.saved.open import describe_model
from rvllm_jax.system.file_layout import LayoutError
from rvllm_jax.training.workdir import claim, read_config
from rvllm_jax.weights.open import open_weights

OWN = "results/own"
# A file -> what reads it, called with the folder in which the archives lie.
READERS = {
    "run/config.json": [
        lambda folder: read(folder / "run/config.json"),
        lambda folder: read_config(folder / "run"),
        lambda folder: claim(folder / "run", {}),
        lambda folder: describe_model(folder / "run"),
        lambda folder: convert([str(folder / "run")], folder / "out"),
    ],
    "ours/model.json": [
        lambda folder: describe_model(folder / "ours"),
        lambda folder: describe_weights(open_weights(folder / "ours")),
        lambda folder: convert([str(folder / "ours")], folder / "out"),
    ],
    "prepared/test.info.json": [
        lambda folder: open_benchmark("own", folder / "prepared", split="test"),
        lambda folder: check_folder(folder / "prepared", "test", []),
    ],
    "prepared/frames/index.json": [
        lambda folder: open_benchmark("own", folder / "prepared", split="test"),
        lambda folder: FrameStore(folder / "prepared/frames"),
        lambda folder: check_folder(folder / "prepared", "train", []),
        lambda folder: write_store(
            folder / "prepared/frames", {"0.mp4": folder / "videos/0.mp4"}, StoreOptions()
        ),
        lambda folder: open_data(
            str(folder / "prepared"),
            {"train": str(folder / "prepared/train.json")},
            StoreOptions(),
            root=folder / "store",
            max_bad=0.2,
            workers=0,
        ),
    ],
    "chat/answers.jsonl.settings.json": [
        lambda folder: KeptAnswers.open(folder / "chat/answers.jsonl", {}, []),
    ],
    f"{OWN}/info.json": [
        lambda folder: read_info(folder / OWN),
        lambda folder: read_info_if_any(folder / OWN),
        lambda folder: AnswerFile(folder / OWN, {}, set()),
        lambda folder: read_results([folder / "results"]),
    ],
    f"{OWN}/judged.exact.json": [
        lambda folder: read_made_with(folder / OWN / "judged.exact.json"),
        lambda folder: open_verdicts(folder / OWN, "exact", {}),
    ],
    f"{OWN}/scores.exact.json": [lambda folder: read_results([folder / "results"])],
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_newer_layout_is_refused_by_all_that_read_it(opened, name):
    place = opened("results", *(["run"] if name.startswith(("run/", "chat/")) else []))
    path = place / name
    content = json.loads(path.read_text())
    key = "layout" if name.endswith("index.json") else "layout_number"
    path.write_text(json.dumps(content | {key: 9}))
    before = {each: each.read_bytes() for each in place.files(".")}
    for number, reader in enumerate(READERS[name]):
        with pytest.raises(LayoutError, match=f"{name}: .* of layout 9, made by a newer version"):
            reader(place.folder)
            pytest.fail(f"reader {number} of {name}")
    after = {each: each.read_bytes() for each in place.files(".") if each.name != "lock"}
    assert after.items() <= before.items()
    assert read_llava(place / "prepared/test.json")
