"""Colours, turns and the pixels' aspect, against ffmpeg's own filters on the same files."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from rvllm_jax.data.video import decode

LIMITED, FULL = ColorRange.MPEG, ColorRange.JPEG


@pytest.fixture(scope="module")
def blocks():
    """uint8[4, 96, 128, 3]: 16 x 16 blocks of random colours, others in each frame."""
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8)
    return small.repeat(16, 1).repeat(16, 2)


def by_filters(path, size, *more, chroma=""):
    """What ffmpeg's scale and format make of each frame, at `size` (width, height)."""
    images = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        scale = f"w={size[0]}:h={size[1]}:flags=bilinear{chroma}"
        chain = [graph.add_buffer(template=stream), graph.add("scale", scale)]
        chain += [graph.add("format", "pix_fmts=rgb24"), *(graph.add(*each) for each in more)]
        chain.append(graph.add("buffersink"))
        for first, second in zip(chain, chain[1:], strict=False):
            first.link_to(second)
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
            images.append(graph.pull().to_ndarray())
    return np.stack(images)


def read(path, **options):
    return np.stack([frame for frame, _ in decode.Decoding(path, **options)])


@pytest.mark.parametrize(
    "name,codec,pixels,matrix,range",
    [
        ("plain.mp4", "libx264", "yuv420p", Colorspace.ITU601, LIMITED),
        ("hd.mp4", "libx264", "yuv420p", Colorspace.ITU709, LIMITED),
        ("full.mp4", "libx264", "yuv420p", Colorspace.ITU709, FULL),
        ("phone.mp4", "libx264", "yuvj420p", Colorspace.ITU601, FULL),
        ("ten.mp4", "libx264", "yuv420p10le", Colorspace.ITU709, LIMITED),
        ("ten_full.mkv", "ffv1", "yuv420p10le", Colorspace.ITU709, FULL),
        ("uhd.mp4", "libx264", "yuv422p10le", Colorspace.BT2020, LIMITED),
        ("vp9.webm", "libvpx-vp9", "yuv420p", Colorspace.ITU709, LIMITED),
        ("camera.avi", "mjpeg", "yuvj420p", Colorspace.ITU601, FULL),
        ("exact.mkv", "ffv1", "bgr0", None, None),
    ],
)
def test_colours_are_ffmpegs_and_the_true_ones(
    tmp_path, write_with, blocks, name, codec, pixels, matrix, range
):
    path = tmp_path / name
    write_with(path, blocks, codec=codec, pixels=pixels, matrix=matrix, range=range)
    # The scale filter leaves out where H.264 says that its colours lie, the decoder does not.
    chroma = ":in_chroma_loc=left" if codec == "libx264" else ""
    np.testing.assert_array_equal(read(path), by_filters(path, (128, 96), chroma=chroma))
    small = by_filters(path, (64, 48), chroma=chroma)
    np.testing.assert_array_equal(read(path, short_side=48), small)
    centres = np.s_[:, 8::16, 8::16]
    error = np.abs(read(path)[centres].astype(int) - blocks[centres])
    assert np.median(error) <= 4 and error.mean() < 6


def set_matrix(path, a, b, c, d):
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in (a, b, c, d))
    # ISO 14496-12, 8.3.2: the matrix lies 40 bytes into a version-0 track header's body.
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "matrix,filters",  # as ffmpeg itself chooses them by the matrix
    [
        ((0, 1, -1, 0), [("transpose", "clock")]),
        ((0, -1, 1, 0), [("transpose", "cclock")]),
        ((-1, 0, 0, -1), [("hflip",), ("vflip",)]),
        ((-1, 0, 0, 1), [("hflip",)]),
        ((1, 0, 0, -1), [("vflip",)]),
        ((0, 1, 1, 0), [("transpose", "cclock_flip")]),
        ((0, -1, -1, 0), [("transpose", "clock_flip")]),
    ],
)
@pytest.mark.parametrize("aspect,width", [(None, 128), (Fraction(3, 2), 192)])
def test_turned_and_mirrored_as_phones_store_it(
    probe, tmp_path, write_with, blocks, matrix, filters, aspect, width
):
    path = write_with(tmp_path / "phone.mp4", blocks, aspect=aspect)
    set_matrix(path, *matrix)
    left = ":in_chroma_loc=left"
    expected = by_filters(path, (width, 96), *filters, chroma=left)
    frames = read(path)
    np.testing.assert_array_equal(frames, expected)
    small = by_filters(path, (width // 2, 48), *filters, chroma=left)
    np.testing.assert_array_equal(read(path, short_side=48), small)
    assert probe(path)[1:3] == (frames.shape[2], frames.shape[1])


@pytest.mark.parametrize(
    "aspect,shape,small",
    [
        (Fraction(4, 3), (96, 171), (48, 85)),
        (Fraction(1, 2), (96, 64), (72, 48)),  # the short side is that of the picture as shown
        (Fraction(1, 1), (96, 128), (48, 64)),
    ],
)
def test_pixels_come_out_square(tmp_path, write_with, blocks, aspect, shape, small):
    path = write_with(tmp_path / "dvd.mp4", blocks, aspect=aspect)
    left = ":in_chroma_loc=left"
    np.testing.assert_array_equal(read(path), by_filters(path, shape[::-1], chroma=left))
    expected = by_filters(path, small[::-1], chroma=left)
    np.testing.assert_array_equal(read(path, short_side=48), expected)


def test_an_aspect_beyond_belief_is_passed_over_and_said(tmp_path, write_with, blocks):
    path = write_with(tmp_path / "odd.mp4", blocks, aspect=Fraction(1, 20))
    decoding = decode.Decoding(path)
    assert {frame.shape for frame, _ in decoding} == {(96, 128, 3)}
    assert "pixels of an aspect of 1/20" in decoding.note and "not believed" in decoding.note


def test_a_turn_that_changes_within_the_file_is_followed(tmp_path, write_with, blocks):
    """As where a phone is turned while it records: H.264 says it of single frames."""
    first = write_with(tmp_path / "first.ts", blocks[:, :96, :96], format="mpegts")
    turned = tmp_path / "turned.ts"
    with av.open(str(first)) as source, av.open(str(turned), "w", format="mpegts") as out:
        stream = source.streams.video[0]
        written = out.add_stream_from_template(stream)
        rotate = "h264_metadata=display_orientation=insert:rotate=90"
        filters = av.bitstream.BitStreamFilterContext(rotate, stream, written)
        for packet in source.demux(stream):
            for each in filters.filter(packet if packet.size else None):
                each.stream = written
                out.mux(each)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + turned.read_bytes())
    plain, frames = read(first), read(both)
    np.testing.assert_array_equal(frames[:4], plain)
    np.testing.assert_array_equal(frames[4], np.rot90(plain[0]))  # the first frame alone says it
    np.testing.assert_array_equal(frames[5:], plain[1:])
