"""The sources ``manual`` and ``released``: cues that a person wrote, from a file."""

from __future__ import annotations

from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.cues.sources.parts import SourceParts
from teso_deploy.cues.tracks import CueTrack
from teso_deploy.types import CueSourceName


class TrackSource:
    """A source that reads the cues of the picture's time from a track. The caller sets ``track`` for each video."""

    def __init__(self, track: CueTrack, name: CueSourceName = "manual") -> None:
        self.name, self.track = name, track
        self.identity = name

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """The cues that hold at the picture's time."""
        return self.track.at(moment.frame.pts_seconds)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def make_manual(parts: SourceParts) -> CueSource:
    """Make the source ``manual``. Raises :class:`CueError` if no file of cues was given."""
    return _make_track_source(parts, "manual")


def make_released(parts: SourceParts) -> CueSource:
    """Make the source ``released``. Raises :class:`CueError` if no file of cues was given."""
    return _make_track_source(parts, "released")


def _make_track_source(parts: SourceParts, name: CueSourceName) -> CueSource:
    source = TrackSource(parts.take_cue_file(name).everywhere, name)
    parts.followers.append(source)
    return source
