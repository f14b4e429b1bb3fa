"""One page of what was evaluated and judged.

    python -m rvllm_jax.report --results=OUT[,OUT2]

Writes OUT/report.html, which needs nothing beside it, and OUT/report.md: every score with its
interval, judge and split beside the published ones, by type, the controls, the scores without
videos of the training, and failures with frames. Several folders are compared.

Exit codes: 0 done; 1 refused.
"""

from absl import flags

from rvllm_jax.config import cli
from rvllm_jax.experiments.report.page import report

RESULTS = cli.paths_flag("results", None, "Folders that evaluate and judge wrote.")
FAILURES = flags.DEFINE_integer("failures", 12, "Wrong answers shown of each, with frames.", 0)


def main() -> None:
    folder, notes = report(RESULTS.value, most_failures=FAILURES.value)
    print("\n".join([*notes, f"report: {folder / 'report.html'}"]))


if __name__ == "__main__":
    cli.run(main, required=["results"])
