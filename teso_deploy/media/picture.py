"""From a decoded frame to the picture that players show: RGB, square pixels, upright, of normal dynamic range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.stream import VideoStream
from numpy.typing import NDArray

from teso_deploy.errors import MediaError
from teso_deploy.media.container import MOST_PIXELS, SIZE_LIMIT
from teso_deploy.media.hdr import BT2020, TRANSFERS, Transfer, tone_map

#: A pixel that is longer than this is a mistake in the file, and is taken for square.
MOST_ASPECT = 8
#: Matrices by AVColorSpace → what FFmpeg's converter knows of them. BT.2020 with constant luminance is read as without.
_MATRICES = {number: number for number in (1, 4, 5, 6, 7, 9)} | {10: 9}
_BT709, _BT601 = 1, 6
#: Of AVColorRange.
_FULL_RANGE = 2


class Turn(NamedTuple):
    """One of the eight ways to lay a picture: first rows and columns change places, then it is mirrored."""

    is_transposed: bool = False
    is_mirrored: bool = False
    is_upside_down: bool = False

    @classmethod
    def of(cls, a: float, b: float, c: float, d: float) -> Turn:
        """The nearest to a display matrix that sends a point (x, y) to (a x + c y, b x + d y), y pointing down."""
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a picture (H, W, 3)."""
        if self.is_transposed:
            image = image.transpose(1, 0, 2)
        return np.ascontiguousarray(image[:: -1 if self.is_upside_down else 1, :: -1 if self.is_mirrored else 1])


@dataclass(frozen=True, slots=True)
class Look:
    """How a frame is to be shown: scaled to ``scaled`` (width, height), its colours converted, then turned.

    ``matrix`` and ``range`` of its colours by FFmpeg's numbers; None: as the frame has it.
    """

    scaled: tuple[int, int]
    turn: Turn
    matrix: int | None
    range: int | None
    transfer: Transfer | None
    is_bt2020: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        width, height = self.scaled
        return (height, width) if self.turn.is_transposed else (width, height)


class Presenter:
    """Tells how the frames of a track are shown. All of it may change in the middle of a track.

    It is made before the track is decoded, and keeps the decoder from pictures of more than :data:`MOST_PIXELS`.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        stream.codec_context.options = {**stream.codec_context.options, **SIZE_LIMIT}
        # What the container says counts, until the pictures themselves say something new.
        self._aspect = _check_aspect(stream.sample_aspect_ratio)
        self._coded_aspect = stream.codec_context.sample_aspect_ratio

    def look_at(self, frame: av.VideoFrame) -> Look:
        """How a frame that was just decoded is shown."""
        coded = self._stream.codec_context.sample_aspect_ratio
        if coded != self._coded_aspect:
            self._coded_aspect, self._aspect = coded, _check_aspect(coded)
        transfer = TRANSFERS.get(int(getattr(frame, "color_trc", 0)))
        return Look(
            _scale(frame.width, frame.height, self._aspect),
            _read_turn(frame),
            _find_matrix(frame),
            _find_range(frame),
            transfer,
            transfer is not None and int(getattr(frame, "color_primaries", BT2020)) in (BT2020, 2),
        )


def to_rgb(frame: av.VideoFrame, look: Look) -> NDArray[np.uint8]:
    """A frame as a picture (H, W, 3) RGB.

    Raises :class:`MediaError` for a format of pixels that FFmpeg can't convert.
    """
    # The converter goes by the frame's own tags. PyAV 17 has no name for BT.2020 among its options.
    if look.matrix is not None:
        frame.colorspace = look.matrix
    if look.range is not None:
        frame.color_range = look.range
    try:
        width, height = look.scaled
        image = np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), np.uint8)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"pictures of format {frame.format.name} can't be shown ({error}): convert the video to another format"
        ) from error
    if look.transfer is not None:
        image = tone_map(image, look.transfer, look.is_bt2020)
    return look.turn.apply(image)


def _check_aspect(aspect: Fraction | None) -> Fraction:
    if not aspect or not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        return Fraction(1)
    return aspect


def _scale(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Make pixels square by enlarging one side, as players do: nothing of the picture is lost."""
    scaled = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    return scaled if math.prod(scaled) <= MOST_PIXELS else (width, height)


#: Made of a frame, which its type hints do not say.
_SideData: Any = SideDataContainer


def _read_turn(frame: av.VideoFrame) -> Turn:
    try:
        # Not frame.side_data: the frame would keep that and be kept by it, with its pixels and the converter's threads,
        # until Python looks for circles.
        sides = _SideData(frame)
    except ValueError:
        # PyAV can't list side data that holds a kind it does not know, EXIF of pictures for one. The angle it knows.
        angle = math.radians(frame.rotation)
        return Turn.of(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))
    side = sides.get(Type.DISPLAYMATRIX)
    if side is None:
        return Turn()
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32, 5).tolist()
    return Turn.of(a, b, c, d)


def is_hd(width: int, height: int) -> bool:
    """Whether players take a picture without a tag for BT.709, and not for BT.601."""
    return width >= 1280 or height > 576


def _find_matrix(frame: av.VideoFrame) -> int | None:
    """The matrix from a frame's colours to RGB; None for RGB."""
    if frame.format.is_rgb:
        return None
    return _MATRICES.get(int(frame.colorspace), _BT709 if is_hd(frame.width, frame.height) else _BT601)


def _find_range(frame: av.VideoFrame) -> int | None:
    return _FULL_RANGE if frame.format.name.startswith("yuvj") else None
