"""The judge that compares, and the one that an endpoint is. Others: facts, chat, local."""

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from rvllm_jax.evaluation.answers.exact_match import default_rule, same, type_name
from rvllm_jax.evaluation.judge.chat import ChatJudge, JudgeError
from rvllm_jax.evaluation.judge.endpoint import Endpoint, Patience
from rvllm_jax.evaluation.judge.prompts import Prompts
from rvllm_jax.evaluation.judge.verdicts import QA, Item, Judge, Verdict


class ExactJudge(Judge):
    """Judges questions by comparison: `correct` by `rule`, and what every rule gives.

    rule: one of exact_match.RULES; "" for the benchmark's own.
    """

    def __init__(self, rule: str = "", name: str = ""):
        self.rule, self.name = rule, name or (f"exact.{rule}" if rule else "exact")

    def made_with(self, benchmark: str) -> dict[str, Any]:
        parameters = {"rule": self.rule or default_rule(benchmark)}
        return {"backend": "exact", "model": "exact", "parameters": parameters}

    def chosen(self, item: Item) -> bool:
        return item.criterion == QA

    def judge(self, item: Item, benchmark: str) -> Verdict:
        by_rule = same(item.answers[0], item.reference, type_name(benchmark, item.type))
        correct = by_rule[self.rule or default_rule(benchmark)]
        return Verdict(correct=correct, model="exact", more=by_rule)


def endpoint_judge(
    base_url: str,
    model: str,
    prompts: Prompts,
    *,
    key_env: str,
    parameters: Mapping[str, Any],
    patience: Patience,
    stop: threading.Event,
    **options: Any,
) -> ChatJudge:
    """By an endpoint of OpenAI's protocol; `options` as of `ChatJudge`.

    key_env: the variable of the environment that holds the key; "": the endpoint wants none.
    Raises JudgeError where the model, the address or the key is missing or cannot be one.
    """
    if not model:
        raise JudgeError("name the endpoint's model by --model")
    key = os.environ.get(key_env, "").strip() if key_env else None
    if key == "":
        raise JudgeError(
            f"the environment's {key_env} holds no key: set it, name another variable by "
            "--key_env, or say --key_env= where the endpoint wants none"
        )
    ask = Endpoint(base_url, model, key=key, parameters=parameters, patience=patience, stop=stop)
    return ChatJudge(ask, model, prompts, "openai", parameters, base_url=base_url, **options)


def request_parameters(
    temperature: float, max_tokens: int, seed: int | None, extra: str
) -> dict[str, Any]:
    """What a request holds beside model and messages; `extra`, JSON, adds fields or removes them by
    null. Raises JudgeError."""
    try:
        more = json.loads(extra)
        json.dumps(more, allow_nan=False)  # what loads takes beside JSON: NaN, 1e400
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"--extra={extra}: not JSON ({error})") from error
    if not isinstance(more, dict) or more.keys() & {"model", "messages", "stream"}:
        raise JudgeError(
            f"--extra={extra}: expected an object of further fields, without model, messages, "
            "stream"
        )
    fields = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed} | more
    return {name: value for name, value in fields.items() if value is not None}
