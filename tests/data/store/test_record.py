"""The bytes of a record: exact, readable by others, and safe to parse when damaged."""

import numpy as np
import pytest

from rvllm_jax.data.store import record as records

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 9, 14, 3), np.uint8)
TIMES = [0.1, 1 / 3, 1e9 + 1e-6]


def test_raw_frames_times_and_header_come_back_exactly():
    record = records.unpack(records.pack("dir/a é.mp4", 300, TIMES, FRAMES, "raw"))
    assert record[:3] == ("dir/a é.mp4", 300, (3, 9, 14)) and record.encoding == "raw"
    np.testing.assert_array_equal(record.times, TIMES)
    assert bytes(record.frames[0]) == FRAMES.tobytes()


def test_jpeg_frames_come_back_alike():
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    frames = np.stack([smooth, smooth.clip(50), 200 - smooth // 2])[..., None].repeat(3, -1)
    record = records.unpack(records.pack("a", 0, TIMES, np.ascontiguousarray(frames), "jpeg"))
    decoded = np.stack([records.decode_jpeg(data, (40, 60)) for data in record.frames])
    assert record.shape == (3, 40, 60)
    assert abs(decoded.astype(int) - frames).mean() < 2
    with pytest.raises(records.RecordError, match=r"expected \(40, 61\)"):
        records.decode_jpeg(record.frames[0], (40, 61))
    with pytest.raises(records.RecordError, match="broken JPEG"):
        records.decode_jpeg(record.frames[0][:100], (40, 60))


@pytest.mark.parametrize("encoding", records.ENCODINGS)
def test_a_record_is_an_example_that_tfds_reads(encoding):
    tfds = pytest.importorskip("tensorflow_datasets", reason="tfds is not installed")
    kinds = {
        "raw": tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes"),
        "jpeg": tfds.features.Sequence(tfds.features.Scalar(np.object_)),
    }
    features = tfds.features.FeaturesDict(
        {
            "video": tfds.features.Text(),
            "first_frame": np.int64,
            "times": tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes"),
            "frames": kinds[encoding],
        }
    )
    data = records.pack("a", 130, TIMES, FRAMES, encoding)
    example = features.deserialize_example_np(data)
    assert example["video"] == b"a" and example["first_frame"] == 130
    np.testing.assert_array_equal(example["times"], TIMES)
    if encoding == "raw":
        np.testing.assert_array_equal(example["frames"], FRAMES)
    else:
        own = [bytes(frame) for frame in records.unpack(data).frames]
        assert list(example["frames"]) == own


@pytest.mark.parametrize("encoding", records.ENCODINGS)
def test_damaged_bytes_raise_nothing_but_record_errors(encoding):
    data = records.pack("a", 130, TIMES, FRAMES, encoding)
    refused = 0
    for trial in range(2000):
        bad = bytearray(data)
        if trial % 2:
            bad = bad[: RNG.integers(len(bad))]
        else:  # mostly the header: the pixels are free to be anything
            bad[RNG.integers(min(len(bad), 250))] ^= RNG.integers(1, 256)
        try:
            record = records.unpack(bytes(bad))
        except records.RecordError:
            refused += 1
            continue
        for frame in record.frames:
            if encoding == "jpeg":
                try:
                    records.decode_jpeg(frame, record.shape[1:])
                except records.RecordError:
                    pass
    assert refused > 1000  # every cut one, at the least


@pytest.mark.parametrize("encoding", records.ENCODINGS)
@pytest.mark.parametrize("place", [0, 1, 3])  # n, height, channels
def test_frames_that_do_not_fill_their_shape_are_refused(encoding, place):
    data = bytearray(records.pack("a", 0, TIMES, FRAMES, encoding))
    at = data.index(bytes([3, 9, 14, 3])) + place
    data[at] += 1
    if encoding == "jpeg" and place == 1:
        record = records.unpack(bytes(data))  # a JPEG frame knows its own size
        with pytest.raises(records.RecordError, match=r"\(9, 14\) pixels, expected \(10, 14\)"):
            records.decode_jpeg(record.frames[0], record.shape[1:])
    else:
        with pytest.raises(records.RecordError, match="do not fill"):
            records.unpack(bytes(data))


def test_another_layout_is_refused(monkeypatch):
    monkeypatch.setattr(records, "LAYOUT", 99)
    data = records.pack("a", 0, TIMES, FRAMES, "raw")
    monkeypatch.undo()
    with pytest.raises(records.RecordError, match="layout 99, expected 1"):
        records.unpack(data)
