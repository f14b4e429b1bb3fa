"""The one loop: every stage of the recipe in turn, from wherever the working directory stopped."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import train_batches
from rvllm_jax.hosts.sync import HERE, compiled_together
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.sharding import layouts
from rvllm_jax.training import identity
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.compiling import compile_update
from rvllm_jax.training.holding import Held, Holding
from rvllm_jax.training.host_flags import Together
from rvllm_jax.training.metrics import Metrics, Progress
from rvllm_jax.training.position import Position
from rvllm_jax.training.sigterm import INTERRUPTED, Interrupt, closing
from rvllm_jax.training.stages import (
    StageError,
    build_layout,
    label_parameters,
    learning_rate,
    make_optimizer,
)
from rvllm_jax.training.step import State, make_loss
from rvllm_jax.training.unreadable import count_unreadable, too_many_skipped
from rvllm_jax.training.validate import validation_loss
from rvllm_jax.training.workdir import WorkdirError, is_bound
from rvllm_jax.types import Batch
from rvllm_jax.weights.open import Entry


@dataclasses.dataclass
class Result:
    """What training leaves: final arrays by path, and the last position."""

    params: Arrays
    stats: Arrays
    position: Position


def open_layout(recipe: Recipe, model: FunctionalModel) -> layouts.Layout:
    """The layout over the devices; raises where a batch or a stage's table does not fit it."""
    layout = build_layout(recipe, model)
    if recipe.evaluation.batch % layout.batch_shards:
        raise StageError(
            f"config.evaluation.batch={recipe.evaluation.batch} must be a multiple of the "
            f"{layout.batch_shards} devices that a batch is split over"
        )
    return layout


class Trainer:
    """Runs the stages of `recipe` in `workdir`.

    `train_sets` and `validation_sets` hold a Dataset for every stage input, `tokenizer` is the
    fingerprint of theirs: a checkpoint made of others is not continued. Without a checkpoint,
    parameters start from `start()` (weights on disk, by path) and else from `model.init` of the
    seed. `probe` is called with (stage input, params, stats) beside each validation loss; what it
    returns, such as {"accuracy/all": 0.7}, is recorded.
    """

    def __init__(
        self,
        recipe: Recipe,
        workdir: Path,
        model: FunctionalModel,
        train_sets: dict[str, Dataset],
        validation_sets: dict[str, Dataset],
        probe: Callable[[str, Arrays, Arrays], dict[str, float]] | None = None,
        *,
        tokenizer: str,
        start: Callable[[], Mapping[str, Entry]] = dict,
    ):
        self.recipe, self.workdir, self.model = recipe, workdir, model
        self.train_sets, self.validation_sets = train_sets, validation_sets
        self.probe, self.start = probe or (lambda *_: {}), start
        self.parallel = open_layout(recipe, model)
        self.holding = Holding(model, recipe.stages, recipe.model.dtype, self.parallel)
        self.lengths = [self._length(stage) for stage in recipe.stages]
        self.made_of = {"tokenizer": tokenizer}
        for name, sets in (("training", train_sets), ("validation", validation_sets)):
            for input, dataset in sets.items():
                self.made_of[f"{name} pairs of input {input}"] = identity.fingerprint(dataset)
        HERE.same(self.made_of, "what they train on")
        self.checkpoints = Checkpoints(workdir, keep=recipe.checkpoint.keep)
        loss = make_loss(model, loss_chunk=recipe.model.loss_chunk)
        self.loss = compiled_together(jax.jit(self.parallel.on_mesh(loss)))
        self.interrupt, self.together = Interrupt(), Together(self.parallel)
        self.stop = False  # whether any host was told to, as all hosts know by now

    def _length(self, stage: Stage) -> int:
        if stage.steps:
            return stage.steps
        length = self.train_sets[stage.input].num_steps(stage.epochs, stage.batch)
        if stage.warmup >= length:
            where = f"config.stages.{stage.name}"
            raise StageError(
                f"{where}.warmup={stage.warmup} is not below the {length} updates that "
                f"{where}.epochs={stage.epochs} make of this data: the learning rate would never "
                "reach its peak; lower the one or raise the other"
            )
        return length

    def run(self) -> Result:
        """Trains what is left to train, and returns the final arrays."""
        with contextlib.ExitStack() as ends:  # each is left, whatever happens to the others
            ends.enter_context(self.interrupt)
            ends.push(closing(self.checkpoints.close))
            position, arrays = self._restore()
            self.key = arrays["key"]
            self.metrics = Metrics(self.workdir, position.done, writes=HERE.is_first)
            ends.push(closing(self.metrics.close))
            for number in range(position.stage, len(self.recipe.stages)):
                if number > position.stage:
                    position = dataclasses.replace(
                        position, stage=number, k=0, skipped_stage=0, unreadable={}
                    )
                    arrays["opt"] = None
                self._stop_if_asked()
                arrays = self._run_stage(arrays, position)
            self._stop_if_asked()
        return Result(arrays["params"], arrays["stats"], position)

    def _stop_if_asked(self) -> None:
        """Exits after SIGTERM on any host; called where all that was done is in a checkpoint."""
        self.checkpoints.wait()
        if HERE.any(self.interrupt.requested, "stop"):
            raise SystemExit(INTERRUPTED)

    def _transformation(self, number: int):
        stage = self.recipe.stages[number]
        labels = label_parameters(stage, self.model.params)
        return stage, labels, make_optimizer(stage, labels, self.lengths[number])

    def _restore(self) -> tuple[Position, dict]:
        """Where the run goes on, and with which arrays: parameters to random state."""
        latest = self.checkpoints.latest()
        if latest is None:
            if not is_bound(self.workdir):
                self.checkpoints.clear_frozen()
            return Position(), self.holding.draw(jax.random.key(self.recipe.seed), self.start())
        meta = self.checkpoints.read_meta(latest)
        if others := identity.differences(meta.get("made_of", {}), self.made_of):
            raise WorkdirError(
                f"{self.workdir}: its checkpoint of step {latest} was made of other data, so that "
                "continuing would repeat some pairs and leave out others. Put annotations, videos "
                "and tokenizer back as they were, or name another --workdir.\n  "
                + "\n  ".join(others)
            )
        position = Position(**meta["position"])
        _, labels, tx = self._transformation(position.stage)
        like = self.holding.like(position.stage, labels, tx)
        kept = self.holding.unsettled(like, position.stage)
        arrays, _ = self.checkpoints.restore(latest, kept)
        for number in range(position.stage + 1):
            if settled := self.holding.settled(like, number):
                arrays["params"] |= self.checkpoints.restore_frozen(number, settled)
        logging.info("continuing from the checkpoint of step %d", latest)
        return position, arrays

    def _save(self, held: Held, position: Position) -> None:
        self.metrics.flush()
        self.checkpoints.wait()  # `position` names a best: it must be complete first
        meta = {"position": dataclasses.asdict(position), "made_of": self.made_of}
        saved = self.holding.unsettled(self.holding.saved(held, self.key), position.stage)
        self.checkpoints.save(position.done, saved, meta)

    def _run_stage(self, arrays: dict, position: Position) -> dict:
        """The stage's remaining updates; takes over `arrays`, as at its end nothing holds them."""
        stage, labels, tx = self._transformation(position.stage)
        held = self.holding.place(arrays, position.stage, labels, tx)
        if position.k == 0:  # afterwards a checkpoint of this stage relies on them
            saved = self.holding.saved(held, self.key)
            if settled := self.holding.settled(saved, position.stage):
                self.checkpoints.save_frozen(position.stage, settled)
        if position.k < self.lengths[position.stage]:
            held = self._updates(stage, labels, tx, held, position)
        return self.holding.saved(held, self.key)

    def _compile(self, stage: Stage, labels, tx, state: State, batch: Batch) -> Callable:
        chunk = self.recipe.model.loss_chunk
        return compile_update(self.model, stage, labels, tx, self.parallel, state, batch, chunk)

    def _updates(self, stage, labels, tx, held: Held, position: Position) -> Held:
        """Updates to the stage's end.

        Metrics are read one late, so the device never waits: while it makes an update, the next
        batch is read and on its way to it.
        """
        dataset, length = self.train_sets[stage.input], self.lengths[position.stage]
        host, hosts = self.parallel.share
        batches = train_batches(
            dataset,
            seed=self.recipe.seed,
            batch=stage.batch,
            steps=length,
            start_step=position.k,
            workers=self.recipe.data.workers,
            host=host,
            hosts=hosts,
        )
        step, pending = None, collections.deque()
        bar = Progress(
            stage.name, length, initial=position.k, batch=stage.batch, shown=HERE.is_first
        )
        clock = time.monotonic()
        with contextlib.closing(batches), bar:
            for batch in batches:
                placed = self.parallel.put(batch)
                if step is None:
                    self._stop_if_asked()  # before minutes of compilation
                    step = self._compile(stage, labels, tx, held.state, placed)
                state, metrics = step(held.state, placed)
                held = held._replace(state=state)
                told = self.together.tell(batch, placed, self.interrupt.requested)
                pending.append((told, metrics))
                position.k, position.done = position.k + 1, position.done + 1
                due = self._due(position, length)
                while len(pending) > (0 if due else 1):
                    self._record(stage, position, bar, *pending.popleft(), behind=len(pending))
                if "validation" in due:
                    self._validate(stage, held, position)
                spent, clock = time.monotonic() - clock, time.monotonic()
                position.seconds[stage.name] = position.seconds.get(stage.name, 0.0) + spent
                if "checkpoint" in due:
                    self._save(held, position)
                if "stop" in due:
                    self._stop_if_asked()
        return held

    def _due(self, position: Position, length: int) -> set[str]:
        last, every = position.k == length, self.recipe.evaluation.every
        due = set()
        if last or position.k % every == 0:
            due.add("validation")
        if last or position.done % self.recipe.checkpoint.every == 0:
            due.add("checkpoint")
        # Asked once an update, so that what is saved is what stops.
        if self.stop or (HERE.count == 1 and self.interrupt.requested):
            due |= {"checkpoint", "stop"}
        return due

    def _record(self, stage, position: Position, bar, told, metrics, *, behind: int):
        values = self.parallel.scalars(metrics)
        rows, errors = np.asarray(told.rows), np.asarray(told.errors)
        self.stop |= bool(told.stop)
        done, k = position.done - behind, position.k - behind
        position.bad_rows += int((errors != 0).sum())
        count_unreadable(
            self.train_sets[stage.input],
            rows[errors != 0].tolist(),
            position.unreadable,
            most=self.recipe.max_unreadable,
            what=f"rows of stage {stage.name}",
        )
        finite = values.pop("finite") > 0
        position.skipped = 0 if finite else position.skipped + 1
        position.skipped_stage += not finite
        position.skipped_all += not finite
        bar.update(loss=values["loss"])
        if done % self.recipe.log_every == 0 or not finite:
            for name, spec in stage.optimizers.items():
                rate = learning_rate(spec, stage, self.lengths[position.stage])
                values[f"lr/{name}"] = float(rate(k - 1 - position.skipped_stage + (not finite)))
            values["skipped"] = position.skipped_all
            values["bad_rows"] = position.bad_rows
            self.metrics.log(done, stage.name, values)
        if not finite:
            self._skipped(stage, position, rows, done, k)

    def _skipped(self, stage, position: Position, rows: np.ndarray, done: int, k: int) -> None:
        examples = self.train_sets[stage.input].examples
        names = sorted({examples[number].video for number in rows if number >= 0})
        logging.warning("step %d: loss or gradient not finite, update skipped: %s", done, names)
        if position.skipped >= self.recipe.max_skipped:
            raise too_many_skipped(
                position.skipped, done, f"stage {stage.name}, update {k}", names,
                key=f"config.stages.{stage.name}.optimizers.*.lr",
                latest=self.checkpoints.latest(),
            )  # fmt: skip

    def _validate(self, stage: Stage, held: Held, position: Position) -> None:
        params, stats = self.parallel.evaluation_arrays(*self.holding.shown(held))
        values = validation_loss(
            self.loss, params, stats, self.validation_sets[stage.input], self.parallel, stage,
            most=self.recipe.max_unreadable,
        )  # fmt: skip
        values |= self.probe(stage.input, params, stats)
        self.metrics.log(position.done, stage.name, values, kind="validation")
        if (loss := values["loss"]) < position.best.get(stage.name, math.inf):
            position.best[stage.name] = loss
            saved = self.holding.unsettled(self.holding.saved(held, self.key), position.stage)
            best = {"params": saved["params"], "stats": saved["stats"]}
            self.checkpoints.save_best(stage.name, position.done, best, {"loss": loss})
