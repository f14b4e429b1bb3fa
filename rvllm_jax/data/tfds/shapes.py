"""The embedded dataset of coloured shapes: its conversations, without rendering its clips."""

from pathlib import Path

from rvllm_jax.data.annotations.llava import llava_conversation
from rvllm_jax.data.shapes import build
from rvllm_jax.data.tfds.builder import ConversationsBuilder
from rvllm_jax.data.tfds.splits import Split


class Shapes(ConversationsBuilder):
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
        options = build.Options()
        conversations = [
            llava_conversation(build.draw_clip(options, split, index)[1], f"{split} {index}")
            for index in range(size)
        ]
        facts = {"questions": sum(len(c.turns) for c in conversations), "videos": size}
        return Split(conversations, facts | {"partial": ""})
