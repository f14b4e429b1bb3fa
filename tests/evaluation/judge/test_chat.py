import pytest

from rvllm_jax.evaluation.judge.chat import ReplyError, file_name, read_reply
from rvllm_jax.evaluation.judge.verdicts import FAITHFULNESS


@pytest.mark.parametrize(
    "text, correct, score",
    [
        ('{"pred": "yes", "score": 4}', True, 4.0),
        ("{'pred': 'yes', 'score': 4.8}", True, 4.8),
        ("  {'pred': 'No', 'score': 0}\n", False, 0.0),
        ('```json\n{"pred": "YES", "score": 5}\n```', True, 5.0),
        ("```\n{'pred': 'no', 'score': 2.5}```", False, 2.5),
        ("{'pred': 'yes', 'score': 3, 'reason': 'it\\'s so'}", True, 3.0),
        ('{"pred": " yes ", "score": 3e0}', True, 3.0),
    ],
)
def test_what_can_be_read(text, correct, score):
    verdict = read_reply(text)
    assert verdict.correct is correct and verdict.score == score


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("yes", "does not begin with {"),
        ("I say {'pred': 'yes', 'score': 4}", "does not begin"),
        ("{'pred': 'yes', 'score': 4} as it is right", "neither JSON nor"),
        ("{'pred': 'yes', 'score': 4}\n{'pred': 'no', 'score': 1}", "neither JSON nor"),
        ("{'pred': 'yes', 'sco", "neither JSON nor"),
        ("{'pred', 'yes'}", "is a set"),
        ("[{'pred': 'yes', 'score': 4}]", "does not begin"),
        ("{'pred': 'yes', 'score': __import__('os').getpid()}", "neither JSON nor"),
        ("{''score': 4.8}", "neither JSON nor"),
        ('{"pred": "yes", "score": NaN}', "score is nan"),
        ('{"pred": "yes", "score": Infinity}', "score is inf"),
        ("{'pred': 'yes', 'score': 1e999}", "score is inf"),
        ("{'pred': 'yes', 'score': -0.1}", "not a number from 0 to 5"),
        ("{'pred': 'yes', 'score': 5.01}", "not a number from 0 to 5"),
        ("{'pred': 'yes', 'score': 1" + "0" * 400 + "}", "not a number from 0 to 5"),
        ("{'pred': 'yes', 'score': '4'}", "score is '4'"),
        ("{'pred': 'yes', 'score': True}", "score is True"),
        ('{"pred": "yes", "score": true}', "score is True"),
        ("{'pred': 'yes', 'score': None}", "score is None"),
        ("{'pred': 'yes'}", "score is None"),
        ("{'score': 4}", "pred is None"),
        ("{'pred': True, 'score': 4}", "pred is True"),
        ("{'pred': 'maybe', 'score': 4}", "pred is 'maybe'"),
        ("{'pred': 'yes no', 'score': 4}", "pred is 'yes no'"),
        ('{"pred": "yes", "pred": "no", "score": 4}', "a key twice"),
        ("{'pred': 'yes', 'pred': 'no', 'score': 4}", "a key twice"),
        ("{[]: 1}", "neither JSON nor"),
        ("{" + "'a': {" * 1500, "neither JSON nor"),
        ("{'a': " + "-" * 9000 + "1}", "neither JSON nor"),
        ("{" + " " * 20_000 + "}", "20002 characters"),
        ("\ud800{}", "does not begin"),
    ],
)
def test_what_cannot_says_why(text, told):
    with pytest.raises(ReplyError, match=told):
        read_reply(text)


def test_criteria_have_a_score_alone():
    verdict = read_reply("{'score': 2.5, 'pred': 'yes'}", "CI")
    assert verdict.score == 2.5 and verdict.correct is None


def test_the_id_that_was_asked_about_comes_back():
    assert read_reply("{'id': 'ab', 'score': 1}", "TU", "ab").score == 1
    for given, told in (
        ("{'id': 'cd', 'score': 1}", "gives id 'cd'"),
        ("{'score': 1}", "gives no id"),
        ("{'id': 12, 'score': 1}", "gives id 12"),
    ):
        with pytest.raises(ReplyError, match=told):
            read_reply(given, "TU", "ab")


def test_claims():
    verdict = read_reply('{"claims": 4, "supported": 3}', FAITHFULNESS)
    assert verdict.overlap == 0.75 and verdict.score is None and verdict.correct is None
    assert read_reply('{"claims": 0, "supported": 0}', FAITHFULNESS).overlap is None
    for text in ("{'claims': 1, 'supported': 2}", "{'claims': 2.0, 'supported': 1}",
                 "{'claims': True, 'supported': 1}", "{'claims': 3}",
                 "{'claims': 3, 'supported': -1}"):  # fmt: skip
        with pytest.raises(ReplyError):
            read_reply(text, FAITHFULNESS)


def test_names_of_files():
    assert file_name("gpt-4o-2024-08-06") == "gpt-4o-2024-08-06"
    assert file_name("../../x y") == "x-y" and file_name("///") == "judge"
