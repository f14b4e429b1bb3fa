"""The command `python -m rvllm_jax.judge`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ANNOTATIONS = ROOT.parent / "shared/data/annotations/activitynet_qa"


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "rvllm_jax.judge", "--resamples=20", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def judged(tmp_path):
    """Predictions for two questions, imported and judged by the command."""
    questions = [
        {"video_name": "video1", "question": f"what {n}?", "question_id": str(200_000 + n)}
        for n in (0, 1)
    ]
    answers = [{"question_id": q["question_id"], "answer": "cat", "type": "1"} for q in questions]
    said = [
        {"id": q["question_id"], "question": q["question"], "answer": "cat", "pred": p}
        for q, p in zip(questions, ("A cat.", "dog"), strict=True)
    ]
    for name, content in (("test_q", questions), ("test_a", answers), ("p", said)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = f"{tmp_path}/test_q.json,{tmp_path}/test_a.json"
    given = f"--predictions={tmp_path}/p.json", f"--annotations={files}"
    code, out, err = run(f"--results={tmp_path}/out", *given)
    assert code == 0, err
    return tmp_path / "out", out


def test_from_predictions_to_scores_and_comparison(judged):
    folder, out = judged
    assert "msrvtt_qa test (partial), judged by exact (normalised rule): 2 questions" in out
    assert "accuracy 50.0 %" in out
    code, out, _ = run(f"--results={folder}", "--rule=official", "--benchmarks=msrvtt_qa")
    assert code == 0 and "accuracy 0.0 %" in out
    files = [folder / f"msrvtt_qa/judged.{name}.jsonl" for name in ("exact", "exact.official")]
    code, out, _ = run(f"--compare={files[0]},{files[1]}")
    assert code == 0 and "agree 50.0 %, kappa 0.000" in out
    assert "spread of accuracy over 2 files: 0.0000 to 0.5000" in out


def test_refusals_say_why_and_exit_1(judged):
    folder, _ = judged
    for arguments, told in (
        ([f"--results={folder}", "--benchmarks=msvd_qa"], "no answers.jsonl of msvd_qa"),
        ([f"--results={folder}", "--backend=openai", "--model=m"], "OPENAI_API_KEY holds no key"),
        ([f"--results={folder}", "--backend=openai", "--model=m", "--base_url=x"], "base URL 'x'"),
        ([f"--compare={folder}"], "name two or more"),
    ):
        key = "x" if "--base_url=x" in arguments else ""
        code, out, err = run(*arguments, OPENAI_API_KEY=key)
        assert code == 1 and not out and err.splitlines()[-1].startswith("refused: "), err
        assert told in err


def test_the_real_annotations_by_the_command(tmp_path):
    """Every second question right, by the official rule, over all and by type."""
    if not ANNOTATIONS.is_dir():
        pytest.skip(f"{ANNOTATIONS} is not here")
    answers = json.loads((ANNOTATIONS / "test_a.json").read_text())
    said = [{"question_id": a["question_id"], "answer": a["answer"]} for a in answers[::2]]
    (tmp_path / "p.json").write_text(json.dumps(said))
    files = f"{ANNOTATIONS}/test_q.json,{ANNOTATIONS}/test_a.json"
    code, out, err = run(f"--results={tmp_path}", f"--predictions={tmp_path}/p.json",
                         f"--annotations={files}", "--split=test")  # fmt: skip
    assert code == 0, err
    scores = json.loads((tmp_path / "activitynet_qa/scores.exact.json").read_text())
    assert scores["accuracy"]["value"] == len(said) / len(answers)
    assert scores["failed"]["unanswered"] == len(answers) - len(said)
    yes_no = [a["type"] == 3 for a in answers]
    by_type = scores["by_type"]["yes/no"]["accuracy"]["value"]
    assert by_type == pytest.approx(sum(yes_no[::2]) / sum(yes_no))
    assert scores["official_evaluator"]["accuracy"]["all"] == scores["accuracy"]["value"]


@pytest.mark.parametrize("flag", [
    *(f"--timeout={value}" for value in ("nan", "-1", "0", "1e300")), "--backoff=nan",
    "--longest_wait=1e300", "--temperature=nan", "--price_in=nan", "--price_out=inf",
    '--extra={"a":NaN}', "--extra=" + "[" * 100_000, "--resamples=1000000000000",
    "--max_tokens=-1", f"--concurrency={9**20}", "--attempts=99999",
])  # fmt: skip
def test_numbers_that_no_request_can_hold_are_refused_before_anything_is_judged(judged, flag):
    folder, _ = judged
    code, out, err = run(
        f"--results={folder}", "--backend=openai", "--model=m", "--key_env=", "--attempts=1",
        "--base_url=http://127.0.0.1:9", flag,
    )  # fmt: skip
    assert code == 1 and not out and "Traceback" not in err
    assert flag.partition("=")[0] in err.replace("flag -", "-"), err
    assert not list(folder.glob("*/judged.openai*")) and "does not reply" not in err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_signal_ends_it_also_where_nothing_is_being_judged(judged, tmp_path, sent, code):
    folder, _ = judged
    os.mkfifo(tmp_path / "prompts")  # a file that takes for ever to be read
    judge = subprocess.Popen(
        [sys.executable, "-m", "rvllm_jax.judge", f"--results={folder}", "--backend=openai",
         "--model=m", "--key_env=", f"--prompts={tmp_path}/prompts"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with open(tmp_path / "prompts", "w"):  # waits until it reads
            judge.send_signal(sent)
            _, err = judge.communicate(timeout=20)
    finally:
        judge.kill()
        judge.wait()
    assert judge.returncode == code and "Traceback" not in err
