"""The names under which a frame store holds the videos of annotations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rvllm_jax.data.annotations.example import Example
from rvllm_jax.data.prepare.find import VideoFilesError, describe_ambiguous, match
from rvllm_jax.data.store.reader import FrameStore


def stored_names(
    folder: Path, examples: Sequence[Example], aliases: Mapping[str, str]
) -> list[Example]:
    """The examples whose videos the store in `folder` holds, under the store's names.

    Names are matched as those of files are: without suffix, with or without "v_", by alias.

    Raises:
        FrameStoreError: no finished store. VideoFilesError: a name that fits several videos.
    """
    asked = {example.video for example in examples}
    name_of, _, ambiguous = match(FrameStore(folder).entries, asked, aliases)
    for video, names in ambiguous.items():
        raise VideoFilesError(f"{folder}: {video!r} {describe_ambiguous(names)}")
    return [
        dataclasses.replace(example, video=name_of[example.video])
        for example in examples
        if example.video in name_of
    ]
