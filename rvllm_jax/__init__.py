"""ResNetVLLM (arXiv 2504.14432) in JAX: two-stage training of video language models."""
