"""What a host runs, so that another one that runs something else is found before both train."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide what is computed, and the source of
    this package as a digest."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    found["source of rvllm_jax"] = digest.hexdigest()[:16]
    return found | {"python": ".".join(platform.python_version_tuple()[:2])}
