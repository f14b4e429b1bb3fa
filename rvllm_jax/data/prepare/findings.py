"""What a preparation found, the verdict on it, and both as plain values: report.json."""

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rvllm_jax.data.annotations import published
from rvllm_jax.data.annotations import split as splits
from rvllm_jax.data.annotations.llava import write_llava
from rvllm_jax.data.annotations.read import AnnotationPart, Annotations
from rvllm_jax.data.annotations.recognise import MAPPING
from rvllm_jax.data.prepare.find import VideoFiles
from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.survey import Survey
from rvllm_jax.data.prepare.tallies import describe_annotations, describe_videos
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.video.decode import ONE_FRAME
from rvllm_jax.system.fingerprint import file_digest

DONE, REFUSED, TOO_MANY_BAD, PARTIAL = 0, 1, 3, 4  # exit codes of the command
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that is known of one split before its frames are stored."""

    split: str
    options: PrepareOptions
    annotations: Annotations
    videos: VideoFiles
    survey: Survey

    def verdict(self, bad: Mapping[str, str]) -> tuple[int, str]:
        """Whether the split may be trained from where `bad` videos are unusable: code and words.

        The words are the command's last line: what is left out by permission stands in them too.
        """
        rows = sum(part.rows for part in self.annotations.parts)
        missing, ambiguous = len(self.videos.missing), len(self.videos.ambiguous)
        none = missing + len(self.videos.set_aside)
        asked = len(self.videos.files) + none
        lost = len(self.videos.files.keys() & bad.keys()) + none
        of_them = f"{missing} of them missing"
        if ambiguous:
            of_them += f", {ambiguous} fit several files"
        if self.videos.folders:
            of_them += f", folders: {len(self.videos.folders)}"
        code, words, allowed = DONE, [], []
        for number, total, what in (
            (lost, asked, f"videos are unusable, {of_them}"),
            (len(self.annotations.set_aside), rows, "rows of the annotations are unusable"),
        ):
            if number > self.options.max_bad * total or number == total:
                code = TOO_MANY_BAD
                words.append(
                    f"{number:,} of {total:,} {what}: a share of {number / total:.4f}, where "
                    f"--max_bad={self.options.max_bad} is allowed"
                )
            elif number:
                allowed.append(f"left out, as --max_bad allows: {number:,} of {total:,} {what}")
        benchmarks = {part.benchmark for part in self.annotations.parts}
        if (
            code
            and self.videos.missing
            and "msvd_qa" in benchmarks
            and not self.annotations.aliases
        ):
            words.append(f"MSVD's videos have two names: add {MAPPING} to --annotations")
        lacks = self._lacks(bad)
        if lacks and self.options.allow_partial:
            allowed.append(f"fewer than published, as --allow_partial allows: {', '.join(lacks)}")
        elif lacks:
            code = code or PARTIAL
            words.append(
                f"fewer than published, {'; '.join(lacks)}: numbers measured on these are not "
                "comparable. Complete them, or give --allow_partial, which is recorded"
            )
        return code, "; ".join(words or ["ready to train from", *allowed, *self._unproven()])

    def _unproven(self) -> Iterator[str]:
        """Of which files nothing shows the split."""
        for part in self.annotations.parts:
            if part.benchmark and not splits.evidence(part):
                yield (
                    f"nothing tells that {', '.join(part.paths)} are of {part.benchmark}'s split "
                    f"{self.split}: make sure of it"
                )

    def room(self, folder: Path) -> str:
        """The bytes that the frames are expected to take, and those that `folder` has."""
        needed = self.survey.estimate(self.options.store)["bytes"]
        free = shutil.disk_usage(folder).free
        return f"{folder}: the frames need about {needed:,} bytes in all; {free:,} are free"

    def plan(self, folder: Path, others: int) -> str:
        """What is about to be stored in `folder`, in a line."""
        free = shutil.disk_usage(folder).free
        expected = self.survey.estimate(self.options.store)
        hours = sum(info.seconds for info in self.survey.info.values()) / 3600
        more = f", beside {others:,} videos of other splits" if others else ""
        unknown = f" (and {expected['unknown']:,} videos of unknown length)"
        short = " - THIS IS LESS THAN IS NEEDED" if expected["bytes"] > free else ""
        return (
            f"{len(self.videos.files):,} videos, {hours:,.2f} hours{more}: about "
            f"{expected['frames']:,} frames, {expected['bytes'] / _GB:,.2f} GB"
            f"{unknown if expected['unknown'] else ''}; {free / _GB:,.0f} GB are free{short}"
        )

    def split_files(self, store: FrameStore) -> tuple[bytes, bytes, dict]:
        """The content of SPLIT.json, SPLIT.unusable.json and SPLIT.info.json.

        Unusable are the examples whose video is missing or set aside, b"" where there are none: an
        evaluation counts their questions as failed.
        """
        name_of, usable = self.videos.name_of, self._usable(store.bad)
        kept, lost = [], []
        for example in self.annotations.examples:
            stored = dataclasses.replace(example, video=name_of.get(example.video, example.video))
            (kept if example.video in usable else lost).append(stored)
        info = {
            "split": self.split,
            "format": self.annotations.format,
            "annotations": self._parts(store.bad),
            "sha256": {
                path: file_digest(path) for part in self.annotations.parts for path in part.paths
            },
            "allow_partial": self.options.allow_partial,
            "partial": self._lacks(store.bad),
            "conversations": len(kept),
            "questions": sum(len(example.turns) for example in kept),
            "videos": len({example.video for example in kept}),
            "missing": self.videos.missing,
            "set_aside": self._of_split(store.bad) | self.videos.set_aside,
            "rows_set_aside": len(self.annotations.set_aside),
            "rows_without_video": len(self.annotations.without_video),
            "options": {
                "store": dataclasses.asdict(self.options.store),
                "interval": self.options.interval,
            },
            "files": {name: os.path.realpath(path) for name, path in self.videos.files.items()},
        }
        return write_llava(kept), write_llava(lost) if lost else b"", info

    def report(self, store: FrameStore | None, code: int, verdict: str) -> dict:
        """The content of report.json; `store` is None where no frame was stored."""
        bad = self._of_split(self.survey.bad if store is None else store.bad)
        asked = Counter(example.video for example in self.annotations.examples)
        usable = self._usable(bad)
        return {
            "split": self.split,
            "code": code,
            "verdict": verdict,
            "max_bad": self.options.max_bad,
            "allow_partial": self.options.allow_partial,
            "partial": self._lacks(bad),
            "options": dataclasses.asdict(self.options.store),
            "format": self.annotations.format,
            "parts": self._parts(bad),
            "annotations": describe_annotations(self.annotations),
            "usable_conversations": sum(asked[video] for video in usable),
            "usable_videos": len({self.videos.name_of[video] for video in usable}),
            "estimate": self.survey.estimate(self.options.store),
            "stored": store and {
                "videos": len(store.entries), "frames": store.num_frames, "bytes": store.num_bytes,
            },
            "files": describe_videos(self.survey.info),
            "videos": {name: info._asdict() for name, info in self.survey.info.items()},
            "set_aside": bad | self.videos.set_aside,
            "notes": self._of_split(store.notes) if store else self._one_frame(),
            "missing": {video: asked[video] for video in self.videos.missing},
            "unused": self.videos.unused,
            "check": self.options.check,
        }  # fmt: skip

    def _of_split(self, of_videos: Mapping[str, str]) -> dict[str, str]:
        """Without the videos of other splits in the same store."""
        return {name: of_videos[name] for name in sorted(of_videos) if name in self.videos.files}

    def _one_frame(self) -> dict[str, str]:
        """The remark of files whose header says so; the others' remarks come with their frames."""
        return {name: ONE_FRAME for name, info in self.survey.info.items() if info.frames == 1}

    def _usable(self, bad: Mapping[str, str]) -> dict[str, str]:
        """What the annotations call the videos that are there and not `bad` -> their names."""
        return {video: name for video, name in self.videos.name_of.items() if name not in bad}

    def _lacks(self, bad: Mapping[str, str]) -> list[str]:
        return [part["lacks"] for part in self._parts(bad) if part["lacks"]]

    def _parts(self, bad: Mapping[str, str]) -> list[dict]:
        """One entry a file of annotations, with its counts beside the published ones.

        "lacks" is in words what the usable rows lack of the published counts, "" where nothing
        does or none is known; a video that is called in several ways counts once. "split_told_by"
        is what shows that they are of this split (annotations/split.py).
        """
        usable = self._usable(bad)
        return [self._part(part, usable) for part in self.annotations.parts]

    def _part(self, part: AnnotationPart, usable: Mapping[str, str]) -> dict:
        names = [usable[example.video] for example in part.examples if example.video in usable]
        rows, videos = len(names), len(set(names))
        known = published.PUBLISHED.get(part.benchmark, {}).get(self.split)
        return {
            "paths": list(part.paths),
            "format": part.format,
            "benchmark": part.benchmark,
            "split_told_by": splits.evidence(part),
            "rows": part.rows,
            "read": len(part.examples),
            "videos": part.videos,
            "usable_rows": rows,
            "usable_videos": videos,
            "published": known._asdict() if known else None,
            "lacks": published.shortfall(part.benchmark, self.split, rows, videos),
        }
