"""Meshes, and where each array lies on them."""
