"""Finding the files of the videos that annotations name."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path, PurePosixPath

from rvllm_jax.data.annotations.video_names import (
    FEATURES,
    VideoFilesError,
    describe_ambiguous,
    leaves_folder,
    match,
    suffix_of,
)
from rvllm_jax.data.video.container import VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class VideoFiles:
    """The videos of annotations, as they lie in a folder.

    Attributes:
        files: name of a file, relative to the folder -> its path; only of videos that are asked
            for. Bytes of a name that are no UTF-8 are kept as `os.fsdecode` gives them.
        name_of: what the annotations call a video -> the name of its file.
        missing: what the annotations call the videos that have no file, sorted.
        ambiguous: what the annotations call a video that may be one of several files -> which.
        folders: what the annotations call a video that is no file, but a folder -> which.
        unused: names of the folder's other videos, sorted.
    """

    files: dict[str, Path]
    name_of: dict[str, str]
    missing: list[str]
    ambiguous: dict[str, str]
    folders: dict[str, str]
    unused: list[str]

    @property
    def set_aside(self) -> dict[str, str]:
        """What the annotations call the videos that are there and cannot be taken -> why."""
        return self.ambiguous | self.folders


def find_videos(
    folder: str | Path, videos: Iterable[str], *, aliases: Mapping[str, str] | None = None
) -> VideoFiles:
    """Finds the file of each of `videos` in `folder` or below it.

    Names fit as `video_names.match` says. Video-ChatGPT's NAME.pkl, of features, means the video.
    A file without a suffix that is usual of videos is taken where the annotations name it so and
    nothing else fits: the decoder decides.

    Raises:
        VideoFilesError: no such folder or no video in it; a name that leaves the folder.
    """
    folder = Path(folder)
    names, others, below = _names(folder)
    videos = sorted(set(videos))
    for video in videos:
        if leaves_folder(video):
            raise VideoFilesError(
                f"{folder}: the annotations name a video outside the folder, {video!r}; give "
                "names relative to the folder, without '..'"
            )
    name_of, missing, several = match(names, videos, aliases or {})
    exact = {video: _exact(video, others) for video in missing}
    name_of |= {video: name for video, name in exact.items() if name}
    if not names and not name_of:
        raise VideoFilesError(
            f"{folder}: holds no video, no file that ends in {', '.join(VIDEO_SUFFIXES)}"
        )
    missing = [video for video in missing if not exact[video]]
    dirs = match([n for n in below if suffix_of(n) or n in exact], missing, aliases or {}).name_of
    files = {name: folder / name for name in sorted(set(name_of.values()))}
    ambiguous = {video: describe_ambiguous(fitting) for video, fitting in several.items()}
    meant = files.keys() | {name for fitting in several.values() for name in fitting}
    return VideoFiles(
        files,
        name_of,
        [video for video in missing if video not in dirs],
        ambiguous,
        {
            video: f"{folder / name}: a folder, and no file. Name the file in it, or move it here"
            for video, name in dirs.items()
        },
        [name for name in names if name not in meant],
    )


def _names(folder: Path) -> tuple[list[str], set[str], list[str]]:
    """What is below `folder`: files with a suffix of videos, other files, and folders.

    Links to folders are followed once.
    """
    if not folder.is_dir():
        raise VideoFilesError(f"{folder}: no such folder of videos; correct its path")
    names, others, below, seen = [], set(), [], set()

    def refuse(error: OSError) -> None:
        raise VideoFilesError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        relative = PurePosixPath(Path(place).relative_to(folder))
        below += [str(relative / name) for name in folders]
        for file in files:
            if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                names.append(str(relative / file))
            else:
                others.add(str(relative / file))
    return sorted(names), others, sorted(below)


def _exact(video: str, others: Set[str]) -> str:
    """The file that is called so, or so without its first folders; "" where there is none."""
    parts = PurePosixPath(video).parts
    names = (str(PurePosixPath(*parts[first:])) for first in range(len(parts)))
    features = video.lower().endswith(FEATURES)
    return "" if features else next((name for name in names if name in others), "")
