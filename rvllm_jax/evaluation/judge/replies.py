"""A judge's reply as a verdict, read strictly.

The rule. The whole reply is one JSON object or one Python dictionary of literals; white space and
one code fence (```, with or without the name of a language) around it are taken off, and any other
text around it makes it unreadable, as does a key that comes twice. `score` is a number from 0 to 5,
kept as it is: 4.8 stays 4.8. `pred` is the text "yes" or "no", in any case. Texts and booleans are
no numbers, NaN and infinity are none either. `claims` and `supported` are whole numbers, the second
not above the first. A reply to a prompt that named an {id} gives that id back. Further keys are
ignored.
"""

import ast
import json
import re
from typing import Any

from rvllm_jax.evaluation.judge.items import FAITHFULNESS, QA
from rvllm_jax.evaluation.judge.verdicts import LARGEST, Verdict
from rvllm_jax.system.errors import RvllmError

_FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_LONGEST = 10_000  # characters of a reply that is looked at


class ReplyError(RvllmError, ValueError):
    """A reply that is no verdict; the message says why, also to the judge."""


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
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ReplyError("it has a key twice")
    return found


def _yes(reply: dict[str, Any]) -> bool:
    said = reply.get("pred")
    word = said.strip().lower() if isinstance(said, str) else None
    if word not in ("yes", "no"):
        raise ReplyError(f"pred is {said!r:.40}, not 'yes' or 'no'")
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
