import dataclasses

import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.costs import chips
from rvllm_jax.planning import plan as estimate
from rvllm_jax.planning.compile import Compiled
from rvllm_jax.training.stages import StageError


def plan(recipe, model, name, number=1, **kinds):
    return estimate.make_plan(recipe, recipe.stages[number], model, chips.parse(name), **kinds)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["v5e:8x8", "h200:1"])
def test_the_paper_fits_64_small_chips_and_one_large_gpu(paper, name, number):
    made = plan(*paper, name, number, clips_a_device=1)
    assert made.fits and made.advice == "" and made.stage.batch == made.topology.chips
    assert made.memory.peak < made.topology.chip.usable


def test_the_largest_batch_fits_and_one_row_more_does_not(paper):
    made = plan(*paper, "v5e:8x8", clips_a_device=1)
    rows = made.largest_batch // 64
    assert rows >= 1 and made.largest_batch % 64 == 0
    assert plan(*paper, "v5e:8x8", clips_a_device=rows).fits
    assert not plan(*paper, "v5e:8x8", clips_a_device=rows + 1).fits


@pytest.mark.parametrize("name, asked", [("h200:1", 1), ("h200:1", 4), ("v5e:8x8", 8)])
def test_the_largest_batch_is_the_same_whatever_batch_was_asked_for(tiny, name, asked):
    made = plan(*tiny, name, clips_a_device=asked)
    rows = made.largest_batch // made.topology.chips
    assert rows > asked
    assert plan(*tiny, name, clips_a_device=rows).fits
    assert not plan(*tiny, name, clips_a_device=rows + 1).fits


def test_the_largest_batch_of_micro_batches_is_a_multiple_of_them(recipe, paper):
    made = plan(recipe("paper", stages__joint__accumulate=4), paper[1], "v5e:4x8", clips_a_device=1)
    assert made.fits and made.largest_batch % (4 * 32) == 0


def test_what_does_not_fit_is_told_by_how_much_and_what_to_change(recipe, paper):
    spread = recipe("paper", mesh__data=-1, mesh__fsdp=1, model__remat="none")
    made = plan(spread, paper[1], "v5e:8x8", clips_a_device=2)
    assert not made.fits
    over = (made.memory.peak - made.topology.chip.usable) / 1e9
    assert f"{over:.1f} GB too much for the 16.9 GB" in made.advice
    assert "with config.mesh.data=4 and config.mesh.fsdp=16, config.model.remat=full" in made.advice
    # Following the advice makes it fit, and nothing less does.
    fits = {}
    for fsdp in (8, 16):
        for remat in ("dots", "full"):
            keys = dict(mesh__data=64 // fsdp, mesh__fsdp=fsdp, model__remat=remat)
            other = plan(recipe("paper", **keys), paper[1], "v5e:8x8", clips_a_device=2)
            fits[fsdp, remat] = other.fits
    assert [way for way, is_so in fits.items() if is_so] == [(16, "full")]


@pytest.mark.parametrize("name, clips, least", [("v5e:4x8", 8, 2), ("h200:1", 64, 2)])
def test_the_fewest_micro_batches_that_fit_are_the_advice(recipe, paper, name, clips, least):
    made = plan(*paper, name, 0, clips_a_device=clips)
    assert not made.fits and made.advice.endswith(f"with config.stages.visual.accumulate={least}")
    cut = recipe("paper", stages__visual__accumulate=least)
    assert plan(cut, paper[1], name, 0, clips_a_device=clips // least).fits


def test_several_changes_go_no_further_than_they_have_to(recipe, paper):
    """Half moments alone are not enough for 64 clips, nor are micro-batches, however small."""
    made = plan(*paper, "h200:1", clips_a_device=64)
    moments = "config.stages.joint.optimizers.adamw.moments=bfloat16"
    assert made.advice.endswith(f"with config.stages.joint.accumulate=16, {moments}")
    half = {"stages__joint__optimizers__adamw__moments": "bfloat16"}
    for count, keys, fits in (
        (16, half, True),
        (8, half, False),
        (64, {}, False),
        (1, half, False),
    ):
        other = recipe("paper", stages__joint__accumulate=count, **keys)
        assert plan(other, paper[1], "h200:1", clips_a_device=64 // count).fits is fits


def test_what_cannot_fit_says_so(paper):
    made = plan(*paper, "v5e:2x2", clips_a_device=1)
    assert not made.fits and made.largest_batch == 0
    assert "Take more chips or larger ones" in made.advice
    assert "moments=bfloat16" in made.advice


def test_a_batch_that_does_not_divide_is_refused(paper):
    with pytest.raises(StageError, match="batch=64 must be a multiple of 256"):
        plan(*paper, "v5e:16x16")


def test_the_compilers_figures_count_where_there_are_some(paper):
    made = plan(*paper, "v5e:8x8", clips_a_device=1)
    answer = {"state": 10, "temporary": 5, "output": 1, "received": {}, "largest": []}
    effort = {"effort": "full"}
    compiled = dataclasses.replace(made, compiled=Compiled(**answer, **effort))
    assert compiled.peak == 16 and compiled.fits
    overflow = dataclasses.replace(made, compiled=Compiled(used=2e10, **effort))
    assert overflow.peak == 2e10 and not overflow.fits


def test_advice_follows_the_compiler_where_the_formula_says_otherwise(paper):
    fits = plan(*paper, "v5e:8x8", clips_a_device=1)
    used = {"used": 17.0e9, "effort": "full"}
    over = estimate.with_compiled(fits, paper[1], Compiled(**used))
    assert fits.fits and not over.fits
    assert "joint does not fit, by the compiler: 0.1 GB too much for the 16.9 GB" in over.advice
    assert "it fits, with 16.8 GB, with config.stages.joint.optimizers.adamw" in over.advice
    made = plan(*paper, "v5e:2x4", clips_a_device=1)
    answer = {"state": 10, "temporary": 5, "output": 1, "received": {}, "largest": []}
    answer["effort"] = "full"
    compiled = estimate.with_compiled(made, paper[1], Compiled(**answer))
    assert not made.fits and made.advice and compiled.fits and compiled.advice == ""


def test_what_a_mesh_does_not_divide_is_told(recipe):
    small = recipe("paper", model__decoder="smollm2-135m")
    model = build_model(small)
    assert plan(small, model, "v5e:8x8", clips_a_device=1).notes == ()
    (note,) = plan(small, model, "v5e:16x16", clips_a_device=1).notes
    assert note.startswith("config.mesh.fsdp=256 does not divide ") and "embedding" in note
    split = recipe("paper", mesh__data=1, mesh__fsdp=-1, mesh__tensor=32)
    (note,) = plan(split, build_model(split), "v5e:8x8", clips_a_device=1).notes
    assert "data.frames=100 does not divide by tensor=32" in note


def test_micro_batches_are_told(recipe, tiny):
    (note,) = plan(recipe(stages__visual__accumulate=2), tiny[1], "v5e:2x2").notes
    assert "each micro-batch of 8 clips" in note
