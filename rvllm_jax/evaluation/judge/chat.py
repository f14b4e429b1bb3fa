"""A judge that is asked in words and answers in words, whoever it is; its reply is read strictly.

The rule. The whole reply is one JSON object or one Python dictionary of literals; white space and
one code fence (```, with or without the name of a language) around it are taken off, and any other
text around it makes it unreadable, as does a key that comes twice. `score` is a number from 0 to 5,
kept as it is: 4.8 stays 4.8. `pred` is the text "yes" or "no", in any case. Texts and booleans are
no numbers, NaN and infinity are none either. `claims` and `supported` are whole numbers, the second
not above the first. A reply to a prompt that named an {id} gives that id back. Further keys are
ignored.
"""

import ast
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rvllm_jax.evaluation.judge.prompts import OURS, Prompts
from rvllm_jax.evaluation.judge.verdicts import FAITHFULNESS, LARGEST, QA, Item, Judge, Verdict
from rvllm_jax.system.errors import RvllmError

_QUOTED = 2_000  # characters of an unreadable reply that are shown to the judge again
_LONGEST = 10_000  # characters of a reply that is looked at
_FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


class JudgeError(RvllmError, RuntimeError):
    """A judge that cannot be used at all: address, key, model or protocol are wrong."""


class NoReply(RuntimeError):
    """One question that got no reply, after all attempts."""


class Stopped(RuntimeError):
    """The work was called off while this question waited."""


class ReplyError(RvllmError, ValueError):
    """A reply that is no verdict; the message says why, also to the judge."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """A judge's reply, and its own name as it gave it; tokens by kind, as far as it counts them."""

    text: str
    model: str
    tokens: Mapping[str, int]


# Messages, as chat endpoints have them -> the reply; raises JudgeError, NoReply, Stopped.
Ask = Callable[[Sequence[Mapping[str, str]]], Completion]


@dataclasses.dataclass(frozen=True)
class ChatJudge(Judge):
    """Judges items by asking; a reply that cannot be read is asked for again, `tries` in all.

    Asked again, the judge sees its reply and what was wrong with it: at temperature 0 the same
    question would get the same reply. Without a `name` its files are called by the model, and by
    what is not as usual. fingerprint: of a model of ours; its path does not tell which it is.
    """

    ask: Ask
    model: str
    prompts: Prompts
    backend: str
    parameters: Mapping[str, Any]
    tries: int = 3
    faithfulness: bool = False
    concurrency: int = 1
    name: str = ""
    base_url: str = ""
    fingerprint: str | None = None

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", _name(self.model, self.prompts, self.parameters))

    def made_with(self, benchmark: str) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "base_url": self.base_url,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "prompts_sha256": self.prompts.sha256,
            "prompts": self.prompts.texts,
            "parameters": dict(self.parameters) | {"tries": self.tries},
        }

    def check(self, item: Item) -> None:
        self.prompts.messages(item)

    def judge(self, item: Item, benchmark: str) -> Verdict:
        """The verdict about an item; one that failed where no reply could be read."""
        messages = self.prompts.messages(item)
        id = self.prompts.echoed(item)
        raw: list[str] = []
        tokens: Counter[str] = Counter()
        asked, models, wrong = messages, {}, ""
        while len(raw) < self.tries:
            completion = self.ask(asked)
            raw.append(completion.text)
            tokens.update(completion.tokens)
            models[completion.model] = None
            made = dict(raw=tuple(raw), model=" ".join(models), tokens=dict(tokens))
            try:
                return dataclasses.replace(read_reply(completion.text, item.criterion, id), **made)
            except ReplyError as error:
                wrong = str(error)
            quoted = completion.text[:_QUOTED] or "(nothing)"
            again = f"That reply cannot be used: {wrong}. Reply with the asked-for line alone."
            asked = [*messages, {"role": "assistant", "content": quoted},
                     {"role": "user", "content": again}]  # fmt: skip
        return Verdict(failed=f"unreadable: {wrong}", **made)


def _name(model: str, prompts: Prompts, parameters: Mapping[str, Any]) -> str:
    parts = [file_name(model)]
    if parameters.get("temperature"):
        parts.append(f"t{parameters['temperature']:g}")
    if parameters.get("seed") is not None:
        parts.append(f"seed{parameters['seed']}")
    if prompts.texts != OURS:
        parts.append(f"prompts-{prompts.sha256[:8]}")
    return ".".join(parts)


def file_name(text: str) -> str:
    """`text` with what file systems dislike replaced.

    >>> file_name("org/judge:7b v1")
    'org-judge-7b-v1'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "judge"


def read_reply(text: str, criterion: str = QA, id: str = "") -> Verdict:
    """The verdict in a reply about an item of `criterion`; raises ReplyError.

    id: what the reply has to give back as `id`; "": nothing.

    >>> verdict = read_reply("{'pred': 'yes', 'score': 4.8}")
    >>> verdict.correct, verdict.score
    (True, 4.8)
    """
    reply = _object(text)
    if id and reply.get("id") != id:
        given = "no id" if "id" not in reply else f"id {reply['id']!r:.40}"
        raise ReplyError(f"it gives {given}, and {id!r} was asked about")
    if criterion == FAITHFULNESS:
        claims, supported = (_count(reply, name) for name in ("claims", "supported"))
        if supported > claims:
            raise ReplyError(f"supported is {supported}, more than the {claims} claims")
        overlap = supported / claims if claims else None
        return Verdict(overlap=overlap, more={"claims": claims, "supported": supported})
    return Verdict(correct=_yes(reply) if criterion == QA else None, score=_score(reply))


def _object(text: str) -> dict[str, Any]:
    if len(text) > _LONGEST:
        raise ReplyError(f"it has {len(text)} characters")
    body = text.strip()
    if fence := _FENCE.fullmatch(body):
        body = fence[1].strip()
    if not body.startswith("{"):
        raise ReplyError("it is empty" if not body else "it does not begin with {")
    try:
        return json.loads(body, object_pairs_hook=_once)
    except ReplyError:
        raise
    except (ValueError, RecursionError):
        return _python(body)


def _python(body: str) -> dict[str, Any]:
    try:
        node = ast.parse(body, mode="eval").body
        value = ast.literal_eval(node)
        keys = [ast.literal_eval(key) for key in getattr(node, "keys", [])]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ReplyError("it is neither JSON nor a Python dictionary") from error
    if not isinstance(value, dict):
        raise ReplyError(f"it is a {type(value).__name__}")
    return _once([(key, value[key]) for key in keys])


def _once(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    reply = dict(pairs)
    if len(reply) != len(pairs):
        raise ReplyError("it has a key twice")
    return reply


def _yes(reply: dict[str, Any]) -> bool:
    pred = reply.get("pred")
    word = pred.strip().lower() if isinstance(pred, str) else None
    if word not in ("yes", "no"):
        raise ReplyError(f"pred is {pred!r:.40}, not 'yes' or 'no'")
    return word == "yes"


def _score(reply: dict[str, Any]) -> float:
    score = reply.get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not 0 <= score <= LARGEST:  # false for NaN too
        raise ReplyError(f"score is {score!r:.40}, not a number from 0 to {LARGEST:g}")
    return float(score)


def _count(reply: dict[str, Any], name: str) -> int:
    count = reply.get(name)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ReplyError(f"{name} is {count!r:.40}, not a whole number from 0 on")
    return count
