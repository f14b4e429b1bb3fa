"""Videos and annotations -> frames and examples to train from.

    python -m rvllm_jax.prepare --videos=FOLDER --annotations=FILE[,FILE] --out=OUT --split=train

OUT/report.html shows what was found. Afterwards train with --config.data.videos=OUT
--config.data.conversations=OUT/train.json. A preparation that was stopped continues.

Exit codes: 0 done; 1 refused, nothing was stored; 3 more than --max_bad is unusable; 4 fewer than
a benchmark has published, without --allow_partial. After 3 and 4 the report says what lacks, and
OUT/SPLIT.json is not written. 130: interrupted by Ctrl-C.

With --runner, the shards are written by an Apache Beam pipeline, and arguments that are not known
here are its own: --runner=DirectRunner --direct_num_workers=2.
"""

import functools
import os
import sys

from absl import app, flags

from rvllm_jax.config import cli
from rvllm_jax.data.annotations.formats import FORMATS
from rvllm_jax.data.prepare import beam
from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.system.progress import bar

_DEFAULTS = PrepareOptions()

VIDEOS = cli.path_flag("videos", None, "Folder of the videos, also in folders below it.")
ANNOTATIONS = cli.paths_flag("annotations", None, "FILE[,FILE...]; the format is recognised.")
OUT = cli.path_flag("out", None, "Folder for frames, examples and report.")
SPLIT = flags.DEFINE_string("split", None, "train, validation or test; recorded in every result.")
FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "What the annotations must be.")
STRIDE = flags.DEFINE_integer("stride", _DEFAULTS.stride, "Every stride-th frame is stored.")
SHORT_SIDE = flags.DEFINE_integer("short_side", _DEFAULTS.short_side, "Pixels, of stored frames.")
ENCODING = flags.DEFINE_enum("encoding", _DEFAULTS.encoding, ("jpeg", "raw"), "Of stored frames.")
RECORD = flags.DEFINE_integer("frames_per_record", _DEFAULTS.frames_per_record, "Read together.")
INTERVAL = flags.DEFINE_integer(
    "interval", _DEFAULTS.interval, "Frames of a file from one of a clip to the next."
)
WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes; 0: this one alone.")
MAX_BAD = cli.number_flag(
    "max_bad", _DEFAULTS.max_bad, "Largest unusable share of videos, of rows."
)
CHECK = flags.DEFINE_bool("check", False, "Write the report alone.")
ALLOW_PARTIAL = flags.DEFINE_bool("allow_partial", False, "Accept fewer than are published.")
OWN = flags.DEFINE_bool("own", False, "No benchmark, whatever the names look like.")
THUMBNAILS = flags.DEFINE_integer("thumbnails", _DEFAULTS.thumbnails, "Videos shown in the report.")
RUNNER = flags.DEFINE_string("runner", None, "Apache Beam's, such as DirectRunner; none: local.")


def main(*arguments: str) -> int:
    if arguments and RUNNER.value is None:
        raise app.UsageError(f"unknown arguments {list(arguments)}")
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    beam.check_folder(OUT.value)
    pipeline = RUNNER.value and beam.runner([f"--runner={RUNNER.value}", *arguments])
    options = PrepareOptions(
        stride=STRIDE.value,
        short_side=SHORT_SIDE.value,
        encoding=ENCODING.value,
        frames_per_record=RECORD.value,
        interval=INTERVAL.value,
        format=FORMAT.value,
        no_benchmark=OWN.value,
        max_bad=MAX_BAD.value,
        allow_partial=ALLOW_PARTIAL.value,
        check=CHECK.value,
        thumbnails=THUMBNAILS.value,
        workers=WORKERS.value,
    )
    prepared = prepare(
        VIDEOS.value,
        ANNOTATIONS.value,
        OUT.value,
        SPLIT.value,
        options,
        run_tasks=pipeline,
        progress=bar,
        say=functools.partial(print, flush=True),  # also where it goes to a file
    )
    print(f"{prepared.verdict}\nreport: {prepared.page}")
    return prepared.code


if __name__ == "__main__":
    cli.run(
        main,
        required=["videos", "annotations", "out", "split"],
        interrupted=cli.CONTINUES,
        positional=None,
    )
