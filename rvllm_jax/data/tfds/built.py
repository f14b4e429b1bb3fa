"""Reading what the builders built: the conversations of a split, and what is to be said of them."""

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from rvllm_jax.data.annotations.example import Conversation, ConversationError, Turn


@dataclasses.dataclass(frozen=True)
class BuiltSplit:
    """A split of a built dataset, in the annotations' order.

    Attributes:
        conversations: about videos of the frame store.
        provenance: what every result on it states: "dataset" (name/config/version), "split",
            "questions", "videos", and "partial", what the split lacks of the published one, in
            words, or "".
    """

    conversations: list[Conversation]
    provenance: dict[str, str | int]


def read_built(folder: str | Path, split: str) -> BuiltSplit:
    """Reads the split of that name, whole, from the folder of a version, such as
    DATA_DIR/msvd_qa/full/1.0.0.

    Raises:
        ConversationError: no dataset of conversations there, or none of its splits is `split`.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        facts = builder.info.metadata["splits"]
    except (OSError, ValueError, KeyError) as error:
        raise ConversationError(
            f"{folder}: holds no built dataset of conversations ({error!r:.200}); give the folder "
            "of a version, such as DATA_DIR/msvd_qa/full/1.0.0"
        ) from error
    if split not in facts:
        raise ConversationError(
            f"{folder}: has the splits {', '.join(facts)}, none is called {split!r}; name one, "
            "since published numbers differ in it"
        )
    source = builder.as_data_source(split)
    provenance = {"dataset": builder.info.full_name, "split": split}
    provenance |= {key: facts[split][key] for key in ("questions", "videos", "partial")}
    return BuiltSplit([_conversation(source[n]) for n in range(len(source))], provenance)


def _conversation(example: dict) -> Conversation:
    turns = example["turns"]
    columns = ([text.decode() for text in turns[key]] for key in ("question", "answer", "kind"))
    return Conversation(
        example["id"].decode(),
        example["video"].decode("utf-8", "surrogateescape"),
        tuple(Turn(*texts) for texts in zip(*columns, strict=True)),
        example["caption"].decode(),
    )
