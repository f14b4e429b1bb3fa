"""Judging against a real server that does whatever servers do."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from rvllm_jax.evaluation.answers.answer_file import read_answers
from rvllm_jax.evaluation.judge import judges
from rvllm_jax.evaluation.judge.chat import JudgeError
from rvllm_jax.evaluation.judge.endpoint import Patience
from rvllm_jax.evaluation.judge.prompts import item_id, load_prompts
from rvllm_jax.evaluation.judge.verdicts import VerdictsError, items
from rvllm_jax.evaluation.judging import judge_benchmark
from rvllm_jax.evaluation.score.scores import Scoring
from rvllm_jax.system.lock import LockError

ROOT = Path(__file__).parents[3]
QUICK = Patience(timeout=2.0, attempts=6, first=0.002, longest=0.01)
HOLDS_NO_REPLIES = 20 << 20  # bytes that memory may differ by


def judging(url, concurrency=16, patience=QUICK, prompts=None, stop=None, **options):
    given = dict(key_env="", parameters={"temperature": 0.0}, tries=3) | options
    return judges.endpoint_judge(
        url, "judge", load_prompts(prompts), patience=patience, concurrency=concurrency,
        stop=stop or threading.Event(), **given,
    )  # fmt: skip


def judge(folder, by, **options):
    return judge_benchmark(folder, by, Scoring(resamples=20), **options)


def lines(folder, name="judge"):
    return [json.loads(x) for x in (folder / f"judged.{name}.jsonl").read_text().splitlines()]


def ids(folder) -> dict[str, str]:
    """What the judge calls each question."""
    return {i.question_id: item_id(i) for i in items(read_answers(folder / "answers.jsonl"))}


def check_complete(folder, said, found=None):
    """Each question once, with the verdict that the server gave of it."""
    found, named = found or lines(folder), ids(folder)
    assert sorted(line["question_id"] for line in found) == sorted(named)
    for line in found:
        expected = said(named[line["question_id"]])
        assert line["correct"] is (expected["pred"] == "yes"), line
        assert line["score"] == expected["score"] and not line["failed"], line
        assert line["model"] == "judge-2026-01-01" and line["date"] and len(line["raw"]) >= 1


def scripted(faults, hangs=6):
    """Two in three items have a fault at first, some of them two; `hangs` items hang once."""
    passing, unreadable = faults
    kinds = (*passing, *unreadable, "slow", "python")
    left = [hangs]

    def script(id, number):
        place = int(id, 16)
        if number == 0 and place % 3:
            if place % 16 == 1 and left[0] > 0:
                left[0] -= 1
                return "hang"
            return kinds[place // 3 % len(kinds)]
        if number == 1 and place % 3 == 2 and place % 7 == 0:
            return passing[place // 21 % len(passing)]
        return ""

    return script


def test_all_are_judged_once_whatever_goes_wrong(many, serve, faults, said):
    server, folder = serve(scripted(faults)), many(300)
    result, done = judge(folder, judging(server.url))
    assert (done.judged, done.before, done.left) == (300, 0, [])
    check_complete(folder, said)
    found, named = lines(folder), ids(folder)
    assert any(len(line["raw"]) == 2 for line in found)  # unreadable replies are kept
    yes = sum(said(id)["pred"] == "yes" for id in named.values())
    assert result["accuracy"]["value"] == pytest.approx(yes / 300)
    mean = sum(said(id)["score"] for id in named.values()) / 300
    assert result["score"]["value"] == pytest.approx(mean)
    replies = sum(len(line["raw"]) for line in found)
    assert result["tokens"] == {"prompt_tokens": 100 * replies, "completion_tokens": 10 * replies}
    assert result["judge"]["models"] == {"judge-2026-01-01": 300}
    assert result["judge"]["prompts_sha256"] == load_prompts(None).sha256
    again, done = judge(folder, judging(server.url))
    assert (done.judged, done.before) == (0, 300) and again == result


def command(folder, url, *more):
    return [
        sys.executable, "-m", "rvllm_jax.judge", f"--results={folder.parent}", "--backend=openai",
        "--model=judge", f"--base_url={url}", "--key_env=", "--backoff=0.002", "--attempts=8",
        "--longest_wait=0.01", "--timeout=5", "--resamples=20", *more,
    ]  # fmt: skip


def start(*given):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(*given), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def killed_twice(folder, server, count, concurrency):
    """Runs the command to its end, killed on the way; the memory it had early and late."""
    for part in (1, 2):
        server.reached = {part * count // 4: threading.Event()}
        run = start(folder, server.url, f"--concurrency={concurrency}")
        assert server.reached[part * count // 4].wait(120)
        run.send_signal(signal.SIGKILL)
        run.wait()
        held = lines(folder) if part == 1 else []
        with open(folder / "judged.judge.jsonl", "ab") as file:
            file.write(b'{"question_id": "q1", "contr')  # as if killed while it wrote
    early, late = 6 * count // 10, 95 * count // 100
    server.reached = {early: threading.Event(), late: threading.Event()}
    run = start(folder, server.url, f"--concurrency={concurrency}")
    memory = []
    for event in server.reached.values():
        assert event.wait(300)
        memory.append(psutil.Process(run.pid).memory_info().rss)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "half-written last line" in err
    assert all(line in lines(folder) for line in held)  # nothing judged is lost or changed
    return memory, out


def test_killed_twice_the_result_is_the_same(many, serve, faults, said):
    server, folder = serve(scripted(faults, hangs=0)), many(300)
    _, out = killed_twice(folder, server, 300, 8)
    check_complete(folder, said)
    assert "300 questions" in out
    # At most what was in flight was asked twice: once a kill, by each thread.
    assert sum(server.good.values()) - len(server.good) <= 2 * 8
    scores = json.loads((folder / "scores.judge.json").read_text())
    whole, server = many(300, out="whole"), serve()
    expected, _ = judge(whole, judging(server.url))
    for name in ("accuracy", "score", "failed", "n", "videos"):
        assert scores[name] == expected[name]


@pytest.mark.slow
def test_ten_thousand_at_64_killed_twice_in_flat_memory(many, serve, faults, said):
    server, folder = serve(scripted(faults, hangs=20)), many(10_000)
    (early, late), _ = killed_twice(folder, server, 10_000, 64)
    check_complete(folder, said)
    assert late - early < HOLDS_NO_REPLIES, f"{early} bytes, then {late}"


def test_two_runs_do_not_write_one_file(many, serve, said):
    folder, gate, began = many(20), threading.Event(), threading.Event()

    def script(id, number):
        began.set()
        return "" if gate.is_set() else "429"

    server = serve(script)
    first = judging(server.url, patience=Patience(2.0, 10_000, 0.01, 0.02))
    runs = threading.Thread(target=judge, args=(folder, first))
    runs.start()
    assert began.wait(30)
    with pytest.raises(LockError, match=rf"is being written by .* \(process {os.getpid()} on"):
        judge(folder, judging(server.url))
    gate.set()
    runs.join()
    check_complete(folder, said)


def test_an_unreadable_judge_fails_the_item_and_leaves_it_in_the_denominator(many, serve, said):
    folder = many(20)
    bad = set(list(ids(folder).values())[3:5])
    server = serve(lambda id, number: "prose" if id in bad else "")
    result, _ = judge(folder, judging(server.url))
    failed = [line for line in lines(folder) if line["failed"]]
    assert len(failed) == 2 and all(len(line["raw"]) == 3 for line in failed)
    assert all(line["correct"] is None and line["score"] is None for line in failed)
    good = [said(id) for id in ids(folder).values() if id not in bad]
    assert result["failed"] == {"unanswered": 0, "unjudged": 2}
    assert result["accuracy"]["value"] == sum(v["pred"] == "yes" for v in good) / 20
    assert result["score"]["value"] == pytest.approx(sum(v["score"] for v in good) / 20)
    assert result["of_judged"]["score"]["value"] == pytest.approx(
        sum(v["score"] for v in good) / 18
    )


def test_what_gets_no_reply_is_left_for_the_next_time(many, serve, said):
    folder = many(30)
    bad = set(list(ids(folder).values())[7:9])
    server = serve(lambda id, number: "400" if id in bad and number < 1 else "")
    result, done = judge(folder, judging(server.url, concurrency=2))
    assert result is None and len(done.left) == 2 and "filtered" in done.left[0][1]
    assert not (folder / "scores.judge.json").exists()
    result, done = judge(folder, judging(server.url))
    assert (done.judged, done.before) == (2, 28) and result["failed"]["unjudged"] == 0
    check_complete(folder, said)


def test_given_up_it_is_recorded(many, serve):
    folder = many(10)
    bad = list(ids(folder).values())[7]
    server = serve(lambda id, number: "400" if id == bad else "")
    result, done = judge(folder, judging(server.url), give_up=True)
    assert result["failed"]["unjudged"] == 1 and result["n"] == 10 and not done.left


def test_a_judge_that_dies_on_the_way_stops_the_work_and_keeps_it(many, serve):
    folder = many(200)
    server = serve(lambda id, number: "500" if server.good.total() >= 40 else "")
    with pytest.raises(JudgeError, match="in a row got no reply.*HTTP 500.*is kept"):
        judge(folder, judging(server.url, concurrency=2, patience=Patience(2.0, 1, 0.001, 0.001)))
    assert len(lines(folder)) == 40


def test_an_endpoint_that_does_not_come_up_is_found_out_by_one_question(many, serve):
    server, folder = serve(lambda id, number: "no_choices"), many(50)
    with pytest.raises(JudgeError, match="does not reply: 6 attempts, the last.*overloaded"):
        judge(folder, judging(server.url))
    assert list(server.asked.values()) == [6] and lines(folder) == []


def test_a_key_refused_on_the_way_ends_the_work_by_one_question_a_thread(many, serve, said):
    folder, dead = many(200), threading.Event()

    def script(id, number):
        if server.good.total() >= 40:
            dead.set()
        return "401" if dead.is_set() else ""

    server = serve(script)
    with pytest.raises(JudgeError, match="replied before.*6 attempts.*HTTP 401.*Correct the key"):
        judge(folder, judging(server.url, concurrency=2))
    assert len(lines(folder)) == 40
    assert len(server.asked) <= 40 + 2 * 2  # none of the others was tried in vain
    server.script = lambda id, number: ""
    judge(folder, judging(server.url))
    check_complete(folder, said)


def test_interrupted_it_ends_and_continues(many, serve, said):
    folder, stop = many(100), threading.Event()

    def script(id, number):
        if server.good.total() >= 30:
            stop.set()
        return ""

    server = serve(script)
    result, done = judge(folder, judging(server.url, stop=stop, concurrency=4), stop=stop)
    assert result is None and 30 <= done.judged < 100
    _, done = judge(folder, judging(server.url))
    assert done.before >= 30
    check_complete(folder, said)


def test_interrupted_before_the_first_verdict_it_says_so(many, serve):
    folder, began = many(5), threading.Event()
    server = serve(lambda id, number: began.set() or "429")
    run = start(folder, server.url, "--backoff=60", "--longest_wait=60")
    assert began.wait(30)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 3 and "0 judged, 0 without a reply; repeat the command" in out, err


def test_verdicts_of_other_judges_prompts_parameters_or_answers_are_not_mixed(
    many, serve, tmp_path
):
    server, folder = serve(), many(5)
    by = judging(server.url)
    judge(folder, by)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"QA": {"user": "Item: {id} {answer} {prediction}"}}))
    for changed, told in (
        (judging(server.url, parameters={"temperature": 1.0}, name="judge"), "parameters"),
        (judging(server.url, prompts=prompts, name="judge"), "prompts_sha256"),
    ):
        with pytest.raises(VerdictsError, match=f"judged otherwise.*{told}.*--name"):
            judge(folder, changed)
    assert judging(server.url, prompts=prompts).name.startswith("judge.prompts-")
    many(5)
    path = folder / "answers.jsonl"
    path.write_text(path.read_text().replace('"answer": "a3"', '"answer": "other"'))
    with pytest.raises(VerdictsError, match="1 of 5 verdicts are about other answers.*q3"):
        judge(folder, by)
