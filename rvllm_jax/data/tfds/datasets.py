"""The datasets of annotations that TFDS builds, as one table: a new one is a row of `DATASETS`."""

import dataclasses
from collections.abc import Mapping

from rvllm_jax.data.annotations.published import PUBLISHED, Counts

_STEMS = {"train": "train", "validation": "val", "test": "test"}  # of the files of three benchmarks
_XU_2017 = "https://github.com/xudejing/video-question-answering"
_INSTRUCTIONS = """
The folder given by --manual_dir holds, for each split to be built, {source}:
{files}
{notes}
Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""


@dataclasses.dataclass(frozen=True)
class TfdsDataset:
    """How a dataset's annotations are published.

    Attributes:
        name: TFDS's and ours.
        about: what the dataset is, in a sentence or two.
        homepage: of those who published it.
        source, notes: of the instructions: what the files are, and where they come from.
        files: split -> alternatives, each the names of the files that hold the split together.
        formats: those of `annotations.formats.FORMATS` that the files may be in.
        benchmarks: split -> (benchmark, split) of `PUBLISHED`; absent: no counts are published.
    """

    name: str
    about: str
    homepage: str
    source: str
    files: Mapping[str, tuple[tuple[str, ...], ...]]
    formats: tuple[str, ...]
    notes: str = ""
    benchmarks: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def instructions(self) -> str:
        """What TFDS shows where the files are not there."""
        width = max(map(len, self.files))
        files = [
            f"  {split:{width}}  {', or '.join(' and '.join(names) for names in alternatives)}"
            for split, alternatives in self.files.items()
        ]
        return _INSTRUCTIONS.format(source=self.source, files="\n".join(files), notes=self.notes)

    def published(self, split: str) -> Counts | None:
        """The published counts of a split."""
        benchmark, its_split = self.benchmarks.get(split, ("", ""))
        return PUBLISHED.get(benchmark, {}).get(its_split)


def _xu_2017(name: str, about: str, mapping: str = "") -> TfdsDataset:
    """MSVD-QA or MSRVTT-QA, which are published alike: original files, or Video-ChatGPT's pairs."""
    return TfdsDataset(
        name=name,
        about=about,
        homepage=_XU_2017,
        source="either the original file or\nVideo-ChatGPT's pair of files",
        notes=f"""The original ones are published at {_XU_2017}{mapping};
the pairs with Video-ChatGPT's quantitative evaluation. A pair's split is read from the numbers of
its questions: the one that Video-ChatGPT calls test holds the validation split.
""",
        files={
            split: ((f"{stem}_qa.json",), (f"{stem}_q.json", f"{stem}_a.json"))
            for split, stem in _STEMS.items()
        },
        formats=("msvd_msrvtt_original", "zero_shot"),
        benchmarks={split: (name, split) for split in _STEMS},
    )


DATASETS = (
    TfdsDataset(
        name="activitynet_qa",
        about="ActivityNet-QA: questions written by people about ActivityNet's videos (Yu et al., "
        "2019).",
        homepage="https://github.com/MILVLG/activitynet-qa",
        source="its pair of files from\n"
        "https://github.com/MILVLG/activitynet-qa/tree/master/dataset",
        files={split: ((f"{stem}_q.json", f"{stem}_a.json"),) for split, stem in _STEMS.items()},
        formats=("activitynet",),
        benchmarks={split: ("activitynet_qa", split) for split in _STEMS},
    ),
    TfdsDataset(
        name="llava_videos",
        about="Conversations about a user's own videos, in the form of LLaVA and Video-LLaVA.",
        homepage="https://github.com/PKU-YuanGroup/Video-LLaVA",
        source="its list of\nLLaVA's records, "
        '{"id", "video", "conversations"}: what a preparation of videos leaves, or your own',
        files={split: ((f"{split}.json",),) for split in (*_STEMS, "heldout")},
        formats=("llava",),
    ),
    _xu_2017(
        "msrvtt_qa",
        "MSRVTT-QA: questions made from the captions of MSR-VTT's clips, answered by a word (Xu et "
        "al., 2017).",
    ),
    _xu_2017(
        "msvd_qa",
        "MSVD-QA: questions made from the captions of MSVD's clips, answered by a word (Xu et al., "
        "2017).",
        mapping=", with\nyoutube_mapping.txt, which belongs beside them",
    ),
    TfdsDataset(
        name="tgif_frameqa",
        about="FrameQA of TGIF-QA: questions about animated GIFs that one frame answers, by a word "
        "(Jang et al., 2017).",
        homepage="https://github.com/YunseokJANG/tgif-qa",
        source="its table from\nhttps://github.com/YunseokJANG/tgif-qa/tree/master/dataset, or "
        "Video-ChatGPT's pair of files",
        files={
            "train": (("Train_frameqa_question.csv",),),
            "test": (("Test_frameqa_question.csv",), ("test_q.json", "test_a.json")),
        },
        formats=("tgif", "zero_shot"),
        benchmarks={split: ("tgif_frameqa", split) for split in ("train", "test")},
    ),
    TfdsDataset(
        name="video_instruct_100k",
        about="VideoInstruct100K: questions and detailed answers about ActivityNet's videos, "
        "written by people and by language models (Maaz et al., 2023).",
        homepage="https://huggingface.co/datasets/MBZUAI/VideoInstruct-100K",
        source="its file from\nhttps://huggingface.co/datasets/MBZUAI/VideoInstruct-100K",
        notes="No counts are checked.\n",
        files={"train": (("VideoInstruct100K.json",),)},
        formats=("video_instruct",),
    ),
    TfdsDataset(
        name="video_text_generation",
        about="Video-ChatGPT's benchmark of free answers about ActivityNet's videos, to be judged "
        "by a language model (Maaz et al., 2023). A consistency example asks one thing in two "
        "ways.",
        homepage="https://github.com/mbzuai-oryx/Video-ChatGPT",
        source="its file of Video-ChatGPT's\n"
        "quantitative evaluation (https://github.com/mbzuai-oryx/Video-ChatGPT, "
        '"Video-based Generative\nPerformance Benchmarking")',
        files={kind: ((f"{kind}_qa.json",),) for kind in ("generic", "temporal", "consistency")},
        formats=("generative", "consistency"),
        benchmarks={
            kind: (f"video_text_generation/{kind}", "test")
            for kind in ("generic", "temporal", "consistency")
        },
    ),
)
