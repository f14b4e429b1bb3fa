"""A judge that is asked in words and answers in words, whoever it is."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rvllm_jax.evaluation.judge.items import Item
from rvllm_jax.evaluation.judge.prompts import Prompts
from rvllm_jax.evaluation.judge.replies import ReplyError, read_reply
from rvllm_jax.evaluation.judge.verdicts import Verdict

_QUOTED = 2_000  # characters of an unreadable reply that are shown to the judge again


@dataclasses.dataclass(frozen=True)
class Completion:
    """A judge's reply, and its own name as it gave it; tokens by kind, as far as it counts them."""

    text: str
    model: str
    tokens: Mapping[str, int]


Ask = Callable[[Sequence[Mapping[str, str]]], Completion]


@dataclasses.dataclass(frozen=True)
class ChatJudge:
    """Judges items by asking; a reply that cannot be read is asked for again, `tries` in all.

    Asked again, the judge sees its reply and what was wrong with it: at temperature 0 the same
    question would get the same reply.
    """

    ask: Ask
    prompts: Prompts
    tries: int = 3

    def __call__(self, item: Item) -> Verdict:
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
            said = completion.text[:_QUOTED] or "(nothing)"
            again = f"That reply cannot be used: {wrong}. Reply with the asked-for line alone."
            asked = [*messages, {"role": "assistant", "content": said},
                     {"role": "user", "content": again}]  # fmt: skip
        return Verdict(failed=f"unreadable: {wrong}", **made)
