import json

import pytest

from rvllm_jax.evaluation.judge.run import check_before
from rvllm_jax.evaluation.judge.verdicts import (
    Verdict,
    VerdictsError,
    items,
    line,
    open_verdicts,
    paths,
    read_judged,
)
from rvllm_jax.system.lines import LinesError

MADE = {"backend": "openai", "model": "m", "parameters": {"temperature": 0.0}}


@pytest.fixture
def some(answer):
    return list(items([answer(f"q{n}", answer=str(n)) for n in range(4)]))


def fill(folder, some, made=MADE):
    lines, held = open_verdicts(folder, "m", made)
    with lines:
        for item in some:
            if item.key not in held:
                lines.append(line(item, Verdict(correct=True, score=4.8, raw=("{}",), model="m-1")))
    return held


def test_what_is_written_comes_back(tmp_path, some):
    assert fill(tmp_path, some[:3]) == {}
    assert fill(tmp_path, some) == {item.key: item.of for item in some[:3]}
    found = list(read_judged(paths(tmp_path, "m")[0]))
    assert [j.key for j in found] == [item.key for item in some]
    assert all(j.score == 4.8 and j.correct and j.answered and j.model == "m-1" for j in found)
    assert fill(tmp_path, some, MADE | {"base_url": "http://elsewhere"})  # the same judge, moved


def test_verdicts_of_something_else_are_not_mixed(tmp_path, some):
    fill(tmp_path, some)
    with pytest.raises(VerdictsError, match="temperature.*0.0.*there.*1.0.*now"):
        fill(tmp_path, some, MADE | {"parameters": {"temperature": 1.0}})
    with pytest.raises(VerdictsError, match="prompts_sha256: None there"):
        fill(tmp_path, some, MADE | {"prompts_sha256": "ab"})
    paths(tmp_path, "m")[1].unlink()
    with pytest.raises(VerdictsError, match="which says what judged it, is not there"):
        fill(tmp_path, some)


def test_a_judge_of_ours_is_known_by_its_content_and_not_by_its_path(tmp_path, some):
    made = MADE | {"backend": "local", "parameters": {"step": 3}, "fingerprint": "a"}
    fill(tmp_path, some[:2], made)
    moved = made | {"model": "elsewhere/m", "parameters": {"step": 0}}  # exported
    assert len(fill(tmp_path, some, moved)) == 2
    with pytest.raises(VerdictsError, match="fingerprint: 'a' there, 'b' now"):
        fill(tmp_path, some, made | {"fingerprint": "b"})  # trained again under the same path
    path = paths(tmp_path, "m")[1]
    older = json.loads(path.read_text())
    del older["fingerprint"]
    path.write_text(json.dumps(older))
    assert len(fill(tmp_path, some, made)) == 4  # what it does not record is not known
    with pytest.raises(VerdictsError, match="model: 'm' there"):
        fill(tmp_path, some, moved)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"score": 5.5}, "score is 5.5, expected 0 to 5"),
        ({"score": True}, "score is True"),
        ({"overlap": -1}, "overlap is -1"),
        ({"score": "4"}, "score is '4'"),
        ({"correct": 1}, "correct is 1"),
        ({"of": None}, "of is None"),
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path, some, changes, told):
    fill(tmp_path, some)
    path = paths(tmp_path, "m")[0]
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    rows[2] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(VerdictsError, match=f"line 3: {told}.*judged again"):
        fill(tmp_path, some)


def test_nan_and_repeated_verdicts_are_refused(tmp_path, some):
    fill(tmp_path, some)
    path = paths(tmp_path, "m")[0]
    content = path.read_text()
    path.write_text(content.replace('"score": 4.8', '"score": NaN', 1))
    with pytest.raises(LinesError, match="line 1.*NaN is no number"):
        fill(tmp_path, some)
    path.write_text(content + content.splitlines()[1] + "\n")
    with pytest.raises(VerdictsError, match="holds .*q1.* twice"):
        fill(tmp_path, some)
    path.write_text(content)
    assert len(fill(tmp_path, some)) == 4  # and the lock of a refused run is gone


def test_answers_that_changed_or_went(some, answer):
    held = {item.key: item.of for item in some}
    check_before(some, held, "f")
    check_before([*some, *items([answer("new")])], held, "f")
    changed = [*some[:3], *items([answer("q3", answer="other")])]
    with pytest.raises(VerdictsError, match=r"1 of 4 .*\(0 are of questions that are not there\)"):
        check_before(changed, held, "f")
    with pytest.raises(VerdictsError, match=r"2 of 4 .*\(2 are of .*q2"):
        check_before(some[:2], held, "f")
