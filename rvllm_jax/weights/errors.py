"""The error of files, names and shapes of weights that are not as they should be."""

from rvllm_jax.system.errors import RvllmError


class WeightsError(RvllmError, ValueError):
    """Weights that cannot be used; the message names the file, what was found and what to do."""
