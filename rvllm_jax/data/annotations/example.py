"""The checks of examples about videos that every annotation format shares.

What is wrong with a record is worded without its place, which its reader adds.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from rvllm_jax.data.annotations.video_names import leaves_folder, readable
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import Example

_NAMED = 10  # how many offenders a message names


class AnnotationError(RvllmError, ValueError):
    """An annotation file that cannot be used as it is; the message says where and what to do."""


def check_videos(examples: Iterable[Example], folder: str | Path) -> None:
    """Raises `AnnotationError` naming the examples whose video is no file in `folder`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: no such folder of videos; correct its path")
    examples = list(examples)
    present = {  # many examples share a video: look once
        video: not leaves_folder(video) and (folder / video).is_file()
        for video in {example.video for example in examples}
    }
    missing = [f"{e.id!r} names {e.video!r}" for e in examples if not present[e.video]]
    if missing:
        more = f", and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise AnnotationError(
            f"{folder}: the video of {len(missing)} examples is not in this folder: "
            f"{'; '.join(missing[:_NAMED])}{more}. Add the files, correct the names (with their "
            "suffix), or remove the examples"
        )


def decode_text(path: str | Path) -> str:
    """The text of a UTF-8 file; raises `AnnotationError`."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")  # a byte order mark is accepted
    except OSError as error:
        raise AnnotationError(
            f"{path}: cannot be read ({error.strerror}); correct the path"
        ) from error
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def load_records(path: str | Path) -> list:
    """The list that a JSON file holds, of at least one record; raises `AnnotationError`."""
    text = decode_text(path)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        by_line = "; make one list of its lines" if "Extra data" in str(error) else ""
        raise AnnotationError(
            f"{path}: not valid JSON ({error}); expected one list of records, "
            f"[{{...}}, {{...}}]{by_line}"
        ) from error
    if not isinstance(records, list) or not records:
        raise AnnotationError(
            f"{path}: expected a list of at least one record, got "
            f"{'an empty list' if records == [] else type(records).__name__}"
        )
    return records


def checked_id(value: object, what: str) -> str:
    """An id as a text: files give it as one, or as a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise AnnotationError(f"{what} must be a string or a whole number")
    return checked_text(str(value), what)


def checked_video(video: object) -> str:
    """The name of a video: a string, or a list of one; refused where it leaves the folder."""
    if isinstance(video, list) and len(video) == 1:
        (video,) = video
    if isinstance(video, list):
        raise AnnotationError(f"names {len(video)} videos; an example is about exactly one")
    # Checked, but not stripped: a file's name may hold spaces.
    checked_text(readable(video) if isinstance(video, str) else video, "'video'")
    if leaves_folder(video):
        raise AnnotationError(
            f"video {video!r} is not inside the folder of videos; give a path relative to that "
            "folder, without '..'"
        )
    return video


def checked_text(value: object, what: str) -> str:
    """`value` stripped, where it is a text that is not empty and that UTF-8 can hold."""
    if not isinstance(value, str) or not value.strip():
        got = "an empty one" if isinstance(value, str) else repr(value)
        raise AnnotationError(f"{what} must be a text, got {got}; fill it in or remove the record")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise AnnotationError(
            f"{what} holds half of a surrogate pair; correct the escape \\uD8xx in it"
        ) from None
    return value.strip()
