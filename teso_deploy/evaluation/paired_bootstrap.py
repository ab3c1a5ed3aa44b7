"""Confidence intervals for the differences of two evaluations, by resampling the clips that both have scored.

The paired bootstrap (Efron and Tibshirani, 1993): clips are drawn with replacement, the same for both evaluations, and
the 2.5 % and 97.5 % quantiles of the differences are the 95 % interval. It says how much the result depends on which
clips the data set has. It does not cover the spread of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teso_deploy.evaluation.stored_results import ClipScore

#: Numbers in the counts of one chunk of resamples: 8 MB.
_MOST_COUNTS = 1_000_000
_QUANTILES = (0.025, 0.975)
#: Numbers that a protocol averages over batches, here clips. Others are means over frames.
_PER_CLIP = frozenset({"miou", "f_score", "s"})
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedClips:
    """A number of two evaluations for the same clips, as sums that are added up over clips before they are divided.

    A number is the mean over its parts of (sum of numerators / sum of denominators). A number that is a mean over
    frames or clips has one part. One that is a mean over classes has a part for each class; a class that occurs in no
    frame of the data set counts as 0. One that only the drawn clips lack counts as the mean of those that they have:
    as 0 it would draw every difference towards 0.

    Attributes:
        numerators: (2, clips, parts), of the first and the second evaluation.
        denominators: (2, clips, parts).
        is_class_mean: Whether the parts are classes. If not, the number means nothing if a part has no frames.
    """

    numerators: Array
    denominators: Array
    is_class_mean: bool = False

    def compute(self, counts: Array) -> Array:
        """Return the number of both evaluations.

        Args:
            counts: (resamples, clips), how often each clip was drawn.

        Returns:
            (2, resamples); NaN if no clip that was drawn has the number.
        """
        sums, frames = counts @ self.numerators, counts @ self.denominators
        quotients: Array = np.divide(sums, frames, out=np.full_like(sums, np.nan), where=frames > 0)
        if not self.is_class_mean:
            return np.asarray(quotients.mean(axis=2))
        drawn = np.maximum(np.count_nonzero(frames > 0, axis=2), 1)
        occurring = np.count_nonzero(self.denominators.any(axis=1), axis=1)
        return np.asarray(np.nansum(quotients, axis=2) / drawn * occurring[:, None] / quotients.shape[2])


@dataclass(frozen=True, slots=True)
class Difference:
    """A number of two evaluations, and the interval of its difference (second - first).

    ``interval`` is None if fewer than two clips have the number.
    """

    first: float
    second: float
    interval: tuple[float, float] | None

    @property
    def value(self) -> float:
        """The difference, second - first."""
        return self.second - self.first

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def draw_counts(clips: int, resamples: int, seed: int) -> Iterator[Array]:
    """Draw clips with replacement, as many as there are, in chunks of limited memory.

    Args:
        clips: Number of clips.
        resamples: Number of draws.
        seed: Seed of the draws.

    Yields:
        (chunk, clips), how often each clip was drawn.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, min(resamples, _MOST_COUNTS // clips))
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        drawn = rng.integers(0, clips, (rows, clips)) + np.arange(rows)[:, None] * clips
        yield np.bincount(drawn.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)


def compare_numbers(
    numbers: Mapping[str, PairedClips],
    *,
    drops: Mapping[str, tuple[str, str]] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare numbers of two evaluations.

    Args:
        numbers: Name → the number for the same clips, in the same order.
        drops: Name → (normal number, other number): the relative drop (normal - other) / normal. Default: none.
        resamples: Number of draws. Default: 10,000.
        seed: Seed of the draws. Default: 0.

    Returns:
        Name → the difference. Numbers that mean nothing for an evaluation are omitted.
    """
    drops = drops or {}
    clips = next(iter(numbers.values())).numerators.shape[1]
    names = [*numbers, *drops]
    whole = _compute_all(numbers, drops, np.ones((1, clips)))
    sampled: dict[str, list[Array]] = {name: [] for name in names}
    for counts in draw_counts(clips, resamples, seed):
        for name, (first, second) in _compute_all(numbers, drops, counts).items():
            sampled[name].append(second - first)
    found = {}
    for name in names:
        first, second = (float(value[0]) for value in whole[name])
        if np.isfinite(first) and np.isfinite(second):
            differences = np.concatenate(sampled[name])
            differences = differences[np.isfinite(differences)]
            sources = drops.get(name, (name,))
            enough = all(np.count_nonzero(numbers[one].denominators[0].any(axis=1)) > 1 for one in sources)
            low, high = np.quantile(differences, _QUANTILES) if enough and differences.size else (0.0, 0.0)
            found[name] = Difference(first, second, (float(low), float(high)) if enough else None)
    return found


def _compute_all(
    numbers: Mapping[str, PairedClips], drops: Mapping[str, tuple[str, str]], counts: Array
) -> dict[str, Array]:
    """Return name → (2, resamples)."""
    found = {name: number.compute(counts) for name, number in numbers.items()}
    for name, (normal, other) in drops.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            found[name] = (found[normal] - found[other]) / found[normal]
    return found


def pair_means(name: str, pairs: Sequence[tuple[ClipScore, ClipScore] | None]) -> PairedClips:
    """Pair a number that is a mean over frames or clips.

    Args:
        name: The number's name.
        pairs: The scores of each clip in both evaluations; None for a clip that one of them lacks. A clip for which
            one of them has no value is omitted from both.
    """
    numerators, weights = np.zeros((2, len(pairs), 1)), np.zeros((2, len(pairs), 1))
    for clip, pair in enumerate(pairs):
        if pair is None or not all(name in score.values for score in pair):
            continue
        for side, score in enumerate(pair):
            weight = 1 if name in _PER_CLIP else score.frames
            weights[side, clip] = weight
            numerators[side, clip] = weight * score.values[name]
    return PairedClips(numerators, weights)


def pair_classes(kind: str, pairs: Sequence[tuple[ClipScore, ClipScore] | None], classes: Sequence[str]) -> PairedClips:
    """Pair a mean over classes.

    Args:
        kind: ``class_ious`` or ``class_f_scores``.
        pairs: The scores of each clip in both evaluations; None for a clip that one of them lacks.
        classes: The classes that the mean is over.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    sums, frames = np.zeros((2, len(pairs), len(classes))), np.zeros((2, len(pairs), len(classes)))
    for clip, pair in enumerate(pairs):
        for side, score in enumerate(pair or ()):
            for label, (total, count) in score.class_sums.get(kind, {}).items():
                if label in numbers:
                    sums[side, clip, numbers[label]] = total
                    frames[side, clip, numbers[label]] = count
    return PairedClips(sums, frames, is_class_mean=True)
