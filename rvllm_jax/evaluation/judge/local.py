"""A model of ours as the judge of answers.

It sees what an endpoint's judge sees, as text: the prompt's parts, one behind the other, as the
question of its own chat template. There is no video: where it would stand there are no frames, so
that no visual token is spliced in, as in the stage that reads captions alone. A model trained on
short answers about videos is no good judge; this is for decoders that follow instructions.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rvllm_jax.evaluation.judge.chat import Completion, NoReply
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.prompts import PromptError


class LocalJudge:
    """Asks a model greedily, as `engine` has it; `name` is of the model and its step."""

    def __init__(self, engine: Engine, name: str, max_new: int):
        self._engine, self._name, self._max_new = engine, name, max_new
        self._session = engine.session(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, bool))

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> Completion:
        """The reply to `messages`; raises NoReply where they do not fit the context."""
        question = "\n\n".join(message["content"] for message in messages)
        try:
            (reply,) = self._session.answers([question], max_new=self._max_new)
        except PromptError as error:
            raise NoReply(str(error)) from error
        count = self._engine.tokenizer.encode
        tokens = {"prompt_tokens": len(count(question)), "completion_tokens": len(count(reply))}
        return Completion(reply, self._name, tokens)
