"""Reading what the builders built: the examples of a split, and what is to be said of them."""

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from rvllm_jax.data.annotations.example import AnnotationError, Example, Turn


@dataclasses.dataclass(frozen=True)
class BuiltSplit:
    """A split of a built dataset, in the annotations' order.

    Attributes:
        examples: about videos of the frame store.
        provenance: what every result on it states: "dataset" (name/config/version), "split",
            "questions", "videos", and "partial", what the split lacks of the published one, in
            words, or "".
    """

    examples: list[Example]
    provenance: dict[str, str | int]


def read_built(folder: str | Path, split: str) -> BuiltSplit:
    """Reads the split of that name, whole, from the folder of a version, such as
    DATA_DIR/msvd_qa/full/1.0.0.

    Raises:
        AnnotationError: no dataset of examples there, or none of its splits is `split`.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        facts = builder.info.metadata["splits"]
    except (OSError, ValueError, KeyError) as error:
        raise AnnotationError(
            f"{folder}: holds no built dataset of examples ({error!r:.200}); give the folder "
            "of a version, such as DATA_DIR/msvd_qa/full/1.0.0"
        ) from error
    if split not in facts:
        raise AnnotationError(
            f"{folder}: has the splits {', '.join(facts)}, none is called {split!r}; name one, "
            "since published numbers differ in it"
        )
    source = builder.as_data_source(split)
    provenance = {"dataset": builder.info.full_name, "split": split}
    provenance |= {key: facts[split][key] for key in ("questions", "videos", "partial")}
    return BuiltSplit([_example(source[n]) for n in range(len(source))], provenance)


def _example(example: dict) -> Example:
    turns = example["turns"]
    columns = ([text.decode() for text in turns[key]] for key in ("question", "answer", "kind"))
    return Example(
        example["id"].decode(),
        example["video"].decode("utf-8", "surrogateescape"),
        tuple(Turn(*texts) for texts in zip(*columns, strict=True)),
        example["caption"].decode(),
    )
