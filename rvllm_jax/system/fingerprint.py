"""What names a content: SHA-256 in hexadecimal. Digests are stored, so none of this may change."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

SHORT = 16  # hexadecimal digits, 64 bits: enough to tell things apart that nobody forges


def digest(parts: Iterable[str | bytes], length: int = 64) -> str:
    """The first `length` digits of all parts, one behind the other; a text is its UTF-8.

    Halves of surrogate pairs, as in names of files, are encoded like other characters.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return sha.hexdigest()[:length]


def json_digest(value: Any, *, sort_keys: bool = False, length: int = 64) -> str:
    """`digest` of a value as JSON in one line of ASCII."""
    return digest([json.dumps(value, sort_keys=sort_keys)], length)


def file_digest(path: str | Path) -> str:
    """All digits of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_crc(path: str | Path, on_block: Callable[[], None] = lambda: None) -> int:
    """The CRC-32 of a file's bytes, by which frame stores and files of answers name a video.

    on_block: called after each megabyte.
    """
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
            on_block()
    return crc


def differing(there: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Which names of `there` have another fingerprint now, in words; "" where none has.

    One that either lacks, as files of earlier versions do, is not known, which is no difference.
    """
    there, now = there or {}, now or {}
    return "; ".join(
        f"{name}: {there[name]} there, {now[name]} now"
        for name in sorted(there.keys() & now.keys())
        if None not in (there[name], now[name]) and there[name] != now[name]
    )


def recorded(value: Any, renamed: Mapping[str, str]) -> str:
    """`repr` of values and data classes as files hold it, whatever the classes are called today.

    renamed: name of today -> name in files, of a class ("Example") or of a field ("Example.id").
    """
    if dataclasses.is_dataclass(value):
        name = type(value).__name__
        parts = (
            f"{renamed.get(f'{name}.{field.name}', field.name)}="
            f"{recorded(getattr(value, field.name), renamed)}"
            for field in dataclasses.fields(value)
            if field.repr
        )
        return f"{renamed.get(name, name)}({', '.join(parts)})"
    if type(value) is tuple:
        parts = [recorded(part, renamed) for part in value]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return repr(value)
