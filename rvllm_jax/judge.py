"""Judges the answers that `evaluate` wrote, or predictions of others; no model answers here.

    python -m rvllm_jax.judge --results=OUT                                   # exact, no network
    python -m rvllm_jax.judge --results=OUT --backend=facts                   # faithfulness, none
    python -m rvllm_jax.judge --results=OUT --backend=openai --model=gpt-3.5-turbo-0125 \\
        --base_url=https://api.openai.com/v1                                  # OPENAI_API_KEY
    python -m rvllm_jax.judge --results=OUT --backend=local --model=RUN       # a model of ours
    python -m rvllm_jax.judge --results=OUT --predictions=FILE --annotations=FILE --split=test
    python -m rvllm_jax.judge --compare=OUT/B/judged.X.jsonl,OUT2/B/judged.X.jsonl

OUT/BENCHMARK/judged.NAME.jsonl gets a line a verdict, as it comes; the same command continues.
OUT/BENCHMARK/scores.NAME.json follows when every question has its verdict. Exit codes: 0 done;
1 refused; 3 some questions got no reply, or the work was interrupted: repeat the command.
"""

import contextlib
import functools
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags, logging

from rvllm_jax.config import cli
from rvllm_jax.evaluation.answers.exact_match import RULES
from rvllm_jax.evaluation.answers.predictions import import_predictions
from rvllm_jax.evaluation.judge.chat import ChatJudge
from rvllm_jax.evaluation.judge.endpoint import Patience
from rvllm_jax.evaluation.judge.facts import FactJudge
from rvllm_jax.evaluation.judge.judges import ExactJudge, endpoint_judge, request_parameters
from rvllm_jax.evaluation.judge.prompts import Prompts, load_prompts
from rvllm_jax.evaluation.judge.verdicts import Judge
from rvllm_jax.evaluation.judging import benchmark_folders, judge_benchmark
from rvllm_jax.evaluation.score import compare
from rvllm_jax.evaluation.score.scores import Scoring
from rvllm_jax.evaluation.score.text import comparison_lines, score_lines
from rvllm_jax.system import progress
from rvllm_jax.system.paths import expanded

_LONGEST = 1e6  # seconds; what a socket or a lock can wait has an end
_DEAREST = 1e12  # of prices: their sums stay numbers

RESULTS = cli.path_flag("results", None, "Folder of answers; verdicts go beside them.")
BENCHMARKS = flags.DEFINE_list("benchmarks", [], "Which folders below it; none: all.")
BACKEND = flags.DEFINE_enum("backend", "exact", ("exact", "facts", "openai", "local"), "Judge.")
MODEL = flags.DEFINE_string("model", "", "The endpoint's model; with local, a run or an export.")
BASE_URL = flags.DEFINE_string("base_url", "https://api.openai.com/v1", "Of the endpoint.")
KEY_ENV = flags.DEFINE_string("key_env", "OPENAI_API_KEY", "Variable with the key; empty: none.")
PROMPTS = cli.path_flag("prompts", None, "JSON of other prompts than ours.")
NAME = flags.DEFINE_string("name", "", "Of the judge's files; none: from model and parameters.")
FAITHFULNESS = flags.DEFINE_bool("faithfulness", False, "Have the judge count claims too.")
RULE = flags.DEFINE_enum("rule", "", ("", *RULES), "Of exact; none: the benchmark's.")
TEMPERATURE = cli.number_flag("temperature", 0.0, "Of the judge.", 0.0)
SEED = flags.DEFINE_integer("seed", None, "Of the judge, where it takes one.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Of a reply.", lower_bound=1)
EXTRA = flags.DEFINE_string("extra", "{}", "JSON: more fields of a request; null removes one.")
CONCURRENCY = flags.DEFINE_integer("concurrency", 16, "Requests at a time.", 1, 1000)
TIMEOUT = cli.number_flag("timeout", 120.0, "Seconds of one request.", 0.001, _LONGEST)
ATTEMPTS = flags.DEFINE_integer("attempts", 8, "Of a request, before it is left.", 1, 1000)
BACKOFF = cli.number_flag(
    "backoff", 1.0, "Seconds of the first wait; each next one doubles.", 0.0, _LONGEST
)
LONGEST_WAIT = cli.number_flag("longest_wait", 60.0, "Seconds between two attempts.", 0.0, _LONGEST)
TRIES = flags.DEFINE_integer("tries", 3, "Replies asked for, until one can be read.", lower_bound=1)
GIVE_UP = flags.DEFINE_bool("give_up", False, "Record what got no reply as failed.")
INTEGER = flags.DEFINE_bool("integer_scores", False, "Cut 4.8 to 4, as Video-ChatGPT does.")
RESAMPLES = flags.DEFINE_integer("resamples", 2000, "Of the intervals.", 1, 1_000_000)
PRICE_IN = cli.number_flag("price_in", 0.0, "Of a million tokens of prompts.", 0.0, _DEAREST)
PRICE_OUT = cli.number_flag("price_out", 0.0, "Of a million tokens of replies.", 0.0, _DEAREST)
PREDICTIONS = cli.paths_flag("predictions", [], "Files of others' predictions, to be judged.")
ANNOTATIONS = cli.paths_flag("annotations", [], "Files that they are predictions for.")
SPLIT = flags.DEFINE_string("split", "", "Of the annotations, where they do not show it.")
OWN = flags.DEFINE_bool("own", False, "The annotations are of no benchmark, whatever their names.")
DUPLICATES = flags.DEFINE_bool("duplicates", False, "Keep the first of several predictions.")
COMPARE = cli.paths_flag("compare", [], "Files judged.NAME.jsonl: models, judges or seeds.")
UNFINISHED = 3


@contextlib.contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """Within it the first SIGTERM or SIGINT sets `stop`; the next ends the process, as any does
    outside."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(*_: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()


def local_judge(prompts: Prompts, **options) -> ChatJudge:
    from rvllm_jax.evaluation.judge.local import LocalJudge  # the other judges need no JAX
    from rvllm_jax.experiments.saved.open import open_model
    from rvllm_jax.generation.engine import Engine
    from rvllm_jax.generation.unrolled import unroll

    loaded = open_model(expanded(MODEL.value, "--model"))
    model = unroll(loaded.module)
    engine = Engine(model, loaded.tokenizer, loaded.template, devices=loaded.layout)
    ask = LocalJudge(engine, loaded.source, MAX_TOKENS.value)
    parameters = {"temperature": 0.0, "max_tokens": MAX_TOKENS.value, "step": loaded.step}
    options |= {"fingerprint": loaded.fingerprint}
    return ChatJudge(ask, str(loaded.path), prompts, "local", parameters, **options)


def make_judge(stop: threading.Event) -> Judge:
    if BACKEND.value == "exact":
        return ExactJudge(RULE.value, NAME.value)
    if BACKEND.value == "facts":
        return FactJudge(NAME.value)
    common = dict(tries=TRIES.value, faithfulness=FAITHFULNESS.value, name=NAME.value)
    prompts = load_prompts(PROMPTS.value)
    if BACKEND.value == "local":
        return local_judge(prompts, **common)
    parameters = request_parameters(TEMPERATURE.value, MAX_TOKENS.value, SEED.value, EXTRA.value)
    patience = Patience(TIMEOUT.value, ATTEMPTS.value, BACKOFF.value, LONGEST_WAIT.value)
    return endpoint_judge(
        BASE_URL.value, MODEL.value, prompts, key_env=KEY_ENV.value, parameters=parameters,
        patience=patience, stop=stop, concurrency=CONCURRENCY.value, **common,
    )  # fmt: skip


def judge_all(stop: threading.Event) -> int:
    names, code = list(BENCHMARKS.value), 0
    if PREDICTIONS.value:
        names = [import_predictions(
            PREDICTIONS.value, ANNOTATIONS.value, RESULTS.value, split=SPLIT.value,
            duplicates=DUPLICATES.value, no_benchmark=OWN.value,
        ).name]  # fmt: skip
    judge = make_judge(stop)
    scoring = Scoring(INTEGER.value, RESAMPLES.value, 0, PRICE_IN.value, PRICE_OUT.value)
    for folder in benchmark_folders(Path(RESULTS.value), names):
        bar = progress.bar(folder.name, "verdicts", piped=False)
        result, outcome = judge_benchmark(
            folder, judge, scoring, give_up=GIVE_UP.value, stop=stop, progress=bar,
            stopping=functools.partial(stopping, stop),
        )  # fmt: skip
        if result is not None:
            print("\n".join(score_lines(result)))
            continue
        if not outcome.total:
            print(f"{folder.name}: nothing for {BACKEND.value}: it judges other answers")
            continue
        code = UNFINISHED
        last = f" (the last: {' '.join(outcome.left[-1])})" if outcome.left else ""
        print(f"{folder}: {outcome.judged + outcome.before} judged, {len(outcome.left)} without a "
              f"reply{last}; repeat the command")  # fmt: skip
    return code


def main() -> int:
    if bool(RESULTS.value) == bool(COMPARE.value):
        raise app.UsageError("name either --results=OUT or --compare=FILE,FILE")
    if bool(PREDICTIONS.value) != bool(ANNOTATIONS.value):
        raise app.UsageError("--predictions and --annotations go together")
    if not re.fullmatch(r"[\w.+-]{0,200}", NAME.value):
        raise app.UsageError(
            f"--name={NAME.value[:300]!r}: is part of file names, judged.NAME.jsonl: give letters, "
            "digits, '.', '_', '+', '-', 200 at most"
        )
    logging.set_verbosity(logging.WARNING)  # Orbax logs every step of reading a checkpoint
    stop = threading.Event()
    if COMPARE.value:
        compared = compare.compare(COMPARE.value, resamples=RESAMPLES.value)
        print("\n".join(comparison_lines(compared)))
        return 0
    return judge_all(stop)


if __name__ == "__main__":
    cli.run(main)
