"""A model that is asked about video files, its programs compiled once."""

import pytest

from rvllm_jax.experiments.answering import Answerer
from rvllm_jax.experiments.opening import describe_model

MESH = dict(data=1, fsdp=4, tensor=2)


@pytest.fixture(scope="session")
def answerer(talker) -> Answerer:
    return Answerer(describe_model(talker, mesh=MESH))
