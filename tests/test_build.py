"""The command that builds annotations for TFDS, as a person calls it."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(name: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
    """In a process of its own: TFDS's flags do not go with those of other commands."""
    command = [sys.executable, "-m", "rvllm_jax.build", name, *more]
    command += [f"--manual_dir={folder / 'manual'}", f"--data_dir={folder / 'data'}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_part_is_refused_then_built_where_allowed(tmp_path):
    (tmp_path / "manual").mkdir()
    rows = [{"video_name": f"v_{n:011d}", "Q": "What?", "A": "That."} for n in range(3)]
    (tmp_path / "manual" / "temporal_qa.json").write_text(json.dumps(rows))
    refused = build("video_text_generation", tmp_path)
    assert refused.returncode == 1
    assert re.search("^error: .*3 of 499 questions", refused.stderr, flags=re.M), refused.stderr
    done = build("video_text_generation", tmp_path, "--allow_partial")
    assert done.returncode == 0, done.stderr
    built = tmp_path / "data" / "video_text_generation" / "partial" / "1.0.0"
    facts = json.loads((built / "metadata.json").read_text())["splits"]["temporal"]
    assert facts["questions"] == 3 and "3 of 499" in facts["partial"]


def test_no_part_of_what_is_made_here_is_allowed(tmp_path):
    refused = build("shapes", tmp_path, "--allow_partial")
    assert refused.returncode == 1 and "always whole; leave this out" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_folder_shows_what_to_download(tmp_path):
    refused = build("msvd_qa", tmp_path)
    assert refused.returncode == 1
    assert re.search("(?s)does not exist.*val_q.json and val_a.json", refused.stderr)


def test_tfds_finds_every_builder_by_import():
    """As its own command `tfds build` looks for them, which starts only beside TensorFlow."""
    program = """
from tensorflow_datasets.scripts.cli import build
from rvllm_jax.data.tfds import builder, datasets
names = [*(dataset.name for dataset in datasets.DATASETS), "shapes"]
for name in names:
    cls, options = build._get_builder_cls_and_kwargs(f"{name}/partial", has_imports=True)
    assert cls.name == name and options == {"config": "partial"}
print(len(names))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["8"], done.stderr
