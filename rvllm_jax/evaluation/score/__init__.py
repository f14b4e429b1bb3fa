"""Scores, their intervals and their comparison."""
