"""The protocol ``composed-scenes``: whether a model follows the sound in scenes that are composed of held-out media.

Every scene of every row depends only on ``(row, seed, number)``. The cues are the names of everything visible, as a
perfect captioner gives them. So only the sound shows which cue sounds.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.timed import TimedCues
from teso_deploy.cues.tracks import CueFile
from teso_deploy.errors import DataError
from teso_deploy.evaluation.contracts import Answered, Metric, Prediction, Sample, Score
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.evaluation.metrics import Mean, compute_iou, is_blank
from teso_deploy.evaluation.protocols.registry import DEFAULT_PROTOCOL, OpenProtocol, ProtocolOptions
from teso_deploy.evaluation.scenes import Picture, compose_picture, compose_sound
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline
from teso_deploy.pipeline.stream import ThreadStreams
from teso_deploy.types import WINDOW_SAMPLES, ImageSize

#: Row → description of its scenes.
SCENE_ROWS = {
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
#: Number → its heading in tables.
FIGURES = {"miou": "mIoU", "binary_miou": "mIoU, names aside", "blank_rate": "blank", "follows_rate": "follows"}


@dataclass(frozen=True, slots=True)
class SceneTrial:
    """A picture, a window of sound, and the words that sound in it.

    ``scene``: row/seed/number, by which files of cues know it.
    """

    picture: Picture
    samples: NDArray[np.float32]
    heard: tuple[str, ...]
    scene: str = ""

    @property
    def condition(self) -> str:
        """ "": each row has one kind of sound."""
        return ""

    @property
    def image(self) -> NDArray[np.uint8]:
        """The picture's pixels, (H, W, 3) uint8."""
        return self.picture.image

    @property
    def visible(self) -> tuple[str, ...]:
        """The names of all visible objects."""
        return tuple(dict.fromkeys(self.picture.words))


def digest_scene(library: MediaLibrary, trial: SceneTrial) -> str:
    """Hash the folder's fingerprint and a scene's content. The hash is the same on every machine."""
    return hashlib.sha256(json.dumps([library.fingerprint, *trial.picture.words]).encode()).hexdigest()


def find_testable_words(library: MediaLibrary, classes: Sequence[str]) -> list[str]:
    """Return the classes that have pictures and sounds. Raises :class:`DataError` for fewer than three."""
    words = [word for word in classes if word in library.pictures and word in library.sounds]
    if len(words) < 3:
        raise DataError(
            f"only {len(words)} of the bundle's classes have {library.split} pictures and sounds: at least 3 are needed"
        )
    return words


def make_scene(
    library: MediaLibrary,
    words: Sequence[str],
    row: str,
    *,
    seed: int,
    number: int,
    size: ImageSize = SCENE_SIZE,
) -> list[SceneTrial]:
    """Make the trials of one scene.

    Args:
        library: The media that scenes are composed of.
        words: The words that may be in the scene.
        row: One of ``SCENE_ROWS``.
        seed: The scene depends only on this, ``row`` and ``number``.
        number: The scene's number in its row.
        size: Height and width in pixels. Default: 360 x 480.

    Returns:
        Two trials for the row ``swapped``, one for each other row.
    """
    scene = f"{row}/{seed}/{number}"
    rng = np.random.default_rng((seed, list(SCENE_ROWS).index(row), number))
    count = 1 if row == "one source" else 2
    chosen = [str(word) for word in rng.choice(words, count, replace=False)]
    # Both objects must stay visible: a scene in which one covers the other tests nothing.
    for _ in range(20):
        picture = compose_picture(rng, library, chosen, size=size, whole_rate=0.3, degrade=False)
        if min(int((mask > 127).sum()) for mask in picture.masks) > 0.01 * size[0] * size[1]:
            break

    def sound(names: Sequence[str]) -> SceneTrial:
        samples = compose_sound(rng, library, names, noise_snr_db=20.0, vary=False)
        return SceneTrial(picture, samples, tuple(names), scene)

    match row:
        case "one source" | "two sources":
            return [sound(chosen)]
        case "silent distractor":
            return [sound(chosen[:1])]
        case "swapped":
            return [sound(chosen[:1]), sound(chosen[1:])]
        case "muted":
            return [SceneTrial(picture, np.zeros(WINDOW_SAMPLES, np.float32), (), scene)]
        case "white noise":
            noise = rng.standard_normal(WINDOW_SAMPLES) * 10 ** (rng.uniform(-40, -10) / 20)
            return [SceneTrial(picture, noise.clip(-1, 1).astype(np.float32), (), scene)]
        case _:
            others = sorted(set(library.sounds) - set(chosen))
            other = str(rng.choice(others))
            return [SceneTrial(picture, compose_sound(rng, library, [other], noise_snr_db=20.0, vary=False), (), scene)]


class SceneIou:
    """IoU of the sounding objects.

    ``miou`` is the mean IoU of the sounding classes, also per class. ``binary_miou`` treats "sounds" as one class. The
    metric keeps one number of eight bytes per trial. The published scores were averaged by NumPy's pairwise sum, and a
    running sum differs from it in the last digit.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._label_of = {name: 1 + number for number, name in enumerate(classes)}
        self._by_word: dict[str, array[float]] = {}
        self._binary = array("d")

    def add(self, batch: Sequence[Answered[SceneTrial]]) -> None:
        """Add the trials in which something sounds."""
        for trial, prediction in (answer for sample in batch for answer in sample):
            for word in trial.heard:
                iou = compute_iou(prediction.labels == self._label_of[word], trial.picture.mask_of([word]) > 127)
                self._by_word.setdefault(word, array("d")).append(iou)
            if trial.heard:
                truth = trial.picture.mask_of(trial.heard) > 127
                self._binary.append(compute_iou(prediction.labels > 0, truth))

    def values(self) -> dict[str, float | None]:
        """Both means."""
        everything = [iou for ious in self._by_word.values() for iou in ious]
        return {
            "miou": float(np.mean(everything)) if everything else None,
            "binary_miou": float(np.mean(self._binary)) if self._binary else None,
        }

    def class_values(self) -> dict[str, dict[str, float]]:
        """Word → the mean over the trials in which it sounded."""
        return {"miou": {word: float(np.mean(ious)) for word, ious in sorted(self._by_word.items())}}


class BlankRate:
    """``blank_rate``: the share of frames without a mask."""

    def __init__(self) -> None:
        self._mean = Mean()

    def add(self, batch: Sequence[Answered[SceneTrial]]) -> None:
        """Add every trial."""
        for _, prediction in (answer for sample in batch for answer in sample):
            self._mean.add(is_blank(prediction.labels))

    def values(self) -> dict[str, float | None]:
        """The rate."""
        return {"blank_rate": self._mean.value}

    def class_values(self) -> dict[str, dict[str, float]]:
        """Nothing: this metric counts frames, and has no values per class."""
        return {}


class FollowsRate:
    """``follows_rate``: the share of scenes in which each mask covers mostly the object whose sound was played."""

    def __init__(self) -> None:
        self._mean = Mean()

    def add(self, batch: Sequence[Answered[SceneTrial]]) -> None:
        """Add whole scenes."""
        for sample in batch:
            self._mean.add(all(self._is_on_own(trial, prediction.labels > 0) for trial, prediction in sample))

    @staticmethod
    def _is_on_own(trial: SceneTrial, found: NDArray[np.bool_]) -> bool:
        ious = {word: compute_iou(found, trial.picture.mask_of([word]) > 127) for word in trial.visible}
        own = ious.pop(trial.heard[0])
        return own > max(ious.values(), default=0.0)

    def values(self) -> dict[str, float | None]:
        """The rate."""
        return {"follows_rate": self._mean.value}

    def class_values(self) -> dict[str, dict[str, float]]:
        """Nothing: this metric counts scenes, and has no values per class."""
        return {}


@dataclass
class ComposedScenes(OpenProtocol):
    """The protocol on a library.

    Attributes:
        library: The media that scenes are composed of.
        classes: The bundle's classes: label k is the k-th.
        scenes: How many scenes each row has per seed.
        seeds: The seeds.
        rows: Rows of ``SCENE_ROWS``.
        size: Height and width of scenes in pixels.
    """

    library: MediaLibrary
    classes: Sequence[str]
    scenes: int = 300
    seeds: Sequence[int] = (0,)
    rows: Sequence[str] = tuple(SCENE_ROWS)
    size: ImageSize = SCENE_SIZE
    name = DEFAULT_PROTOCOL
    samples_per_batch = 1
    figures = FIGURES

    def __post_init__(self) -> None:
        """Raises :class:`DataError` if too few classes have pictures and sounds."""
        self.words = find_testable_words(self.library, self.classes)

    @property
    def data(self) -> str:
        """The fingerprint of the library."""
        return self.library.fingerprint

    def count_samples(self) -> int:
        """The scenes of all rows and seeds."""
        return len(self.rows) * len(self.seeds) * self.scenes

    def samples(self) -> Iterator[Sample]:
        """All scenes, row by row and seed by seed."""
        for row in self.rows:
            for seed in self.seeds:
                for number in range(self.scenes):
                    yield Sample(f"{row}/{seed}/{number}", row, seed, number)

    def trials(self, sample: Sample) -> list[SceneTrial]:
        """Compose a scene."""
        return make_scene(
            self.library, self.words, sample.group, seed=sample.seed, number=sample.content, size=self.size
        )

    def metrics(self, group: str, condition: str) -> list[Metric[SceneTrial]]:
        """Return IoU and blank frames; for swapped sounds also whether the masks follow."""
        metrics: list[Metric[SceneTrial]] = [SceneIou(self.classes), BlankRate()]
        return [*metrics, FollowsRate()] if group == "swapped" else metrics

    def make_predictor(self, pipeline: Pipeline, cues: str | CueFile) -> Callable[[SceneTrial], Prediction]:
        """Make a model under test, with cues chosen in one of the registry's ``cue_ways`` or read from a file.

        Raises :class:`CueError` for words without an embedding and for scenes that the file lacks.
        """
        if isinstance(cues, CueFile):
            self._check_cue_file(pipeline, cues)
        return make_predictor(pipeline, self.library, cues, seed=self.seeds[0])

    def _check_cue_file(self, pipeline: Pipeline, cues: CueFile) -> None:
        """Look up all words, and the last scene of every row and seed, before scenes are scored for an hour."""
        TimedCues(pipeline.cue_names, cues.everywhere).check()
        for row in self.rows:
            for seed in self.seeds:
                last = self.trials(Sample("", row, seed, self.scenes - 1))[0]
                cues.get_scene_track(last.scene, digest_scene(self.library, last))

    @property
    def details(self) -> dict[str, Any]:
        """What is scored, for the report."""
        return {"scenes": self.scenes, "seeds": list(self.seeds), "rows": list(self.rows), "size": list(self.size)}

    def describe_row(self, score: Score) -> str:
        """Name a row and describe its scenes."""
        return f"{score.group}: {SCENE_ROWS[score.group]}"

    def report_score(self, score: Score) -> dict[str, Any]:
        """Return a row of the report."""
        return {
            "row": score.group,
            "scenes": score.samples,
            **{name: score.values.get(name) for name in self.figures},
            "label_miou": score.class_values["miou"],
            "seeds": score.seeds,
            "spread": score.spread,
        }


def make_predictor(
    pipeline: Pipeline, library: MediaLibrary, cues: str | CueFile = "visible", *, seed: int = 0
) -> Callable[[SceneTrial], Prediction]:
    """Make a model under test from a bundle and a way to choose cues.

    Args:
        pipeline: The bundle.
        library: The media that the scenes are composed of.
        cues: ``visible`` (the names of all visible objects), ``auto`` (the bundle's tagger), ``none``, ``wrong`` (the
            names of other objects), or a file of cues. Default: ``visible``.
        seed: The seed for choosing wrong cues. Default: 0.

    Returns:
        Trial → prediction. It raises :class:`CueError` for a scene that the file lacks.
    """
    known = set(pipeline.cue_table.names)
    streams = ThreadStreams(pipeline)

    def predict(trial: SceneTrial) -> Prediction:
        offered: Offered = None
        if isinstance(cues, CueFile):
            answer = cues.get_scene_track(trial.scene, digest_scene(library, trial)).at(0.0)
            offered = None if answer is None else pipeline.cue_names.look_up_answer(answer)
        elif cues == AUTO:
            offered = AUTO
        elif cues == "visible":
            offered = [name for name in trial.visible if name in known]
        elif cues == "wrong":
            others = sorted((set(library.pictures) & known) - set(trial.visible))
            # The choice depends on the scene alone, so that neither the order of scenes nor threads change it.
            rng = np.random.default_rng((seed, zlib.crc32(trial.scene.encode())))
            offered = [str(name) for name in rng.choice(others, min(len(trial.visible), len(others)), replace=False)]
        return Prediction(streams.get().segment(trial.image, trial.samples, offered).labels)

    return predict


def open_composed_scenes(folder: Path, options: ProtocolOptions) -> ComposedScenes:
    """Read the test split of a media folder.

    Raises :class:`InputNotFoundError` if it does not exist. Raises :class:`DataError` for another layout, a damaged
    file, or too few words.
    """
    library = read_library(folder, "test")
    return ComposedScenes(library, options.classes, options.samples, range(options.seed, options.seed + options.seeds))
