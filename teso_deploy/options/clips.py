"""Which clips of a data set a model is scored on, and with which sounds."""

from __future__ import annotations

from dataclasses import dataclass

from teso_deploy.options.fields import Options, option
from teso_deploy.options.media import HIGHEST_NOISE_DB, LOWEST_NOISE_DB
from teso_deploy.types import Framing


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Options):
    """Which clips of a data set a model is scored on, and with which sounds.

    Attributes:
        layout: the data set's layout. Default: it is detected.
        split: ``train``, ``val`` or ``test``. Default: ``test``.
        subset: subsets of avss. Default: all.
        clips: only this many clips, spread over the data set. Default: all.
        condition: kinds of sound besides the clip's own, or ``all``. Default: only its own.
        noise_dbfs: levels of noise in place of the sound, RMS in dBFS, at most 0.
        noise_dbw: the same as power in dBW, which may be above 0 and is then clipped.
        noise_snr: ratios in dB of the sound to noise that is added.
        framing: where the windows of a clip's sound begin, see :data:`teso_deploy.types.Framing`. Default: as the
            bundle says.
        unbiased: also give the numbers that depend neither on batches nor on blank frames. Default: no.
        mistakes: also give the published numbers "without background" that omit the last class. Default: no.
    """

    layout: str | None = option(None, "Layout of the data set. Default: it is detected.")
    split: str = option("test", "Split of the data set: train, val or test.")
    subset: tuple[str, ...] = option((), "Subset of avss: v1s, v1m or v2. May be repeated. Default: all.")
    clips: int | None = option(None, "Score only this many clips, spread over the data set.", minimum=1)
    condition: tuple[str, ...] = option(
        (),
        "Another sound that the clips are scored with: muted, off-screen, 'off-screen same kind', shifted, swapped, or "
        "all. May be repeated. Default: only their own.",
    )
    noise_dbfs: tuple[float, ...] = option(
        (),
        "Score also with white noise of this level (RMS, dBFS) in place of the sound. May be repeated.",
        minimum=LOWEST_NOISE_DB,
        maximum=0,
        unit="dBFS",
    )
    noise_dbw: tuple[float, ...] = option(
        (),
        "The same by its power in dBW (amplitude 1 is 0 dBW); above 0 it is clipped. May be repeated.",
        minimum=LOWEST_NOISE_DB,
        maximum=HIGHEST_NOISE_DB,
        unit="dBW",
    )
    noise_snr: tuple[float, ...] = option(
        (),
        "Score also with white noise added to the sound, this many dB below it. May be repeated.",
        minimum=LOWEST_NOISE_DB,
        maximum=HIGHEST_NOISE_DB,
        unit="dB",
    )
    framing: Framing | None = option(
        None,
        "Windows of the sound: second k begins at k s (per_second) or at k x 0.96 s (contiguous). Default: as the "
        "bundle says.",
    )
    unbiased: bool = option(False, "Add the numbers that depend neither on batches nor on blank frames.")
    mistakes: bool = option(
        False, "With avss: add the published numbers 'without background' that omit the last class."
    )
