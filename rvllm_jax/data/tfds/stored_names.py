"""The names under which a frame store holds the videos of annotations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rvllm_jax.data.annotations.example import Conversation
from rvllm_jax.data.prepare.find import VideoFilesError, describe_ambiguous, match
from rvllm_jax.data.store.reader import FrameStore


def stored_names(
    folder: Path, conversations: Sequence[Conversation], aliases: Mapping[str, str]
) -> list[Conversation]:
    """The conversations whose videos the store in `folder` holds, under the store's names.

    Names are matched as those of files are: without suffix, with or without "v_", by alias.

    Raises:
        FrameStoreError: no finished store. VideoFilesError: a name that fits several videos.
    """
    asked = {conversation.video for conversation in conversations}
    name_of, _, ambiguous = match(FrameStore(folder).entries, asked, aliases)
    for video, names in ambiguous.items():
        raise VideoFilesError(f"{folder}: {video!r} {describe_ambiguous(names)}")
    return [
        dataclasses.replace(conversation, video=name_of[conversation.video])
        for conversation in conversations
        if conversation.video in name_of
    ]
