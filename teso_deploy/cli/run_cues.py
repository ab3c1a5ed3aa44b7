"""The cues of ``teso-deploy run``: words, the tagger's, those of a file, or those of a source that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from teso_deploy.bundle import Bundle
from teso_deploy.cli.loading import check_tagger
from teso_deploy.cli.reports import as_markup, progress_bar, say, toml_file
from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.choosing import Chosen, choose_source
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.prompts import DEFAULT_PROMPT
from teso_deploy.cues.sources.parts import SourceOptions
from teso_deploy.cues.timed import TimedCues
from teso_deploy.cues.tracks import CueFile, CueTrack, read_cue_file
from teso_deploy.errors import CueError
from teso_deploy.media.reader import VideoReader
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline
from teso_deploy.pipeline.video_cues import Unanswered, Watch, cues_of_video


@dataclass(frozen=True, slots=True)
class CueRequest:
    """What the options of ``run`` ask for. ``every_seconds`` None: at new scenes alone."""

    cues: str = "none"
    cues_file: Path | None = None
    source: str | None = None
    models: Path | None = None
    server: str | None = None
    server_model: str | None = None
    every_seconds: float | None = 10.0
    ttl_seconds: float | None = None
    budget_per_minute: int = 12
    timeout_seconds: float = 120.0
    prompt: str = DEFAULT_PROMPT
    frames: int = 1

    def __post_init__(self) -> None:
        """Raises :class:`typer.BadParameter` for options that exclude each other or mean nothing."""
        if self.cues != "none" and (self.cues_file or self.source):
            raise typer.BadParameter("--cues excludes --cues-file and --cue-source: give one")
        if self.source is None and (self.models or self.server or self.server_model):
            raise typer.BadParameter("--models and --server are asked for cues: add --cue-source")
        if self.source is None and (self.timeout_seconds, self.prompt, self.frames) != (120.0, DEFAULT_PROMPT, 1):
            raise typer.BadParameter("--cue-timeout, --cue-prompt and --cue-frames are of a source: add --cue-source")
        if self.ttl_seconds is not None and not (self.source or self.cues_file):
            raise typer.BadParameter("--cue-ttl is of cues that are asked for: add --cue-source or --cues-file")

    @property
    def files(self) -> list[Path | None]:
        """Files and folders that are read for cues."""
        return [self.cues_file, self.models, toml_file(self.prompt)]

    @property
    def asking(self) -> AskingOptions:
        """When a source is asked about streams."""
        return AskingOptions(self.every_seconds, self.budget_per_minute, self.ttl_seconds)

    @property
    def words(self) -> list[str]:
        """Those of ``--cues``."""
        return [] if self.cues in ("none", AUTO) else [word for word in self.cues.split(",") if word.strip()]


class RunCues:
    """The cues of a run, checked before the model is loaded.

    ``has_streams``: cues by the time of a video are of no use. Raises :class:`CueError` (a word without embedding,
    cues of another video, no tagger), and what :func:`choose_source` and :func:`read_cue_file` raise.
    """

    def __init__(self, request: CueRequest, bundle: Bundle, paths: list[Path], *, has_streams: bool) -> None:
        self.request = request
        if request.cues == AUTO:
            check_tagger(bundle)
        names = CueNames.open(bundle)
        self._words = names.of_words(request.words)
        self.file: CueFile | None = None if request.cues_file is None else read_cue_file(request.cues_file)
        if self.file is not None and has_streams and not self.file.is_of_any_video:
            raise CueError(
                f"{self.file.path} has cues by the time of a video, a stream has no such time: give words, or "
                "--cue-source"
            )
        if self.file is not None:
            tracks = [self.file.everywhere] if has_streams else [self.file.of(path) for path in paths]
            for track in tracks:
                TimedCues(names, track).check()
        self.chosen: Chosen | None = None
        if request.source is not None:
            options = SourceOptions(
                models=request.models,
                server=request.server,
                server_model=request.server_model,
                frames=request.frames,
                prompt=request.prompt,
                timeout_seconds=request.timeout_seconds,
                cue_file=self.file,
                in_background=has_streams,
                threads=1 if has_streams else None,
                keep="no" if has_streams else "yes",
            )
            self.chosen = choose_source(request.source, options, bundle)

    def of_streams(self, pipeline: Pipeline) -> Offered:
        """Offered from the beginning, until a source has answered."""
        if self.request.cues == AUTO:
            return AUTO
        if self.chosen is None and self.file is not None:
            return pipeline.cue_names.of_words(self.file.everywhere.names)
        return pipeline.cues_of(self._words)

    def of_file(
        self, console: Console, pipeline: Pipeline, path: Path, sound: Mapping[str, Any]
    ) -> Offered | TimedCues:
        """Offered with each frame of a file; its source is asked now.

        ``sound``: tracks, and what replaces the file's own sound.
        """
        request, names = self.request, pipeline.cue_names
        if self.chosen is not None:
            chosen = self.chosen
            chosen.look_at(path)
            watch = Watch(
                request.every_seconds, chosen.frames, chosen.needs_tags, chosen.needs_masks, times=chosen.times
            )
            with VideoReader(path, video_track=sound.get("video_track")) as reader:
                total = reader.info.duration_seconds or None
            with progress_bar(console) as bar:
                task = bar.add_task(f"cues of {as_markup(path.name)}", total=total)
                unanswered = Unanswered()
                found = cues_of_video(
                    chosen.source, path, watch, pipeline, lambda seconds: bar.update(task, completed=seconds), sound,
                    unanswered,
                )  # fmt: skip
            if unanswered.count:
                say(console, f"{unanswered.count} pictures of {path.name} have no cues: {unanswered.reason}")
            for trouble in chosen.troubles:
                say(console, f"passed over for the cues of {path.name}: {trouble}")
            return TimedCues(names, CueTrack(found.spans), request.ttl_seconds)
        if self.file is not None:
            return TimedCues(names, self.file.of(path), request.ttl_seconds)
        return AUTO if request.cues == AUTO else pipeline.cues_of(self._words)

    def close(self) -> None:
        """Of the source."""
        if self.chosen is not None:
            self.chosen.source.close()
