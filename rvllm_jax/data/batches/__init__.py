"""Stored frames and conversations in, batches out."""
