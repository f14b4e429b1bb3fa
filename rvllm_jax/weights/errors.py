"""The error of files, names and shapes of weights that are not as they should be."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file, what was found and what to do."""
