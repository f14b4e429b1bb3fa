"""Training from a prepared folder: the same rows as from the videos, which may be gone."""

import json
import shutil

import numpy as np
import pytest

from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.train import run
from rvllm_jax.training import metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")


def batches(experiment) -> list[bytes]:
    """All that the training rows hold, in order."""
    dataset = experiment.dataset(experiment.source.splits["train"])
    rows = [dataset.load(clip, (0, 1, 2), None) for clip in range(len(dataset.first_examples))]
    return [np.asarray(field).tobytes() for row in rows for field in row]


def test_a_prepared_folder_trains_as_its_videos_do_and_without_them(tmp_path, workplace, recipe):
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(workplace / "videos", videos)
    keys = recipe().data
    options = PrepareOptions(
        keys.stride, keys.short_side, keys.encoding, keys.frames_per_record, keys.interval,
        max_bad=0.2,
    )  # fmt: skip
    for split in ("train", "validation"):
        found = prepare(videos, [workplace / f"{split}.json"], out, split, options)
        assert found.code == 0, found.verdict
    shutil.rmtree(videos)

    brief = {"stages.visual.steps": 2, "stages.visual.warmup": 1}
    changes = {
        "data__videos": str(out),
        "data__conversations": str(out / "train.json"),
        "data__validation": str(out / "validation.json"),
    }
    prepared = recipe(**changes, evaluation__every=100, **brief)
    direct = Experiment.open(recipe(), tmp_path / "direct")
    assert batches(Experiment.open(prepared, tmp_path / "run")) == batches(direct)
    results = run(prepared, tmp_path / "run")
    assert results["counts"]["train"]["all"] == 18
    assert len([r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]) >= 2
    info = json.loads((out / "train.info.json").read_text())
    assert list(info["set_aside"]) == ["bad.mp4"] == list(direct.source.set_aside)
