"""A conversation about a video.

    python -m rvllm_jax.chat VIDEO --model=RUN                        # interactive; /help
    python -m rvllm_jax.chat VIDEO --model=RUN --question="What moves?"
    python -m rvllm_jax.chat --model=RUN --questions=IN.jsonl --out=OUT.jsonl

RUN is a working directory, or a folder that `convert` wrote of one. --question may be repeated: the
turns of one conversation; answers go to the standard output, all else to the error output. A line
of IN is {"video", "question"} or {"id", "video", "questions": [...]}; the line of OUT has "answer",
"answers" or "error" too. The same command continues where it was stopped.

Exit codes: 0 done; 1 refused; 3 questions of IN were not answered; 130 stopped by Ctrl-C.
"""

import sys

from absl import app, flags, logging

from rvllm_jax.config import cli
from rvllm_jax.data.batches.clips import VIEWS
from rvllm_jax.data.text.prompt import TEMPLATE_NAMES
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.conversation import Talk, lines_of
from rvllm_jax.experiments.questions_file import QuestionsError, answer_file
from rvllm_jax.experiments.saved.open import describe_model
from rvllm_jax.generation.clip_fusion import FUSIONS, LOCK_STEP, VOTE
from rvllm_jax.generation.sampling import GenerationConfig, Sampling
from rvllm_jax.system.paths import expanded

MODEL = cli.path_flag("model", None, "A working directory, or an exported folder.")
BEST = flags.DEFINE_string("best", "", "Of a run: the best of this stage; none: the newest.")
QUESTION = flags.DEFINE_multi_string("question", [], "Asked instead of the standard input.")
QUESTIONS = cli.path_flag("questions", "", "JSON lines to answer.")
OUT = cli.path_flag("out", "", "Where the answers to --questions go.")
VIDEOS = cli.path_flag("videos", "", "Folder of the videos of --questions; none: paths.")
BATCH = flags.DEFINE_integer("batch", 8, "Questions of --questions answered together.", 1)
CLIPS = flags.DEFINE_enum("clips", "1x1", list(VIEWS), "Starts x crops that a video is shown in.")
FUSION = flags.DEFINE_enum("fusion", LOCK_STEP, FUSIONS, "Several clips to one answer.")
TEMPLATE = flags.DEFINE_enum("template", "", ["", *TEMPLATE_NAMES], "None: the model's own.")
CACHE_DTYPE = flags.DEFINE_enum(
    "cache_dtype", "", ["", "bfloat16", "float32"], "Of keys and values; none: the model's."
)
TEMPERATURE = cli.number_flag("temperature", 0.0, "0: the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Among the k likeliest tokens; 0: all.")
TOP_P = cli.number_flag("top_p", 1.0, "Among tokens of this probability together; 1: all.")
PENALTY = cli.number_flag("repetition_penalty", 1.0, "Of tokens that were there; 1: none.")
SEED = flags.DEFINE_integer("seed", 0, "Of sampling.", 0, 2**31 - 1)
MAX_NEW = flags.DEFINE_integer("max_new", 256, "Tokens of an answer at most.")
STOP = flags.DEFINE_multi_string("stop", [], "A text that ends an answer; may be repeated.")


def say(line: str) -> None:
    dimmed = f"\033[2m{line}\033[0m" if sys.stderr.isatty() else line
    print(dimmed, file=sys.stderr, flush=True)


def main(video: str = "") -> int:
    if bool(video) == bool(QUESTIONS.value) or bool(QUESTIONS.value) != bool(OUT.value):
        raise app.UsageError("give either one VIDEO, or --questions and --out")
    video = expanded(video, "VIDEO")
    logging.set_verbosity(logging.WARNING)
    sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, PENALTY.value)
    config = GenerationConfig(sampling, MAX_NEW.value, tuple(STOP.value), SEED.value)
    if FUSION.value == VOTE and CLIPS.value != "1x1" and not (QUESTION.value or QUESTIONS.value):
        raise QuestionsError(
            "--fusion=vote: which answer counts is known when all clips have given theirs, so that "
            "it cannot be shown while it is written; ask by --question or --questions, or leave "
            "--fusion at lock_step"
        )
    mesh = dict(data=1, fsdp=1, tensor=-1)  # one answer is split over the devices
    description = describe_model(MODEL.value, best=BEST.value, mesh=mesh, template=TEMPLATE.value)
    answerer = Answerer(
        description,
        clips=CLIPS.value,
        fusion=FUSION.value,
        cache_dtype=CACHE_DTYPE.value or None,
        say=say,
    )
    if QUESTIONS.value:
        options = dict(videos=VIDEOS.value, batch=BATCH.value, say=say)
        tally = answer_file(answerer, QUESTIONS.value, OUT.value, config, **options)
        say(f"{tally.answered} answered, {tally.failed} failed: {OUT.value}")
        return 3 if tally.failed else 0
    talk = Talk(answerer, config, sys.stdout, say)
    talk.open(video, *QUESTION.value)
    for question in QUESTION.value:
        print(talk.ask(question), flush=True)
    if not QUESTION.value:
        say("/help lists the commands")
        talk.run(lines_of(sys.stdin))
    return 0


if __name__ == "__main__":
    cli.run(
        main,
        required=["model"],
        interrupted="stopped",
        positional=1,
        keep_memory=True,
        renamed={"cache": "cache_dtype"},  # --cache is the folder of compiled programs
    )
