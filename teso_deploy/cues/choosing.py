"""The source of cues that a user names: ``llm,nouns,tagger``, ``filter:openai``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teso_deploy.bundle import Bundle
from teso_deploy.cues.chain import ChainSource
from teso_deploy.cues.contracts import CueSource
from teso_deploy.cues.kept import KeptAnswers
from teso_deploy.cues.sources.parts import FollowsVideo, SourceOptions, SourceParts
from teso_deploy.cues.sources.registry import SOURCES, list_sources, split_name
from teso_deploy.cues.tracks import CueFile
from teso_deploy.errors import CueError


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source, and the inputs that it needs besides the picture.

    Attributes:
        source: A source, or a chain of several.
        needs_tags: True if the source reads the words that the bundle's tagger finds.
        needs_masks: True if the source reads the classes in the model's masks.
        frames: Number of pictures that the source gets with each question.
        tracks: The sources in it that read their answers from the cue track of a video.
        cue_file: The file that these tracks come from.
        kept: The sources in it whose answers are kept on disk.
    """

    source: CueSource
    needs_tags: bool
    needs_masks: bool
    frames: int = 1
    tracks: tuple[FollowsVideo, ...] = ()
    cue_file: CueFile | None = None
    kept: tuple[KeptAnswers, ...] = ()

    @property
    def needs_track(self) -> bool:
        """Whether the source reads a file of cues. Such a file gives the cues of videos, by time."""
        return bool(self.tracks)

    @property
    def times(self) -> tuple[float, ...]:
        """When the cues of a file change, in seconds of the video that is looked at."""
        return tuple(sorted({time for source in self.tracks for time in source.track.times}))

    @property
    def looks_at_model(self) -> bool:
        """Whether the source needs outputs of the segmentation model."""
        return self.needs_tags or self.needs_masks

    @property
    def asked(self) -> int:
        """How many answers models were asked for."""
        return sum(kept.asked for kept in self.kept)

    @property
    def found(self) -> int:
        """How many answers were found on disk."""
        return sum(kept.found for kept in self.kept)

    @property
    def passed_over(self) -> int:
        """How often a source of the chain failed and a later one did not."""
        return self.source.passed_over if isinstance(self.source, ChainSource) else 0

    @property
    def troubles(self) -> tuple[str, ...]:
        """The errors of the chain's sources that fail at the moment."""
        return self.source.troubles if isinstance(self.source, ChainSource) else ()

    def look_at(self, video: Path) -> None:
        """Take the cues that a file has of this video. Raises :class:`CueError`, see :meth:`CueFile.of`."""
        for source in self.tracks:
            assert self.cue_file is not None
            source.track = self.cue_file.of(video)


def split_chain(spec: str) -> list[list[str]]:
    """Split the name of a chain into sources, and a source into its names in the registry, the outermost first.

    Raises :class:`CueError` for an unknown name, :class:`MissingExtraError` for a package that is not installed.
    """
    chain = [split_name(part.strip()) for part in spec.split(",") if part.strip()]
    if not chain:
        raise CueError(f"no source of cues: name one or several of {', '.join(list_sources())}")
    return chain


def choose_source(spec: str, options: SourceOptions, bundle: Bundle) -> Chosen:
    """Make the source that a user names. Everything is checked before anything heavy is loaded.

    Args:
        spec: One source, or several with commas between them: the first that answers.
        options: The user's options for the sources.
        bundle: The segmentation model's bundle.

    Raises:
        CueError: An unknown name, an input that is missing, or one that no source takes.
        CueSourceError: A source that can't be opened.
        MissingExtraError: A source needs a package that is not installed.
        BundleError: The cue models are damaged.
        InputNotFoundError: There are no such models, or no such prompt.
    """
    chain, parts = split_chain(spec), SourceParts(options, bundle)
    sources = [parts.make(names) for names in chain]
    parts.check_all_is_used()
    looks_at = {finding for names in chain for name in names for finding in SOURCES[name].looks_at}
    return Chosen(
        sources[0] if len(sources) == 1 else ChainSource(sources),
        needs_tags="tags" in looks_at,
        needs_masks="masks" in looks_at,
        frames=options.frames,
        tracks=tuple(parts.followers),
        cue_file=options.cue_file,
        kept=tuple(parts.kept),
    )
