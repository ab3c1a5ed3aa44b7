"""The parts of sources: the user's options, and the models and servers that the sources of a chain share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from teso_deploy.bundle import Bundle
from teso_deploy.cues.chat_server import ChatServer
from teso_deploy.cues.contracts import Captioner, CueMoment, CueSource, Reasoner
from teso_deploy.cues.kept import KeptAnswers
from teso_deploy.cues.model_bundle import CueModels
from teso_deploy.cues.process import ModelProcess
from teso_deploy.cues.prompts import DEFAULT_PROMPT, Prompt, read_captioner_prompt
from teso_deploy.cues.server_models import ServerCaptioner, ServerReasoner
from teso_deploy.cues.sources.registry import OPTIONS, SOURCES, Input, list_sources_taking, load_factory
from teso_deploy.cues.tracks import CueFile, CueTrack
from teso_deploy.errors import CueError, CueSourceError, NoCueAnswerError

MAX_TIMEOUT_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The options that a user gives the sources.

    Attributes:
        models: A folder that ``teso-deploy export-cues`` wrote.
        server: The address of an OpenAI-compatible server.
        server_model: The server's name of its model; None: the first that it lists.
        frames: How many pictures a captioner on a server is shown.
        prompt: A shipped prompt by name, or a TOML file.
        cue_file: The cues of ``manual`` and ``released``.
        timeout_seconds: How long an answer may take.
        threads: How many threads the models' process uses; None: all cores.
        in_background: True if the models' process only runs when no other process wants the CPU.
        keep: "yes": take answers from disk and keep new ones there. ``"anew"``: ask again and keep. "no": neither.
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
        """Raises :class:`CueError` for a timeout that is out of range."""
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise CueError(f"an answer may take up to {MAX_TIMEOUT_SECONDS:g} s, not {self.timeout_seconds:g}")


class FollowsVideo(Protocol):
    """A source that reads its answers from a track, which the caller sets for each video."""

    track: CueTrack


@dataclass
class SourceParts:
    """The input of the factories of one chain's sources, which share a process and a server.

    Attributes:
        options: The user's options.
        bundle: The segmentation model's bundle.
        kept: The sources whose answers are kept on disk.
        followers: The sources that read a track; a factory adds its source here.
    """

    options: SourceOptions
    bundle: Bundle
    kept: list[KeptAnswers] = field(default_factory=list)
    followers: list[FollowsVideo] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt = Prompt.load(self.options.prompt)
        self._models = None if self.options.models is None else CueModels.open(self.options.models)
        self._process: ModelProcess | None = None
        self._server: ChatServer | None = None
        self._takes_cue_file = False

    def make(self, names: list[str]) -> CueSource:
        """Make a source by its names in the registry, outermost first.

        Raises :class:`CueError` and :class:`CueSourceError` if something is missing that it needs.
        """
        entry, factory = SOURCES[names[0]], load_factory(names[0])
        source: CueSource = factory(self, self.make(names[1:])) if entry.wraps else factory(self)
        if not entry.keeps_answers or self.options.keep == "no":
            return source
        self.kept.append(KeptAnswers(source, is_fresh=self.options.keep == "anew"))
        return self.kept[-1]

    def check_all_is_used(self) -> None:
        """Refuse an input that no source of the chain took. Raises :class:`CueError`."""
        given: dict[Input, object] = {
            "cues_file": self.options.cue_file, "models": self._models, "server": self.options.server,
        }  # fmt: skip
        used: dict[Input, object] = {
            "cues_file": self._takes_cue_file, "models": self._process, "server": self._server,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None and not used[name]:
                *others, last = list_sources_taking(name)
                takers = f"{', '.join(others)} and {last}" if others else last
                raise CueError(
                    f"{OPTIONS[name]} is not used by the chosen sources, only by {takers}: name one of these or omit "
                    "the option"
                )

    def take_cue_file(self, source: str) -> CueFile:
        """The file of cues. Raises :class:`CueError`, naming the source, if none was given."""
        if self.options.cue_file is None:
            raise CueError(f"the source {source} needs cues: give them with --cues-file")
        self._takes_cue_file = True
        return self.options.cue_file

    def make_captioner(self, source: str) -> Captioner:
        """The captioner of the exported models; if there is none, that of the server.

        Raises :class:`CueError`, naming the source, if there is neither.
        """
        if self._models is not None and self._models.manifest.captioner is not None:
            return self._open_process(self._models).captioner(read_captioner_prompt())
        if self.options.server is not None:
            return ServerCaptioner(self.open_server(source), read_captioner_prompt(), frames=self.options.frames)
        raise CueError(
            f"the source {source} needs a captioner: give --models, a folder of `teso-deploy export-cues` with one, or "
            "--server, a server whose model takes pictures"
        )

    def make_exported_reasoner(self, source: str) -> Reasoner:
        """The language model of the exported models. Raises :class:`CueError`, naming the source, if there is none."""
        if self._models is None or self._models.manifest.reasoner is None:
            raise CueError(
                f"the source {source} needs a reasoner: give --models, a folder of `teso-deploy export-cues` with one"
            )
        return self._open_process(self._models).reasoner(reasons=self.prompt.reasons)

    def make_served_reasoner(self, source: str) -> Reasoner:
        """The language model of the server. Raises :class:`CueSourceError`, naming the source, if none is given."""
        return ServerReasoner(self.open_server(source), reasons=self.prompt.reasons)

    def _open_process(self, models: CueModels) -> ModelProcess:
        if self._process is None:
            options = self.options
            self._process = ModelProcess(
                models,
                threads=options.threads,
                in_background=options.in_background,
                timeout_seconds=options.timeout_seconds,
            )
        return self._process

    def open_server(self, source: str) -> ChatServer:
        """The server. Raises :class:`CueSourceError`, naming the source, if no address was given."""
        if self.options.server is None:
            raise CueSourceError(f"the source {source} needs a server: give its address with --server")
        if self._server is None:
            self._server = ChatServer(
                self.options.server, self.options.server_model, timeout_seconds=self.options.timeout_seconds
            )
        return self._server


def describe(captioner: Captioner, moment: CueMoment) -> str:
    """Ask for the caption of a moment. Raises :class:`NoCueAnswerError` if it is empty."""
    caption = captioner.caption(moment)
    if not caption.strip():
        raise NoCueAnswerError("the captioner wrote nothing: take a model that takes pictures")
    return caption
