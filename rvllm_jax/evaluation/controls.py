"""Controls: what becomes of the answers when the video is blacked out, shuffled or another one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rvllm_jax.evaluation.answers.exact_match import exact
from rvllm_jax.evaluation.answers.questions import Question
from rvllm_jax.evaluation.score.accuracy import accuracy_by_type
from rvllm_jax.system import random
from rvllm_jax.types import Turn

PLAIN = ""  # the control of answers without one
BLIND, SHUFFLED, SWAPPED = "blind", "shuffled", "swapped"


def options(control: str, seed: int) -> dict[str, Any]:
    """How `Engine.predict` asks under a control; which video "swapped" shows, `partners` says."""
    return {BLIND: {"blind": True}, SHUFFLED: {"permute_seed": seed}}.get(control, {})


def partners(turns: Sequence[Turn], clips: Sequence[int]) -> list[int]:
    """For each question the index of the one whose video it is asked about when they are swapped.

    That is the next one, in a circle, with the same text and another answer: a model that looks now
    gives that answer. A question without such a partner takes the next one of another clip.

    clips: the number of each question's clip. Of a single clip nothing can be swapped: [].

    >>> who = [Turn("Who?", name) for name in ("cat", "cat", "dog")]
    >>> partners([*who, Turn("Why?", "For fun.")], [0, 1, 2, 3])
    [2, 2, 0, 0]
    """
    if len(set(clips)) < 2:
        return []
    alike: dict[str, list[int]] = {}
    at = []  # where each question stands among those alike
    for index, turn in enumerate(turns):
        same = alike.setdefault(turn.question, [])
        at.append(len(same))
        same.append(index)
    chosen = []
    for index, turn in enumerate(turns):
        same_text = _following(alike[turn.question], at[index])
        other_answer = (i for i in same_text if not exact(turns[i].answer, turn.answer))
        candidates = itertools.chain(other_answer, _following(range(len(turns)), index))
        chosen.append(next(i for i in candidates if clips[i] != clips[index]))
    return chosen


def _following(indices: Sequence[int], start: int) -> Iterator[int]:
    """All of `indices` but the one at `start`, from there on in a circle."""
    return (indices[(start + ahead) % len(indices)] for ahead in range(1, len(indices)))


def drawn(
    questions: Sequence[Question], clips: Sequence[int], count: int, seed: int
) -> dict[str, dict[int, int]]:
    """About `count` questions for the controls, drawn by `seed`: {control: {the index of a
    question: the clip that it is asked about}}.

    clips: the number of each question's clip. The two of a consistency item are drawn together.
    Without another video to show there is no "swapped".
    """
    units: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        units.setdefault(question.pair or f"question {number}", []).append(number)
    chosen: list[int] = []
    for unit in random.controls(seed).permutation(len(units)):
        if len(chosen) >= count:
            break
        chosen += list(units.values())[unit]
    if not chosen:
        return {}
    chosen.sort()
    plain = {number: clips[number] for number in chosen}
    controls = {BLIND: plain, SHUFFLED: plain}
    others = partners([question.turn for question in questions], clips)
    if others:
        controls[SWAPPED] = {number: clips[others[number]] for number in chosen}
    return controls


def score(turns: Sequence[Turn], answers: Sequence[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Accuracy and number of questions, over all and by question type."""
    return accuracy_by_type([t.kind for t in turns], answers, [t.answer for t in turns])


def recurring(turns: Sequence[Turn]) -> list[int]:
    """The indices of questions whose text occurs with different answers: only a look decides."""
    answers: dict[str, set[str]] = {}
    for turn in turns:
        answers.setdefault(turn.question, set()).add(turn.answer)
    return [i for i, turn in enumerate(turns) if len(answers[turn.question]) > 1]


def only_seen(
    turns: Sequence[Turn],
    plain: Sequence[str],
    controlled: Mapping[str, Sequence[str]],
    others: Sequence[int],
) -> dict[str, Any]:
    """Of the recurring questions: how many, and what their answers hang on.

    plain, controlled: the answers to `turns` as they are, and by control. others: `partners` of the
    turns.

    Returns `{"count": n}`, and where n > 0 also `"plain"` and `"blind"`, the shares answered right,
    and `"swapped": {"changed": x, "follows": x}`, the shares whose answer is another one with the
    videos swapped, and whose answer is then the right one about the video that was shown.
    """
    indices = recurring(turns)
    if not indices:
        return {"count": 0}
    result: dict[str, Any] = {"count": len(indices)}
    for name, answers in (("plain", plain), (BLIND, controlled[BLIND])):
        right = score([turns[i] for i in indices], [answers[i] for i in indices])
        result[name] = right[0]["all"]
    if SWAPPED in controlled:
        swapped = controlled[SWAPPED]
        changed = [swapped[i] != plain[i] for i in indices]
        follows = [exact(swapped[i], turns[others[i]].answer) for i in indices]
        result[SWAPPED] = dict(
            changed=sum(changed) / len(indices), follows=sum(follows) / len(indices)
        )
    return result
