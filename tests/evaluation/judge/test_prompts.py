import json

import pytest

from rvllm_jax.evaluation.judge.prompts import OURS, Prompts, PromptsError, item_id, load_prompts
from rvllm_jax.evaluation.judge.verdicts import items


def made(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def all_items(answer):
    generic = answer("g", question="Who?", truth="A cat.", answer="A dog.",
                     criteria=["CI", "DO", "CU", "TU"])  # fmt: skip
    pair = [
        answer(f"c{n}", question=f"Who {n}?", truth="A cat.", answer=f"Dog {n}.", criteria=["C"],
               pair="p")
        for n in (1, 2)
    ]  # fmt: skip
    return list(items([generic, *pair, answer("q", question="Who?", truth="cat")],
                      faithfulness=True))  # fmt: skip


def test_ours_show_the_judge_all_it_judges(answer):
    prompts = load_prompts(None)
    kinds = set()
    for item in all_items(answer):
        system, user = prompts.messages(item)
        assert (system["role"], user["role"]) == ("system", "user")
        for shown in (*item.questions, *item.answers, item.reference, item_id(item)):
            assert shown in user["content"]
        assert "{id}" not in user["content"] and "{prediction" not in user["content"]
        assert prompts.echoed(item) == item_id(item)
        kinds.add((item.criterion, system["content"]))
    assert len(kinds) == len(OURS) == 7


def test_texts_of_answers_are_not_taken_for_fields(answer):
    (item,) = items([answer(answer="{truth} {answer} {id} {pred}", truth="{prediction}")])
    user = load_prompts(None).messages(item)[1]["content"]
    assert "Answer to grade: {truth} {answer} {id} {pred}\n" in user
    assert "Reference answer: {prediction}\n" in user


def test_prompts_of_a_file(tmp_path, answer):
    text = "Q {question} A {answer} P {prediction}: reply as {'pred': 'yes', 'score': 4.8}"
    prompts = load_prompts(made(tmp_path, {"QA": {"user": text}}))
    qa = next(i for i in all_items(answer) if not i.criterion)
    assert prompts.messages(qa) == [
        {"role": "user", "content": "Q Who? A cat P no: reply as {'pred': 'yes', 'score': 4.8}"}
    ]
    assert prompts.echoed(qa) == ""
    generic = all_items(answer)[0]
    with pytest.raises(PromptsError, match="none called 'CI'.*'g'.*they have QA"):
        prompts.messages(generic)


def test_the_hash_is_of_the_texts_and_of_nothing_else(tmp_path):
    texts = {"QA": {"user": "{answer} {prediction}", "system": "x"}}
    one = load_prompts(made(tmp_path, json.dumps(texts, indent=4)))
    turned = {"QA": dict(reversed(texts["QA"].items()))}
    assert load_prompts(made(tmp_path, turned)).sha256 == one.sha256
    texts["QA"]["system"] = "y"
    assert Prompts(texts).sha256 != one.sha256 != load_prompts(None).sha256


@pytest.mark.parametrize(
    "content, told",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "but a list; expected some of QA"),
        ("{}", "expected some of QA"),
        ({"ci": {"user": "x"}}, "has ci; expected some of QA, CI"),
        ({"QA": "x"}, "QA: expected"),
        ({"QA": {"user": 1}}, "QA: expected"),
        ({"QA": {"assistant": "x"}}, "QA: expected"),
        ({"QA": {"user": "{answer}"}}, "QA never names {prediction}:"),
        ({"C": {"user": "{answer} {prediction1}"}}, "C never names {prediction2}"),
        ({"CI": {"user": "hello"}}, "CI never names {answer} and {prediction}"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, told):
    with pytest.raises(PromptsError, match=told):
        load_prompts(made(tmp_path, content))
    with pytest.raises(PromptsError, match="cannot be read"):
        load_prompts(tmp_path / "absent.json")
