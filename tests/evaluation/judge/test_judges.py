from rvllm_jax.evaluation.judge.judges import ExactJudge
from rvllm_jax.evaluation.judge.verdicts import items


def test_the_judge_follows_the_rule_and_says_both(answer):
    (item,) = items([answer(answer="Yes.", truth="yes", type="3")])
    for rule, correct in (("official", False), ("normalised", True)):
        verdict = ExactJudge(rule).judge(item, "activitynet_qa")
        assert verdict.correct is correct and verdict.score is None
        assert verdict.more == {"official": False, "normalised": True}
