"""Saved models: opened, described, converted."""
