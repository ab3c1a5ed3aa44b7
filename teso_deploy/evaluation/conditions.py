"""The sounds that a clip is segmented with, to measure whether a model obeys the sound.

The picture never changes. Silence, noise and sounds of something else belong to nothing in the picture, so their truth
is blank. They are *negative*. The other conditions keep the clip's own truth.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError

ConditionKind = Literal[
    "normal",
    "muted",
    "noise",
    "mixed noise",
    "off-screen",
    "off-screen same kind",
    "shifted",
    "swapped",
]
NoiseUnit = Literal["dBFS", "dBW", "dB SNR"]

#: Conditions without a level, by which a user names them.
PLAIN_KINDS: tuple[ConditionKind, ...] = tuple(kind for kind in get_args(ConditionKind) if "noise" not in kind)
#: Condition → its sound, in a few words.
KIND_SUMMARIES: dict[ConditionKind, str] = {
    "normal": "the clip's own sound",
    "muted": "digital silence",
    "noise": "white Gaussian noise in place of the sound",
    "mixed noise": "the sound with white Gaussian noise added",
    "off-screen": "the sound of a clip of another broad kind (music, human, animal, device)",
    "off-screen same kind": "the sound of a clip of the same broad kind, but of other classes",
    "shifted": "the clip's own sound, moved by half of the clip",
    "swapped": "the sound of any other clip",
}
_NOISE = re.compile(r"noise (?P<level>-?\d{1,4}(?:\.\d{1,3})?) (?P<unit>dBFS|dBW|dB SNR)")
_NEGATIVE: tuple[ConditionKind, ...] = ("muted", "noise", "off-screen", "off-screen same kind")
_OF_PARTNERS: tuple[ConditionKind, ...] = ("off-screen", "off-screen same kind", "swapped")


@dataclass(frozen=True, slots=True)
class Condition:
    """One kind of sound.

    Attributes:
        kind: What is done to the sound.
        level: The level of noise.
        unit: The unit of ``level``. ``dBFS`` and ``dBW`` are the RMS of noise in place of the sound, where 0 is the RMS
            of a full-scale square wave; noise beyond full scale is clipped, so only ``dBW`` may be above 0. ``dB SNR``
            is the ratio of the clip's sound to noise that is added to it.
    """

    kind: ConditionKind
    level: float = 0.0
    unit: NoiseUnit | None = None

    @property
    def name(self) -> str:
        """The name in reports: ``muted``, ``noise 10 dBW``."""
        return self.kind if self.unit is None else f"noise {self.level:g} {self.unit}"

    @property
    def summary(self) -> str:
        """The sound, in a few words."""
        return KIND_SUMMARIES[self.kind]

    @property
    def is_negative(self) -> bool:
        """Whether the sound belongs to nothing in the picture, so that masks should be blank."""
        return self.kind in _NEGATIVE

    @property
    def needs_partner(self) -> bool:
        """Whether the sound comes from another clip."""
        return self.kind in _OF_PARTNERS


NORMAL = Condition("normal")


def list_conditions(
    names: Sequence[str] = (),
    *,
    noise_dbfs: Sequence[float] = (),
    noise_dbw: Sequence[float] = (),
    noise_snr: Sequence[float] = (),
) -> tuple[Condition, ...]:
    """Return the conditions that a user named, ``normal`` first.

    Args:
        names: Names of ``PLAIN_KINDS``, or ``all``. Default: only ``normal``.
        noise_dbfs: Levels of noise in place of the sound (RMS in dBFS, at most 0).
        noise_dbw: The same as power over 1 Ω, where amplitude 1 is 1 V. It may be above 0, and is then clipped.
        noise_snr: Ratios of sound to added noise in dB.

    Returns:
        The conditions, each once. ``all`` without any level adds noise of 10 and 40 dBW, as the paper has, and of -25
        dBFS.

    Raises:
        DataError: A name is unknown.
    """
    for name in names:
        if name not in (*PLAIN_KINDS, "all"):
            known = ", ".join(PLAIN_KINDS)
            raise DataError(f"unknown condition {name!r}: name one of {known}, or all; for noise see --noise-dbfs")
    if "all" in names and not (noise_dbfs or noise_dbw or noise_snr):
        noise_dbfs, noise_dbw = (-25.0,), (10.0, 40.0)
    noises = [
        *(Condition("noise", level, "dBFS") for level in noise_dbfs),
        *(Condition("noise", level, "dBW") for level in noise_dbw),
        *(Condition("mixed noise", level, "dB SNR") for level in noise_snr),
    ]
    plain = PLAIN_KINDS if "all" in names else ("normal", *names)
    chosen = [Condition(kind) for kind in PLAIN_KINDS if kind in plain]
    return tuple(dict.fromkeys([*chosen[:2], *noises, *chosen[2:]]))


def parse_conditions(names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of :class:`~teso_deploy.options.clips.ClipOptions` for conditions with these names.

    Raises :class:`DataError` for an unknown name.

    >>> parse_conditions(["normal", "muted", "noise 10 dBW"])
    {'condition': ('muted',), 'noise_dbfs': (), 'noise_dbw': (10.0,), 'noise_snr': ()}
    """
    found: dict[str, list[Any]] = {"condition": [], "noise_dbfs": [], "noise_dbw": [], "noise_snr": []}
    units = {"dBFS": "noise_dbfs", "dBW": "noise_dbw", "dB SNR": "noise_snr"}
    for name in names:
        if match := _NOISE.fullmatch(name):
            found[units[match["unit"]]].append(float(match["level"]))
        elif name in PLAIN_KINDS:
            found["condition"] += [name] if name != NORMAL.name else []
        else:
            raise DataError(
                f"unknown condition {name!r}: name one of {', '.join(PLAIN_KINDS)}, or noise as 'noise 10 dBW', "
                "'noise -25 dBFS' or 'noise 10 dB SNR'"
            )
    return {option: tuple(values) for option, values in found.items()}


def make_windows(
    condition: Condition, uid: str, own: NDArray[np.float32], *, other: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Make the windows of a clip in a condition. Noise depends only on the clip's name and the condition.

    Args:
        condition: The condition.
        uid: The clip's name.
        own: (frames, 15600), the windows of the clip's sound.
        other: Those of its partner, for conditions that need one. Default: none.

    Returns:
        (frames, 15600) float32 in [-1, 1].
    """
    if condition.kind == "muted":
        return np.zeros_like(own)
    if condition.kind == "noise":
        return _make_noise(uid, condition, shape=own.shape, rms=10 ** (condition.level / 20))
    if condition.kind == "mixed noise":
        rms = float(np.sqrt(np.mean(own.astype(np.float64) ** 2))) * 10 ** (-condition.level / 20)
        return (own + _make_noise(uid, condition, shape=own.shape, rms=rms)).clip(-1, 1)
    if condition.kind == "shifted":
        return np.roll(own, -(len(own) // 2), axis=0)
    if condition.needs_partner:
        assert other is not None, condition.name
        return other
    return own


def _make_noise(uid: str, condition: Condition, *, shape: tuple[int, ...], rms: float) -> NDArray[np.float32]:
    seed = hashlib.sha256(f"{uid}\n{condition.name}".encode()).digest()[:8]
    noise = np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(shape)
    return (noise * rms).clip(-1, 1).astype(np.float32)


class Partners:
    """Chooses the clip whose sound replaces a clip's own. The choice depends only on the data set and the names.

    Args:
        words: Clip → the words that sound in it; empty if the data set does not say.
        find_broad_class: Word → its broad kind; None if it is unknown.
    """

    def __init__(self, words: Mapping[str, Sequence[str]], find_broad_class: Callable[[str], str | None]) -> None:
        self._words = {uid: frozenset(of_clip) for uid, of_clip in words.items()}
        self._kinds = {
            uid: frozenset(find_broad_class(word) or f"unknown {word}" for word in of_clip)
            for uid, of_clip in self._words.items()
        }
        self._uids = list(self._words)

    def choose(self, condition: Condition, uid: str) -> str | None:
        """Return the partner of a clip; None if no clip of the data set fits."""
        if condition.kind != "swapped" and not self._words[uid]:
            return None
        seed = hashlib.sha256(f"{uid}\n{condition.kind}".encode()).digest()[:8]
        start = int.from_bytes(seed, "big") % len(self._uids)
        for step in range(len(self._uids)):
            other = self._uids[(start + step) % len(self._uids)]
            if other != uid and self._fits(condition.kind, uid, other):
                return other
        return None

    def _fits(self, kind: ConditionKind, uid: str, other: str) -> bool:
        if kind == "swapped":
            return True
        here, there = self._words[uid], self._words[other]
        if not there or here & there:
            return False
        if kind == "off-screen":
            return not self._kinds[uid] & self._kinds[other]
        return self._kinds[other] <= self._kinds[uid]
