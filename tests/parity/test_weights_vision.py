"""ResNets by torchvision's, timm's and transformers' names."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.resnet import RESNETS, ResNet, ResNetConfig
from rvllm_jax.weights.open import open_weights
from rvllm_jax.weights.safetensors import WeightsError

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")
safetensors_torch = pytest.importorskip("safetensors.torch")


class TorchBlock(torch.nn.Module):
    """A residual block with torchvision's and timm's module names."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        nn, outputs = torch.nn, width * (4 if bottleneck else 1)
        if bottleneck:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            sizes = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        self.depth = len(sizes)
        for k, (a, b, size, s) in enumerate(sizes, 1):
            self.add_module(f"conv{k}", nn.Conv2d(a, b, size, s, size // 2, bias=False))
            self.add_module(f"bn{k}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for k in range(1, self.depth + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = torch.relu(y) if k < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(torch.nn.Module):
    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, config.widths[0], 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(config.widths[0])
        inputs = config.widths[0]
        for stage, (blocks, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
            layers = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(TorchBlock(inputs, width, stride, config.bottleneck))
                inputs = width * (4 if config.bottleneck else 1)
            self.add_module(f"layer{stage + 1}", torch.nn.Sequential(*layers))
        self.fc = torch.nn.Linear(inputs, 10)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def torch_resnet(config, form):
    torch.manual_seed(0)
    if form in ("torchvision", "timm"):
        model = TorchResNet(config)
    else:
        theirs = transformers.ResNetConfig(
            embedding_size=config.widths[0],
            hidden_sizes=[width * (4 if config.bottleneck else 1) for width in config.widths],
            depths=list(config.blocks),
            layer_type="bottleneck" if config.bottleneck else "basic",
        )
        named = {"model": "ResNetModel", "classifier": "ResNetForImageClassification"}
        model = getattr(transformers, named[form])(theirs)
    for name, tensor in model.state_dict().items():  # away from 0 and 1, so that a swap shows
        if tensor.dim() == 1 and tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.5, 0.5)
            torch.nn.init.uniform_(tensor, low, high)
    return model.eval()


def saved_resnet(model, form, folder):
    if form in ("model", "classifier"):
        model.save_pretrained(folder)
        return folder
    folder.mkdir()
    safetensors_torch.save_file(model.state_dict(), folder / "model.safetensors")
    if form == "timm":
        (folder / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    return folder if form == "timm" else folder / "model.safetensors"


@pytest.mark.parametrize("form", ["torchvision", "timm", "model", "classifier"])
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_resnet_gives_torchs_features(name, form, tmp_path):
    config = RESNETS[name]
    theirs = torch_resnet(config, form)
    convert([str(saved_resnet(theirs, form, tmp_path / "theirs"))], tmp_path / "ours")
    weights = open_weights(tmp_path / "ours")
    described = ResNetConfig(**{
        k: tuple(v) if isinstance(v, list) else v for k, v in weights.config["encoder"].items()
    })  # fmt: skip
    assert described == config
    model = FunctionalModel.of(lambda rngs: ResNet(config, rngs=rngs))
    arrays = {p.removeprefix("encoder/"): e.read() for p, e in weights.entries.items()}
    assert arrays.keys() == model.params.keys() | model.stats.keys()
    frames = np.random.default_rng(0).normal(size=(2, 64, 70, 3)).astype(np.float32)
    resnet = model.merge(
        *({p: jnp.asarray(arrays[p]) for p in part} for part in (model.params, model.stats))
    )
    mine = nnx.jit(lambda m, x: m(x, jnp.ones(2, bool), use_running=True))(resnet, frames)
    backbone = getattr(theirs, "resnet", theirs)
    with torch.no_grad():
        expected = backbone(torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()))
    expected = getattr(expected, "last_hidden_state", expected).numpy().transpose(0, 2, 3, 1)
    assert np.linalg.norm(mine - expected) < 1e-4 * np.linalg.norm(expected)


def test_resnets_of_other_kinds_are_refused(tmp_path):
    model = torch_resnet(RESNETS["resnet18"], "timm")
    folder = saved_resnet(model, "timm", tmp_path / "a")
    state = model.state_dict()

    def refused(match, config=None, **changes):
        changed = {n: t for n, t in (state | changes).items() if t is not None}
        safetensors_torch.save_file(changed, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config or {"architecture": "resnet18"}))
        with pytest.raises(WeightsError, match=match):
            convert([str(folder)], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("'resnet50d' is not known", {"architecture": "resnet50d"})
    refused(r"surplus: unknown tensor conv1\.0", **{"conv1.0.weight": torch.ones(3)})
    refused(r"first convolution is \[7, 7, 1, 64\]", **{"conv1.weight": torch.ones(64, 1, 7, 7)})
    refused("missing: encoder/stages/1/0/norm2/var", **{"layer2.0.bn2.running_var": None})
    refused("missing: encoder/stages/3/0/conv1/kernel|stages of a ResNet are missing",
            **{"layer4.0.conv1.weight": None})  # fmt: skip
