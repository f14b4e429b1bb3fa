"""The report of a training step's time, over a model of some ten thousand parameters."""

import json
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.bench import main
from rvllm_jax.costs.chips import CHIPS
from rvllm_jax.speed import step
from rvllm_jax.speed.step_parts import draw_batch
from rvllm_jax.types import NO_SLOT, PADDING

CONFIG = f"{Path(__file__).parents[2] / 'configs' / 'joint.py'}:bench"
SMALL = (
    "model.encoder=narrow model.decoder=tiny data.frames=2 data.crop=32 data.short_side=32 "
    "data.context=32 schedule=joint stages.joint.batch=8"
).split()


def test_every_part_has_its_figures(tmp_path, capsys):
    file = tmp_path / "step.json"
    main(["step", f"--config={CONFIG}", "--rounds=1", f"--json={file}", "--set", *SMALL])
    _, heads, *lines = capsys.readouterr().out.splitlines()
    names = ["stage joint", "encoder alone", "decoder alone", "evaluation"]
    assert [line[:18].strip() for line in lines] == names and heads.endswith("first s")
    found = json.loads(file.read_text())
    assert found["config"] == "bench" and [part["name"] for part in found["parts"]] == names
    for part in found["parts"]:
        assert part["seconds"] == pytest.approx(8 / part["clips_per_second"])
        assert 0 < part["compile_seconds"] < part["first_seconds"]
        assert part["mfu"] is None and part["memory"] > 0  # no CPU's peak is known


def test_a_batch_is_full_and_questions_follow_the_video():
    recipe = step.read_recipe(CONFIG, [*SMALL, "data.context=33", "data.questions=3"])
    batch = draw_batch(recipe, recipe.stages[0])
    each = [1] * 10 + [2] * 10 + [3] * 10
    assert batch.segments[0].tolist() == [0] * 2 + each + [PADDING]
    assert batch.slots[0, :3].tolist() == [0, 1, NO_SLOT]
    assert batch.positions[0, 2:12].tolist() == batch.positions[0, 12:22].tolist()
    np.testing.assert_array_equal(batch.targets[0, 2:11], batch.tokens[0, 3:12])
    assert batch.weights[0].sum() == 3 * 9 and batch.weights[0, [11, 21, 31]].sum() == 0


def test_the_peak_is_of_the_dtype():
    assert CHIPS["h200"].flops_in("bfloat16") == 2 * CHIPS["h200"].flops_in("float32")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config=nowhere.py"], "nowhere.py: there is no such file"),
        ([f"--config={CONFIG}x"], "benchx is unknown"),
        ([f"--config={CONFIG}", "--set", "data.frame=3"], "perhaps to 'frames'"),
        ([f"--config={CONFIG}", "--set", "data.frames"], "expected KEY=VALUE"),
        ([f"--config={CONFIG}", "--set", "data.frames='x'"], "data.frames='x'"),
        ([f"--config={CONFIG}", "--set", "data.questions=99"], "too few for"),
        ([f"--config={CONFIG}", "--set", *SMALL[:-1], "stages.joint.batch=3"], "multiple of 8"),
        ([f"--config={CONFIG}", "--rounds=0"], "--rounds=0"),
        ([f"--config={CONFIG}", "--set", *SMALL, "mesh.tensor=8", "mesh.data=1"], "divisor of 2"),
        ([f"--config={CONFIG}", "--json=nowhere/x.json"], "--json=nowhere/x.json"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["step", *arguments])
    assert said in ended.value.code  # a text: Python prints it and exits with 1
