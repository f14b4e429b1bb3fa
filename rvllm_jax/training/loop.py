"""The one loop: every stage of the recipe in turn, from wherever the working directory stopped."""

import collections
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import train_batches
from rvllm_jax.hosts.sync import HERE, compiled_together
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.training import resume
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.diagnostics import TrainingError, count_unreadable
from rvllm_jax.training.host_flags import BatchFlags, flag_exchange
from rvllm_jax.training.metrics import Metrics
from rvllm_jax.training.progress import Progress
from rvllm_jax.training.sigterm import INTERRUPTED, Interrupt, closing
from rvllm_jax.training.stages import (
    StageSetup,
    count_steps,
    describe_trained,
    for_all,
    open_layout,
    prepare_stage,
)
from rvllm_jax.training.state import Position, StageArrays, StatePlacement, TrainState
from rvllm_jax.training.step import compile_update, make_loss
from rvllm_jax.training.validate import validation_loss
from rvllm_jax.training.workdir import check_trained_with, is_bound, read_config
from rvllm_jax.types import Batch
from rvllm_jax.weights.load import load
from rvllm_jax.weights.open import Entry


@dataclasses.dataclass
class Result:
    """What training leaves: final arrays by path, and the last position."""

    params: Arrays
    stats: Arrays
    position: Position


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
        self.layout = open_layout(recipe, model)
        self.placement = StatePlacement(model, recipe.stages, recipe.model.dtype, self.layout)
        lengths = for_all(recipe.stages, lambda stage: count_steps(stage, train_sets[stage.input]))
        self.setups = [
            prepare_stage(stage, model.params, steps)
            for stage, steps in zip(recipe.stages, lengths, strict=True)
        ]
        self.datasets = {
            f"{name} pairs of input {input}": dataset
            for name, sets in (("training", train_sets), ("validation", validation_sets))
            for input, dataset in sets.items()
        }
        fingerprints = {name: resume.fingerprint(each) for name, each in self.datasets.items()}
        self.made_of = {"tokenizer": tokenizer} | fingerprints
        HERE.same(self.made_of, "what they train on")
        self.of = {"made_of": self.made_of}
        if (workdir / "config.json").is_file():
            self.of["config"] = read_config(workdir)
        self.checkpoints = Checkpoints(workdir, keep=recipe.checkpoint.keep)
        loss = make_loss(model, loss_chunk=recipe.model.loss_chunk)
        self.loss = compiled_together(jax.jit(self.layout.on_mesh(loss)))
        self.interrupt, self.flags = Interrupt(), flag_exchange(self.layout)
        self.stop = False  # whether any host was asked to, as all hosts know by now

    def run(self) -> Result:
        """Trains what is left to train, and returns the final arrays."""
        with contextlib.ExitStack() as ends:  # each is left, whatever happens to the others
            ends.enter_context(self.interrupt)
            ends.push(closing(self.checkpoints.close))
            position, arrays = self._restore()
            self.key = arrays["key"]
            self.metrics = Metrics(self.workdir, position.done, writes=HERE.is_first)
            ends.push(closing(self.metrics.close))
            for number in range(position.stage, len(self.setups)):
                if number > position.stage:
                    position, arrays["opt"] = position.at_stage(number), None
                self._exit_if_asked()
                arrays = self._run_stage(arrays, position)
            self._exit_if_asked()
        return Result(arrays["params"], arrays["stats"], position)

    def _restore(self) -> tuple[Position, dict]:
        """Where the run goes on, and with which arrays: parameters to random state."""
        latest = self.checkpoints.training.latest()
        if latest is None:
            if not is_bound(self.workdir):
                self.checkpoints.frozen.clear()
            key = jax.random.key(self.recipe.seed)
            start = self.start()
            return Position(), self.placement.draw(key, start, functools.partial(load, start))
        meta = self.checkpoints.training.read_meta(latest)
        check_trained_with(self.workdir, latest, meta)
        saved = meta.get("made_of", {})
        resume.check_made_of(self.workdir, latest, saved, self.made_of, self.datasets)
        position = Position(**meta["position"])
        setup = self.setups[position.stage]
        shapes = self.placement.shapes(position.stage, setup)
        settled = {n: self.placement.settled(shapes, n) for n in range(position.stage + 1)}
        settled = {number: params for number, params in settled.items() if params}
        names = self.checkpoints.training.names(latest)
        if any(f"params/{path}" in names for params in settled.values() for path in params):
            # Layout 1 of a run: nothing stands apart, on which the checkpoints to come rely.
            arrays, _ = self.checkpoints.training.restore(latest, shapes)
            for number in settled:
                self.checkpoints.save_frozen(number, self.placement.settled(arrays, number))
        else:
            unsettled = self.placement.unsettled(shapes, position.stage)
            arrays, _ = self.checkpoints.training.restore(latest, unsettled)
            for number, params in settled.items():
                arrays["params"] |= self.checkpoints.restore_frozen(number, params)
        logging.info("continuing from the checkpoint of step %d", latest)
        return position, arrays

    def _run_stage(self, arrays: dict, position: Position) -> dict:
        """The stage's remaining updates; takes over `arrays`, as at its end nothing holds them."""
        setup = self.setups[position.stage]
        placed = self.placement.place(arrays, position.stage, setup)
        if position.k == 0:  # afterwards a checkpoint of this stage relies on them
            saved = self.placement.collect(placed, self.key)
            if settled := self.placement.settled(saved, position.stage):
                self.checkpoints.save_frozen(position.stage, settled)
        if position.k < setup.steps:
            logging.info(describe_trained(setup, self.model.params))
            placed = self._updates(setup, placed, position)
        return self.placement.collect(placed, self.key)

    def _updates(self, setup: StageSetup, arrays: StageArrays, position: Position) -> StageArrays:
        """Updates to the stage's end.

        Metrics are read one late, so the device never waits: while it makes an update, the next
        batch is read and on its way to it.
        """
        stage, (host, hosts) = setup.stage, self.layout.share
        batches = train_batches(
            self.train_sets[stage.input],
            seed=self.recipe.seed,
            batch=stage.batch,
            steps=setup.steps,
            start_step=position.k,
            workers=self.recipe.data.workers,
            host=host,
            hosts=hosts,
        )
        step, pending = None, collections.deque()
        bar = Progress(
            stage.name, setup.steps, initial=position.k, batch=stage.batch, shown=HERE.is_first
        )
        clock = time.monotonic()
        with contextlib.closing(batches), bar:
            for batch in batches:
                placed = self.layout.put(batch)
                if step is None:
                    self._exit_if_asked()  # before minutes of compilation
                    step = self._compile(setup, arrays.state, placed)
                state, metrics = step(arrays.state, placed)
                arrays = arrays._replace(state=state)
                flags = self.flags(batch, placed, self.interrupt.requested)
                pending.append((flags, metrics))
                position.k, position.done = position.k + 1, position.done + 1
                due = self._due(position, setup.steps)
                while len(pending) > (0 if due else 1):
                    self._record(setup, position, bar, *pending.popleft(), behind=len(pending))
                if "validation" in due:
                    self._validate(setup, arrays, position)
                spent, clock = time.monotonic() - clock, time.monotonic()
                position.seconds[stage.name] = position.seconds.get(stage.name, 0.0) + spent
                if "checkpoint" in due:
                    self._save(arrays, position)
                if "stop" in due:
                    self._exit_if_asked()
        return arrays

    def _compile(self, setup: StageSetup, state: TrainState, batch: Batch) -> Callable:
        return compile_update(
            self.model, setup, self.layout, state, batch, self.recipe.model.loss_chunk
        )

    def _due(self, position: Position, steps: int) -> set[str]:
        """What is to be done after this update: "validation", "checkpoint", "stop"."""
        last, due = position.k == steps, set()
        if last or position.k % self.recipe.evaluation.every == 0:
            due.add("validation")
        if last or position.done % self.recipe.checkpoint.every == 0:
            due.add("checkpoint")
        # Asked once an update, so that what is saved is what stops.
        if self.stop or (HERE.count == 1 and self.interrupt.requested):
            due |= {"checkpoint", "stop"}
        return due

    def _record(
        self, setup: StageSetup, position: Position, bar, flags: BatchFlags, metrics, *, behind: int
    ) -> None:
        """Counts and logs the update that is `behind` updates before `position`."""
        stage, values = setup.stage, self.layout.scalars(metrics)
        examples, errors = np.asarray(flags.examples), np.asarray(flags.errors)
        self.stop |= bool(flags.stop)
        done, k = position.done - behind, position.k - behind
        position.bad_rows += int((errors != 0).sum())
        count_unreadable(
            self.train_sets[stage.input],
            examples[errors != 0].tolist(),
            position.unreadable,
            most=self.recipe.max_unreadable,
            what=f"sequences of stage {stage.name}",
        )
        finite = values.pop("finite") > 0
        position.skipped = 0 if finite else position.skipped + 1
        position.skipped_stage += not finite
        position.skipped_all += not finite
        bar.update(loss=values["loss"])
        if done % self.recipe.log_every == 0 or not finite:
            values |= setup.learning_rates(k - 1 - position.skipped_stage + (not finite))
            values["skipped"] = position.skipped_all
            values["bad_rows"] = position.bad_rows
            self.metrics.log(done, stage.name, values)
        if not finite:
            self._skipped(stage, position, examples, done, k)

    def _skipped(self, stage, position: Position, examples: np.ndarray, done: int, k: int) -> None:
        dataset = self.train_sets[stage.input]
        names = sorted({dataset.examples[number].video for number in examples if number >= 0})
        logging.warning("step %d: loss or gradient not finite, update skipped: %s", done, names)
        if position.skipped >= self.recipe.max_skipped:
            latest = self.checkpoints.training.latest()
            raise TrainingError(
                f"{position.skipped} updates in a row were not finite, the last at step {done} "
                f"(stage {stage.name}, update {k}) with the clips {', '.join(names)}. Look at "
                f"these clips, or lower config.stages.{stage.name}.optimizers.*.lr and name a new "
                "--workdir: what is trained belongs to its configuration. "
                + (f"The last checkpoint is that of step {latest}." if latest
                   else "No checkpoint has been written yet.")
            )  # fmt: skip

    def _validate(self, setup: StageSetup, arrays: StageArrays, position: Position) -> None:
        stage, (params, stats) = setup.stage, self.placement.evaluation_arrays(arrays)
        values = validation_loss(
            self.loss, params, stats, self.validation_sets[stage.input], self.layout, stage,
            most=self.recipe.max_unreadable,
        )  # fmt: skip
        values |= self.probe(stage.input, params, stats)
        self.metrics.log(position.done, stage.name, values, kind="validation")
        if (loss := values["loss"]) < position.best.get(stage.name, math.inf):
            position.best[stage.name] = loss
            saved = self._arrays_to_save(arrays, position)
            best = {"params": saved["params"], "stats": saved["stats"]}
            self.checkpoints.save_best(stage.name, position.done, best, {"loss": loss} | self.of)

    def _save(self, arrays: StageArrays, position: Position) -> None:
        self.metrics.flush()
        self.checkpoints.wait()  # `position` names a best: it must be complete first
        meta = {"position": dataclasses.asdict(position)} | self.of
        self.checkpoints.save(position.done, self._arrays_to_save(arrays, position), meta)

    def _arrays_to_save(self, arrays: StageArrays, position: Position) -> dict:
        return self.placement.unsettled(self.placement.collect(arrays, self.key), position.stage)

    def _exit_if_asked(self) -> None:
        """Exits after SIGTERM on any host; called where all that was done is in a checkpoint."""
        self.checkpoints.wait()
        if HERE.any(self.interrupt.requested, "stop"):
            raise SystemExit(INTERRUPTED)
