"""What judges are asked: prompts of our own, or those of a file."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from rvllm_jax.evaluation.answers.questions import CRITERIA
from rvllm_jax.evaluation.judge.verdicts import CONSISTENCY, FAITHFULNESS, QA, Item
from rvllm_jax.system.atomic import read_json
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import json_digest

# What a prompt may name in braces; all other braces are text.
FIELDS = ("id", "question", "question1", "question2", "answer", "prediction", "prediction1",
          "prediction2")  # fmt: skip
NAMES = {QA: "QA"} | {criterion: criterion for criterion in (*CRITERIA, FAITHFULNESS)}

_ROLE = (
    "You grade answers that a program gave to questions about videos. You do not see the video; "
    "take the reference answer for the truth. Judge what is said, not how well it is worded: other "
    "words for the same thing count as the same. "
)
_SHOWN = (
    "Item: {id}\nQuestion: {question}\nReference answer: {answer}\n"
    "Answer to grade: {prediction}\n\n"
)
_SCORE = (
    "Reply with one line of JSON and nothing else: {'id': '{id}', 'score': S}, where S is a number "
    "from 0 (worst) to 5 (best); fractions such as 3.5 are allowed."
).replace("'", '"')


def _criterion(task: str, shown: str = _SHOWN) -> dict[str, str]:
    return {"system": _ROLE + task, "user": shown + _SCORE}


OURS: dict[str, dict[str, str]] = {
    "QA": {
        "system": _ROLE + "Decide whether the answer to grade says the same as the reference "
        "answer, as far as the question asks for it, and how close it comes.",
        "user": _SHOWN + 'Reply with one line of JSON and nothing else: {"id": "{id}", "pred": P, '
        '"score": S}, where P is "yes" if the answer is right and "no" if it is not, and S is a '
        "number from 0 (nothing is right) to 5 (the same in meaning); fractions such as 3.5 are "
        "allowed.",
    },
    "CI": _criterion(
        "Grade correctness: whether what the answer states is true by the reference, and free of "
        "statements that contradict it."
    ),
    "DO": _criterion(
        "Grade detail: whether the answer covers the points that the reference makes, and names "
        "them as specifically as the reference does."
    ),
    "CU": _criterion(
        "Grade context: whether the answer fits what the video as a whole is about according to "
        "the reference, its setting, people and purpose."
    ),
    "TU": _criterion(
        "Grade time: whether the answer gives what happens in the order in which the reference has "
        "it, with the right beginnings, ends and durations."
    ),
    "C": _criterion(
        "Two questions ask for the same in different words and have one reference answer. Grade "
        "consistency: whether both answers agree with the reference and with each other, without "
        "contradiction.",
        "Item: {id}\nFirst question: {question1}\nSecond question: {question2}\n"
        "Reference answer: {answer}\nAnswer to the first: {prediction1}\n"
        "Answer to the second: {prediction2}\n\n",
    ),
    "F": {
        "system": _ROLE + "Take the answer apart into its separate claims (things, their colours, "
        "numbers, actions, places, relations) and count those that the reference supports.",
        "user": _SHOWN + 'Reply with one line of JSON and nothing else: {"id": "{id}", "claims": N,'
        ' "supported": K}, where N is the number of claims and K how many of them the reference '
        "supports.",
    },
}


class PromptsError(RvllmError, ValueError):
    """A file of prompts that cannot be used; says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A system and a user text for each name of `NAMES`, with fields of `FIELDS` in braces."""

    texts: Mapping[str, Mapping[str, str]]

    @property
    def sha256(self) -> str:
        """Of all texts, whatever the order or spacing of the file they stood in."""
        return json_digest(self.texts, sort_keys=True)

    def messages(self, item: Item) -> list[dict[str, str]]:
        """What is sent about an item, in the words of chat endpoints.

        Raises PromptsError where the file has no prompt for the item's criterion.
        """
        name = NAMES[item.criterion]
        if name not in self.texts:
            raise PromptsError(
                f"the prompts have none called {name!r}, which {item.question_id!r} needs; they "
                f"have {', '.join(self.texts)}"
            )
        values = {"id": item_id(item), "answer": item.reference}
        for number, (question, answer) in enumerate(
            zip(item.questions, item.answers, strict=True), 1
        ):
            values |= {f"question{number}": question, f"prediction{number}": answer}
        values |= {"question": item.questions[0], "prediction": item.answers[0]}
        texts = self.texts[name]
        return [
            {"role": role, "content": _FIELD.sub(lambda m: values.get(m[1], m[0]), texts[role])}
            for role in ("system", "user")
            if texts.get(role)
        ]

    def echoed(self, item: Item) -> str:
        """The id that a reply about `item` has to give back; "" where the prompt names none."""
        texts = self.texts[NAMES[item.criterion]]
        return item_id(item) if any("{id}" in text for text in texts.values()) else ""


_FIELD = re.compile("{(" + "|".join(FIELDS) + ")}")


def item_id(item: Item) -> str:
    """What an item is called before a judge: short, and of this item with these answers alone."""
    return item.of[:8]


def load_prompts(path: str | Path | None) -> Prompts:
    """The prompts of a JSON file, `{NAME: {"system": text, "user": text}}`; None: our own.

    Names are QA (zero-shot questions), the five criteria, and F (faithfulness); what is not judged
    may be left out. Raises PromptsError.
    """
    if path is None:
        return Prompts(OURS)
    expected = f"expected some of {', '.join(NAMES.values())}"
    texts = read_json(path, advice=expected, error=PromptsError)
    if not texts or set(texts) - set(NAMES.values()):
        raise PromptsError(f"{path}: has {', '.join(texts) or 'nothing'}; {expected}")
    for name, parts in texts.items():
        known = isinstance(parts, dict) and set(parts) <= {"system", "user"}
        if not known or not all(isinstance(text, str) for text in parts.values()):
            raise PromptsError(f'{path}: {name}: expected {{"system": text, "user": text}}')
        number = ("1", "2") if name == CONSISTENCY else ("",)
        lacking = [
            field
            for field in ("answer", *(f"prediction{n}" for n in number))
            if f"{{{field}}}" not in "".join(parts.values())
        ]
        if lacking:
            raise PromptsError(
                f"{path}: {name} never names {{{'} and {'.join(lacking)}}}: the judge would not "
                "see what it judges"
            )
    return Prompts(texts)
