"""Cues of the scenes of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from teso_deploy.cues.contracts import CueMoment, CueSource
from teso_deploy.cues.tracks import Span, VideoCues
from teso_deploy.evaluation.protocols.composed_scenes import ComposedScenes, digest_scene
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_cues import Seen, Unanswered, Watch
from teso_deploy.types import AudioWindow, Frame


def ask_about_scenes(
    source: CueSource,
    scenes: ComposedScenes,
    watch: Watch,
    *,
    pipeline: Pipeline | None = None,
    unanswered: Unanswered | None = None,
) -> Iterator[tuple[str, VideoCues]]:
    """Ask a source about the picture of each scene.

    Args:
        source: The source of cues.
        scenes: The scenes.
        watch: Says whether the source looks at tags or masks (the masks with the scene's first sound).
        pipeline: The model that gives tags and masks; required if ``watch`` wants them.
        unanswered: Counts the scenes for which the source had no answer.

    Yields:
        The name (row/seed/number) and the cues of each scene.

    Raises:
        CueSourceError: The source failed, or had no answer for any scene.
    """
    unanswered = Unanswered() if unanswered is None else unanswered
    unanswered.begin()
    for sample in scenes.samples():
        trial = scenes.trials(sample)[0]
        frame, seen = Frame(trial.image, 0.0), Seen()
        if pipeline is not None:
            sound = AudioWindow(trial.samples)
            seen = Seen.by(pipeline.open_stream(), frame, sound, tags=watch.tags, masks=watch.masks)
        answer = unanswered.ask(source, CueMoment(frame, tags=seen.tags, predicted=seen.predicted))
        spans = () if answer is None else (Span.of(answer, 0.0),)
        yield sample.name, VideoCues(sha256=digest_scene(scenes.library, trial), spans=spans)
    unanswered.check("the folder")
