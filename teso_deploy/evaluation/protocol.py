"""The rows of a scene evaluation: what is heard on composed test scenes, and how it is scored.

Every scene of every row comes from ``(seed, row, number)`` alone. The cues are the names
of everything visible, as a perfect captioner gives them: which of them sounds, only the
sound can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.tracks import CueFile
from teso_deploy.errors import DataError
from teso_deploy.evaluation.media_library import MediaLibrary
from teso_deploy.evaluation.scenes import Picture, compose_picture, compose_sound
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline
from teso_deploy.types import BLANK_PIXEL_RATE, WINDOW_SAMPLES

#: Which cues are offered: names of all that is visible, the bundle's tagger's, none, names of other things.
CUES = ("visible", AUTO, "none", "wrong")

ROWS = {
    "one source": "one object, its own sound",
    "two sources": "two objects, both sound",
    "silent distractor": "two objects that could sound, one does",
    "muted": "two objects, digital silence",
    "white noise": "two objects, white noise at -40 to -10 dBFS",
    "off-screen": "two objects, the sound of something else",
    "swapped": "two objects, the sound of one and then of the other",
}
#: Height and width of scenes.
SCENE_SIZE = (360, 480)
#: The rows in which nothing visible sounds.
BLANK_ROWS = ("muted", "white noise", "off-screen")


@dataclass(frozen=True, slots=True)
class Trial:
    """One call of the model: a picture, a window of sound, and the words that sound in it.

    ``scene``: row/seed/number, by which files of cues know it.
    """

    picture: Picture
    samples: NDArray[np.float32]
    heard: tuple[str, ...]
    scene: str = ""

    @property
    def visible(self) -> tuple[str, ...]:
        """Names of all that is to be seen."""
        return tuple(dict.fromkeys(self.picture.words))


def scene_digest(library: MediaLibrary, trial: Trial) -> str:
    """Of what was read for a scene and what it shows: the same on every machine, another for another folder."""
    return hashlib.sha256(json.dumps([library.fingerprint, *trial.picture.words]).encode()).hexdigest()


#: A trial → labels (H, W) uint8.
Segmenter = Callable[[Trial], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class RowScore:
    """``miou``: mean IoU of the sounding classes; ``binary_miou``: of "sounds" as one class,
    names aside; ``blank_rate``: share of frames left blank; ``follows_rate``: share of scenes
    in which both masks sit more on the object whose sound it was. None where it means nothing.
    ``label_miou``: mIoU of each sounding word; ``spread``: standard deviation of each figure
    over the seeds, where there are several."""

    row: str
    scenes: int
    miou: float | None
    binary_miou: float | None
    blank_rate: float
    follows_rate: float | None
    label_miou: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    spread: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


FIGURES = ("miou", "binary_miou", "blank_rate", "follows_rate")


def over_seeds(scores: Sequence[RowScore]) -> RowScore:
    """The mean of one row's scores, each of its own seed, with their spread."""
    values = {name: [value for score in scores if (value := getattr(score, name)) is not None] for name in FIGURES}
    means: dict[str, Any] = {name: float(np.mean(found)) if found else None for name, found in values.items()}
    words = sorted({word for score in scores for word in score.label_miou})
    return replace(
        scores[0],
        **means,
        label_miou={
            word: float(np.mean([score.label_miou[word] for score in scores if word in score.label_miou]))
            for word in words
        },
        seeds=tuple(seed for score in scores for seed in score.seeds),
        spread={name: float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1},
    )


def intersection_over_union(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of two masks (H, W); 1 when both are empty."""
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def segmenter(pipeline: Pipeline, library: MediaLibrary, cues: str | CueFile = "visible", seed: int = 0) -> Segmenter:
    """A bundle as :func:`score_row` calls it, its cues chosen in one of the ways of ``CUES``, or those of a file.

    Raises :class:`CueError` when it is called for a scene that the file has not.
    """
    known = set(pipeline.cue_table.names)
    rng = np.random.default_rng(seed)

    def segment(trial: Trial) -> NDArray[np.uint8]:
        offered: Offered = None
        if isinstance(cues, CueFile):
            answer = cues.of_scene(trial.scene, scene_digest(library, trial)).at(0.0)
            offered = None if answer is None else pipeline.cue_names.of_answer(answer)
        elif cues == AUTO:
            offered = AUTO
        elif cues == "visible":
            offered = [name for name in trial.visible if name in known]
        elif cues == "wrong":
            others = sorted((set(library.pictures) & known) - set(trial.visible))
            offered = [str(name) for name in rng.choice(others, min(len(trial.visible), len(others)), replace=False)]
        return pipeline.segment(trial.picture.image, trial.samples, offered).labels

    return segment


def testable_words(library: MediaLibrary, classes: Sequence[str]) -> list[str]:
    """The classes of which the library has pictures and sounds."""
    words = [word for word in classes if word in library.pictures and word in library.sounds]
    if len(words) < 3:
        raise DataError(
            f"only {len(words)} of the bundle's classes have {library.split} pictures and sounds: at least 3 are needed"
        )
    return words


def scene_name(row: str, seed: int, number: int) -> str:
    """What a scene goes by in files of cues."""
    return f"{row}/{seed}/{number}"


def make_scene(
    library: MediaLibrary, words: Sequence[str], row: str, seed: int, number: int, size: tuple[int, int]
) -> list[Trial]:
    """The trials of one scene: two for ``swapped``, one otherwise."""
    scene = scene_name(row, seed, number)
    rng = np.random.default_rng((seed, list(ROWS).index(row), number))
    count = 1 if row == "one source" else 2
    chosen = [str(word) for word in rng.choice(words, count, replace=False)]
    # Both objects stay visible: a scene in which one covers the other tests nothing.
    for _ in range(20):
        picture = compose_picture(rng, library, chosen, size, whole_rate=0.3, degrade=False)
        if min(int((mask > 127).sum()) for mask in picture.masks) > 0.01 * size[0] * size[1]:
            break

    def sound(names: Sequence[str]) -> Trial:
        return Trial(picture, compose_sound(rng, library, names, noise_snr_db=20.0, vary=False), tuple(names), scene)

    match row:
        case "one source" | "two sources":
            return [sound(chosen)]
        case "silent distractor":
            return [sound(chosen[:1])]
        case "swapped":
            return [sound(chosen[:1]), sound(chosen[1:])]
        case "muted":
            return [Trial(picture, np.zeros(WINDOW_SAMPLES, np.float32), (), scene)]
        case "white noise":
            noise = rng.standard_normal(WINDOW_SAMPLES) * 10 ** (rng.uniform(-40, -10) / 20)
            return [Trial(picture, noise.clip(-1, 1).astype(np.float32), (), scene)]
        case _:
            others = sorted(set(library.sounds) - set(chosen))
            other = str(rng.choice(others))
            return [Trial(picture, compose_sound(rng, library, [other], 20.0, vary=False), (), scene)]


def score_row(
    segment: Segmenter,
    library: MediaLibrary,
    classes: Sequence[str],
    row: str,
    scenes: int,
    seed: int = 0,
    size: tuple[int, int] = SCENE_SIZE,
) -> RowScore:
    """Run ``scenes`` scenes of a row and average. ``classes``: the bundle's, label k is the k-th."""
    ious: dict[str, list[float]] = {}
    binary: list[float] = []
    blank: list[bool] = []
    follows: list[bool] = []
    words = testable_words(library, classes)
    for number in range(scenes):
        trials = make_scene(library, words, row, seed, number, size)
        on_own: list[bool] = []
        for trial in trials:
            labels = segment(trial)
            found = labels > 0
            blank.append(bool(np.count_nonzero(found) < BLANK_PIXEL_RATE * found.size))
            truth = {word: trial.picture.mask_of([word]) > 127 for word in trial.visible}
            for word in trial.heard:
                found_iou = intersection_over_union(labels == 1 + list(classes).index(word), truth[word])
                ious.setdefault(word, []).append(found_iou)
            if trial.heard:
                binary.append(intersection_over_union(found, trial.picture.mask_of(trial.heard) > 127))
                own = intersection_over_union(found, truth[trial.heard[0]])
                other = [intersection_over_union(found, mask) for word, mask in truth.items() if word != trial.heard[0]]
                on_own.append(own > max(other, default=0.0))
        follows.append(all(on_own))
    return RowScore(
        row,
        scenes,
        float(np.mean([value for found in ious.values() for value in found])) if ious else None,
        float(np.mean(binary)) if binary else None,
        float(np.mean(blank)),
        float(np.mean(follows)) if row == "swapped" else None,
        {word: float(np.mean(found)) for word, found in sorted(ious.items())},
        (seed,),
    )
