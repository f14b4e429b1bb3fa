"""The one loop: every stage of the recipe in turn, from wherever the working directory stopped."""

import collections
import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from rvllm_jax.config import ConfigError, Recipe
from rvllm_jax.data.pipeline import Dataset, loss_batches, train_batches
from rvllm_jax.models.pure import Arrays, PureModel
from rvllm_jax.training import optimizer, parallel
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.metrics import Metrics, Progress
from rvllm_jax.training.stages import Stage
from rvllm_jax.training.step import State, make_loss, make_step, split
from rvllm_jax.types import Batch

INTERRUPTED = 75  # exit code after SIGTERM: the state is saved, start the same command again


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclasses.dataclass
class Position:
    """Where a run is; saved with every checkpoint as JSON."""

    stage: int = 0  # number of the stage in the recipe
    k: int = 0  # updates done of the stage = number of its next batch
    done: int = 0  # updates done of all stages
    skipped: int = 0  # updates in a row that were not finite
    skipped_all: int = 0
    bad_rows: int = 0  # rows emptied because their record could not be read
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # training, by stage
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # validation loss, by stage


@dataclasses.dataclass
class Result:
    """What training leaves: final arrays by path, and the last position."""

    params: Arrays
    stats: Arrays
    position: Position


class Trainer:
    """Runs the stages of `recipe` in `workdir`.

    `train_sets` and `validation_sets` hold a Dataset for every stage input. Parameters start from
    `model.init` of the recipe's seed unless the working directory holds a checkpoint. `probe` is
    called with (stage input, params, stats) beside each validation loss; what it returns, such as
    {"accuracy/all": 0.7}, is recorded.
    """

    def __init__(
        self,
        recipe: Recipe,
        workdir: Path,
        model: PureModel,
        train_sets: dict[str, Dataset],
        validation_sets: dict[str, Dataset],
        probe: Callable[[str, Arrays, Arrays], dict[str, float]] | None = None,
    ):
        self.recipe, self.workdir, self.model = recipe, workdir, model
        self.train_sets, self.validation_sets = train_sets, validation_sets
        self.probe = probe or (lambda *_: {})
        self.parallel = parallel.make(recipe.parallel, recipe.mesh)
        self.lengths = [self._length(stage) for stage in recipe.stages]
        for stage in recipe.stages:
            if stage.batch % (self.parallel.rows * stage.accumulate):
                raise ConfigError(
                    f"config.stages.{stage.name}.batch={stage.batch} must be a multiple of "
                    f"{self.parallel.rows} devices x accumulate={stage.accumulate}"
                )
        self.checkpoints = Checkpoints(workdir, keep=recipe.checkpoint_keep)
        self.key = jax.random.key(recipe.seed)
        self.loss = jax.jit(make_loss(model, loss_chunk=recipe.model.loss_chunk))
        self.stop_requested = False

    def _length(self, stage: Stage) -> int:
        if stage.steps:
            return stage.steps
        return self.train_sets[stage.input].num_steps(stage.epochs, stage.batch)

    def run(self) -> Result:
        """Trains what is left to train, and returns the final arrays."""
        position, arrays = self._restore()
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        self.metrics = Metrics(self.workdir, start_step=position.done)
        try:
            for number in range(position.stage, len(self.recipe.stages)):
                if number > position.stage:
                    position = dataclasses.replace(position, stage=number, k=0)
                    arrays = {**arrays, "opt": None}
                arrays, position = self._run_stage(arrays, position)
            self.checkpoints.wait()
            if self.stop_requested:  # while the last updates were being saved
                raise SystemExit(INTERRUPTED)
        finally:
            self.metrics.close()
            self.checkpoints.close()
            signal.signal(signal.SIGTERM, previous)
        return Result(arrays["params"], arrays["stats"], position)

    def _request_stop(self, signum, frame):
        logging.warning("signal %d: saving after this step, then exiting", signum)
        self.stop_requested = True

    def _transformation(self, number: int):
        stage = self.recipe.stages[number]
        labels = stage.labels(self.model.params)
        return stage, labels, optimizer.build(stage, labels, self.lengths[number])

    def _placed(self, arrays: dict, labels: dict[str, str], tx: Any) -> State:
        """Parameters split by the stage's table; a frozen one is held in the compute dtype."""
        trainable, frozen = split(arrays["params"], labels)
        trainable = {p: x.astype(self.model.params[p].dtype) for p, x in trainable.items()}
        frozen = {p: x.astype(self.recipe.model.dtype) for p, x in frozen.items()}
        opt = tx.init(trainable) if arrays["opt"] is None else arrays["opt"]
        return self.parallel.place(tx, State(trainable, frozen, arrays["stats"], opt))

    def _restore(self) -> tuple[Position, dict]:
        latest = self.checkpoints.latest()
        if latest is None:
            params, stats = jax.jit(self.model.init)(self.key)
            return Position(), {"params": params, "stats": stats, "opt": None}
        position = Position(**self.checkpoints.read_meta(latest)["position"])
        _, labels, tx = self._transformation(position.stage)
        like = jax.eval_shape(lambda: self._saved(self._abstract(labels, tx)))
        arrays, _ = self.checkpoints.restore(latest, like)
        logging.info("continuing from the checkpoint of step %d", latest)
        return position, {name: arrays[name] for name in ("params", "stats", "opt")}

    def _abstract(self, labels: dict[str, str], tx: Any) -> State:
        zeros = {p: jnp.zeros(x.shape, x.dtype) for p, x in self.model.params.items()}
        trainable, frozen = split(zeros, labels)
        frozen = {p: x.astype(self.recipe.model.dtype) for p, x in frozen.items()}
        stats = {p: jnp.zeros(x.shape, x.dtype) for p, x in self.model.stats.items()}
        return State(trainable, frozen, stats, tx.init(trainable))

    def _saved(self, state: State) -> dict:
        params = {**state.trainable, **state.frozen}
        key = jax.random.key_data(self.key)
        return {"params": params, "stats": state.stats, "opt": state.opt, "key": key}

    def _save(self, state: State, position: Position) -> None:
        self.metrics.flush()
        self.checkpoints.wait()  # `position` names a best: it must be complete first
        arrays = self._saved(self.parallel.gather(state))
        self.checkpoints.save(position.done, arrays, {"position": dataclasses.asdict(position)})

    def _run_stage(self, arrays: dict, position: Position) -> tuple[dict, Position]:
        stage, labels, tx = self._transformation(position.stage)
        length = self.lengths[position.stage]
        state = self._placed(arrays, labels, tx)
        if position.k < length:
            state = self._updates(stage, labels, tx, state, position, length)
        final = self.parallel.gather(state)
        params = {**final.trainable, **final.frozen}
        return {"params": params, "stats": final.stats, "opt": final.opt}, position

    def _compile(self, stage: Stage, labels, tx, state: State, batch: Batch) -> Callable:
        step = make_step(
            self.model,
            tx,
            use_running=stage.uses_running_stats(labels),
            accumulate=stage.accumulate,
            loss_chunk=self.recipe.model.loss_chunk,
            axis_name=self.parallel.axis_name,
        )
        compiled = self.parallel.compile(step, tx, state, batch)
        used = compiled.memory_analysis()
        if used is not None:
            logging.info(
                "stage %s: %.1f million of %.1f million parameters train; the compiled step takes "
                "%.0f MB of arguments and %.0f MB of temporaries a device",
                stage.name,
                sum(x.size for x in jax.tree.leaves(self.parallel.gather(state).trainable)) / 1e6,
                sum(math.prod(x.shape) for x in self.model.params.values()) / 1e6,
                used.argument_size_in_bytes / 1e6,
                used.temp_size_in_bytes / 1e6,
            )
        return compiled

    def _updates(self, stage, labels, tx, state: State, position: Position, length: int) -> State:
        """The stage's remaining updates; metrics are read one late, so the device never waits."""
        dataset = self.train_sets[stage.input]
        batches = train_batches(
            dataset,
            seed=self.recipe.seed,
            batch=stage.batch,
            steps=length,
            start_step=position.k,
            workers=self.recipe.data.workers,
        )
        step, pending = None, collections.deque()
        bar = Progress(stage.name, total=length, initial=position.k, batch=stage.batch)
        clock = time.monotonic()
        with bar:
            for batch in batches:
                placed = self.parallel.put(batch)
                step = step or self._compile(stage, labels, tx, state, placed)
                state, metrics = step(state, placed)
                pending.append((batch, metrics))
                position.k, position.done = position.k + 1, position.done + 1
                due = self._due(position, length)
                while len(pending) > (0 if due else 1):
                    self._record(stage, position, bar, *pending.popleft(), behind=len(pending))
                if "validation" in due:
                    self._validate(stage, state, position)
                spent, clock = time.monotonic() - clock, time.monotonic()
                position.seconds[stage.name] = position.seconds.get(stage.name, 0.0) + spent
                if "checkpoint" in due:
                    self._save(state, position)
                if "stop" in due:
                    self.checkpoints.wait()
                    raise SystemExit(INTERRUPTED)
        return state

    def _due(self, position: Position, length: int) -> set[str]:
        last, every = position.k == length, self.recipe.evaluation.every
        due = set()
        if last or position.k % every == 0:
            due.add("validation")
        if last or position.done % self.recipe.checkpoint_every == 0:
            due.add("checkpoint")
        if self.stop_requested:  # asked once an update, so that what is saved is what stops
            due |= {"checkpoint", "stop"}
        return due

    def _record(self, stage, position: Position, bar, batch: Batch, metrics, *, behind: int):
        values = self.parallel.scalars(metrics)
        done, k = position.done - behind, position.k - behind
        position.bad_rows += int((batch.errors != 0).sum())
        finite = values.pop("finite") > 0
        position.skipped = 0 if finite else position.skipped + 1
        position.skipped_all += not finite
        bar.update(loss=values["loss"])
        if done % self.recipe.log_every == 0 or not finite:
            for name, spec in stage.optimizers.items():
                rate = optimizer.learning_rate(spec, stage, self.lengths[position.stage])
                values[f"lr/{name}"] = float(rate(k - 1))
            values["skipped"] = position.skipped_all
            values["bad_rows"] = position.bad_rows
            self.metrics.log(done, stage.name, values)
        if not finite:
            self._skipped(stage, position, batch, done, k)

    def _skipped(self, stage, position: Position, batch: Batch, done: int, k: int) -> None:
        conversations = self.train_sets[stage.input].conversations
        names = sorted({conversations[row].video for row in batch.rows if row >= 0})
        logging.warning("step %d: loss or gradient not finite, update skipped: %s", done, names)
        if position.skipped >= self.recipe.max_skipped:
            raise TrainingError(
                f"{position.skipped} updates in a row were not finite, the last at step {done} "
                f"(stage {stage.name}, update {k}) with the clips {', '.join(names)}. Lower "
                f"config.stages.{stage.name}.optimizers.*.lr or look at these clips; the last "
                f"checkpoint is that of step {self.checkpoints.latest()}."
            )

    def _validate(self, stage: Stage, state: State, position: Position) -> None:
        held = self.parallel.gather(state)
        params = {**held.trainable, **held.frozen}
        batches = loss_batches(self.validation_sets[stage.input], batch=stage.batch)
        pairs = [self.loss(params, held.stats, batch) for batch in batches]
        loss = float(sum(total for total, _ in pairs) / sum(tokens for _, tokens in pairs))
        values = {"loss": loss, **self.probe(stage.input, params, held.stats)}
        self.metrics.log(position.done, stage.name, values, kind="validation")
        if loss < position.best.get(stage.name, math.inf):
            position.best[stage.name] = loss
            self.checkpoints.save_best(
                stage.name, position.done, {"params": params, "stats": held.stats}, {"loss": loss}
            )
