"""Stored frames and examples in, batches out."""
