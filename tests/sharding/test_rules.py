"""The table of parameter paths to mesh axes, on the model and on an optimizer's moments."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.sharding import rules
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.training.stages import label_parameters, make_optimizer
from rvllm_jax.types import VisualLayout


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def params():
    """Shapes of a small model, by path."""
    resnet = ResNetConfig((1, 1), False, (8, 16), stem="small", stem_stride=2, groups=4)
    llama = LlamaConfig(50, 16, 2, 4, 2, 8, 24, context=64)
    layout = VisualLayout("spatiotemporal", frames=3, grid=2)
    return FunctionalModel.of(lambda rngs: VideoLLM(resnet, llama, layout, rngs=rngs)).params


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("decoder/layers/attention/q/kernel", (3, 16, 32), P(None, "fsdp", "tensor")),
        ("decoder/layers/mlp/down/kernel", (3, 24, 16), P(None, "tensor", "fsdp")),
        ("decoder/embed/embedding", (50, 16), P("tensor", "fsdp")),
        ("decoder/head/kernel", (16, 50), P("fsdp", "tensor")),
        ("encoder/stages/0/0/conv1/kernel", (3, 3, 8, 16), P(None, None, None, "fsdp")),
        ("decoder/layers/norm1/scale", (3, 16), P(None, None)),
        ("projector/linear/bias", (16,), P(None)),
        ("decoder/layers/attention/v/lora/lora_a", (3, 16, 4), P(None, "fsdp", None)),
        ("decoder/layers/mlp/gate/lora/lora_b", (3, 4, 24), P(None, None, "tensor")),
        ("decoder/layers/attention/o/lora/lora_a", (3, 32, 4), P(None, "tensor", None)),
        ("decoder/layers/mlp/down/lora/lora_b", (3, 4, 16), P(None, None, "fsdp")),
        # Axes that do not divide are dropped, the others stay.
        ("decoder/embed/embedding", (51, 16), P(None, "fsdp")),
        ("decoder/head/kernel", (15, 50), P(None, "tensor")),
        ("decoder/layers/mlp/up/kernel", (3, 15, 25), P(None, None, None)),
    ],
)
def test_where_a_parameter_lies(mesh, path, shape, spec):
    where = rules.param_sharding(mesh, path, shape)
    assert where.mesh == mesh and where.spec == spec
    jax.device_put(jnp.zeros(shape), where)  # jax itself refuses a spec that does not fit


def test_every_kernel_of_the_decoder_is_split(mesh, params):
    where = rules.param_shardings(mesh, params)
    kernels = [path for path in where if path.endswith(("kernel", "embedding"))]
    assert len(kernels) > 10
    for path in kernels:
        axes = set(where[path].spec) - {None}
        assert axes == ({"fsdp", "tensor"} if path.startswith("decoder/") else {"fsdp"}), path


def test_moments_lie_where_their_parameters_do(mesh, params):
    stage = Stage(
        "s",
        "video",
        1,
        (("encoder/.*", "sgd"), (".*", "adamw")),
        {"sgd": OptimizerSpec("sgd", 0.1), "adamw": OptimizerSpec("adamw", 0.1)},
        clip=1.0,
    )
    tx = make_optimizer(stage, label_parameters(stage, params), steps=10)
    shapes = jax.eval_shape(tx.init, params)
    where = rules.optimizer_shardings(mesh, tx, params)
    assert jax.tree.structure(where) == jax.tree.structure(shapes)
    found = {path: 0 for path in params}
    for key_path, leaf in jax.tree.leaves_with_path(where):
        path = next((k.key for k in key_path if getattr(k, "key", None) in params), None)
        if path is None:
            assert leaf == NamedSharding(mesh, P())
        else:
            found[path] += 1
            assert leaf == rules.param_sharding(mesh, path, params[path].shape), key_path
    assert found == {path: 1 if path.startswith("encoder/") else 2 for path in params}
