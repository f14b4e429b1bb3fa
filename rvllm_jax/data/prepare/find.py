"""Finding the files of the videos that annotations name.

Benchmarks name a video without its suffix, or with one that the download has not; ActivityNet's
files are v_NAME where ActivityNet-QA says NAME; MSVD's are named by YouTube or vidN.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rvllm_jax.data.annotations.example import leaves_folder
from rvllm_jax.data.video.container import VIDEO_SUFFIXES
from rvllm_jax.system.errors import RvllmError

_YOUTUBE = r"[\w-]{11}"
_FEATURES = ".pkl"  # Video-ChatGPT's, of a video


class VideoFilesError(RvllmError, ValueError):
    """A folder in which the videos cannot be found for certain; the message says what to do."""


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


class Matched(NamedTuple):
    """What annotations call each video, with its name among those that are there.

    `missing` fit none of these names (sorted), `ambiguous` fit several.
    """

    name_of: dict[str, str]
    missing: list[str]
    ambiguous: dict[str, list[str]]


def find(
    folder: str | Path, videos: Iterable[str], *, aliases: Mapping[str, str] | None = None
) -> VideoFiles:
    """Finds the file of each of `videos` in `folder` or below it.

    A file of exactly that name is taken; else the one whose name, without its suffix, is the
    video's, the video's with or without "v_" (of YouTube ids), or its alias; else the one of that
    name without the first of its folders. Of several, the one that has the suffix that the
    annotations name; where that leaves several, the video is ambiguous, and none is taken.
    Video-ChatGPT's NAME.pkl, of features, means the video. A file without a suffix that is usual of
    videos is taken where the annotations name it so and nothing else fits: the decoder decides.

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
    dirs = match([n for n in below if _suffix(n) or n in exact], missing, aliases or {}).name_of
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


def match(names: Iterable[str], videos: Iterable[str], aliases: Mapping[str, str]) -> Matched:
    """Finds each of `videos` among `names`, as `find` does among files."""
    present = set(names)
    by_stem: dict[str, list[str]] = {}
    for name in present:
        stem = stem_of(name)
        for key in {stem, PurePosixPath(stem).name}:
            by_stem.setdefault(key, []).append(name)
    matched = Matched({}, [], {})
    for video in sorted(set(videos)):
        found = _fitting(video, present, by_stem, aliases)
        alike = [name for name in found if _suffix(name) == _suffix(video)]
        if len(alike) == 1:
            found = alike
        if len(found) > 1:
            matched.ambiguous[video] = found
        elif found:
            matched.name_of[video] = found[0]
        else:
            matched.missing.append(video)
    return matched


def describe_ambiguous(names: Iterable[str]) -> str:
    """Why a video that may be any of the files `names` is not used, and what to do."""
    return (
        f"fits several files, {' or '.join(map(repr, names))}. Remove or rename all but one of "
        "them, or name one with its suffix in the annotations"
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


def _suffix(name: str) -> str:
    """The suffix of a video, or of its features; another dot belongs to the name."""
    suffix = PurePosixPath(name).suffix
    return suffix.lower() if suffix.lower() in (*VIDEO_SUFFIXES, _FEATURES) else ""


def stem_of(name: str) -> str:
    """`name` without the suffix of a video, or of its features."""
    suffix = _suffix(name)
    return name[: -len(suffix)] if suffix else name


def _exact(video: str, others: Set[str]) -> str:
    """The file that is called so, or so without its first folders; "" where there is none."""
    parts = PurePosixPath(video).parts
    names = (str(PurePosixPath(*parts[first:])) for first in range(len(parts)))
    features = video.lower().endswith(_FEATURES)
    return "" if features else next((name for name in names if name in others), "")


def _fitting(
    video: str, present: set[str], by_stem: Mapping[str, list[str]], aliases: Mapping[str, str]
) -> list[str]:
    """The names of files that may be meant: one, several, or none."""
    exact = str(PurePosixPath(video))
    if exact in present:
        return [exact]
    whole = PurePosixPath(stem_of(exact))
    # The folder given may be inside the one that the annotations' names begin in: then the rest of
    # the path is the file's whole path, and not just its name in another folder.
    for first in range(len(whole.parts)):
        stem = str(PurePosixPath(*whole.parts[first:]))
        keys = {stem, *(_renamings(stem)), *filter(None, [aliases.get(stem)])}
        found = {name for key in keys for name in by_stem.get(key, ())}
        found = {name for name in found if first == 0 or stem_of(name) in keys}
        if found:
            return sorted(found)
    return []


def _renamings(stem: str) -> list[str]:
    if re.fullmatch(rf"v_{_YOUTUBE}", stem):
        return [stem[2:]]
    return [f"v_{stem}"] if re.fullmatch(_YOUTUBE, stem) else []
