"""Weights in and out.

    python -m rvllm_jax.convert --source=FOLDER[,FOLDER] --out=OUT          # theirs -> ours
    python -m rvllm_jax.convert --source=LLAVA,RESNET --leave_out='projector/.*' --out=OUT
    python -m rvllm_jax.convert --source=RUN --out=OUT                      # a run's whole model
    python -m rvllm_jax.convert --source=RUN --out=OUT --form=transformers  # its decoder alone

A source is a folder of Llama, LLaVA or a ResNet as Hugging Face lays it out, a .safetensors file
of torchvision's ResNet, a folder of ours, or a working directory. "ours" is model.safetensors and
model.json, which --config.model.weights takes; --form=transformers is a folder that transformers
loads. Exit codes: 0 done; 1 refused, nothing was written.
"""

from absl import flags, logging

from rvllm_jax.config import cli
from rvllm_jax.experiments.saved.convert import convert

SOURCE = cli.paths_flag("source", None, "Folders, .safetensors files, or one run.")
OUT = cli.path_flag("out", None, "A new folder.")
FORM = flags.DEFINE_enum("form", "ours", ("ours", "transformers"), "What OUT becomes.")
BEST = flags.DEFINE_string("best", "", "Of a run: the best of this stage; none: the newest.")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 0, "Grow the vocabulary to it; 0: as it is.")

LEAVE_OUT = flags.DEFINE_string(
    "leave_out", "", "A regex over paths that are not taken over: 'projector/.*'; none: all are."
)


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it reads
    report = convert(
        SOURCE.value,
        OUT.value,
        form=FORM.value,
        best=BEST.value,
        vocab_size=VOCAB_SIZE.value,
        leave_out=LEAVE_OUT.value,
    )
    print("\n".join(report))


if __name__ == "__main__":
    cli.run(main, OSError, required=["source", "out"])
