"""TFDS builders of the annotations, made of the table in datasets.py; importing registers them.

An example is one about a video:

  id        text   the example's; of a benchmark the question's
  video     text   the video's name, that of the frame store where one was given
  caption   text
  turns     sequence of {question, answer, kind}: kind is the question's type, or ""

Examples keep the order of the annotations. metadata.json beside the shards says of each split how
many questions and videos it has, which files it was made of, and what it lacks.
"""

import abc
import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.llava import llava_example
from rvllm_jax.data.shapes import build
from rvllm_jax.data.tfds.datasets import DATASETS, TfdsDataset
from rvllm_jax.data.tfds.splits import Split, read_splits
from rvllm_jax.system.lock import locked
from rvllm_jax.types import Example

_ABOUT = (
    "Conversations about videos. The frames are not in this dataset: an example names its video, "
    "and a frame store holds it."
)


class AnnotationsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a dataset of examples; subclasses say where they come from."""

    VERSION = tfds.core.Version("1.0.0")
    ABOUT: str  # what the dataset is, in a sentence or two
    HOMEPAGE: str | None = None
    # Nothing is downloaded, so that there are no checksums; TFDS would look for their file by
    # importlib_resources, which it does not install.
    url_infos = None

    def __init__(self, *, file_format: str | None = "array_record", **options):
        super().__init__(file_format=file_format, **options)

    @abc.abstractmethod
    def read_splits(self, folder: Path | None) -> dict[str, Split]:
        """The splits, checked; `folder` holds the manual downloads, None where none are needed."""

    def _info(self) -> tfds.core.DatasetInfo:
        turn = {key: tfds.features.Text() for key in ("question", "answer", "kind")}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.ABOUT} {_ABOUT}",
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "video": tfds.features.Text(),
                    "caption": tfds.features.Text(),
                    "turns": tfds.features.Sequence(turn),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, **how) -> None:
        """TFDS's; LockError where another process builds this dataset."""
        built = Path(self.data_dir)
        if built.exists() or "://" in str(self.data_dir):  # a bucket's client has no locks
            return super().download_and_prepare(**how)
        with locked(built.parent, advice="name another --data_dir"):
            return super().download_and_prepare(**how)

    def _generate_splits(self, dl_manager, download_config):
        if download_config.max_examples_per_split is not None:
            raise AnnotationError(
                f"{self.info.full_name}: max_examples_per_split would build a part that does not "
                "say so; build it from files with fewer rows, as NAME/partial"
            )
        return super()._generate_splits(dl_manager, download_config)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        try:
            manual = self.MANUAL_DOWNLOAD_INSTRUCTIONS and Path(dl_manager.manual_dir)
        except AssertionError as error:  # no such folder, or an empty one; it shows what to do
            raise AnnotationError(str(error)) from error
        # Every split is read and checked before a byte of the first is written.
        splits = self.read_splits(manual)
        self.info.metadata.update(splits={name: split.facts for name, split in splits.items()})
        return {name: self._generate_examples(split.examples) for name, split in splits.items()}

    def _generate_examples(self, examples: list[Example]):
        for position, example in enumerate(examples):
            yield (
                position,
                {
                    "id": example.id,
                    "video": example.video.encode("utf-8", "surrogateescape"),
                    "caption": example.caption,
                    "turns": [dataclasses.asdict(turn) for turn in example.turns],
                },
            )


class Shapes(AnnotationsBuilder):
    """The embedded dataset of coloured shapes, without rendering its clips: the splits train,
    validation, test and heldout, of the default seed; nothing is downloaded."""

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
            llava_example(build.draw_clip(options, split, index)[1]) for index in range(size)
        ]
        questions = sum(len(example.turns) for example in examples)
        return Split(examples, {"questions": questions, "videos": size, "partial": ""})


# Whether a split may lack questions or videos that the published one has.
FULL = tfds.core.BuilderConfig(name="full", description="Splits as they are published, or refused.")
PARTIAL = tfds.core.BuilderConfig(
    name="partial",
    description="A part of what is published: results are not comparable with published ones.",
)


class FilesBuilder(AnnotationsBuilder, skip_registration=True):
    """Examples of annotation files that were downloaded by hand."""

    BUILDER_CONFIGS = [FULL]
    DATASET: TfdsDataset

    @classmethod
    def get_builder_config(cls, name: str, version=None) -> tfds.core.BuilderConfig | None:
        """ "partial" is built where it is asked for, and is none of those built by default."""
        return PARTIAL if name == PARTIAL.name else super().get_builder_config(name, version)

    def read_splits(self, folder: Path | None) -> dict[str, Split]:
        partial = self.builder_config.name == PARTIAL.name
        splits = read_splits(folder, self.DATASET, allow_partial=partial)
        for name, split in splits.items():
            report = logging.warning if split.facts["partial"] else logging.info
            report("%s: split %r: %s", self.info.full_name, name, split.facts)
        return splits


def _builder_of(dataset: TfdsDataset) -> type[FilesBuilder]:
    return type(
        "".join(word.capitalize() for word in dataset.name.split("_")),
        (FilesBuilder,),
        {
            "__doc__": f"Splits {', '.join(dataset.files)}; see MANUAL_DOWNLOAD_INSTRUCTIONS.",
            "__module__": __name__,
            "name": dataset.name,
            "ABOUT": dataset.about,
            "HOMEPAGE": dataset.homepage,
            "MANUAL_DOWNLOAD_INSTRUCTIONS": dataset.instructions,
            "DATASET": dataset,
        },
    )


# A data source that is sent to another process names its builder's class by where it stands.
globals().update({cls.__name__: cls for cls in map(_builder_of, DATASETS)})
