"""Folders that transformers saves are the same model here, and go back out bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.types import PREFIX
from rvllm_jax.weights import load, names
from rvllm_jax.weights.hf_config import llama_config, llama_values
from rvllm_jax.weights.open import open_weights
from rvllm_jax.weights.save import save_published

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")

SMALL = dict(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=48,
    max_position_embeddings=96,
    initializer_range=0.15,  # at 0.02 the layers hardly change what passes through
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=40.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
SHAPES = {
    "equal heads": {},
    "grouped": dict(num_key_value_heads=2),
    "one kv head": dict(num_key_value_heads=1),
    "tied": dict(tie_word_embeddings=True),
    "free head_dim": dict(num_key_value_heads=2, head_dim=14),
    "llama 3 scaling": dict(rope_parameters=LLAMA3),
    "linear scaling": dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
    "biases": dict(attention_bias=True, mlp_bias=True),
    "1 layer": dict(num_hidden_layers=1),
    "32 layers, vocabulary 128,256": dict(
        num_hidden_layers=32, vocab_size=128256, initializer_range=0.05
    ),
}


def their_model(**shape):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(SMALL | shape), attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


class Decoder(nnx.Module):
    def __init__(self, config: LlamaConfig, rngs, dtype):
        self.decoder = Llama(config, rngs=rngs, dtype=dtype, param_dtype=dtype)


class Ours:
    """What a folder holds, loaded strictly, as functions of its parameters."""

    def __init__(self, folder, dtype):
        weights = open_weights(folder)
        self.config = llama_config(weights.config, str(folder))
        self.model = FunctionalModel.of(lambda rngs: Decoder(self.config, rngs, jnp.dtype(dtype)))
        targets, place = self.model.params, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        assert load.check(weights.entries, targets) == []
        self.params = load.load(weights.entries, targets, dict.fromkeys(targets, place))

    def hidden(self, params, tokens):
        decoder = self.model.merge(params, {}).decoder
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return decoder, decoder(decoder.embed(tokens), positions, jnp.full(tokens.shape, PREFIX))[0]

    def logits(self, params, tokens):
        decoder, hidden = self.hidden(params, tokens)
        return decoder.logits(hidden)

    def loss(self, params, tokens):
        decoder, hidden = self.hidden(params, tokens[:, :-1])
        weights = jnp.ones(tokens[:, 1:].shape, hidden.dtype)
        return token_loss_sum(decoder, hidden, tokens[:, 1:], weights) / weights.size


def relative(ours, theirs) -> float:
    return np.linalg.norm(np.ravel(ours - theirs)) / np.linalg.norm(np.ravel(theirs))


def some_tokens(ours, shape=(2, 23)):
    return np.random.default_rng(1).integers(0, ours.config.vocab_size, shape)


QUICK = ("tied", "free head_dim", "linear scaling", "biases")  # what test_llama.py leaves out


@pytest.mark.parametrize(
    "shape", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SHAPES]
)
def test_a_folder_gives_transformers_logits_and_gradients(shape, tmp_path, with_double_norms):
    theirs = their_model(**SHAPES[shape])
    theirs.save_pretrained(tmp_path / "a")
    with jax.enable_x64(True):
        ours = Ours(tmp_path / "a", "float64")
        tokens = some_tokens(ours)
        mine = jax.jit(ours.logits)(ours.params, tokens)
        assert mine.dtype == np.float64
    with_double_norms(theirs.double().model)
    expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
    assert relative(np.asarray(mine), expected) < 1e-6

    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "a")
    ours = Ours(tmp_path / "a", "float32")
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    both = jax.jit(lambda *at: (ours.logits(*at), jax.grad(ours.loss)(*at)))
    mine, gradients = both(ours.params, tokens)
    assert relative(mine, expected) < 1e-4
    theirs.generation_config.eos_token_id = None
    ids = theirs.generate(torch.tensor(tokens), max_new_tokens=64, do_sample=False).numpy()
    ahead = np.argmax(jax.jit(ours.logits)(ours.params, ids[:, :-1]), axis=-1)
    np.testing.assert_array_equal(ahead[:, 22:], ids[:, 23:])  # so greedy decoding gives these

    logits = theirs(torch.tensor(tokens[:, :-1])).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[:, 1:]).flatten()).backward()
    for name, parameter in theirs.named_parameters():
        rule, path, layer = names.LLAMA.find(name)
        own = gradients[path][layer] if rule.stacked else gradients[path]
        axes = rule.axes or range(own.ndim)
        assert relative(own, parameter.grad.numpy().transpose(axes)) < 1e-3, name

    save_published(
        tmp_path / "b", ours.params, names.LLAMA, llama_values(ours.config, "float32"), 10_000
    )
    again = Ours(tmp_path / "b", "float32")
    assert again.config == ours.config and again.params.keys() == ours.params.keys()
    for path, array in ours.params.items():
        np.testing.assert_array_equal(again.params[path], array, err_msg=path)
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(back(torch.tensor(tokens)).logits, torch.tensor(expected))
