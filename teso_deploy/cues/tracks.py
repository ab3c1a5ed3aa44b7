"""Cues by the time of a video, and the files that hold them.

Three kinds of file are read:

- Words, separated by lines or commas.
- Our JSON, which ``teso-deploy cues`` writes: for each video the answers and their spans of time.
- The authors' released JSON, ``{video: {"f0": "guitar,", …}}``, in which frame k stands for second k.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.sources.registry import check_name
from teso_deploy.errors import CueError
from teso_deploy.sealed import hash_file
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.text import to_one_line
from teso_deploy.types import CueSourceName

SCHEMA_VERSION = 1
_FRAME_KEY = re.compile(r"f(\d{1,6})")
#: The texts that mark a frame without cues in the released files.
_NO_CUES = {"none", "nan", ""}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Span(_Table):
    """An answer and its span in seconds of the video. Without an end it holds until the next span or the end."""

    start_seconds: float = Field(ge=0)
    end_seconds: float | None = None
    names: tuple[str, ...]
    source: Annotated[CueSourceName, AfterValidator(check_name)] = "manual"
    of_seconds: float | None = None
    confidences: tuple[float, ...] = ()
    objects: tuple[str, ...] = ()
    ungrounded: tuple[str, ...] = ()
    caption: str = ""
    reasoning: str = ""

    @model_validator(mode="after")
    def _one_confidence_each(self) -> Span:
        if self.confidences and len(self.confidences) != len(self.names):
            raise ValueError("give one confidence for each name, or none")
        if self.end_seconds is not None and self.end_seconds <= self.start_seconds:
            raise ValueError("give an end_seconds that is after start_seconds, or none")
        return self

    @classmethod
    def of(cls, answer: CueAnswer, start_seconds: float, end_seconds: float | None = None) -> Span:
        """Return the span of an answer.

        Args:
            answer: The answer.
            start_seconds: When it begins, in seconds of the video.
            end_seconds: When it ends. Default: at the next span or the end of the video.
        """
        return cls(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            names=answer.names,
            source=answer.source,
            of_seconds=answer.of_seconds,
            confidences=answer.confidences,
            objects=answer.objects,
            ungrounded=answer.ungrounded,
            caption=answer.caption,
            reasoning=answer.reasoning,
        )

    def answer(self) -> CueAnswer:
        """The answer. Cues that a person wrote have the time at which their span begins."""
        of_seconds = self.start_seconds if self.of_seconds is None else self.of_seconds
        return CueAnswer(
            self.names, self.source, of_seconds, self.confidences, self.objects, self.ungrounded, self.caption,
            self.reasoning,
        )  # fmt: skip


class VideoCues(_Table):
    """The cues of one video.

    ``sha256``: the hash of the video's file if it is known. For a test scene, the hash of its content.
    """

    sha256: str | None = None
    duration_seconds: float | None = None
    spans: tuple[Span, ...]


class CueTrack:
    """Answers by time. If several spans hold, the one that began last counts. At some times none may hold."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = sorted(spans, key=lambda span: span.start_seconds)
        self._starts = [span.start_seconds for span in self.spans]
        following = [*self._starts[1:], math.inf]
        self._ends = [
            after if span.end_seconds is None else span.end_seconds
            for span, after in zip(self.spans, following, strict=False)
        ]

    @classmethod
    def constant(cls, names: Iterable[str], source: CueSourceName = "manual") -> CueTrack:
        """Make a track with the same cues from beginning to end."""
        return cls([Span(start_seconds=0.0, names=tuple(names), source=source)])

    @property
    def names(self) -> tuple[str, ...]:
        """All names that occur, without repetition."""
        return tuple(dict.fromkeys(name for span in self.spans for name in span.names))

    def at(self, seconds: float) -> CueAnswer | None:
        """Return the answer that holds at a time of the video."""
        for place in reversed(range(bisect_right(self._starts, seconds))):
            if seconds < self._ends[place]:
                return self.spans[place].answer()
        return None

    @property
    def times(self) -> tuple[float, ...]:
        """When spans begin and end."""
        return tuple(sorted({*self._starts, *(end for end in self._ends if math.isfinite(end))}))


class CueFile:
    """The cues of a file by the name of their video. ``everywhere``: the cues of any video, from a file of words."""

    def __init__(self, path: Path, videos: Mapping[str, VideoCues], everywhere: CueTrack | None = None) -> None:
        self.path, self.videos, self._everywhere = path, dict(videos), everywhere

    @property
    def is_of_any_video(self) -> bool:
        """Whether the file has only words, which hold for any video."""
        return self._everywhere is not None

    @property
    def everywhere(self) -> CueTrack:
        """The words that hold for any video; an empty track if it has cues of single videos."""
        return self._everywhere or CueTrack(())

    def get_track(self, name: str) -> CueTrack:
        """Return the cues of the video with this name. Raises :class:`CueError` if the file has none."""
        if self._everywhere is not None:
            return self._everywhere
        if name not in self.videos:
            raise CueError(
                f"{self.path} has cues of {_list_some(self.videos)}, but not of {name!r}: name the cues file of "
                "this video"
            )
        return CueTrack(self.videos[name].spans)

    def get_scene_track(self, name: str, digest: str) -> CueTrack:
        """Return the cues of a test scene. Raises :class:`CueError` if they belong to another scene or are missing."""
        track = self.get_track(name)
        if name in self.videos and self.videos[name].sha256 not in (None, digest):
            raise CueError(
                f"{self.path} has cues of another folder's scenes or classes: make them again for this folder"
            )
        return track

    def of(self, video: Path) -> CueTrack:
        """Return the cues of a video's file, found by its hash if the cues state one, else by its name.

        Raises :class:`CueError` if they belong to another video.
        """
        if self._everywhere is not None:
            return self._everywhere
        digests = {entry.sha256 for entry in self.videos.values() if entry.sha256}
        digest = hash_file(video) if digests else None
        for entry in self.videos.values():
            if digest is not None and entry.sha256 == digest:
                return CueTrack(entry.spans)
        name = next((name for name in (video.name, video.stem) if name in self.videos), video.stem)
        if name in self.videos and self.videos[name].sha256:
            raise CueError(
                f"{self.path} has cues of another video that is also named {name}: make them again with `teso-deploy "
                "cues`"
            )
        return self.get_track(name)


def read_cue_file(path: Path) -> CueFile:
    """Read a file of any kind.

    Raises :class:`InputNotFoundError` if it can't be read as text, :class:`CueError` for JSON of another form.
    """
    text = read_text(path, "a file with a cue word on each line, or what `teso-deploy cues` wrote")
    if path.suffix.lower() != ".json" and not text.lstrip().startswith("{"):
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return CueFile(path, {}, CueTrack.constant(_split(",".join(lines))))
    content = parse_json(text, path, error=CueError)
    if isinstance(content, dict) and "videos" in content:
        return CueFile(path, _read_ours(path, content))
    return CueFile(path, _read_released(path, content))


def make_cue_file_content(videos: Mapping[str, VideoCues], source: str, identity: str) -> dict[str, Any]:
    """Return the content of our kind of file, ready for JSON.

    Args:
        videos: The name of a video → its cues.
        source: The name of the source.
        identity: The identity of the source.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "identity": identity,
        "videos": {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in videos.items()},
    }


def _read_ours(path: Path, content: Mapping[str, Any]) -> dict[str, VideoCues]:
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CueError(
            f"{path} has schema version {to_one_line(version, 40)}, this package reads {SCHEMA_VERSION}: make it again "
            "with `teso-deploy cues`"
        )
    if not isinstance(content["videos"], dict):
        raise CueError(f"{path}: videos: give each video's cues by its name")
    videos = {}
    for name, entry in content["videos"].items():
        try:
            videos[name] = VideoCues.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = to_one_line(".".join(str(part) for part in first["loc"]), 100)
            raise CueError(
                f"{path}: {to_one_line(name, 100)}: {where}: {first['msg']}; make it again with `teso-deploy cues`"
            ) from error
    return videos


def _read_released(path: Path, content: Any) -> dict[str, VideoCues]:
    wrong = CueError(
        f'{path} is neither a file of `teso-deploy cues` nor the released form {{video: {{"f0": "guitar,"}}}}: '
        "name a file of one of these kinds"
    )
    if not isinstance(content, dict) or not content:
        raise wrong
    videos = {}
    for name, frames in content.items():
        if not isinstance(frames, dict):
            raise wrong
        spans = []
        for key, words in frames.items():
            frame = _FRAME_KEY.fullmatch(key)
            if frame is None or not isinstance(words, str):
                raise wrong
            second = float(frame[1])
            spans.append(
                Span(start_seconds=second, end_seconds=second + 1, names=tuple(_split(words)), source="released")
            )
        videos[name] = VideoCues(spans=tuple(spans))
    return videos


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip().lower() not in _NO_CUES]


def _list_some(names: Iterable[str]) -> str:
    listed = list(names)
    return (
        ", ".join(to_one_line(name, 100) for name in listed[:3])
        + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
        or "no video"
    )
