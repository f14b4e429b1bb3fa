"""Eight virtual CPU devices for every test; a test in float64 asks for it itself.

Most of the tests' time is compilation, of programs that run for milliseconds: XLA is asked for the
quick one here, and in the processes that tests start. `pytest --as_users_do` leaves it as it is.
"""

import importlib.util
import json
import os
from pathlib import Path

import jax
import jaxlib.version
import numpy as np
import pytest

_QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if jaxlib.version.__version_info__ < (0, 11):  # a later one ends the process at this flag
    _QUICK += " --xla_cpu_use_fusion_emitters=false"


def pytest_addoption(parser):
    parser.addoption("--as_users_do", action="store_true", help="compile with XLA's own settings")


def pytest_configure(config):
    if not config.getoption("--as_users_do"):
        os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest file first: begun as the last, it would leave one process without work."""
    items.sort(key=lambda item: item.path.name != "test_loop.py")


jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def joint():
    """get_config of configs/joint.py."""
    path = Path(__file__).parents[1] / "configs" / "joint.py"
    spec = importlib.util.spec_from_file_location("joint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.fixture(scope="session")
def recipe(joint):
    """recipe(arg, model__remat="full", ...) -> Recipe of configs/joint.py with keys changed."""
    from rvllm_jax.config.check import resolve

    def make(arg="tiny", **changes):
        config = joint(arg)
        with config.unlocked():
            config.update_from_flattened_dict(
                {key.replace("__", "."): value for key, value in changes.items()}
            )
        return resolve(config)

    return make


@pytest.fixture(scope="session")
def paper(recipe):
    """The recipe of the paper and its model."""
    from rvllm_jax.config.build import build_model

    made = recipe("paper")
    return made, build_model(made)


@pytest.fixture(scope="session")
def tiny(recipe):
    """The recipe for two cores and its model."""
    from rvllm_jax.config.build import build_model

    made = recipe()
    return made, build_model(made)


@pytest.fixture(scope="session")
def with_double_norms():
    """with_double_norms(model): a LlamaModel of transformers, its norms computed in the dtype of
    their input. Its own drop float64 to float32."""
    import torch

    class DoubleNorm(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight, self.eps = norm.weight, norm.variance_epsilon

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def change(model):
        for layer in model.layers:
            layer.input_layernorm = DoubleNorm(layer.input_layernorm)
            layer.post_attention_layernorm = DoubleNorm(layer.post_attention_layernorm)
        model.norm = DoubleNorm(model.norm)
        return model

    return change


SPECIAL_AND_BYTES = 259  # the first ids of a tokenizer of ours


@pytest.fixture(scope="session")
def talker(joint, tmp_path_factory):
    """A working directory whose model is small and says what depends on video and question; its
    answers are text, and it never ends one by itself."""
    from rvllm_jax.config.build import build_model
    from rvllm_jax.config.check import resolve
    from rvllm_jax.data.text import tokenizer
    from rvllm_jax.data.video import encode
    from rvllm_jax.models.llama_config import LlamaConfig
    from rvllm_jax.training.checkpoint import Checkpoints
    from rvllm_jax.training.workdir import claim
    from rvllm_jax.weights.hf_config import llama_values

    folder = tmp_path_factory.mktemp("talker")
    words = tokenizer.train(["what moves where, and which way does it go? left and up"] * 9, 320)
    words.save(folder / "tokenizer")
    sizes = LlamaConfig(words.vocab_size, 16, 1, 2, 2, 8, 24, context=4096)
    values = json.dumps(llama_values(sizes, "float32"))
    (folder / "decoder").mkdir()
    (folder / "decoder" / "config.json").write_text(values)
    config = joint()
    config.model.decoder = str(folder / "decoder")
    config.tokenizer.folder = str(folder / "tokenizer")
    config.evaluation.max_new = 12
    claim(folder, config.to_dict())
    model = build_model(resolve(config))
    params, stats = jax.jit(model.init)(jax.random.key(5))
    params = {
        p: x * 10 if p.startswith("decoder/") and x.ndim > 1 else x for p, x in params.items()
    }
    head = params["decoder/head/kernel"]
    params["decoder/head/kernel"] = head.at[:, :SPECIAL_AND_BYTES].set(0)
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, {"params": params, "stats": stats}, {"position": {}})
    checkpoints.close()
    (folder / "videos").mkdir()
    rng = np.random.default_rng(0)
    for name, length in (("a", 50), ("b", 20), ("c", 70)):
        colours = rng.integers(0, 255, (length, 3, 4, 3), dtype=np.uint8)
        frames = colours.repeat(16, 1).repeat(16, 2)
        encode.write(folder / "videos" / f"{name}.mp4", frames, fps=10)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A folder of a small decoder as transformers saves it."""
    torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("theirs") / "llama"
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder
