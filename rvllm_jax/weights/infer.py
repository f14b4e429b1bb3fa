"""The sizes of a ResNet, by the shapes of its arrays: torchvision's files have no configuration."""

from rvllm_jax.weights.open import Weights
from rvllm_jax.weights.safetensors import WeightsError

STEM = "encoder/stem/conv/kernel"
# Keys of transformers' config.json that change strides and not shapes, and their value in ours.
V15 = {"downsample_in_bottleneck": False, "downsample_in_first_stage": False, "hidden_act": "relu"}


def resnet_shape(weights: Weights) -> tuple[tuple[int, ...], bool, tuple[int, ...]]:
    """(blocks a stage, whether bottleneck, width a stage) of the encoder.

    Raises WeightsError: another stem or block than ResNet v1.5's.
    """
    entries = weights.entries
    for key, value in V15.items():
        if weights.config.get(key, value) != value:
            raise WeightsError(
                f"{weights.path}: {key}={weights.config[key]!r}, but the encoder here is a ResNet "
                f"v1.5, of {key}={value!r}"
            )
    stem = entries.get(STEM)
    if stem is None or stem.shape[:3] != (7, 7, 3):
        shape = "absent" if stem is None else f"{list(stem.shape)}"
        raise WeightsError(
            f"{weights.path}: its first convolution is {shape}; expected [7, 7, 3, width]: deep "
            "stems and grey images are not known here"
        )
    blocks = {tuple(map(int, p.split("/")[2:4])) for p in entries if p.startswith("encoder/stages")}
    stages = range(len({stage for stage, _ in blocks}))
    counts = tuple(sum(stage == number for stage, _ in blocks) for number in stages)
    kernels = [entries.get(f"encoder/stages/{stage}/0/conv1/kernel") for stage in stages]
    if not all(counts) or not kernels or None in kernels:
        raise WeightsError(f"{weights.path}: stages of a ResNet are missing; there are {counts}")
    bottleneck = "encoder/stages/0/0/conv3/kernel" in entries
    return counts, bottleneck, tuple(kernel.shape[-1] for kernel in kernels)
