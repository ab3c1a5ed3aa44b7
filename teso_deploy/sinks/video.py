"""The annotated video: masks, names, cues and the sound drawn on each picture, with the sound that the model got."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from teso_deploy.media.fitted_video import FittedVideo
from teso_deploy.media.overlay import Overlay, RollingOverlay
from teso_deploy.outputs import check_file
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery

#: Frames per second of an input that does not report them.
USUAL_FPS = 25.0


def check_video_file(path: Path) -> None:
    """Refuse a file that can't be written as a video: another ending, a device, a pipe (:class:`OutputError`)."""
    check_file(path, ".mp4")


class AnnotatedVideoSink(Sink):
    """Writes an annotated video of one input with its sound: H.264 and AAC in MP4.

    For a file, the video appears when it is complete, and its strip shows all of the sound. For a stream, the video can
    be played while it grows, even after the process was killed, and its strip shows the last ten seconds. For a new
    audio window or new cues, the last picture is drawn again. Raises :class:`OutputError`.
    """

    def __init__(self, path: Path, run: RunFacts) -> None:
        self.name, self._path, self._run = path.name, path, run
        self._drawing: tuple[Overlay, FittedVideo] | None = None

    def append(self, delivery: Delivery) -> None:
        overlay, video = self._drawing or self._begin(delivery)
        video.write(overlay.draw(delivery.frame, delivery.segmentation), delivery.shown_at_seconds)
        self._find_end = delivery.input.find_end

    def _begin(self, delivery: Delivery) -> tuple[Overlay, FittedVideo]:
        facts, classes = delivery.input, self._run.classes
        is_growing = self._run.kind == "streams"
        if is_growing:
            overlay: Overlay = RollingOverlay(classes, facts.sound)
        else:
            overlay = Overlay(classes, facts.sound, facts.duration_seconds)
        video = FittedVideo(self._path, fps=facts.fps or USUAL_FPS, sound=facts.sound, is_growing=is_growing)
        self._drawing = overlay, video
        return self._drawing

    def close(self) -> None:
        if self._drawing is not None:
            _, video = self._drawing
            video.hold_until(self._find_end())
            video.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._drawing is not None:
            self._drawing[1].__exit__(kind, error, trace)
