"""Cues of the scenes of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from teso_deploy.cues.contracts import CueMoment, CueSource
from teso_deploy.cues.tracks import Span, VideoCues
from teso_deploy.evaluation.media_library import MediaLibrary
from teso_deploy.evaluation.protocol import ROWS, SCENE_SIZE, make_scene, scene_digest, testable_words
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_cues import Seen, Unanswered, Watch
from teso_deploy.types import AudioWindow, Frame


def cues_of_scenes(
    source: CueSource,
    library: MediaLibrary,
    classes: Sequence[str],
    scenes: int,
    seeds: Iterable[int],
    watch: Watch,
    pipeline: Pipeline | None = None,
    size: tuple[int, int] = SCENE_SIZE,
    unanswered: Unanswered | None = None,
) -> Iterator[tuple[str, VideoCues]]:
    """Name (row/seed/number) and cues of each scene of :func:`score_row`, which are of its picture.

    ``pipeline``: where ``watch`` wants tags or masks (those with the scene's first sound). ``unanswered``: counts the
    scenes about which the source answered nothing. Raises what the source raises, and :class:`CueSourceError` where it
    answered nothing at all.
    """
    unanswered = Unanswered() if unanswered is None else unanswered
    unanswered.begin()
    words = testable_words(library, classes)
    for row in ROWS:
        for seed in seeds:
            for number in range(scenes):
                trial = make_scene(library, words, row, seed, number, size)[0]
                frame, seen = Frame(trial.picture.image, 0.0), Seen()
                if pipeline is not None:
                    sound = AudioWindow(trial.samples)
                    seen = Seen.by(pipeline.open_stream(), frame, sound, tags=watch.tags, masks=watch.masks)
                answer = unanswered.ask(source, CueMoment(frame, tags=seen.tags, predicted=seen.predicted))
                yield (
                    trial.scene,
                    VideoCues(
                        sha256=scene_digest(library, trial), spans=() if answer is None else (Span.of(answer, 0.0),)
                    ),
                )
    unanswered.check("the folder")
