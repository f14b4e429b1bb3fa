"""Controls: what becomes of the answers when the video is blacked out, shuffled or another one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.evaluation.asking import Asked, score
from rvllm_jax.evaluation.score.normalise import exact

# The options of `Asker.ask` by control; a third, "swapped", shows the videos of `partners`.
CONTROLS = {
    "blind": dict(blind=True),  # the normalised frames are zeroed
    "shuffled": dict(permute=True),  # the order of the frames is permuted
}
SWAPPED = "swapped"


def partners(turns: Sequence[Turn], clips: Sequence[int]) -> list[int]:
    """For each question the place of the one whose video it is asked about when they are swapped.

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
    for place, turn in enumerate(turns):
        own = alike.setdefault(turn.question, [])
        at.append(len(own))
        own.append(place)
    found = []
    for place, turn in enumerate(turns):
        same_text = _following(alike[turn.question], at[place])
        told_apart = (i for i in same_text if not exact(turns[i].answer, turn.answer))
        candidates = itertools.chain(told_apart, _following(range(len(turns)), place))
        found.append(next(i for i in candidates if clips[i] != clips[place]))
    return found


def _following(places: Sequence[int], start: int) -> Iterator[int]:
    """All of `places` but the one at `start`, from there on in a circle."""
    return (places[(start + ahead) % len(places)] for ahead in range(1, len(places)))


def recurring(asked: Sequence[Asked]) -> list[int]:
    """The places of the questions whose text occurs with different answers: only a look decides."""
    answers: dict[str, set[str]] = {}
    for a in asked:
        answers.setdefault(a.turn.question, set()).add(a.turn.answer)
    return [i for i, a in enumerate(asked) if len(answers[a.turn.question]) > 1]


def only_seen(
    plain: Sequence[Asked], controlled: Mapping[str, Sequence[Asked]], others: Sequence[int]
) -> dict[str, Any]:
    """Of the recurring questions: how many, and what their answers hang on.

    plain, controlled: the answers as it is, and by control. others: `partners` of the questions.

    Returns `{"count": n}`, and where n > 0 also `"plain"` and `"blind"`, the shares answered right,
    and `"swapped": {"changed": x, "follows": x}`, the shares whose answer is another one with the
    videos swapped, and whose answer is then the right one about the video that was shown.
    """
    places = recurring(plain)
    if not places:
        return {"count": 0}
    right = {
        name: score(asked[i] for i in places)[0]["all"]
        for name, asked in (("plain", plain), ("blind", controlled["blind"]))
    }
    found = {"count": len(places), **right}
    if SWAPPED in controlled:
        swapped = controlled[SWAPPED]
        changed = [swapped[i].answer != plain[i].answer for i in places]
        follows = [exact(swapped[i].answer, plain[others[i]].turn.answer) for i in places]
        found[SWAPPED] = dict(
            changed=sum(changed) / len(places), follows=sum(follows) / len(places)
        )
    return found
