"""Annotation files of the field's formats -> conversations."""

from rvllm_jax.data.annotations.files import FORMATS, recognise
from rvllm_jax.data.annotations.reading import Annotations, Part, read

__all__ = ["FORMATS", "Annotations", "Part", "read", "recognise"]
