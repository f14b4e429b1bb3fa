"""The judges there are, each with all that its verdicts depend on."""

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rvllm_jax.evaluation.answers.exact_match import default_rule, same, type_name
from rvllm_jax.evaluation.judge.chat import Ask, ChatJudge, JudgeError
from rvllm_jax.evaluation.judge.endpoint import Endpoint, Patience
from rvllm_jax.evaluation.judge.facts import FactJudge
from rvllm_jax.evaluation.judge.prompts import OURS, Prompts
from rvllm_jax.evaluation.judge.verdicts import FAITHFULNESS, QA, Item, Judge, Verdict, file_name


@dataclasses.dataclass(frozen=True)
class Judging:
    """A judge, and all that its verdicts depend on.

    name: of its files. made_with: of a benchmark's name -> backend, model as asked for, prompts'
    sha256, parameters. judge: of a benchmark's name -> what judges its items. chosen: whether an
    item is for it. check: raises for an item that it cannot judge, before any is judged.
    """

    name: str
    made_with: Callable[[str], dict[str, Any]]
    judge: Callable[[str], Judge]
    chosen: Callable[[Item], bool] = lambda item: True
    check: Callable[[Item], object] = lambda item: None
    faithfulness: bool = False
    concurrency: int = 1


class ExactJudge:
    """Judges by comparison; `correct` follows `rule`, and every verdict says what both rules say.

    benchmark: whose numbers of types are known (exact_match.TYPES).
    """

    def __init__(self, benchmark: str, rule: str):
        self.benchmark, self.rule = benchmark, rule

    def __call__(self, item: Item) -> Verdict:
        by_rule = same(item.answers[0], item.truth, type_name(self.benchmark, item.type))
        return Verdict(correct=by_rule[self.rule], model="exact", more=by_rule)


def exact(rule: str = "", name: str = "") -> Judging:
    """By comparison (answers/exact_match.py), questions only; `rule`: one of its RULES, "" for the
    benchmark's own."""

    def made_with(benchmark: str) -> dict[str, Any]:
        parameters = {"rule": rule or default_rule(benchmark)}
        return {"backend": "exact", "model": "exact", "parameters": parameters}

    return Judging(
        name or ("exact" if not rule else f"exact.{rule}"),
        made_with,
        lambda benchmark: ExactJudge(benchmark, rule or default_rule(benchmark)),
        lambda item: item.criterion == QA,
    )


def facts(name: str = "") -> Judging:
    """By overlap of facts (facts.py): every answer, of questions and of text generation."""
    return Judging(
        name or "facts",
        lambda benchmark: {"backend": "facts", "model": "facts", "parameters": {}},
        lambda benchmark: FactJudge(),
        lambda item: item.criterion == FAITHFULNESS,
        faithfulness=True,
    )


def chat(
    ask: Ask,
    model: str,
    prompts: Prompts,
    *,
    backend: str,
    parameters: Mapping[str, Any],
    tries: int = 3,
    faithfulness: bool = False,
    concurrency: int = 1,
    name: str = "",
    base_url: str = "",
) -> Judging:
    """By asking `ask`. The name tells the model, and what is not as usual."""
    made_with = {
        "backend": backend,
        "base_url": base_url,
        "model": model,
        "prompts_sha256": prompts.sha256,
        "prompts": prompts.texts,
        "parameters": dict(parameters) | {"tries": tries},
    }
    return Judging(
        name or _name(model, prompts, parameters),
        lambda benchmark: dict(made_with),
        lambda benchmark: ChatJudge(ask, prompts, tries),
        check=prompts.messages,
        faithfulness=faithfulness,
        concurrency=concurrency,
    )


def endpoint(
    base_url: str,
    model: str,
    prompts: Prompts,
    *,
    key_env: str,
    parameters: Mapping[str, Any],
    patience: Patience,
    stop: threading.Event,
    **options: Any,
) -> Judging:
    """By an endpoint of OpenAI's protocol; `options` as in `chat`.

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
    asks = Endpoint(base_url, model, key=key, parameters=parameters, patience=patience, stop=stop)
    return chat(
        asks, model, prompts, backend="openai", parameters=parameters, base_url=base_url, **options
    )


def request_parameters(
    temperature: float, max_tokens: int, seed: int | None, extra: str
) -> dict[str, Any]:
    """What a request holds beside model and messages; `extra`, JSON, adds fields or removes them by
    null. Raises JudgeError."""
    try:
        more = json.loads(extra)
    except ValueError as error:
        raise JudgeError(f"--extra={extra}: not JSON ({error})") from error
    if not isinstance(more, dict) or more.keys() & {"model", "messages", "stream"}:
        raise JudgeError(
            f"--extra={extra}: expected an object of further fields, without model, messages, "
            "stream"
        )
    fields = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed} | more
    return {name: value for name, value in fields.items() if value is not None}


def _name(model: str, prompts: Prompts, parameters: Mapping[str, Any]) -> str:
    parts = [file_name(model)]
    if parameters.get("temperature"):
        parts.append(f"t{parameters['temperature']:g}")
    if parameters.get("seed") is not None:
        parts.append(f"seed{parameters['seed']}")
    if prompts.texts != OURS:
        parts.append(f"prompts-{prompts.sha256[:8]}")
    return ".".join(parts)
