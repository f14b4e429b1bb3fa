"""Each table of names is the same both ways."""

import pytest

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNet, ResNetConfig
from rvllm_jax.weights import names as rules

LAYOUTS = {name: x for name, x in vars(rules).items() if isinstance(x, rules.NameTable)}
BIASED = LlamaConfig(9, 8, 3, 2, 2, 4, 8, 8, attention_bias=True, mlp_bias=True)
MODELS = {
    "decoder": lambda rngs: Llama(BIASED, rngs=rngs),
    "encoder": lambda rngs: ResNet(ResNetConfig((3, 2, 1, 1)), rngs=rngs),
}


def paths(room):
    model = FunctionalModel.of(MODELS[room])
    return {f"{room}/{path}": x.shape for path, x in (model.params | model.stats).items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_path_has_names_that_lead_back_to_it(name):
    table = LAYOUTS[name]
    room = "encoder" if "RESNET" in name or name == "TORCHVISION" else "decoder"
    seen = set()
    for path, shape in paths(room).items():
        rule, names = table.names(path, shape[0])
        assert len(names) == (shape[0] if rule.stacked else 1)
        assert seen.isdisjoint(names)
        seen |= set(names)
        assert rule.axes is None or len(rule.axes) == len(shape) - rule.stacked, path
        for layer, theirs in enumerate(names):
            assert table.find(theirs) == (rule, path, layer)
            assert not table.ignores(theirs)


def test_names_that_are_nearly_right_are_unknown():
    names = [
        *("model.layers.01.input_layernorm.weight", "model.layers..input_layernorm.weight"),
        *("xmodel.norm.weight", "model.norm.weight2", "model.layers.1.self_attn.q_proj.lora_A"),
    ]
    assert rules.LLAMA.unknown(names) == names
    assert rules.LLAMA.unknown(["model.layers.0.self_attn.rotary_emb.inv_freq"]) == []


def test_the_vision_tower_of_llava_is_known_and_left_out():
    assert rules.LLAVA_HF.ignores("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight")
    assert not rules.LLAVA_HF.ignores("model.vision_tower.x")
