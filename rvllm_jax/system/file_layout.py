"""Layouts of what commands leave behind, numbered: a reader knows what it can read, and says so.

A file without a number was written before there were numbers (until 2026-12-01), and is of one of
the layouts that are marked so here. What changes in a layout so that an earlier version would
misread it counts as a new one; a key that is only added does not. Each layout that is still read
has files in tests/earlier, made by a version that wrote it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rvllm_jax.system.atomic import read_json
from rvllm_jax.system.errors import RvllmError


class LayoutError(RvllmError, ValueError):
    """A file of a layout that this version does not read; names it, and a version that does."""


class FileLayout(NamedTuple):
    """The layout of one kind of file.

    what: the kind, in words. number: of what this version writes, and the highest that it reads.
    unread: numbers of the layouts that are no longer read -> the version that reads them.
    """

    what: str
    number: int
    key: str = "layout_number"
    unread: Mapping[int, str] = {}

    def stamp(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """`content` as it is written."""
        return {**content, self.key: self.number}

    def read(self, path: str | Path, **how: Any) -> dict[str, Any]:
        """The object in a file of JSON, without its number. how: of `read_json`.

        Raises what `how` says, and LayoutError as `check`.
        """
        return self.check(path, read_json(path, **how))

    def check(self, path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
        """`content`, read from `path`, without its number.

        Raises LayoutError where it is of a layout that is not read.
        """
        number = content.get(self.key, 1)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise LayoutError(
                f"{path}: its {self.key} is {number!r}, expected a number; restore the file"
            )
        if number > self.number:
            raise LayoutError(
                f"{path}: {self.what} of layout {number}, made by a newer version of rvllm_jax; "
                f"this one reads layouts up to {self.number}. Update it, or use the version that "
                "made the file"
            )
        if number in self.unread:
            raise LayoutError(
                f"{path}: {self.what} of layout {number}, which this version of rvllm_jax does not "
                f"read any more; {self.unread[number]} does"
            )
        return {key: value for key, value in content.items() if key != self.key}


# Layout 1, until 57086a3 of 2026-11-27: every checkpoint holds all parameters. Layout 2: those that
# no stage trains any more stand in frozen/ alone. Neither has a number; frozen/ tells them apart.
RUN = FileLayout("a working directory", 2)
# Without a number: 1.
MODEL = FileLayout("an exported model", 1)  # model.json beside model.safetensors
PREPARED = FileLayout("a prepared split", 1)  # SPLIT.info.json and the files beside it
ANSWERS = FileLayout("answers", 1)  # info.json beside answers.jsonl; settings of chat's answers
VERDICTS = FileLayout("verdicts", 1)  # judged.NAME.json beside judged.NAME.jsonl, scores.NAME.json
# Has had its number from the first version on.
STORE = FileLayout("a frame store", 1, "layout")  # index.json, and every record
