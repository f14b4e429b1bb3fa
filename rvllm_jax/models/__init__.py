"""Encoder, projector and decoder, in Flax NNX."""
