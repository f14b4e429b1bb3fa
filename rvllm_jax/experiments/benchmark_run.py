"""One benchmark answered by one model: OUT/BENCHMARK with answers.jsonl and info.json."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.data.batches.clips import VIEWS
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.packing import PackingError
from rvllm_jax.evaluation.answering import Answering, Machine, record
from rvllm_jax.evaluation.answers.answer_file import AnswerFile, read_info_if_any
from rvllm_jax.evaluation.answers.prediction_files import write_predictions
from rvllm_jax.evaluation.answers.questions import (
    TEXT_GENERATION,
    EvaluationError,
    Question,
    fingerprint,
    questions_of,
)
from rvllm_jax.evaluation.asked_groups import Plan, chosen_controls, pending, plan
from rvllm_jax.evaluation.asked_groups import questions_together as best_together
from rvllm_jax.evaluation.benchmarks import Benchmark
from rvllm_jax.evaluation.leakage import overlap
from rvllm_jax.evaluation.prior import prior
from rvllm_jax.experiments.evaluate_options import Options
from rvllm_jax.experiments.saved.open import Opened
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.atomic import write_json
from rvllm_jax.system.fingerprint import recorded

_AGAIN = "; answers that are there are kept: to ask again what was mended since, give another --out"


class BenchmarkRun:
    """One benchmark: everything is checked when it is made, and answered by `run`."""

    def __init__(self, benchmark: Benchmark, opened: Opened, training, out: Path, options: Options):
        self.benchmark, self.opened, self.options = benchmark, opened, options
        self.folder, self.training = out / benchmark.name, training
        self.questions = questions_of(
            benchmark.name, benchmark.examples, benchmark.unusable, benchmark.reasons
        )
        self.dataset = _dataset(benchmark, opened, options.clips)
        by_place = _by_place(benchmark)
        by_id = {question.id: question for question in self.questions}
        self.asked = [by_id[by_place[place]] for place in self.dataset.questions]
        self.max_new = options.max_new or opened.recipe.evaluation.max_new
        self.plan = self._plan()
        self.answering = Answering(
            _machine(opened),
            self.dataset,
            self.plan,
            max_new=self.max_new,
            fusion=options.fusion,
            seed=options.seed,
        )

    def _plan(self) -> Plan:
        options, rows = self.options, self.opened.layout.batch_shards
        starts, crops = VIEWS[options.clips]
        videos = (options.videos or self.opened.recipe.evaluation.batch) // (starts * crops)
        counts = [len(own) for _, own in self.dataset.question_groups(len(self.asked))]
        controls = chosen_controls(self.dataset, self.asked, options.controls, options.seed)
        together = best_together(counts, options.together)
        videos = -(-max(videos, 1) // rows) * rows
        return plan(self.dataset, controls, videos=videos, together=together)

    def run(self, hash: str) -> list[str]:
        info = self._info(hash)
        made_with = {name: str(value) for name, value in info["made_with"].items()}
        HERE.same(made_with, f"what answers {self.benchmark.name}")
        keys = {(question.id, "") for question in self.questions}
        keys |= {
            (self.asked[n].id, g.control) for b in self.plan.batches for g in b for n in g.questions
        }
        file = AnswerFile.open(self.folder, info, keys) if HERE.is_first else None
        try:
            done = _shared(sorted(keys), file.done if file else set())
            self._answer(file, done, len(keys))
        finally:
            if file:
                file.close()
        return self._finish(info) if file else []

    def _answer(self, file: AnswerFile | None, done: set, total: int) -> None:
        split, template = self.benchmark.split, self.opened.template
        for question in self.questions:
            if file and question.failed and (question.id, "") not in done:
                file.append(record(question, split, template, None))
        batches = pending(self.plan, self.asked, done)
        show = dict(desc=self.benchmark.name, unit=" questions", disable=None if file else True)
        with tqdm(total=total, initial=len(done), **show) as bar:
            for said in self.answering.run(batches):
                new = [s for s in said if (self.asked[s.question].id, s.control) not in done]
                for one in new if file else ():
                    file.append(record(self.asked[one.question], split, template, one))
                bar.update(len(new))

    def _info(self, hash: str) -> dict[str, Any]:
        """info.json as it is when the answering begins; "made_with" decides what is continued."""
        benchmark, opened, options = self.benchmark, self.opened, self.options
        entries = benchmark.store.entries
        crcs = {question.video: entries[question.video].file_crc for question in self.asked}
        return {
            "benchmark": benchmark.name,
            "split": benchmark.split,
            "published": benchmark.published,
            "questions": len(self.questions),
            "partial": bool(benchmark.partial),
            "lacks": benchmark.partial,
            "model": str(opened.path),
            "checkpoint": {"step": opened.step, "told": opened.told, "hash": hash},
            "made_with": {
                "checkpoint": hash,
                "questions": fingerprint(self.questions, crcs),
                "split": benchmark.split,
                "clips": options.clips,
                "fusion": options.fusion if self.plan.clips > 1 else "",
                "max_new": self.max_new,
                "controls": options.controls,
                "seed": options.seed,
                "template": recorded(opened.template, {}),
            },
            "recipe": dataclasses.asdict(opened.recipe),
            "clips": options.clips,
            "fusion": options.fusion if self.plan.clips > 1 else "",
            "max_new": self.max_new,
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
        write_json(self.folder / "info.json", info)
        lines = [
            f"{name} {self.benchmark.split}: {len(ordered)} questions answered, {failed} of them "
            f"failed and counted as wrong; {self.folder}{_AGAIN if failed else ''}"
        ]
        if self.benchmark.partial:
            lines.append(f"  partial: {'; '.join(self.benchmark.partial)}")
        return [*lines, f"  {info['overlap']['told']}"]


def _dataset(benchmark: Benchmark, opened: Opened, clips: str) -> Dataset:
    data, context = opened.recipe.data, opened.recipe.llama.context
    step = data.interval // benchmark.store.options.stride
    options = dataclasses.replace(
        opened.recipe.dataset_options,
        sampling=dataclasses.replace(data.sampling, step=step),
        context=context,
        max_segments=1,
        independent_turns=True,
        views=clips,
    )
    # An answer is not shown to the model: a long one must not refuse its question.
    silent = [
        dataclasses.replace(c, turns=tuple(Turn(t.question, "-", t.kind) for t in c.turns))
        for c in benchmark.examples
    ]
    try:
        return Dataset(silent, benchmark.store, opened.tokenizer, opened.template, options)
    except PackingError as error:
        raise EvaluationError(
            f"{benchmark.name}: a prompt is longer than the model's context of {context} tokens: "
            f"{error}"
        ) from error


def _by_place(benchmark: Benchmark) -> dict[tuple[int, int], str]:
    """Where a question stands among the examples -> its id."""
    found = {}
    for number, example in enumerate(benchmark.examples):
        own: list[Question] = questions_of(benchmark.name, [example])
        found |= {(number, turn): question.id for turn, question in enumerate(own)}
    return found


def _machine(opened: Opened) -> Machine:
    return Machine(
        opened.model,
        opened.params,
        opened.stats,
        opened.tokenizer,
        opened.template,
        opened.recipe.llama.context,
        put=opened.layout.evaluation_batch,
        replicated=NamedSharding(opened.layout.mesh, PartitionSpec()),
        share=opened.layout.share,
    )


def _shared(keys: list, done: set) -> set:
    """What the first host has done, known to all."""
    bits = np.packbits([key in done for key in keys]).tobytes().hex()
    told = bytes.fromhex(HERE.from_first(bits, "what is answered"))
    mask = np.unpackbits(np.frombuffer(told, np.uint8), count=len(keys))
    return {key for key, is_done in zip(keys, mask, strict=True) if is_done}


def _version() -> str:
    try:
        return importlib.metadata.version("rvllm_jax")
    except importlib.metadata.PackageNotFoundError:  # run out of a folder, not installed
        return "not installed"
