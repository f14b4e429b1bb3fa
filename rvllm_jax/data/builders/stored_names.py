"""The names under which a frame store holds the videos of annotations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from rvllm_jax.data import video_files
from rvllm_jax.data.conversations import Conversation, ConversationError
from rvllm_jax.data.frames import FrameStore


def stored_names(
    folder: Path, conversations: Sequence[Conversation], aliases: Mapping[str, str]
) -> list[Conversation]:
    """The conversations whose videos the store in `folder` holds, under the store's names.

    Names are matched as those of files are: without suffix, with or without "v_", by alias.

    Raises:
        FrameStoreError: no finished store. ConversationError: a name that fits several videos.
    """
    names = sorted(FrameStore(folder).entries)
    by_stem: dict[str, list[str]] = {}
    for name in names:
        stem = video_files._stem(name)
        for key in {stem, PurePosixPath(stem).name}:
            by_stem.setdefault(key, []).append(name)
    name_of = {}
    for video in sorted({conversation.video for conversation in conversations}):
        found = video_files._fitting(video, set(names), by_stem, aliases)
        if len(found) > 1:
            raise ConversationError(
                f"{folder}: {video!r} may be any of the stored {', '.join(found)}; prepare a "
                "store of this dataset's videos alone"
            )
        if found:
            name_of[video] = found[0]
    return [
        dataclasses.replace(conversation, video=name_of[conversation.video])
        for conversation in conversations
        if conversation.video in name_of
    ]
