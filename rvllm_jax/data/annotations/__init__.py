"""Annotation files of the field's formats -> examples."""

from rvllm_jax.data.annotations.formats import FORMATS, recognise
from rvllm_jax.data.annotations.read import Annotations, Part, read

__all__ = ["FORMATS", "Annotations", "Part", "read", "recognise"]
