"""The source of cues that a user names: ``llm,nouns,tagger``, ``filter:openai``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from teso_deploy.bundle import Bundle
from teso_deploy.cues.chat_server import ChatServer, ServerCaptioner, ServerReasoner
from teso_deploy.cues.contracts import Captioner, CueSource, Reasoner
from teso_deploy.cues.kept import KeptAnswers
from teso_deploy.cues.model_bundle import CueModels
from teso_deploy.cues.process import ModelProcess
from teso_deploy.cues.prompts import DEFAULT_PROMPT, Prompt, captioner_prompt
from teso_deploy.cues.simple_sources import ChainSource, FilterSource, NounSource, ReasonedSource, TaggerSource
from teso_deploy.cues.table import CueTable
from teso_deploy.cues.tracks import CueFile, TrackSource
from teso_deploy.errors import CueError, CueSourceError
from teso_deploy.types import CueSourceName

SOURCES = ("manual", "released", "tagger", "nouns", "llm", "openai", "filter:SOURCE")
_FILTER = "filter:"
MAX_TIMEOUT_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What sources are made of.

    ``models``: a folder of ``teso-deploy export-cues``. ``server``: address of an OpenAI-compatible server;
    ``server_model``: what it calls its model. ``frames``: pictures that a captioner on a server is shown.
    ``cue_file``: of ``manual`` and ``released``. ``threads``, ``in_background``: of the models' process. ``keep``:
    whether answers of models are kept on disk, and those that are there are taken ("anew": they are not).
    """

    models: Path | None = None
    server: str | None = None
    server_model: str | None = None
    frames: int = 1
    prompt: str = DEFAULT_PROMPT
    cue_file: CueFile | None = None
    timeout_seconds: float = 120.0
    threads: int | None = 1
    in_background: bool = True
    keep: Literal["yes", "anew", "no"] = "yes"

    def __post_init__(self) -> None:
        """Raises :class:`CueError` for a timeout that is none."""
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise CueError(f"an answer may take up to {MAX_TIMEOUT_SECONDS:g} s, not {self.timeout_seconds:g}")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source, and what it looks at beside the picture.

    ``needs_tags``: what the bundle's tagger finds. ``needs_masks``: the classes that the model shows. ``frames``:
    pictures that it is shown at a time.
    """

    source: CueSource
    needs_tags: bool
    needs_masks: bool
    frames: int = 1
    tracks: tuple[TrackSource, ...] = ()
    cue_file: CueFile | None = None
    kept: tuple[KeptAnswers, ...] = ()

    @property
    def needs_track(self) -> bool:
        """Whether a file of cues is read, which is of videos."""
        return bool(self.tracks)

    @property
    def times(self) -> tuple[float, ...]:
        """When a file of cues says something else about the video that is looked at."""
        return tuple(sorted({time for source in self.tracks for time in source.track.times}))

    @property
    def looks_at_model(self) -> bool:
        """Whether the segmentation model has to be there."""
        return self.needs_tags or self.needs_masks

    @property
    def asked(self) -> int:
        """Answers that models were asked for."""
        return sum(kept.asked for kept in self.kept)

    @property
    def found(self) -> int:
        """Answers that were known from before."""
        return sum(kept.found for kept in self.kept)

    @property
    def passed_over(self) -> int:
        """How often a source of the chain failed where a later one did not."""
        return self.source.passed_over if isinstance(self.source, ChainSource) else 0

    @property
    def troubles(self) -> tuple[str, ...]:
        """What the sources of the chain say that fail now."""
        return self.source.troubles if isinstance(self.source, ChainSource) else ()

    def look_at(self, video: Path) -> None:
        """Take the cues of this video where a file has them. Raises :class:`CueError`, see :meth:`CueFile.of`."""
        for source in self.tracks:
            assert self.cue_file is not None
            source.track = self.cue_file.of(video)


def parts_of(spec: str) -> list[str]:
    """The sources of a chain. Raises :class:`CueError` for one that is unknown."""
    parts = [part.strip() for part in spec.split(",") if part.strip()]
    for part in parts:
        name = part.removeprefix(_FILTER)
        if name not in SOURCES[:-1]:
            raise CueError(f"no source of cues {part!r}: name one or several of {', '.join(SOURCES)}")
    if not parts:
        raise CueError(f"no source of cues: name one or several of {', '.join(SOURCES)}")
    return parts


def choose_source(spec: str, options: SourceOptions, bundle: Bundle) -> Chosen:
    """The source that is named, of one or several in a chain.

    Raises :class:`CueError` (unknown, or something that it needs was not given), :class:`CueSourceError`,
    :class:`BundleError` and :class:`InputNotFoundError` (models, prompt), all before anything heavy is loaded.
    """
    parts, maker = parts_of(spec), _Maker(options, bundle)
    sources = [maker.make(part) for part in parts]
    maker.check_all_is_used()
    return Chosen(
        sources[0] if len(sources) == 1 else ChainSource(sources),
        needs_tags=any(part.removeprefix(_FILTER) == "tagger" for part in parts),
        needs_masks=any(part.startswith(_FILTER) for part in parts),
        frames=options.frames,
        tracks=tuple(maker.tracks),
        cue_file=options.cue_file,
        kept=tuple(maker.kept),
    )


@dataclass
class _Maker:
    """Makes the sources of one chain, which share a process or a server."""

    options: SourceOptions
    bundle: Bundle
    kept: list[KeptAnswers] = field(default_factory=list)
    tracks: list[TrackSource] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prompt = Prompt.load(self.options.prompt)
        self._models = None if self.options.models is None else CueModels.open(self.options.models)
        self._process: ModelProcess | None = None
        self._server: ChatServer | None = None

    def check_all_is_used(self) -> None:
        """Refuse what no source of the chain takes: it was meant for one. Raises :class:`CueError`."""
        given = {"--cues-file": self.options.cue_file, "--models": self._models, "--server": self.options.server}
        used = {"--cues-file": self.tracks, "--models": self._process, "--server": self._server}
        of = {"--cues-file": "manual and released", "--models": "nouns, llm and openai", "--server": "openai and nouns"}
        for option, value in given.items():
            if value is not None and not used[option]:
                raise CueError(
                    f"{option} is not used by these sources: it is of {of[option]}, name one or leave it away"
                )

    def make(self, part: str) -> CueSource:
        if part.startswith(_FILTER):
            return FilterSource(self.make(part.removeprefix(_FILTER)))
        if part == "tagger":
            if self.bundle.manifest.tagger is None:
                raise CueError(f"bundle {self.bundle.manifest.name} has no tagger: name another source of cues")
            return TaggerSource(self.bundle.manifest.tagger)
        if part in ("manual", "released"):
            if self.options.cue_file is None:
                raise CueError(f"the source {part} needs cues: give them with --cues-file")
            source = TrackSource(self.options.cue_file.everywhere, "manual" if part == "manual" else "released")
            self.tracks.append(source)
            return source
        if part == "nouns":
            table = CueTable.open(self.bundle)
            return self._kept(NounSource(self._captioner(part), table.names, self.bundle.classes))
        name: CueSourceName = "llm" if part == "llm" else "openai"
        return self._kept(ReasonedSource(name, self._captioner(part), self._reasoner(part), self._prompt))

    def _kept(self, source: CueSource) -> CueSource:
        if self.options.keep == "no":
            return source
        self.kept.append(KeptAnswers(source, is_fresh=self.options.keep == "anew"))
        return self.kept[-1]

    def _captioner(self, part: str) -> Captioner:
        """That of the models where there is one, else the server."""
        if self._models is not None and self._models.manifest.captioner is not None:
            return self._the_process().captioner(captioner_prompt())
        if self.options.server is not None:
            return ServerCaptioner(self._the_server(), captioner_prompt(), frames=self.options.frames)
        raise CueError(
            f"the source {part} needs a captioner: give --models, a folder of `teso-deploy export-cues` with one, or "
            "--server, a server whose model sees pictures"
        )

    def _reasoner(self, part: str) -> Reasoner:
        if part == "openai":
            return ServerReasoner(self._the_server(), reasons=self._prompt.reasons)
        if self._models is None or self._models.manifest.reasoner is None:
            raise CueError(
                "the source llm needs a reasoner: give --models, a folder of `teso-deploy export-cues` with one"
            )
        return self._the_process().reasoner(reasons=self._prompt.reasons)

    def _the_process(self) -> ModelProcess:
        assert self._models is not None
        if self._process is None:
            options = self.options
            self._process = ModelProcess(
                self._models,
                threads=options.threads,
                in_background=options.in_background,
                timeout_seconds=options.timeout_seconds,
            )
        return self._process

    def _the_server(self) -> ChatServer:
        if self.options.server is None:
            raise CueSourceError("the source openai needs a server: give its address with --server")
        if self._server is None:
            self._server = ChatServer(
                self.options.server, self.options.server_model, timeout_seconds=self.options.timeout_seconds
            )
        return self._server
