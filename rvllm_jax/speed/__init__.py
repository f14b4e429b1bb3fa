"""Measurements of the parts of training on the machine at hand."""
