"""The only writer of files that are replaced and of JSON, and the only reader of JSON.

A file is written beside its place and renamed: it is there whole or as it was before, also where
the process is killed. An error names the file, the room that is left, and what the caller says is
to be done.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rvllm_jax.system.errors import AGAIN, RvllmError, room

TEMPORARY = ".tmp"  # behind the name of a file that is being written


class WriteError(RvllmError):
    """A file that its folder does not take: no room, or no permission."""


class JsonError(RvllmError):
    """A file of JSON that is absent or broken."""


@contextlib.contextmanager
def naming(
    path: str | Path,
    *,
    advice: str = AGAIN,
    error: Callable[[str], Exception] = WriteError,
    failures: type[Exception] | tuple[type[Exception], ...] = OSError,
) -> Iterator[None]:
    """Within it, `failures` of writing raise `error`, which names `path`."""
    try:
        yield
    except RvllmError:
        raise
    except failures as failed:
        raise error(
            f"{path}: cannot be written ({failed}), with {room(Path(path).parent)}. {advice}"
        ) from failed


@contextlib.contextmanager
def replacing(path: str | Path, *, synced: bool = False, **how: Any) -> Iterator[Path]:
    """A path beside `path` to write to; it becomes `path` at the end, or goes where that fails.

    What a killed process leaves of it is replaced too by the next one: it has no other name.
    synced: returns only when the content is on the disk, for what must outlive the machine. how: of
    `naming`.
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with naming(path, **how):
            yield temporary
            if synced:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def make_folder(folder: str | Path, **how: Any) -> Path:
    """`folder`, with those above it, made where it is not there. how: of `naming`."""
    folder = Path(folder)
    with naming(folder, **how):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def try_file(path: str | Path, **how: Any) -> None:
    """Writes a page beside `path` and removes it: raises WriteError before the work that would end
    with writing `path`. how: of `naming`."""
    trial = Path(path).with_name(f"{Path(path).name}.{os.getpid()}{TEMPORARY}")
    try:
        with naming(path, **how):
            trial.write_bytes(b" " * 4096)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def move(source: str | Path, target: str | Path) -> None:
    """Renames a file, in the place of what was there."""
    os.replace(source, target)


def write_bytes(path: str | Path, content: bytes, *, only_new: bool = False, **how: Any) -> None:
    """Replaces a file. only_new: not where it holds this content already. how: of `replacing`."""
    path = Path(path)
    if only_new and path.is_file() and path.read_bytes() == content:
        return
    with replacing(path, **how) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str, *, errors: str = "strict", **how: Any) -> None:
    """Replaces a file of UTF-8. errors: str.encode's. how: of `write_bytes`."""
    write_bytes(path, text.encode(errors=errors), **how)


def dump_json(value: Any, *, indent: int | None = 1, **style: Any) -> str:
    """`value` as the content of a file. style: json.dumps's sort_keys, ensure_ascii, allow_nan."""
    return json.dumps(value, indent=indent, **style) + "\n"


def write_together(folder: Path, contents: Mapping[str, bytes], **how: Any) -> None:
    """Replaces files of one folder, by name, which belong together: where one of them cannot be
    written all stay as they were. The first is renamed last. how: of `replacing`."""
    with contextlib.ExitStack() as whole:
        for name, content in contents.items():
            whole.enter_context(replacing(folder / name, **how)).write_bytes(content)


def write_json(
    path: str | Path, value: Any, *, indent: int | None = 1, allow_nan: bool = True, **how: Any
) -> None:
    """Replaces a file of JSON. allow_nan: else NaN raises ValueError. how: of `write_bytes`."""
    write_text(path, dump_json(value, indent=indent, allow_nan=allow_nan), **how)


def read_json(
    path: str | Path,
    *,
    absent: dict[str, Any] | None = None,
    advice: str = "restore the file",
    error: Callable[[str], Exception] = JsonError,
    kinds: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The object in a file of JSON.

    kinds: what a key is where it is there and not null, "key" or "key.of.an.object": a type, a
    tuple of some, or [type] for a list of these.

    absent: returned where there is no such file; None: that is an error too.

    Raises:
      error: not there, not readable, no JSON, no object, or a key of another kind; names the file
        and ends with `advice`.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as failed:
        if absent is not None:
            return absent
        raise error(f"{path}: cannot be read, it is not there; {advice}") from failed
    except (OSError, ValueError, RecursionError) as failed:
        raise error(f"{path}: cannot be read as JSON ({failed}); {advice}") from failed
    if not isinstance(value, dict):
        raise error(f"{path}: holds no JSON object but a {type(value).__name__}; {advice}")
    for key, kind in kinds.items():
        part = value
        for name in key.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if part is not None and not _is_of(part, kind):
            raise error(f"{path}: {key} is {part!r:.60}, expected {_in_words(kind)}; {advice}")
    return value


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(_is_of(value, each) for each in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(isinstance(each, kind[0]) for each in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _in_words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_in_words, kind))
    if isinstance(kind, list):
        return f"a list, each {_in_words(kind[0])}"
    words = {dict: "an object", str: "a text", bool: "true or false", int: "a whole number"}
    return words.get(kind, "a number")


def read_json_or_empty(path: str | Path) -> dict[str, Any]:
    """The object in a file of JSON; {} where the file is absent or broken."""
    try:
        return read_json(path)
    except JsonError:
        return {}
