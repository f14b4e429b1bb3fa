"""The folder that a preparation writes: what is in it, whose it is, and what other splits need."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rvllm_jax.data.annotations import split as splits
from rvllm_jax.data.annotations.llava import INFO, read_info
from rvllm_jax.data.annotations.read import Annotations, read_llava
from rvllm_jax.data.annotations.video_names import readable
from rvllm_jax.data.prepare.find import VideoFiles
from rvllm_jax.data.prepare.options import PreparationError
from rvllm_jax.data.store.shards import FRAMES, INDEX, StoreOptions
from rvllm_jax.system.atomic import TEMPORARY, read_json_or_empty
from rvllm_jax.system.file_layout import STORE
from rvllm_jax.system.lock import LOCK, locked

FOLLOWING = "frames.following"  # a store that will take the place of FRAMES when it is finished
TFDS = "tfds"
LOOKED = "look.journal"  # of a preparation that is not done: what it has seen of the videos
UNUSABLE = ".unusable.json"  # behind a split's name, as INFO is
REPORT, CHECK = "report", "check"  # pages: NAME.html and NAME.json


def check_folder(out: Path, split: str, inputs: Iterable[str | Path]) -> None:
    """Raises `PreparationError` where a preparation into `out` would destroy what is not its own,
    LayoutError where a newer version prepared it.

    inputs: files that it reads.
    """
    try:
        os.fspath(out).encode()
    except UnicodeEncodeError as error:
        raise PreparationError(
            f"--out={readable(str(out))}: its name is not UTF-8, and the files of records and "
            "TFDS take no such name; choose another folder"
        ) from error
    written = {_identity(out / name): out / name for name in _outputs(split)}
    stores = {os.path.realpath(out / name) for name in (FRAMES, FOLLOWING)}
    for given in inputs:
        taken = written.get(_identity(given) or ())
        if taken:
            raise PreparationError(
                f"{given}: is read by this preparation, which would write {taken} over it; give "
                "another --out or --split, or move the file"
            )
        place = os.path.realpath(os.path.dirname(given))
        if any(f"{place}/".startswith(f"{store}/") for store in stores):
            raise PreparationError(
                f"{given}: lies where the frames are stored ({' or '.join(sorted(stores))}), which "
                "is cleared when they are stored anew; give another --out"
            )
    STORE.check(out / FRAMES / INDEX, read_json_or_empty(out / FRAMES / INDEX))
    info = out / (split + INFO)
    there = [str(path) for path in (out / f"{split}.json", info) if os.path.lexists(path)]
    if there and read_info(info).get("split") != split:
        raise PreparationError(
            f"{', '.join(there)}: there already, and no preparation wrote it (none is described in "
            f"{info.name}); move it, or give another --out or --split"
        )


def _outputs(split: str) -> list[str]:
    pages = [REPORT, CHECK, f"{split}.{REPORT}"]
    names = [f"{split}.json", split + INFO, split + UNUSABLE, LOOKED]
    names += [f"{page}.{ending}" for page in pages for ending in ("html", "json")]
    return names + [name + TEMPORARY for name in names]


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What two names of one file have in common; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def alone(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds `out`, made if absent: another preparation into it waits, and says so."""
    with locked(out, wait=say, advice="name another --out"):
        yield


def pages(out: Path, split: str, *, check: bool, done: bool) -> list[str]:
    """The names of the pages on which a preparation reports, the last one's first.

    A check takes no preparation's place, nor an unfinished one that of SPLIT.json's own page.
    """
    if check:
        last = out / f"{REPORT}.json"
        return [CHECK if last.is_file() and not read_json_or_empty(last).get("check") else REPORT]
    stands = not done and (out / f"{split}.json").is_file()
    return [REPORT] if stands else [REPORT, f"{split}.{REPORT}"]


def left_over(out: Path) -> str:
    """In words, the frames of a preparation that was broken off; "" where there are none."""
    files = [path for path in (out / FOLLOWING).glob("*") if path.name != LOCK]
    if not files:
        return ""
    return (
        f"{out / FOLLOWING} holds {sum(path.stat().st_size for path in files):,} bytes of a "
        "preparation with other videos or options that was broken off: its own command continues "
        "it; delete this folder where it is not wanted"
    )


def check_other_splits(out: Path, annotations: Annotations, split: str) -> None:
    """No question of a benchmark is of two of its splits, whatever its owner may make of them."""
    if split not in splits.SPLITS:
        return
    parts = [part for part in annotations.parts if part.benchmark]
    benchmarks = {part.benchmark for part in parts}
    asked = {example.id for part in parts for example in part.examples}
    for path in sorted(out.glob(f"*{INFO}")) if asked else ():
        info = read_info(path)
        other = info.get("split")
        rows = out / f"{other}.json"
        there = {part.get("benchmark") for part in info.get("annotations", [])}
        others = splits.SPLITS - {split}
        if other not in others or benchmarks.isdisjoint(there) or not rows.is_file():
            continue
        both = sorted(asked & {example.id for example in read_llava(rows)})
        if both:
            raise PreparationError(
                f"{out}: its split {other} has {len(both):,} of the questions that --split={split} "
                f"was given for, the first {both[0]!r}; a question is of one split. Give the right "
                "split, prepare into a folder of its own, or give --own"
            )


def videos_of_other_splits(
    out: Path, split: str, here: VideoFiles, options: StoreOptions
) -> dict[str, Path]:
    """The videos that other splits prepared into `out` need: they stay in its frames.

    here: those of this split. options: of the store that is asked for.
    """
    wanted = dataclasses.asdict(options)
    videos: dict[str, Path] = {}
    for path in sorted(out.glob(f"*{INFO}")):
        if path.name == split + INFO:
            continue
        info = read_info(path)
        files = info.get("files", {})
        for name, given in files.items():
            videos[name] = Path(given)
            if name in here.files and os.path.realpath(here.files[name]) != given:
                raise PreparationError(
                    f"{out}: its split {info['split']} has another video {name!r}, {given}; "
                    "prepare this split into a folder of its own"
                )
        aside = info.get("set_aside", {})  # these have no frames that could be lost
        gone = [files[name] for name in files if name not in aside and not videos[name].is_file()]
        if gone:  # they would be stored anew with those of this split
            raise PreparationError(
                f"{out}: {len(gone)} videos of its split {info['split']} are no longer there, the "
                f"first {gone[0]}, and its frames would be lost; bring them back, or prepare this "
                "split into a folder of its own"
            )
        if info.get("options", {}).get("store") not in (None, wanted):
            raise PreparationError(
                f"{out}: its split {info['split']} is stored with {info['options']['store']}, "
                f"asked for is {wanted}; give the same, or prepare this split into a "
                "folder of its own"
            )
    return videos
