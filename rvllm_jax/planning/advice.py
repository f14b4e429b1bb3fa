"""The least that has to change of a configuration where a stage does not fit a device."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import memory

REMAT = ("none", "dots", "full")  # from what takes most memory to what takes most time
LOSS_CHUNK = 512  # places


@dataclasses.dataclass(frozen=True)
class Change:
    """Keys and values, as `what` has them for a command line."""

    what: str
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    stage: dict[str, Any] = dataclasses.field(default_factory=dict)


def advise(
    recipe: Recipe,
    stage: Stage,
    model: FunctionalModel,
    topology: Topology,
    over: int | None = None,
) -> str:
    """By how much it does not fit, and the least change that makes it.

    Of one kind where that is enough, of the cheapest one, and no further than it has to go. over:
    bytes too much by the compiler, None by formula. What a change spares is by formula.
    """

    def peak_of(changes: Sequence[Change] = ()) -> int:
        changed = _changed(recipe, stage, changes)
        mesh = memory.abstract_mesh(changed[0], topology.chips)
        return memory.measure(*changed, model, mesh, topology.platform).peak - unlike

    usable, unlike = topology.chip.usable, 0
    if over is not None:
        unlike = peak_of() - usable - over
    text = (
        f"stage {stage.name} does not fit{', by the compiler' if over is not None else ''}: "
        f"{(peak_of() - usable) / 1e9:.1f} GB too much for the {usable / 1e9:.1f} GB that a "
        f"{topology.kind} has for a program"
    )
    kinds = [changes for kind in KINDS if (changes := kind(recipe, stage, topology.chips))]
    subsets = (itertools.combinations(kinds, n) for n in range(1, len(kinds) + 1))
    for several in itertools.chain.from_iterable(subsets):
        changes = [each[-1] for each in several]
        if peak_of(changes) > usable:
            continue
        for place in reversed(range(len(several))):
            goes = ([*changes[:place], each, *changes[place + 1 :]] for each in several[place])
            changes = next(each for each in goes if peak_of(each) <= usable)
        fits = "It fits" if over is None else "By what the formula spares it fits"
        return f"{text}. {fits}, with {peak_of(changes) / 1e9:.1f} GB, with {_listed(changes)}"
    changes = []
    for each in kinds:
        if peak_of([*changes, each[-1]]) < peak_of(changes):
            changes.append(each[-1])
    tried = f"; {_listed(changes)} leave {peak_of(changes) / 1e9:.1f} GB" if changes else ""
    return f"{text}{tried}. Take more chips or larger ones, a smaller decoder, or fewer frames"


def _listed(changes: Sequence[Change]) -> str:
    return ", ".join(change.what for change in changes)


def _changed(recipe: Recipe, stage: Stage, changes: Sequence[Change]) -> tuple[Recipe, Stage]:
    for change in changes:
        model = dataclasses.replace(recipe.model, **change.model)
        recipe = dataclasses.replace(recipe, model=model, **change.recipe)
        stage = dataclasses.replace(stage, **change.stage)
    return recipe, stage


# Each: (recipe, stage, chips) -> changes, from the least to the one that spares most; [] for none.


def _spread(recipe: Recipe, stage: Stage, chips: int) -> list[Change]:
    data, fsdp, tensor = memory.abstract_mesh(recipe, chips).shape.values()
    changes = []
    for parts in _divisors(data, above=1):
        sizes = {"data": data // parts, "fsdp": fsdp * parts, "tensor": tensor}
        what = f"config.mesh.data={sizes['data']} and config.mesh.fsdp={sizes['fsdp']}"
        how = {"mesh": sizes}
        if recipe.parallel == "pmap":
            what, how = f"config.parallel=jit, {what}", how | {"parallel": "jit"}
        changes.append(Change(what, recipe=how))
    return changes


def _cut_loss(recipe: Recipe, stage: Stage, chips: int) -> list[Change]:
    if 0 < recipe.model.loss_chunk <= LOSS_CHUNK:
        return []
    return [Change(f"config.model.loss_chunk={LOSS_CHUNK}", model={"loss_chunk": LOSS_CHUNK})]


def _recompute(recipe: Recipe, stage: Stage, chips: int) -> list[Change]:
    more = REMAT[REMAT.index(recipe.model.remat) + 1 :]
    return [Change(f"config.model.remat={remat}", model={"remat": remat}) for remat in more]


def _micro_batches(recipe: Recipe, stage: Stage, chips: int) -> list[Change]:
    data, fsdp, _ = memory.abstract_mesh(recipe, chips).shape.values()
    key = f"config.stages.{stage.name}.accumulate"
    counts = _divisors(stage.batch // (data * fsdp), above=stage.accumulate)
    return [Change(f"{key}={count}", stage={"accumulate": count}) for count in counts]


def _half_moments(recipe: Recipe, stage: Stage, chips: int) -> list[Change]:
    optimizers = {
        name: dataclasses.replace(spec, moments="bfloat16")
        for name, spec in stage.optimizers.items()
    }
    if optimizers == stage.optimizers:
        return []
    where = f"config.stages.{stage.name}.optimizers"
    what = ", ".join(f"{where}.{name}.moments=bfloat16" for name in optimizers)
    return [Change(what, stage={"optimizers": optimizers})]


KINDS = (_spread, _cut_loss, _recompute, _micro_batches, _half_moments)  # the cheapest first


def _divisors(number: int, above: int) -> list[int]:
    return [n for n in range(above + 1, number + 1) if number % n == 0]
