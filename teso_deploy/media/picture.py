"""Conversion of a decoded frame to the picture that players show: RGB, upright, square pixels, normal range."""

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

#: A pixel with a larger aspect ratio is a mistake in the file; such pixels count as square.
MOST_ASPECT = 8
#: AVColorSpace to the matrices that FFmpeg's converter knows. Constant-luminance BT.2020 is read as non-constant.
_MATRICES = {number: number for number in (1, 4, 5, 6, 7, 9)} | {10: 9}
_BT709, _BT601 = 1, 6
#: AVCOL_RANGE_JPEG of FFmpeg's AVColorRange.
_FULL_RANGE = 2


class Turn(NamedTuple):
    """One of the eight orientations of a picture: rows and columns are swapped first, then it is mirrored."""

    is_transposed: bool = False
    is_mirrored: bool = False
    is_upside_down: bool = False

    @classmethod
    def of(cls, matrix: tuple[float, float, float, float]) -> Turn:
        """Return the turn nearest to a display matrix.

        Args:
            matrix: (a, b, c, d) of (x, y) → (a x + c y, b x + d y), with y pointing down.
        """
        a, b, c, d = matrix
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture (H, W, 3) in this orientation."""
        if self.is_transposed:
            image = image.transpose(1, 0, 2)
        return np.ascontiguousarray(image[:: -1 if self.is_upside_down else 1, :: -1 if self.is_mirrored else 1])


@dataclass(frozen=True, slots=True)
class Look:
    """How to show a frame: scale it to ``scaled`` (width, height), convert its colours, then turn it.

    ``matrix`` and ``range`` are FFmpeg's numbers for its colours; None means the frame's own values.
    """

    scaled: tuple[int, int]
    turn: Turn
    matrix: int | None
    range: int | None
    transfer: Transfer | None
    is_bt2020: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the shown picture."""
        width, height = self.scaled
        return (height, width) if self.turn.is_transposed else (width, height)


class Presenter:
    """Determines how the frames of a track are shown. All properties may change within a track.

    Make it before the track is decoded: it stops the decoder from pictures of more than :data:`MOST_PIXELS`.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        stream.codec_context.options = {**stream.codec_context.options, **SIZE_LIMIT}
        # The container's values apply until a frame has other ones.
        self._aspect = _check_aspect(stream.sample_aspect_ratio)
        self._coded_aspect = stream.codec_context.sample_aspect_ratio

    def look_at(self, frame: av.VideoFrame) -> Look:
        """Return how to show a frame that was just decoded."""
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
    """Convert a frame to a picture (H, W, 3) RGB.

    Raises:
        MediaError: FFmpeg can't convert the pixel format.
    """
    # The converter uses the frame's own tags. PyAV 17 has no option name for BT.2020.
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
    """Make pixels square by enlarging one side, as players do, so that no detail is lost."""
    scaled = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    return scaled if math.prod(scaled) <= MOST_PIXELS else (width, height)


#: PyAV's class. It can be constructed from a frame, although its type hints do not say so.
_SideData: Any = SideDataContainer


def _read_turn(frame: av.VideoFrame) -> Turn:
    try:
        # Do not use frame.side_data: it and the frame would refer to each other, which keeps the pixels and the
        # converter's threads until Python's cycle collector runs.
        sides = _SideData(frame)
    except ValueError:
        # PyAV can't list side data with a kind it does not know, such as EXIF of pictures. It knows the angle.
        angle = math.radians(frame.rotation)
        return Turn.of((math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)))
    side = sides.get(Type.DISPLAYMATRIX)
    if side is None:
        return Turn()
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32, 5).tolist()
    return Turn.of((a, b, c, d))


def is_hd(width: int, height: int) -> bool:
    """Whether players read a picture without tags as BT.709 rather than BT.601."""
    return width >= 1280 or height > 576


def _find_matrix(frame: av.VideoFrame) -> int | None:
    """Return the matrix from a frame's colours to RGB, or None for RGB."""
    if frame.format.is_rgb:
        return None
    return _MATRICES.get(int(frame.colorspace), _BT709 if is_hd(frame.width, frame.height) else _BT601)


def _find_range(frame: av.VideoFrame) -> int | None:
    return _FULL_RANGE if frame.format.name.startswith("yuvj") else None
