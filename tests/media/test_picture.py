"""The picture is the one that players show: upright, square pixels, colours as tagged."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import MediaError
from teso_deploy.media.address import Address
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.picture import Presenter, Turn
from teso_deploy.media.reader import VideoReader
from tests.support.recordings import turn

HEIGHT, WIDTH = 48, 64
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def write(
    path: Path,
    planes: Sequence[NDArray[np.generic]] | NDArray[np.uint8],
    format: str,
    *,
    codec: str = "ffv1",
    frames: int = 3,
    aspect: Fraction | None = None,
    **tags: int,
) -> Path:
    """Write a picture several times; lossless with ``ffv1``. ``tags``: of its colours. ``aspect``: of its pixels."""
    if isinstance(planes, np.ndarray):
        frame = av.VideoFrame.from_ndarray(planes, format="rgb24").reformat(format=format)
    else:
        height, width = planes[0].shape
        frame = av.VideoFrame(width, height, format)
        for plane, content in zip(frame.planes, planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            line = content.view(np.uint8).reshape(plane.height, -1)
            rows[:, : line.shape[1]] = line
            plane.update(rows.tobytes())
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, format
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
            if hasattr(frame, name):
                setattr(frame, name, value)
        for number in range(frames):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def first(path: Path) -> NDArray[np.uint8]:
    """Return the first picture, after checking that file and stream agree on it and on its announced size."""
    with VideoReader(path) as reader:
        image = next(iter(reader)).image
        assert image.shape == (reader.info.height, reader.info.width, 3)
    with LiveReader(Address.parse(path), lossless=True) as stream:
        stream.start()
        taken = stream.take(5.0)
        assert taken is not None and (stream.info.height, stream.info.width) == image.shape[:2]
        np.testing.assert_array_equal(taken.frame.image, image)
    return image


def quarters(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Return a picture with red and green at the top, blue and white at the bottom."""
    image = np.zeros((height, width, 3), np.uint8)
    for letter, rows, columns in (("R", 0, 0), ("G", 0, 1), ("B", 1, 0), ("W", 1, 1)):
        image[rows * height // 2 :, columns * width // 2 :] = COLOURS[letter]
    image[height // 2 :, : width // 2] = COLOURS["B"]
    return image


def corners(image: NDArray[np.uint8]) -> str:
    """Return letters of the colours at upper left, upper right, lower left, lower right."""
    letters = ""
    for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5)):
        letters += min(COLOURS, key=lambda name: np.abs(image[y, x].astype(int) - COLOURS[name]).sum())
    return letters


# ---------------------------------------------------------------------------------------- which way is up


def set_matrix(path: Path, matrix: Sequence[int]) -> Path:
    """Write (a, b, c, d) in 16.16 into the header of an MP4's first track."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


ONE, HALF = 1 << 16, 46341


@pytest.mark.parametrize(
    ("matrix", "letters"),
    [
        ((ONE, 0, 0, ONE), "RGBW"),
        ((-ONE, 0, 0, ONE), "GRWB"),  # mirrored, as by a front camera
        ((ONE, 0, 0, -ONE), "BWRG"),
        ((-ONE, 0, 0, -ONE), "WBGR"),
        ((0, ONE, ONE, 0), "RBGW"),  # rows become columns
        ((0, ONE, -ONE, 0), "BRWG"),  # a quarter clockwise
        ((0, -ONE, ONE, 0), "GWRB"),
        ((0, -ONE, -ONE, 0), "WGBR"),
        ((0, 2 * ONE, -2 * ONE, 0), "BRWG"),
        ((HALF - 9, HALF, -HALF, HALF - 9), "BRWG"),  # a little more than 45 degrees: the nearest turn
        ((HALF, HALF, -HALF, HALF), "RGBW"),
        ((0, 0, 0, 0), "RGBW"),
    ],
)
def test_the_eight_display_matrices(matrix: Sequence[int], letters: str, tmp_path: Path) -> None:
    path = set_matrix(write(tmp_path / "a.mp4", quarters(), "yuv420p", codec="libx264"), matrix)
    image = first(path)
    assert corners(image) == letters and image.flags.c_contiguous
    is_turned = abs(matrix[1]) > abs(matrix[0])
    assert image.shape[:2] == ((WIDTH, HEIGHT) if is_turned else (HEIGHT, WIDTH))


@pytest.mark.parametrize("turn_", [Turn(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)])
def test_a_turn_sends_points_where_its_matrix_says(turn_: Turn) -> None:
    height, width = 3, 5
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[:height, :width]
    x, y = (-1 if turn_.is_mirrored else 1), (-1 if turn_.is_upside_down else 1)
    a, b, c, d = (0, y, x, 0) if turn_.is_transposed else (x, 0, 0, y)
    assert Turn.of((a, b, c, d)) == turn_
    turned = turn_.apply(image)
    for row in range(height):
        for column in range(width):
            across, down = a * column + c * row, b * column + d * row
            # Negative places count from the other side.
            assert turned[down - (y < 0), across - (x < 0)].tolist() == [row, column, 0]


def test_a_picture_with_exif_is_upright(tmp_path: Path) -> None:
    """PyAV can't list FFmpeg's side data of it, but still knows the angle."""
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned a quarter clockwise
    Image.fromarray(quarters()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with VideoReader(tmp_path / "a.jpg") as reader:
        letters = corners(next(iter(reader)).image)
    assert letters in ("BRWG", "RGBW"), "turned by a FFmpeg that reads EXIF, as it is by an older one"
    if tuple(av.library_versions["libavcodec"]) >= (62, 0, 0):
        assert letters == "BRWG"


# ---------------------------------------------------------------------------------------- pixels that are not square


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(16, 9), (HEIGHT, 114)),
        (Fraction(8, 9), (54, WIDTH)),  # players enlarge a side, so no detail is lost
        (Fraction(1, 1), (HEIGHT, WIDTH)),
        (Fraction(1, 10_000), (HEIGHT, WIDTH)),
        (Fraction(255, 1), (HEIGHT, WIDTH)),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_pixels_become_square(aspect: Fraction, size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}", quarters(), "yuv420p", codec="libx264", aspect=aspect)
    image = first(path)
    assert image.shape[:2] == size and corners(image) == "RGBW"
    if suffix == "mp4":
        assert first(turn(path, 90)).shape[:2] == size[::-1], "the pixels turn with the picture"


# ---------------------------------------------------------------------------------------- colours

#: Kr and Kb of the matrices, by their FFmpeg numbers.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
COLOUR = (188, 201, 6)


def yuv(rgb: Sequence[float], matrix: int, is_full: bool, bits: int) -> tuple[int, int, int]:
    """Return the code of a colour (0 … 255) by the definitions of BT.601, BT.709 and BT.2020."""
    kr, kb = WEIGHTS[matrix]
    red, green, blue = (value / 255 for value in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    differences = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    unit = 1 << (bits - 8)
    if is_full:
        top = (1 << bits) - 1
        values = [luma * top, *(128 * unit + value * top for value in differences)]
    else:
        values = [16 * unit + 219 * unit * luma, *(128 * unit + 224 * unit * value for value in differences)]
    y, u, v = (round(value) for value in values)
    return y, u, v


def plain(colour: Sequence[int], bits: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[NDArray[np.generic]]:
    """Return 4:2:0 planes of one colour."""
    height, width = size
    kind = np.uint8 if bits == 8 else np.uint16
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    return [np.full(shape, value, kind) for shape, value in zip(shapes, colour, strict=True)]


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("matrix", list(WEIGHTS))
def test_tags_of_matrix_and_range_are_obeyed(matrix: int, is_full: bool, bits: int, tmp_path: Path) -> None:
    planes = plain(yuv(COLOUR, matrix, is_full, bits), bits)
    format = "yuv420p" if bits == 8 else "yuv420p10le"
    path = write(tmp_path / "a.mkv", planes, format, colorspace=matrix, color_range=1 + is_full)
    assert np.abs(first(path)[20, 20].astype(int) - COLOUR).max() <= 4


@pytest.mark.parametrize(("size", "matrix"), [((576, 720), 6), ((720, 1280), 1), ((1080, 608), 1)])
def test_without_tags_large_pictures_are_bt709(size: tuple[int, int], matrix: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", plain(yuv(COLOUR, matrix, False, 8), 8, size), "yuv420p", frames=1)
    with VideoReader(path) as reader:
        assert np.abs(next(iter(reader)).image[20, 20].astype(int) - COLOUR).max() <= 3


def test_a_matrix_that_does_not_exist_is_no_failure(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", plain(yuv(COLOUR, 6, False, 8), 8), "yuv420p", colorspace=8)
    assert np.abs(first(path)[20, 20].astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize(
    ("format", "codec", "suffix"),
    [
        ("gray", "ffv1", "mkv"), ("gray10le", "ffv1", "mkv"), ("yuva420p", "ffv1", "mkv"), ("yuv444p", "ffv1", "mkv"),
        ("bgr0", "ffv1", "mkv"), ("gbrp", "utvideo", "avi"), ("rgb24", "png", "mov"), ("rgba", "png", "mov"),
        ("yuvj420p", "mjpeg", "avi"),
    ],
)  # fmt: skip
def test_other_formats_of_pixels(format: str, codec: str, suffix: str, tmp_path: Path) -> None:
    is_grey = format.startswith("gray")
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8) if is_grey else quarters()
    shown = first(write(tmp_path / f"a.{suffix}", image, format, codec=codec))
    if is_grey:
        assert np.abs(shown.astype(int) - 128).max() <= 2
    else:
        assert corners(shown) == "RGBW"


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_pictures_with_a_palette(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(quarters()).quantize(4).save(tmp_path / f"a.{suffix}")
    assert corners(first(tmp_path / f"a.{suffix}")) == "RGBW"


# ---------------------------------------------------------------------------------------- high dynamic range

PQ, HLG, BT2020 = 16, 18, 9


def pq(nits: float) -> float:
    """Return the signal 0 … 1 of SMPTE ST 2084."""
    power = (nits / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def shown_of(path: Path) -> list[int]:
    return [int(value) for value in first(path)[20, 20]]


def hdr(path: Path, signal: Sequence[float], transfer: int) -> Path:
    """Write a picture of one colour, given by its signal (red, green, blue)."""
    planes = plain(yuv([255 * value for value in signal], BT2020, False, 10), 10)
    return write(
        path, planes, "yuv420p10le", colorspace=BT2020, color_primaries=BT2020, color_trc=transfer, color_range=1
    )


def test_pq_is_shown_by_its_light(tmp_path: Path) -> None:
    """Dark and middle tones keep their light, with 203 cd/m² at full scale.

    Bright tones are compressed, not clipped.
    """
    for nits in (0.0, 10.0, 40.0, 80.0):
        expected = 255 * (nits / 203) ** (1 / 2.4)
        shown = shown_of(hdr(tmp_path / f"{nits}.mkv", [pq(nits)] * 3, PQ))
        assert np.abs(np.array(shown) - expected).max() <= 7, nits  # one level of the signal is up to three levels here
    white, bright, peak, more = (
        shown_of(hdr(tmp_path / f"{n}.mkv", [pq(n)] * 3, PQ))[1] for n in (203, 500, 1000, 4000)
    )
    assert 215 < white < 235 < bright < peak and peak >= 253 and more == peak


def test_colours_of_bt2020_become_those_of_bt709(tmp_path: Path) -> None:
    """The test colour is BT.709's red at 100 cd/m², given as light of BT.2020."""
    light = [40 * share for share in (0.6274, 0.0691, 0.0164)]
    red, green, blue = shown_of(hdr(tmp_path / "red.mkv", [pq(nits) for nits in light], PQ))
    assert abs(red - 255 * (40 / 203) ** (1 / 2.4)) <= 5 and green <= 45 and blue <= 45


def test_hlg_is_shown_by_its_light(tmp_path: Path) -> None:
    for signal in (0.2, 0.5):
        nits = 1000 * (signal**2 / 3) ** 1.2
        shown = shown_of(hdr(tmp_path / f"{signal}.mkv", [signal] * 3, HLG))
        assert np.abs(np.array(shown) - 255 * (nits / 203) ** (1 / 2.4)).max() <= 4
    white = shown_of(hdr(tmp_path / "white.mkv", [1.0] * 3, HLG))
    assert min(white) >= 253


# ---------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 1), (37, 53)])
def test_small_and_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    image = np.full((*size, 3), COLOUR, np.uint8)
    path = write(tmp_path / "a.mov", image, "rgb24", codec="png")
    assert (first(path) == image).all()


def test_a_small_file_can_not_claim_all_memory(tmp_path: Path) -> None:
    Image.new("1", (14_000, 14_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(MediaError, match=r"more than 67,108,864 pixels"):
        VideoReader(tmp_path / "a.png")


def test_a_frame_that_was_looked_at_is_not_kept(tmp_path: Path) -> None:
    # A frame in a reference cycle stays until Python's cycle collector runs: 1.5 GB after 300 frames of full HD.
    path = write(tmp_path / "picture.mp4", plain((200, 40, 80), 8), "yuv420p", codec="libx264")
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        before = sys.getrefcount(frame)
        assert Presenter(container.streams.video[0]).look_at(frame).turn == Turn()
        assert sys.getrefcount(frame) == before
