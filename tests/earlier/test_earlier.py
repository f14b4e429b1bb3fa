"""What an earlier version has written still opens and goes on, by the same commands.

The archives beside this file hold what the commands of `commands.json` left behind, and what they
gave when they went on (`make.py` made them, once; see there). Nothing here names a module of the
package other than its commands: all else may move.
"""

import json
import math
import re
import shutil
from pathlib import Path

import av
import pytest
from safetensors.numpy import load_file

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
COMMANDS = json.loads((HERE / "commands.json").read_text())
DATES = {"date", "dates"}  # keys of what differs from one start to the next


def read_json(path: Path):
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_holds(new, old, where: str = "") -> None:
    """Whatever `old` says, `new` says too: numbers to what another order of sums changes."""
    if isinstance(old, dict):
        assert isinstance(new, dict) and old.keys() <= new.keys(), (where, new, old)
        for key in old.keys() - DATES:
            assert_holds(new[key], old[key], f"{where}.{key}")
    elif isinstance(old, list):
        assert len(new) == len(old), (where, new, old)
        for number, (ours, theirs) in enumerate(zip(new, old, strict=True)):
            assert_holds(ours, theirs, f"{where}[{number}]")
    elif isinstance(old, float):
        assert math.isclose(new, old, rel_tol=1e-4, abs_tol=1e-6), (where, new, old)
    else:
        assert new == old, (where, new, old)


def assert_same_arrays(new: Path, old: Path) -> None:
    ours, theirs = load_file(new / "model.safetensors"), load_file(old / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and (ours[name] == array).all(), name


@pytest.fixture
def results(opened):
    """Exported models, a prepared folder, and results: `half` of the answers, and all, judged."""
    return opened("results")


def test_a_stopped_run_goes_on_with_its_moments_and_its_frames(opened):
    place = opened("run")
    place.blank("videos")
    metrics, kept = place / "run/metrics.jsonl", ("store", "run/tokenizer", "run/frozen")
    before, states = metrics.read_text(), [place.state(name) for name in kept]
    _, log = place.run("train")
    assert "anew" not in log and [place.state(name) for name in kept] == states, log
    assert metrics.read_text().startswith(before)
    assert_holds(read_lines(metrics), read_lines(place / "expected/metrics.jsonl"))
    ours, theirs = place / "run/report/results.json", place / "expected/results.json"
    ours, theirs = read_json(ours), read_json(theirs)
    spent = [results.pop("seconds") for results in (ours, theirs)]
    assert spent[0]["visual"] == spent[1]["visual"], "the first stage was trained again"
    assert_holds(ours, theirs)
    names = read_json(place / "run/training_videos.json")["videos"]
    assert names == [f"{number}.mp4" for number in range(6)]


def test_a_file_of_questions_to_a_run_keeps_the_answers_it_has(opened):
    place = opened("run")
    answers = place / "chat/answers.jsonl"
    before = answers.read_text()
    for number in range(3):  # what has its answers is not looked at again
        (place / f"videos/{number}.mp4").unlink()
    place.run("chat", code=3)  # one of its videos is none
    assert answers.read_text().startswith(before) and before.count("\n") >= 3
    ours, theirs = read_lines(answers), read_lines(place / "expected/answers.jsonl")
    assert "error" in ours.pop() and theirs.pop() and ours == theirs


def test_an_evaluation_goes_on_with_an_exported_model_and_a_prepared_folder(results):
    shutil.move(results / "results", results / "whole")
    shutil.move(results / "half", results / "results")
    shutil.rmtree(results / "videos")
    ours, theirs = results / "results/own", results / "whole/own"
    before, frames = (ours / "answers.jsonl").read_text(), results.state("prepared")
    date = read_json(ours / "info.json")["date"]
    results.run("evaluate")
    assert (ours / "answers.jsonl").read_text().startswith(before)
    assert results.state("prepared") == frames
    found, wanted = (
        {(a["question_id"], a["control"]): (a["answer"], a["ids"], a["truth"]) for a in answers}
        for answers in map(read_lines, (ours / "answers.jsonl", theirs / "answers.jsonl"))
    )
    assert found == wanted and len({answer for answer, *_ in wanted.values()}) > 9
    info = read_json(ours / "info.json")
    assert info["date"] == date and info["complete"]
    assert_holds(info["made_with"], read_json(theirs / "info.json")["made_with"])
    for name in ("predictions.json", "prior.json"):
        assert_holds(read_json(ours / name), read_json(theirs / name))


def test_judging_goes_on_and_the_report_reads_what_was_judged(results):
    own = results / "results/own"
    verdicts, scores = own / "judged.exact.jsonl", own / "scores.exact.json"
    whole, score = verdicts.read_text().splitlines(keepends=True), read_json(scores)
    half = "".join(whole[: len(whole) // 2])
    verdicts.write_text(half)
    scores.unlink()
    results.run("judge")
    assert verdicts.read_text().startswith(half)
    assert_holds(read_lines(verdicts), [json.loads(line) for line in whole])
    assert_holds(read_json(scores), score)
    assert 0 < score["accuracy"]["value"] < 1
    official = own / "judged.exact.official.jsonl"
    before = official.read_text(), read_json(own / "scores.exact.official.json")
    results.run("judge_officially")
    assert official.read_text() == before[0]
    assert_holds(read_json(own / "scores.exact.official.json"), before[1])
    told = read_json(results / "told.json")["compare"]
    assert results.run("compare")[0] == told
    page = results / "results/report.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ours |")]
    page.unlink()
    results.run("report")
    assert rows and set(rows) <= set(page.read_text().splitlines())


def test_exported_models_go_in_and_out_bit_for_bit(results):
    results.run("convert_in")
    results.run("convert_out")
    assert_same_arrays(results / "out", results / "theirs")
    ours, decoder = (load_file(results / f"{name}/model.safetensors") for name in ("ours", "in"))
    assert decoder and decoder.keys() == {name for name in ours if name.startswith("decoder/")}
    for name, array in decoder.items():
        assert (array == ours[name]).all(), name


def test_training_opens_a_prepared_folder_and_an_exported_model(results):
    shutil.rmtree(results / "videos")
    before = results.state("prepared"), results.state("ours")
    shown, _ = results.run("show_prompt")
    told = read_json(results / "told.json")["show_prompt"]
    rows, wanted = (re.findall("(?m)^    [.=] .*$", text) for text in (shown, told))
    assert rows == wanted and wanted
    assert (results.state("prepared"), results.state("ours")) == before
    assert not (results / "store").exists()


def test_a_prepared_folder_is_not_prepared_again(results):
    before, rows = results.state("prepared/frames"), (results / "prepared/test.json").read_text()
    info = read_json(results / "prepared/test.info.json")
    results.run("prepare")
    assert results.state("prepared/frames") == before
    assert (results / "prepared/test.json").read_text() == rows
    assert_holds(read_json(results / "prepared/test.info.json"), info)


def test_a_killed_preparation_goes_on_behind_the_last_video(opened):
    place = opened("preparation")
    (journal,) = (place / "prepared/frames").glob("journal-*")
    looked = (place / "prepared/look.journal").read_bytes()
    before = place.state("prepared/frames")
    finished = {path: state for path, state in before.items() if path.suffix in (".json", ".f64")}
    finished |= {path: state for path, state in before.items() if path.name.endswith("-of-00016")}
    stored = first_record(journal)
    if av.__version__.encode() in looked:  # by another decoder all are looked at again
        last = (place / "many/16.mp4").rename(place / "last.mp4")
        place.blank("many")
        last.rename(place / "many/16.mp4")
    place.run("prepare_many")
    after = place.state("prepared/frames")
    assert finished and finished.items() <= after.items() and not journal.exists()
    assert stored in after[place / "prepared/frames/frames-videos.array_record-00015-of-00016"][2]
    assert len(read_json(place / "prepared/frames/index.json")["entries"]) == 17
    assert len(read_json(place / "prepared/train.json")) == 17


def first_record(journal: Path) -> bytes:
    """What a journal begins with, behind a letter and a length."""
    content = journal.read_bytes()
    assert content[:1] == b"R"
    return content[9 : 9 + int.from_bytes(content[1:9], "little")]
