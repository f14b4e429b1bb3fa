"""Stages, steps, and the loop that runs them."""
