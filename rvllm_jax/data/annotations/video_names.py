"""What annotations call a video, and which of the names that are there it means.

Benchmarks name a video without its suffix, or with one that the download has not; ActivityNet's
files are v_NAME where ActivityNet-QA says NAME; MSVD's are named by YouTube or vidN.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from rvllm_jax.data.video.container import VIDEO_SUFFIXES
from rvllm_jax.system.errors import RvllmError

FEATURES = ".pkl"  # Video-ChatGPT's, of a video
_YOUTUBE = r"[\w-]{11}"


class VideoFilesError(RvllmError, ValueError):
    """A folder in which the videos cannot be found for certain; the message says what to do."""


class Matched(NamedTuple):
    """What annotations call each video, with its name among those that are there.

    `missing` fit none of these names (sorted), `ambiguous` fit several.
    """

    name_of: dict[str, str]
    missing: list[str]
    ambiguous: dict[str, list[str]]


def readable(name: str) -> str:
    """A file's name as a text: its bytes that are no UTF-8, \\udc80 to \\udcff, become "?"."""
    return re.sub("[\udc80-\udcff]", "?", name)


def leaves_folder(video: str) -> bool:
    """True for a path that is absolute, climbs, or that no file system takes."""
    path = PurePosixPath(video)
    return path.is_absolute() or ".." in path.parts or "\0" in video


def suffix_of(name: str) -> str:
    """The suffix of a video, or of its features; another dot belongs to the name."""
    suffix = PurePosixPath(name).suffix
    return suffix.lower() if suffix.lower() in (*VIDEO_SUFFIXES, FEATURES) else ""


def stem_of(name: str) -> str:
    """`name` without the suffix of a video, or of its features."""
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def match(names: Iterable[str], videos: Iterable[str], aliases: Mapping[str, str]) -> Matched:
    """Finds each of `videos` among `names`.

    A name that is exactly the video's is taken; else the one that, without its suffix, is the
    video's, the video's with or without "v_" (of YouTube ids), or its alias; else the one of that
    name without the first of its folders. Of several, the one that has the suffix that the
    annotations name; where that leaves several, the video is ambiguous, and none is taken.
    """
    present = set(names)
    by_stem: dict[str, list[str]] = {}
    for name in present:
        stem = stem_of(name)
        for key in {stem, PurePosixPath(stem).name}:
            by_stem.setdefault(key, []).append(name)
    matched = Matched({}, [], {})
    for video in sorted(set(videos)):
        fitting = _fitting(video, present, by_stem, aliases)
        alike = [name for name in fitting if suffix_of(name) == suffix_of(video)]
        if len(alike) == 1:
            fitting = alike
        if len(fitting) > 1:
            matched.ambiguous[video] = fitting
        elif fitting:
            matched.name_of[video] = fitting[0]
        else:
            matched.missing.append(video)
    return matched


def describe_ambiguous(names: Iterable[str]) -> str:
    """Why a video that may be any of the files `names` is not used, and what to do."""
    return (
        f"fits several files, {' or '.join(map(repr, names))}. Remove or rename all but one of "
        "them, or name one with its suffix in the annotations"
    )


def _fitting(
    video: str, present: set[str], by_stem: Mapping[str, list[str]], aliases: Mapping[str, str]
) -> list[str]:
    """The names that may be meant: one, several, or none."""
    exact = str(PurePosixPath(video))
    if exact in present:
        return [exact]
    whole = PurePosixPath(stem_of(exact))
    # The folder given may be inside the one that the annotations' names begin in: then the rest of
    # the path is the file's whole path, and not just its name in another folder.
    for first in range(len(whole.parts)):
        stem = str(PurePosixPath(*whole.parts[first:]))
        keys = {stem, *(_renamings(stem)), *filter(None, [aliases.get(stem)])}
        fitting = {name for key in keys for name in by_stem.get(key, ())}
        fitting = {name for name in fitting if first == 0 or stem_of(name) in keys}
        if fitting:
            return sorted(fitting)
    return []


def _renamings(stem: str) -> list[str]:
    if re.fullmatch(rf"v_{_YOUTUBE}", stem):
        return [stem[2:]]
    return [f"v_{stem}"] if re.fullmatch(_YOUTUBE, stem) else []
