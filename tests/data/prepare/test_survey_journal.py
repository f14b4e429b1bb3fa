"""A survey that is stopped goes on with what it has seen, where the files are still the same."""

import os

import pytest

from rvllm_jax.data.prepare.survey import survey


def _twin(path, of):
    """Puts other bytes in a file's place, of the same size and time."""
    before = path.stat()
    path.write_bytes(of[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_survey_that_is_stopped_looks_again_only_at_what_it_has_not_seen(
    workers, videos, tmp_path
):
    paths = {name: tmp_path / name for name in videos}
    for name, path in paths.items():
        path.write_bytes(videos[name].read_bytes())
    how = dict(thumbnails=3, short_side=20, workers=workers)
    whole = survey(paths, **how)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(paths, **how, progress=stop, journal=tmp_path / "journal")
    for name in ("v0.mp4", "v1.mp4"):  # seen: as their size and time are the same, not read again
        _twin(paths[name], b"no video")
    os.utime(paths["v2.mp4"], (0, 0))
    shown = []
    again = survey(
        paths, **how, journal=tmp_path / "journal", progress=lambda *done: shown.append(done)
    )
    assert again == whole
    assert shown[0] == (3, len(paths)) and shown[-1] == (len(paths), len(paths))
    os.utime(paths["v0.mp4"], (0, 0))
    assert "v0.mp4" in survey(paths, **how, journal=tmp_path / "journal").bad
