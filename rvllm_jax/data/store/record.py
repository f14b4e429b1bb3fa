"""The bytes of one record of the frame store: a few successive frames of one video.

A record is a serialized `tf.train.Example`, one chunk of an ArrayRecord file:

    Features.feature  (a protobuf map; the entries stand in this order)
    +--------------+--------------------------------------------------------------+
    | layout       | int64            LAYOUT                                      |
    | video        | bytes            the video's name, UTF-8                     |
    | first_frame  | int64            number of the first of them in the store    |
    | times        | bytes            float64[n], little-endian: seconds          |
    | frames/shape | int64[4]         n, height, width, 3                         |
    +--------------+--------------------------------------------------------------+
    | frames/value | bytes            raw: uint8[n, height, width, 3], RGB        |  one of
    | frames       | bytes, n times   jpeg: one JPEG file a frame                 |  the two
    +--------------+--------------------------------------------------------------+

Written and parsed here by hand, without TensorFlow, so that `tfds` can read the shards too while
a decode worker does not import it, which takes seconds, and reading a clip costs neither a protobuf
message nor a copy of the frames. A record of 25 frames of 256 x 256 pixels, raw, takes 0.15 ms to
write and 0.02 to parse (one core); TFDS's serializer and parser take 6.7 and 0.42, and protobuf
promises no order of a map, where the bytes of a shard must not change.

There is no checksum of ours: ArrayRecord keeps a 64-bit hash of every chunk and checks it at each
read, and a CRC-32 on top would cost a third of the read's speed. What the hash cannot know, that
the record is the one the index promised, the header shows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg

from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.file_layout import STORE

LAYOUT = STORE.number
ENCODINGS = ("raw", "jpeg")
JPEG_QUALITY = 90

# Wire types and field numbers of tensorflow/core/example/{example,feature}.proto.
_VARINT, _BYTES = 0, 2
_BYTES_LIST, _INT64_LIST = 1, 3


class RecordError(RvllmError, ValueError):
    """Bytes that are not a record of this layout."""


class FrameRecord(NamedTuple):
    """A parsed record; `frames` are views into its bytes."""

    video: str
    first_frame: int
    shape: tuple[int, int, int]  # n, height, width
    times: np.ndarray  # float64[n], seconds
    encoding: str
    frames: list[memoryview]  # raw: one view of all n frames; jpeg: one a frame

    def frame(self, number: int, out: np.ndarray) -> np.ndarray:
        """Frame `uint8[h, w, 3]`: a view of a raw record, else decoded to `out`, of that shape.

        Raises `RecordError` for a broken JPEG. An `out` that is used for frame after frame stays in
        the processor's cache, which saves a tenth of the time.
        """
        if self.encoding == "jpeg":
            return decode_jpeg(self.frames[number], self.shape[1:], out)
        return np.frombuffer(self.frames[0], np.uint8).reshape(*self.shape, 3)[number]


def pack(
    video: str, first_frame: int, times: Sequence[float], frames: np.ndarray, encoding: str
) -> bytes:
    """The record of `frames` `uint8[n, h, w, 3]` (C-contiguous), shown at `times` (seconds)."""
    if encoding == "raw":
        content = _feature("frames/value", [frames.reshape(-1).data])
    else:
        content = _feature("frames", [encode_jpeg(frame) for frame in frames])
    parts = [
        *_feature("layout", LAYOUT),
        *_feature("video", [video.encode("utf-8", "surrogateescape")]),
        *_feature("first_frame", first_frame),
        *_feature("times", [np.asarray(times, "<f8").tobytes()]),
        *_feature("frames/shape", *frames.shape),
        *content,
    ]
    return b"".join(_field(1, parts))


def unpack(data: bytes) -> FrameRecord:
    """Parses a record; raises `RecordError` where `pack` could not have written `data`."""
    try:
        features = _features(data)
        (layout,) = features["layout"]
        if layout != LAYOUT:
            raise RecordError(f"record of layout {layout}, expected {LAYOUT}")
        (video,), (first_frame,), (times,) = (
            features[key] for key in ("video", "first_frame", "times")
        )
        n, height, width, channels = features["frames/shape"]
        encoding = "raw" if "frames/value" in features else "jpeg"
        frames = features["frames/value" if encoding == "raw" else "frames"]
        record = FrameRecord(
            str(video, "utf-8", "surrogateescape"),
            first_frame,
            (n, height, width),
            np.frombuffer(times, "<f8"),
            encoding,
            frames,
        )
    except RecordError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RecordError(f"not a record of frames: {error!r}") from error
    if encoding == "raw":
        filled = [len(value) for value in frames] == [n * height * width * 3]
    else:
        filled = len(frames) == n
    if channels != 3 or len(times) != 8 * n or not filled:
        raise RecordError(f"record whose frames do not fill its shape {(n, height, width)}")
    return record


def encode_jpeg(frame: np.ndarray) -> bytes:
    """JPEG of `uint8[h, w, 3]` RGB; colour at half resolution, as in the videos themselves."""
    return simplejpeg.encode_jpeg(
        frame, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )


def decode_jpeg(
    data: memoryview, shape: tuple[int, int], out: np.ndarray | None = None
) -> np.ndarray:
    """`uint8[h, w, 3]` RGB of a JPEG; raises `RecordError` when broken or not of `shape`.

    out: uint8[h, w, 3] to decode to; made if None.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != shape:  # checked before memory for the frame is taken
            raise RecordError(f"JPEG of {(height, width)} pixels, expected {shape}")
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    except ValueError as error:
        raise RecordError(f"broken JPEG frame: {error}") from error


def _feature(key: str, *value) -> list:
    """One entry of the map `Features.feature`: int64s, or one list of bytes."""
    if isinstance(value[0], list):
        content = [part for item in value[0] for part in _field(1, [item])]
        kind = _BYTES_LIST
    else:
        content = _field(1, [b"".join(map(_varint, value))])
        kind = _INT64_LIST
    feature = _field(2, _field(kind, content))
    return _field(1, [*_field(1, [key.encode()]), *feature])


def _field(number: int, parts: list) -> list:
    """A length-delimited field, as parts still to be joined: the frames are copied only once."""
    return [_varint(number << 3 | _BYTES) + _varint(sum(map(len, parts))), *parts]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _features(data: bytes) -> dict[str, list]:
    """Every feature of an Example: key -> its int64s, or views of its bytes values."""
    features: dict[str, list] = {}
    view = memoryview(data)
    for _, *features_message in _fields(data, 0, len(data)):
        for _, *entry in _fields(data, *features_message):
            (_, start, stop), (_, *feature) = _fields(data, *entry)
            ((kind, *values),) = _fields(data, *feature)
            items = _fields(data, *values)
            if kind == _INT64_LIST:
                content = [value for _, *packed in items for value in _varints(data, *packed)]
            else:
                content = [view[first:last] for _, first, last in items]
            features[data[start:stop].decode()] = content
    return features


def _fields(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """The fields of the message in `data[at:end]`, all length-delimited: (number, start, stop)."""
    fields = []
    while at < end:
        tag, length = data[at], data[at + 1]
        at += 2
        if length > 0x7F:
            length, at = _read_varint(data, at - 1)
        if tag & 7 != _BYTES or tag > 0x7F or at + length > end:
            raise RecordError("broken field")
        fields.append((tag >> 3, at, at + length))
        at += length
    return fields


def _varints(data: bytes, at: int, end: int) -> list[int]:
    values = []
    while at < end:
        value, at = _read_varint(data, at)
        values.append(value)
    return values


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise RecordError("number of more than 64 bits")
