"""One benchmark answered by one model: OUT/BENCHMARK with answers.jsonl and info.json.

A line of answers.jsonl is made by `_record`; `views` in words are its "clips".
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches.clips import VIEWS
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.text import prompt
from rvllm_jax.evaluation import controls
from rvllm_jax.evaluation.answers.answer_file import AnswerFile, read_info_if_any, write_info
from rvllm_jax.evaluation.answers.predictions import write_predictions
from rvllm_jax.evaluation.answers.questions import (
    TEXT_GENERATION,
    EvaluationError,
    Key,
    Question,
    fingerprint,
    questions_of,
)
from rvllm_jax.evaluation.benchmarks import Benchmark
from rvllm_jax.evaluation.leakage import overlap
from rvllm_jax.evaluation.prior import prior
from rvllm_jax.experiments.saved.open import LoadedModel, how_computed
from rvllm_jax.generation.clip_fusion import FUSIONS, LOCK_STEP
from rvllm_jax.generation.engine import Engine, Prediction
from rvllm_jax.generation.grouping import (
    MOST_TOGETHER,
    Group,
    Grouping,
    questions_together,
    videos_a_batch,
)
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.atomic import write_json
from rvllm_jax.system.fingerprint import recorded

_AGAIN = "; answers that are there are kept: to ask again what was mended since, give another --out"


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How a benchmark is asked; all of it is recorded.

    split: of the prepared ones; "": the only one. clips: test clips a video, a key of clips.VIEWS.
    fusion: how several give one answer, one of clip_fusion.FUSIONS. max_new: tokens an answer; 0:
    as the model's recipe says. videos: clips that are encoded at once; 0: the recipe's. together:
    the most questions behind one copy of a video's prefix. controls: questions asked again under
    each control, drawn by `seed`; 0: none. allow_partial: accept fewer questions than are
    published. fsdp, tensor: devices that each array is split over; the others share the clips.
    """

    split: str = ""
    clips: str = "1x1"
    fusion: str = LOCK_STEP
    max_new: int = 0
    videos: int = 0
    together: int = MOST_TOGETHER
    controls: int = 500
    seed: int = 0
    allow_partial: bool = False
    fsdp: int = 1
    tensor: int = 1

    def tokens(self, recipe: Recipe) -> int:
        """Tokens an answer at most."""
        return self.max_new or recipe.evaluation.max_new

    def check(self) -> None:
        """Raises EvaluationError."""
        for name, values in (("clips", tuple(VIEWS)), ("fusion", FUSIONS)):
            if getattr(self, name) not in values:
                raise EvaluationError(
                    f"--{name}={getattr(self, name)}: expected one of {', '.join(values)}"
                )
        if (
            min(self.max_new, self.videos, self.controls, self.seed) < 0
            or min(self.together, self.fsdp, self.tensor) < 1
            or self.seed >= 1 << 63
        ):
            raise EvaluationError(
                f"--max_new={self.max_new} --videos={self.videos} --together={self.together} "
                f"--controls={self.controls} --seed={self.seed} --fsdp={self.fsdp} "
                f"--tensor={self.tensor}: expected no number below 0, --together, --fsdp and "
                "--tensor of at least 1, and --seed below 2**63"
            )


class BenchmarkRun:
    """One benchmark: everything is checked when it is made, and answered by `run`."""

    def __init__(
        self,
        benchmark: Benchmark,
        dataset: Dataset,
        loaded: LoadedModel,
        training: Mapping[str, Any] | None,
        out: Path,
        options: EvaluationOptions,
    ):
        self.benchmark, self.dataset, self.loaded = benchmark, dataset, loaded
        self.folder, self.training, self.options = out / benchmark.name, training, options
        self.questions = questions_of(
            benchmark.name, benchmark.examples, benchmark.unusable, benchmark.reasons
        )
        turns = [(n, t) for n, c in enumerate(benchmark.examples) for t in range(len(c.turns))]
        by_turn = dict(zip(turns, self.questions, strict=False))  # behind them the unusable ones
        self.asked = [by_turn[turn] for turn in dataset.questions]
        self.max_new = options.tokens(loaded.recipe)
        self.grouping = self._grouping()
        videos = dataset.question_videos
        drawn = controls.drawn(self.asked, videos, options.controls, options.seed)
        self.shown = {controls.PLAIN: dict(enumerate(videos))} | drawn
        self.batches = {name: self.grouping.batches(about) for name, about in self.shown.items()}
        self.engine = Engine(
            loaded.module,
            loaded.tokenizer,
            loaded.template,
            config=GenerationConfig(max_new=self.max_new),
            fusion=options.fusion,
            devices=loaded.layout,
        )

    def _grouping(self) -> Grouping:
        options, recipe = self.options, self.loaded.recipe
        batch, shards = options.videos or recipe.evaluation.batch, self.loaded.layout.batch_shards
        counts = np.unique(self.dataset.question_videos, return_counts=True)[1]
        return Grouping(
            self.dataset,
            videos=videos_a_batch(batch, options.clips, shards),
            together=questions_together(counts, options.together),
        )

    def run(self) -> list[str]:
        """Answers what is not answered yet; on host 0 lines that say how it went."""
        info = self._info()
        made_with = {name: str(value) for name, value in info["made_with"].items()}
        HERE.same(made_with, f"what answers {self.benchmark.name}")
        keys = {(question.id, controls.PLAIN) for question in self.questions}
        for control, batches in self.batches.items():
            keys |= set().union(*(self._keys(control, batch) for batch in batches))
        file = AnswerFile(self.folder, info, keys) if HERE.is_first else None
        with file or contextlib.nullcontext():
            done = _shared(sorted(keys), file.done if file else set())
            self._answer(file, done, len(keys))
        return self._finish(info) if file else []

    def _keys(self, control: str, batch: list[Group]) -> set[Key]:
        return {(self.asked[n].id, control) for group in batch for n in group.questions}

    def _answer(self, file: AnswerFile | None, done: set[Key], total: int) -> None:
        for question in self.questions:
            if file and question.failed and (question.id, controls.PLAIN) not in done:
                file.append(self._record(question, None))
        show = dict(desc=self.benchmark.name, unit=" questions", disable=None if file else True)
        with tqdm(total=total, initial=len(done), **show) as bar:
            for control, batches in self.batches.items():
                pending = [batch for batch in batches if self._keys(control, batch) - done]
                how = controls.options(control, self.options.seed)
                for predictions in self.engine.predict(self.grouping, pending, **how):
                    questions = [self.asked[prediction.question] for prediction in predictions]
                    for question, prediction in zip(questions, predictions, strict=True):
                        if (question.id, control) in done:
                            continue
                        if file:
                            file.append(self._record(question, prediction, control))
                        bar.update()

    def _record(
        self, question: Question, prediction: Prediction | None, control: str = controls.PLAIN
    ) -> dict[str, Any]:
        """A line of answers.jsonl; no prediction: of a question that could not be asked."""
        text = question.turn.question
        prediction = prediction or Prediction(-1, "", [], question.failed)
        return {
            "question_id": question.id,
            "video": question.video,
            "split": self.benchmark.split,
            "question": text,
            "truth": question.turn.answer,
            "type": question.turn.kind,
            "criteria": list(question.criteria),
            "pair": question.pair,
            "control": control,
            "prompt": prompt.prompt_text(self.loaded.template, text),
            "answer": prediction.text,
            "ids": prediction.ids,
            "clips": self._views(prediction, control),
            "seconds": round(prediction.seconds, 4),
            "failed": prediction.failed,
        }

    def _views(self, prediction: Prediction, control: str) -> list[dict[str, Any]]:
        """Where the views of a prediction are in their video."""
        if not prediction.views:
            return []
        video = self.dataset.video_name(self.shown[control][prediction.question])
        times = self.dataset.store.timestamps(video)
        other = {"video": video} if control == controls.SWAPPED else {}  # not the question's own
        return [
            {
                "start_s": round(float(times[view.indices[0]]), 3),
                "crop": "y={} x={} size={}".format(*view.box),
                "count": view.count,
                **other,
            }
            for view in prediction.views
        ]

    def _info(self) -> dict[str, Any]:
        """info.json as it is when the answering begins; "made_with" decides what is continued."""
        benchmark, loaded, options = self.benchmark, self.loaded, self.options
        entries = benchmark.store.entries
        crcs = {question.video: entries[question.video].file_crc for question in self.asked}
        stored = dataclasses.asdict(benchmark.store.options)
        made_with = {
            **how_computed(loaded.recipe),
            **{name: stored[name] for name in ("stride", "short_side", "encoding")},
            "checkpoint": loaded.checksum,
            "questions": fingerprint(self.questions, crcs),
            "split": benchmark.split,
            "clips": options.clips,
            "fusion": options.fusion if self.grouping.views > 1 else "",
            "max_new": self.max_new,
            "controls": options.controls,
            "seed": options.seed,
            "template": recorded(loaded.template, {}),
        }
        return {
            "benchmark": benchmark.name,
            "split": benchmark.split,
            "published": benchmark.published,
            "questions": len(self.questions),
            "partial": bool(benchmark.partial),
            "lacks": benchmark.partial,
            "model": str(loaded.path),
            "checkpoint": {"step": loaded.step, "told": loaded.source, "hash": loaded.checksum},
            "made_with": made_with,
            "fingerprints": {"model": loaded.fingerprint, "questions": made_with["questions"]},
            "recipe": dataclasses.asdict(loaded.recipe),
            **{name: made_with[name] for name in ("clips", "fusion", "max_new")},
            "controls": {"asked": options.controls, "seed": options.seed},
            "frames": str(benchmark.store.folder.resolve()),
            "version": _version(),
            "training_videos": self.training and self.training["videos"],
            "training_unknown": self.training and self.training["unknown"],
            "overlap": overlap(self.questions, self.training),
        }

    def _finish(self, info: dict[str, Any]) -> list[str]:
        """Writes what is made of all answers, and says in lines how it went."""
        name = self.benchmark.name
        # What is known of the model may be new.
        info |= {"date": read_info_if_any(self.folder)["date"]}
        answers = AnswerFile.read(self.folder)
        plain = {a["question_id"]: a for a in answers if not a["control"]}
        ordered = [plain[question.id] for question in self.questions]
        write_predictions(self.folder, name, ordered)
        failed = sum(bool(answer["failed"]) for answer in ordered)
        info |= {"complete": True, "failed": failed}
        if name != TEXT_GENERATION:
            train = [turn for c in self.benchmark.train for turn in c.turns]
            given = prior(self.questions, train)
            answers = given.pop("answers")
            info["prior"] = given
            write_json(self.folder / "prior.json", answers, indent=0)
        write_info(self.folder, info)
        lines = [
            f"{name} {self.benchmark.split}: {len(ordered)} questions answered, {failed} of them "
            f"failed and counted as wrong; {self.folder}{_AGAIN if failed else ''}"
        ]
        if self.benchmark.partial:
            lines.append(f"  partial: {'; '.join(self.benchmark.partial)}")
        return [*lines, f"  {info['overlap']['told']}"]


def _shared(keys: list[Key], done: set[Key]) -> set[Key]:
    """What the first host has done, known to all."""
    bits = np.packbits([key in done for key in keys]).tobytes().hex()
    first = bytes.fromhex(HERE.from_first(bits, "what is answered"))
    mask = np.unpackbits(np.frombuffer(first, np.uint8), count=len(keys))
    return {key for key, is_done in zip(keys, mask, strict=True) if is_done}


def _version() -> str:
    try:
        return importlib.metadata.version("rvllm_jax")
    except importlib.metadata.PackageNotFoundError:  # run out of a folder, not installed
        return "not installed"
