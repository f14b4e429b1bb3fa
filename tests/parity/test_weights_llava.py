"""LLaVA by transformers' names and the original ones: its decoder and projector, and no CLIP."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.experiments.saved.describe import describe_weights, expected
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.projector import Projector
from rvllm_jax.types import PREFIX
from rvllm_jax.weights import load, names
from rvllm_jax.weights.check import PROJECTOR
from rvllm_jax.weights.hf_config import llama_config
from rvllm_jax.weights.open import open_weights
from rvllm_jax.weights.safetensors import WeightsError

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")
safetensors_torch = pytest.importorskip("safetensors.torch")

LLAVA_TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, vocab_size=32064, max_position_embeddings=64, model_type="llama",
)  # fmt: skip


@pytest.fixture(scope="module")
def llava():
    torch.manual_seed(0)
    vision = dict(
        model_type="clip_vision_model", hidden_size=1024, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, image_size=28, patch_size=14,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=LLAVA_TEXT, vision_config=vision)
    )
    return model.eval()


def saved_llava(model, form, folder):
    if form == "hf":
        model.save_pretrained(folder)
        return
    folder.mkdir()
    nested = {n: t.clone().contiguous() for n, t in model.state_dict().items()}
    if form == "nested":
        config = json.loads(model.config.to_json_string(use_diff=False))
        config["architectures"] = ["LlavaForConditionalGeneration"]
    else:
        config = json.loads(model.config.text_config.to_json_string(use_diff=False))
        config |= {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama"}
        renamed = {
            "model.language_model.": "model.",
            "model.multi_modal_projector.linear_1": "model.mm_projector.0",
            "model.multi_modal_projector.linear_2": "model.mm_projector.2",
        }
        for old, new in renamed.items():
            nested = {n.replace(old, new): t for n, t in nested.items()}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors_torch.save_file(nested, folder / "model.safetensors")


class LanguagePath(nnx.Module):
    """The parts of a video model that LLaVA has."""

    def __init__(self, config, rngs):
        kinds = dict(rngs=rngs, dtype=jnp.float64, param_dtype=jnp.float64)
        self.decoder = Llama(config, **kinds)
        self.projector = Projector(1024, config.width, "mlp2x_gelu", **kinds)

    def __call__(self, features, tokens):
        visual = self.projector(features)
        x = jnp.concatenate([visual, self.decoder.embed(tokens)], 1)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return self.decoder.logits(self.decoder(x, positions, jnp.full(x.shape[:2], PREFIX))[0])


@pytest.mark.parametrize("form", ["hf", "nested", "original"])
def test_llavas_language_path_and_projector_are_transformers(llava, form, tmp_path):
    saved_llava(llava, form, tmp_path / "llava")
    weights = open_weights(tmp_path / "llava")
    assert weights.ignored and all("vision_tower" in name for name in weights.ignored)
    config = llama_config(weights.config, "config.json")
    assert config.vocab_size == 32064
    assert load.check(weights.entries, expected(describe_weights(weights), weights.path)) == []
    rng = np.random.default_rng(0)
    features, tokens = rng.normal(size=(2, 3, 1024)), rng.integers(0, 32064, (2, 7))
    with jax.enable_x64(True):
        model = FunctionalModel.of(lambda rngs: LanguagePath(config, rngs))
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = load.load(weights.entries, model.params, dict.fromkeys(model.params, place))
        mine = np.asarray(jax.jit(lambda p, *at: model.merge(p, {})(*at))(params, features, tokens))
    with torch.no_grad():
        double = llava.float().double()
        visual = double.model.multi_modal_projector(torch.tensor(features))
        x = torch.cat([visual, double.get_input_embeddings()(torch.tensor(tokens))], 1)
        expected_logits = double.lm_head(
            double.model.language_model(inputs_embeds=x).last_hidden_state
        ).numpy()
        llava.float()
    assert np.linalg.norm(mine - expected_logits) < 1e-6 * np.linalg.norm(expected_logits)


def test_llavas_gradients_and_greedy_answers_are_transformers(llava, tmp_path):
    """Of the language path and the projector, in float64; 64 ids behind a prompt with features."""
    saved_llava(llava, "original", tmp_path / "llava")
    weights = open_weights(tmp_path / "llava")
    rng = np.random.default_rng(1)
    features, tokens = rng.normal(size=(1, 3, 1024)), rng.integers(0, 32064, (1, 7))
    double = llava.double()
    x = double.model.multi_modal_projector(torch.tensor(features))
    ids = torch.tensor(tokens)
    with torch.no_grad():
        for _ in range(64):
            embedded = torch.cat([x, double.get_input_embeddings()(ids)], 1)
            last = double.model.language_model(inputs_embeds=embedded).last_hidden_state[:, -1]
            ids = torch.cat([ids, double.lm_head(last).argmax(-1, keepdim=True)], 1)
    inputs = torch.cat([x, double.get_input_embeddings()(ids[:, :-1])], 1)
    hidden = double.model.language_model(inputs_embeds=inputs).last_hidden_state[:, 2:]
    theirs = torch.nn.functional.cross_entropy(double.lm_head(hidden)[0], ids[0])
    double.zero_grad()
    theirs.backward()
    with jax.enable_x64(True):
        config = llama_config(weights.config, "config.json")
        model = FunctionalModel.of(lambda rngs: LanguagePath(config, rngs))
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = load.load(weights.entries, model.params, dict.fromkeys(model.params, place))

        def loss(params, features, ids):
            logits = model.merge(params, {})(features, ids[:, :-1])[:, 2:]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)
            return -chosen.mean(), logits

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (mine, logits), gradients = step(params, features, ids.numpy())
        np.testing.assert_allclose(mine, theirs.item(), rtol=1e-6)
        np.testing.assert_array_equal(np.argmax(logits, -1)[:, 7:], ids[:, 7:])
    compared = set()
    for name, parameter in double.named_parameters():
        if "vision_tower" in name:
            continue
        rule, path, layer = names.LLAVA_HF_NESTED.find(name)
        own = np.asarray(gradients[path][layer] if rule.stacked else gradients[path])
        expected_gradient = parameter.grad.numpy().transpose(rule.axes or range(own.ndim))
        difference = np.linalg.norm(own - expected_gradient)
        assert difference < 1e-5 * np.linalg.norm(expected_gradient), name
        compared.add(path)
    llava.float()
    assert compared == gradients.keys()


def test_what_a_llava_asks_for_and_is_not_here_is_refused(llava, tmp_path):
    saved_llava(llava, "hf", tmp_path / "llava")
    path = tmp_path / "llava" / "config.json"
    values = json.loads(path.read_text())
    for change, error, message in (
        ({"projector_hidden_act": "relu"}, WeightsError, "projector_hidden_act='relu'"),
        ({"text_config": values["text_config"] | {"model_type": "mistral"}}, ValueError, "mistral"),
    ):
        path.write_text(json.dumps(values | change))
        with pytest.raises(error, match=message):
            convert([str(tmp_path / "llava")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_projector_of_clip_is_named_where_the_encoder_is_a_resnet(llava, tmp_path):
    saved_llava(llava, "hf", tmp_path / "llava")
    entries = open_weights(tmp_path / "llava").entries
    targets = {p: jax.ShapeDtypeStruct(e.shape, np.float32) for p, e in entries.items()}
    targets[PROJECTOR] = jax.ShapeDtypeStruct((2048, 32), np.float32)
    with pytest.raises(
        WeightsError, match="1024 features of CLIP ViT-L; the encoder here has 2048"
    ):
        load.check(entries, targets)
