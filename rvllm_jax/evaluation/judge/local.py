"""A model of ours as the judge of answers.

It sees what an endpoint's judge sees, as text: the prompt's parts, one behind the other, as the
question of its own chat template. There is no video: where it would stand there are no frames, so
that no visual token is spliced in, as in the stage that reads captions alone. A model trained on
short answers about videos is no good judge; this is for decoders that follow instructions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rvllm_jax.config.check import ConfigError
from rvllm_jax.data.text.tokenizer_config import TokenizerError
from rvllm_jax.evaluation.judge import judges
from rvllm_jax.evaluation.judge.chat import Completion
from rvllm_jax.evaluation.judge.endpoint import EndpointError, NoReply
from rvllm_jax.evaluation.judge.prompts import Prompts
from rvllm_jax.experiments.saved.open import open_model
from rvllm_jax.generation.session import Engine, PromptError
from rvllm_jax.training.checkpoint import CheckpointError
from rvllm_jax.weights.safetensors import WeightsError


class LocalJudge:
    """Asks an opened model, greedily; `name` tells the model and its step."""

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


def local_judging(path: str, prompts: Prompts, *, max_new: int, **options: Any) -> judges.Judging:
    """The model of a run or an export as a judge; `options` as in `judges.chat`.

    Raises EndpointError where there is no such model.
    """
    try:
        opened = open_model(path)
    except (WeightsError, CheckpointError, ConfigError, TokenizerError) as error:
        raise EndpointError(str(error)) from error
    engine = Engine(opened.module, opened.tokenizer, opened.template)
    ask = LocalJudge(engine, opened.told, max_new)
    parameters = {"temperature": 0.0, "max_tokens": max_new, "step": opened.step}
    return judges.chat(
        ask, str(opened.path), prompts, backend="local", parameters=parameters, **options
    )
