import dataclasses

import pytest

from rvllm_jax.costs import chips
from rvllm_jax.planning import plan
from rvllm_jax.planning import text as report
from rvllm_jax.planning.compile import Compiled


def text(recipe, model, **kinds) -> str:
    topology = chips.parse("v5e:8x8")
    return report.describe(plan.make_plan(recipe, recipe.stages[1], model, topology, **kinds), 1000)


@pytest.mark.parametrize(("fsdp", "tensor", "parts"), [(64, 1, 8), (16, 4, 8), (2, 32, 2)])
def test_a_host_reads_the_rows_that_its_devices_hold(recipe, paper, fsdp, tensor, parts):
    split = recipe("paper", mesh__fsdp=fsdp, mesh__tensor=tensor)
    made = plan.make_plan(split, split.stages[1], paper[1], chips.parse("v5e:8x8"))
    rate = made.speed.clips_a_second / parts
    assert f"each of 8 hosts decodes {rate:.2f} clips/s" in report.describe(made, 1000)


def test_a_stage_of_text_decodes_no_frames(tiny):
    recipe, model = tiny
    shown = [
        report.describe(plan.make_plan(recipe, stage, model, chips.parse("v5e:2x2")), 1)
        for stage in recipe.stages
    ]
    assert ["frames/s" in each for each in shown] == [False, True, True]
    assert "sequences of text a second and hands its devices" in shown[0]


def test_what_the_plan_notes_stands_in_it(recipe, paper):
    assert "micro-batch" not in text(*paper)
    changed = recipe("paper", stages__joint__accumulate=4)
    assert "each micro-batch of 64 clips" in text(changed, paper[1], clips_a_device=1)


def test_the_compilers_figures_stand_beside_the_formulas(paper):
    made = plan.make_plan(paper[0], paper[0].stages[1], paper[1], chips.parse("v5e:8x8"))
    answer = {"state": 10**9, "temporary": 10**9, "output": 0, "largest": [], "effort": "full"}
    answer["received"] = {"all-gather": 3e9, "all-reduce": 4e9}
    shown = report.describe(dataclasses.replace(made, compiled=Compiled(**answer)), 1000)
    for said in ("Peak, by the compiler | 2.00", "7 GB in the compiled program"):
        assert said in shown
    assert f"Formula / compiler | {made.memory.peak / 2e9:.2f}" in shown
    assert "It fits" in shown and "not at once" not in shown
    tight = Compiled(**answer | {"temporary": 17 * 10**9})
    shown = report.describe(dataclasses.replace(made, compiled=tight), 1000)
    assert "It fits" in shown and "not at once: the compiler has placed them" in shown
