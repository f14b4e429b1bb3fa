"""The annotations as TFDS datasets: examples that name videos of a frame store; no frames."""
