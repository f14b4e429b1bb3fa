"""What is done of a shard in work, so that a preparation that is stopped repeats one video at most.

An ArrayRecord file cannot be continued. Beside it lies a journal of the same records: those of a
video, then a line of what is known of it. Written again from there, without decoding, the shard
has the same bytes as one that was never interrupted. It costs a second write of the shard's bytes
and is removed when the shard is whole.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_HEAD = struct.Struct("<cQ")  # what follows, and its bytes
_RECORD, _VIDEO = b"R", b"V"


class JournalEntry(NamedTuple):
    """A video that a journal holds whole: where its records are, and what `end` was given."""

    records: list[tuple[int, int]]  # offset and bytes
    facts: dict[str, Any]


class Journal:
    """The journal of one shard. Open it, replay its `entries`, then write on."""

    def __init__(self, path: Path):
        self._file: BinaryIO = open(path, "a+b")
        self.entries, end = _scan(self._file)
        self._file.truncate(end)  # what was in work is decoded again
        self._crc = 0

    def records(self, entry: JournalEntry) -> Iterator[bytes]:
        """The records of a video that the journal holds."""
        for offset, size in entry.records:
            self._file.seek(offset)
            yield self._file.read(size)

    def write(self, record: bytes) -> None:
        """A record of the video in work. Raises OSError."""
        self._crc = zlib.crc32(record, self._crc)
        self._file.write(_HEAD.pack(_RECORD, len(record)))
        self._file.write(record)

    def end(self, facts: dict[str, Any]) -> None:
        """The video in work is done, and `facts` (JSON) is what is known of it. Raises OSError."""
        line = json.dumps({"crc": self._crc, "facts": facts}).encode()
        self._file.write(_HEAD.pack(_VIDEO, len(line)) + line)
        self._file.flush()
        self._crc = 0

    def close(self) -> None:
        self._file.close()


def _scan(file: BinaryIO) -> tuple[list[JournalEntry], int]:
    """The videos that a journal holds whole, and where the last of them ends."""
    entries, records, crc, end = [], [], 0, 0
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        kind, size = _HEAD.unpack(head)
        offset = file.tell()
        if kind not in (_RECORD, _VIDEO) or size > total - offset:
            break
        content = file.read(size)
        if kind == _RECORD:
            records.append((offset, size))
            crc = zlib.crc32(content, crc)
            continue
        try:
            line = json.loads(content)
        except ValueError:
            break
        if line["crc"] != crc:  # the machine went down before all of it was on the disk
            break
        entries.append(JournalEntry(records, line["facts"]))
        records, crc, end = [], 0, file.tell()
    return entries, end
