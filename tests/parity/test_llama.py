"""The decoder gives transformers' numbers: logits, gradients, optimizer steps, greedy ids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.generation.decode import generate
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig, RopeScaling
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.training.stages import label_parameters, make_optimizer
from rvllm_jax.types import NO_SLOT, PREFIX, Questions, VisualLayout

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")

SMALL = LlamaConfig(61, 32, 2, 4, 4, 8, 48, context=64)
CONFIGS = {
    "equal heads, untied": SMALL,
    "grouped, tied": dataclasses.replace(SMALL, kv_heads=2, tied=True),
    "one kv head, free head_dim": dataclasses.replace(SMALL, kv_heads=1, head_dim=14),
    # Wavelengths of 6, 16, 40 and 99 positions: below, between and above the bounds of 8 and 32.
    "llama 3 scaling": dataclasses.replace(
        SMALL, kv_heads=2, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32), rope_theta=40.0
    ),
}

PATHS = {
    "model.embed_tokens.weight": "embed/embedding",
    "model.norm.weight": "norm/scale",
    "lm_head.weight": "head/kernel",
}
LAYER_PATHS = {
    "input_layernorm.weight": "layers/norm1/scale",
    "post_attention_layernorm.weight": "layers/norm2/scale",
    **{f"self_attn.{n}_proj.weight": f"layers/attention/{n}/kernel" for n in "qkvo"},
    **{f"mlp.{n}_proj.weight": f"layers/mlp/{n}/kernel" for n in ("gate", "up", "down")},
}


def their_model(config: LlamaConfig, dtype, with_double_norms):
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tied,
            initializer_range=0.15,  # at 0.02 the layers hardly change what passes through
            attn_implementation="sdpa",  # "eager" takes the softmax in float32
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    if dtype == torch.float64:
        with_double_norms(model.model)
    return model.to(dtype).eval()


def as_ours(named, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Tensors of torch under our paths: kernels as [in, out], layers stacked."""
    arrays, layers = {}, {}
    for name, tensor in named:
        array = tensor.detach().numpy().copy()
        if array.ndim == 2 and "embed" not in name:
            array = array.T
        if name in PATHS:
            arrays[PATHS[name]] = array
        else:
            _, _, number, leaf = name.split(".", 3)
            layers.setdefault(LAYER_PATHS[leaf], {})[int(number)] = array
    stacked = {p: np.stack([a[i] for i in range(config.layers)]) for p, a in layers.items()}
    return arrays | stacked


class Ours:
    """The decoder as functions of a flat dictionary of parameters."""

    def __init__(self, config: LlamaConfig, dtype):
        module = Llama(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
        self.graph, self.state = nnx.split(module)

    def merge(self, params) -> Llama:
        flat = [
            (path, leaf.replace(jnp.asarray(params["/".join(path)])))
            for path, leaf in nnx.to_flat_state(self.state)
        ]
        assert len(flat) == len(params)
        return nnx.merge(self.graph, nnx.from_flat_state(flat))

    def hidden(self, params, tokens):
        module = self.merge(params)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return module, module(module.embed(tokens), positions, jnp.full(tokens.shape, PREFIX))[0]

    def logits(self, params, tokens):
        module, hidden = self.hidden(params, tokens)
        return module.logits(hidden)

    def loss(self, params, tokens):
        module, hidden = self.hidden(params, tokens[:, :-1])
        weights = jnp.ones(tokens[:, 1:].shape, hidden.dtype)
        return token_loss_sum(module, hidden, tokens[:, 1:], weights, chunk=5) / weights.size


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def some_tokens(config, shape=(2, 23)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab_size, shape)


def assert_close(ours, theirs, limit):
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        error = np.linalg.norm(ours[name] - array) / np.linalg.norm(array)
        assert error < limit, f"{name}: relative error {error:.1e}"


def their_loss(model, tokens):
    logits = model(torch.tensor(tokens[:, :-1])).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten()
    )


LIMITS = {"float64": (1e-6, 1e-6), "float32": (1e-4, 1e-3)}  # of logits, of gradients


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name, dtype, with_double_norms):
    config, (logits_limit, gradient_limit) = CONFIGS[name], LIMITS[dtype]
    theirs, ours = (
        their_model(config, getattr(torch, dtype), with_double_norms),
        Ours(config, jnp.dtype(dtype)),
    )
    params, tokens = as_ours(theirs.named_parameters(), config), some_tokens(config)
    their_logits = theirs(torch.tensor(tokens)).logits.detach().numpy()
    both = jax.jit(lambda *at: (ours.logits(*at), jax.grad(ours.loss)(*at)))  # compiled once
    our_logits, our_gradients = both(params, tokens)
    assert our_logits.dtype == dtype
    assert_close({"logits": our_logits}, {"logits": their_logits}, logits_limit)

    their_loss(theirs, tokens).backward()
    gradients = as_ours(((n, p.grad) for n, p in theirs.named_parameters()), config)
    assert_close(our_gradients, gradients, gradient_limit)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_steps(optimizer, with_double_norms):
    config, steps = CONFIGS["grouped, tied"], 3
    theirs, ours = their_model(config, torch.float64, with_double_norms), Ours(config, jnp.float64)
    params, tokens = as_ours(theirs.named_parameters(), config), some_tokens(config)
    if optimizer == "sgd":
        spec = OptimizerSpec("sgd", lr=0.1, decay=1e-2, momentum=0.9)
        step = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    else:
        spec = OptimizerSpec("adamw", lr=1e-2, decay=0.05)
        kernels = [p for p in theirs.parameters() if p.ndim > 1]
        norms = [p for p in theirs.parameters() if p.ndim == 1]  # not decayed
        groups = [{"params": kernels}, {"params": norms, "weight_decay": 0.0}]
        step = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.05)
    table, specs = ((".*", "all"),), {"all": spec}
    stage = Stage("s", "video", 1, table, specs, steps=steps, schedule="constant")
    tx = make_optimizer(stage, label_parameters(stage, params), steps)
    first, state = params, tx.init(params)
    gradient = jax.jit(jax.grad(ours.loss))
    for _ in range(steps):
        step.zero_grad()
        their_loss(theirs, tokens).backward()
        step.step()
        updates, state = tx.update(gradient(params, tokens), state, params)
        params = optax.apply_updates(params, updates)
    expected = as_ours(theirs.named_parameters(), config)
    # What was moved, and not where it is: a step is small beside a parameter.
    assert_close(
        {name: np.asarray(params[name]) - first[name] for name in params},
        {name: expected[name] - first[name] for name in expected},
        1e-6,
    )


@pytest.mark.parametrize("name", ["grouped, tied", "llama 3 scaling"])
def test_greedy_ids(name, with_double_norms):
    config = CONFIGS[name]
    theirs = their_model(config, torch.float64, with_double_norms)
    prompts, eos_id, max_new = some_tokens(config, (3, 9)).astype(np.int32), 2, 12
    generated = theirs.generate(
        torch.tensor(prompts, dtype=torch.long),
        max_new_tokens=max_new,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    ).numpy()[:, prompts.shape[1] :]
    assert len(set(generated.flatten())) > 4, "a constant answer would prove little"
    expected = np.full((3, max_new), eos_id)
    expected[:, : generated.shape[1]] = generated

    ours = Ours(config, jnp.float64)
    model = VideoLLM(
        ResNetConfig((1,), False, (8,), stem="small"),
        config,
        VisualLayout("global", 1),
        rngs=nnx.Rngs(0),
        dtype=jnp.float64,
        param_dtype=jnp.float64,
    )
    model.decoder = ours.merge(as_ours(theirs.named_parameters(), config))
    ids = jax.jit(lambda q: generate(model, q, max_new=max_new, stop_ids=(eos_id,)))(
        _asked_behind(prompts, split=5)
    )
    np.testing.assert_array_equal(ids[:, 0], expected)


def _asked_behind(prompts, split) -> Questions:
    """Each prompt as a prefix without a video and one question."""
    B, L = prompts.shape
    return Questions(
        frames=np.zeros((B, 0, 8, 8, 3), np.uint8),
        frame_mask=np.zeros((B, 0), bool),
        tokens=prompts[:, :split],
        slots=np.full((B, split), NO_SLOT, np.int32),
        positions=np.tile(np.arange(split, dtype=np.int32), (B, 1)),
        segments=np.full((B, split), PREFIX, np.int32),
        question_tokens=prompts[:, None, split:],
        question_mask=np.ones((B, 1, L - split), bool),
        ids=np.arange(B, dtype=np.int32)[:, None],
        view_counts=np.ones(B, np.int32),
    )
