"""The embedded dataset: rendered clips of coloured shapes."""
