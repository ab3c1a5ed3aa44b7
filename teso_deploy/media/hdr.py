"""Tone mapping of HDR pictures (PQ and HLG) to a display of normal range, as players do it.

The model was trained on pictures of normal range (BT.709), and the written video has that range too. A lookup table
for colours is computed once per kind of HDR, which takes one to three seconds.

Definitions: transfer functions of ITU-R BT.2100, reference white of BT.2408 (203 cd/m²), tone curve of BT.2390.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["pq", "hlg"]
#: AVColorTransferCharacteristic: SMPTE ST 2084, ARIB STD-B67.
TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
#: AVColorPrimaries of BT.2020.
BT2020 = 9
WHITE_NITS = 203.0
#: Most HDR films are graded to this peak. Brighter values are clipped to it.
PEAK_NITS = 1000.0
#: Levels per colour in the table: it merges 2 of the 256 levels. Because the curves are steep, that is more accurate
#: than a table of 65 levels with interpolation (off by at most 2 levels instead of 6), and three times as fast.
_LEVELS = 128
#: Linear light of BT.2020 to that of BT.709 (ITU-R BT.2087).
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])
_DISPLAY_GAMMA = 2.4


def tone_map(image: NDArray[np.uint8], transfer: Transfer, is_bt2020: bool) -> NDArray[np.uint8]:
    """Map a picture of high dynamic range to BT.709.

    Args:
        image: (H, W, 3) RGB as coded, where 0 … 255 stands for a signal of 0 … 1.
        transfer: The transfer function of the signal.
        is_bt2020: Whether its primaries are those of BT.2020; otherwise they are read as those of BT.709.

    Returns:
        (H, W, 3) RGB.
    """
    half = image >> 1
    place = half[..., 0].astype(np.int32)
    for channel in (1, 2):
        place *= _LEVELS
        place += half[..., channel]
    return _make_table(transfer, is_bt2020).take(place, axis=0)


@lru_cache
def _make_table(transfer: Transfer, is_bt2020: bool) -> NDArray[np.uint8]:
    return np.concatenate([_convert(red, transfer, is_bt2020) for red in range(_LEVELS)])


def _convert(red: int, transfer: Transfer, is_bt2020: bool) -> NDArray[np.uint8]:
    """Return the part of the table (green and blue, 3) for one level of red."""
    signal = np.empty((_LEVELS * _LEVELS, 3))
    signal[:, 0] = red
    signal[:, 1], signal[:, 2] = (axis.ravel() for axis in np.indices((_LEVELS, _LEVELS)))
    signal = (2 * signal + 0.5) / 255
    nits = _pq_to_nits(signal) if transfer == "pq" else _hlg_to_nits(signal)
    brightest = nits.max(axis=1, keepdims=True)
    # One factor for all three colours keeps the hue.
    nits = nits * _compress(brightest) / np.maximum(brightest, 1e-9)
    light = nits / WHITE_NITS
    if is_bt2020:
        light = light @ _TO_BT709.T
    return np.asarray(np.rint(255 * light.clip(0, 1) ** (1 / _DISPLAY_GAMMA)), np.uint8)


def _compress(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply the curve of BT.2390 from :data:`PEAK_NITS` to :data:`WHITE_NITS`. Dark and middle tones do not change."""
    peak = float(_nits_to_pq(np.array(PEAK_NITS)))
    most = float(_nits_to_pq(np.array(WHITE_NITS))) / peak
    knee = 1.5 * most - 0.5
    given = np.minimum(_nits_to_pq(nits) / peak, 1)
    t = np.maximum(given - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return _pq_to_nits(np.where(given < knee, given, bent) * peak)


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    power = signal ** (1 / _M2)
    return np.asarray(10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1))


def _nits_to_pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    power = (nits / 10_000) ** _M1
    return np.asarray(((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2)


def _hlg_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light of a display with a peak of :data:`PEAK_NITS`, whose system gamma is 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = (scene @ _BT2020_LUMINANCE)[..., None]
    return np.asarray(PEAK_NITS * luminance**0.2 * scene)
