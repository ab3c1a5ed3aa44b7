"""The cues of a run: words, the tagger's names, a file, or a source that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from teso_deploy.bundle import Bundle
from teso_deploy.cli.loading import check_tagger
from teso_deploy.cli.reports import as_markup, progress_bar, say, toml_file
from teso_deploy.cues.choosing import Chosen, choose_source
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.sources.parts import SourceOptions
from teso_deploy.cues.timed import TimedCues
from teso_deploy.cues.tracks import CueFile, CueTrack, read_cue_file
from teso_deploy.errors import CueError
from teso_deploy.media.reader import VideoReader
from teso_deploy.options.cues import CueOptions
from teso_deploy.options.media import SoundOptions
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline
from teso_deploy.pipeline.video_cues import Unanswered, Watch, find_video_cues


def list_cue_files(options: CueOptions) -> list[Path | None]:
    """List the files and folders that are read for cues."""
    return [options.cues_file, options.models, toml_file(options.prompt)]


class RunCues:
    """The cues of a run, checked before the model is loaded.

    Args:
        options: the user's options.
        bundle: the bundle that is run. Its table has the known words.
        paths: the files that are run.
        has_streams: True if streams are run too. Cues by the time of a video have no meaning for them.

    Raises:
        CueError: a word has no embedding, the cues belong to another video, or the bundle has no tagger. See also
            :func:`choose_source` and :func:`read_cue_file`.
    """

    def __init__(self, options: CueOptions, bundle: Bundle, paths: Sequence[Path], *, has_streams: bool) -> None:
        self.options = options
        if options.cues == AUTO:
            check_tagger(bundle)
        names = CueNames.open(bundle)
        self._words = names.look_up_words(options.words)
        self.file: CueFile | None = None if options.cues_file is None else read_cue_file(options.cues_file)
        if self.file is not None:
            self._check_file(self.file, names, paths, has_streams=has_streams)
        self.chosen: Chosen | None = None
        if options.source is not None:
            source = SourceOptions(
                models=options.models,
                server=options.server,
                server_model=options.server_model,
                frames=options.frames,
                prompt=options.prompt,
                timeout_seconds=options.timeout_seconds,
                cue_file=self.file,
                in_background=has_streams,
                threads=1 if has_streams else None,
                keep="no" if has_streams else "yes",
            )
            self.chosen = choose_source(options.source, source, bundle)

    @staticmethod
    def _check_file(file: CueFile, names: CueNames, paths: Sequence[Path], *, has_streams: bool) -> None:
        if has_streams and not file.is_of_any_video:
            raise CueError(
                f"{file.path} has cues by the time of a video, a stream has no such time: give words, or --cue-source"
            )
        tracks = [file.everywhere] if has_streams else [file.of(path) for path in paths]
        for track in tracks:
            TimedCues(names, track).check()

    def of_streams(self, pipeline: Pipeline) -> Offered:
        """Return the cues of streams until a source has answered."""
        if self.options.cues == AUTO:
            return AUTO
        if self.chosen is None and self.file is not None:
            return pipeline.cue_names.look_up_words(self.file.everywhere.names)
        return pipeline.cues_of(self._words)

    def of_file(self, console: Console, pipeline: Pipeline, path: Path, *, sound: SoundOptions) -> Offered | TimedCues:
        """Return the cues of each frame of a file. If there is a source, it is asked now.

        Args:
            console: shows the progress, and which pictures have no cues.
            pipeline: the model that is run.
            path: the file.
            sound: which tracks are read, and what replaces the sound.
        """
        options, names = self.options, pipeline.cue_names
        if self.chosen is not None:
            found = self._ask_about(self.chosen, console, pipeline, path=path, sound=sound)
            return TimedCues(names, found, options.ttl_seconds)
        if self.file is not None:
            return TimedCues(names, self.file.of(path), options.ttl_seconds)
        return AUTO if options.cues == AUTO else pipeline.cues_of(self._words)

    def _ask_about(
        self, chosen: Chosen, console: Console, pipeline: Pipeline, *, path: Path, sound: SoundOptions
    ) -> CueTrack:
        chosen.look_at(path)
        every = self.options.every_seconds
        watch = Watch(every, chosen.frames, chosen.needs_tags, chosen.needs_masks, times=chosen.times)
        with VideoReader(path, video_track=sound.video_track) as reader:
            total = reader.info.duration_seconds or None
        with progress_bar(console) as bar:
            task = bar.add_task(f"cues of {as_markup(path.name)}", total=total)
            unanswered = Unanswered()
            found = find_video_cues(
                chosen.source,
                path,
                watch,
                pipeline=pipeline,
                progress=lambda seconds: bar.update(task, completed=seconds),
                sound=sound.as_keywords(),
                unanswered=unanswered,
            )
        if unanswered.count:
            say(console, f"{unanswered.count} pictures of {path.name} have no cues: {unanswered.reason}")
        for trouble in chosen.troubles:
            say(console, f"passed over for the cues of {path.name}: {trouble}")
        return CueTrack(found.spans)

    def close(self) -> None:
        """Close the source."""
        if self.chosen is not None:
            self.chosen.source.close()
