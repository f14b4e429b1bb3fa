"""The embedded dataset of coloured shapes: its examples, without rendering its clips."""

from pathlib import Path

from rvllm_jax.data.annotations.llava import llava_example
from rvllm_jax.data.shapes import build
from rvllm_jax.data.tfds.builder import AnnotationsBuilder
from rvllm_jax.data.tfds.splits import Split


class Shapes(AnnotationsBuilder):
    """Splits train, validation, test and heldout, of the default seed; nothing is downloaded."""

    name = "shapes"
    ABOUT = (
        "Clips of one to three moving shapes, asked for colour, form, number, direction and order "
        "in time; the clips of heldout show combinations of colour and form that no other shows."
    )
    SIZES = build.SIZES

    def read_splits(self, folder: Path | None) -> dict[str, Split]:
        return {split: self._split(split, size) for split, size in self.SIZES.items()}

    def _split(self, split: str, size: int) -> Split:
        options = build.ShapesOptions()
        examples = [
            llava_example(build.draw_clip(options, split, index)[1], f"{split} {index}")
            for index in range(size)
        ]
        facts = {"questions": sum(len(c.turns) for c in examples), "videos": size}
        return Split(examples, facts | {"partial": ""})
