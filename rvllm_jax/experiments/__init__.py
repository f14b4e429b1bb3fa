"""Whole experiments and their reports."""
