"""The text cues that a model is offered: words, a file, or a source that is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.prompts import DEFAULT_PROMPT
from teso_deploy.cues.sources.registry import list_sources, list_sources_taking
from teso_deploy.options.fields import LONGEST_WAIT_SECONDS, OptionError, Options, option

SOURCE_HELP = f"{', '.join(list_sources())}. Several, separated by commas: the first one that answers is used."
#: Fields that only a source uses.
OF_SOURCES = (
    "models", "server", "server_model", "every_seconds", "budget_per_minute", "timeout_seconds", "prompt", "frames",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CueOptions(Options):
    """The text cues that the model is offered.

    Attributes:
        cues: words by comma, ``auto`` (the bundle's tagger) or ``none`` (the trained fallback). Default: ``none``.
        cues_file: a file of words, a file that ``teso-deploy cues`` wrote, or the authors' JSON.
        source: the source that is asked for cues, or several by comma. Default: none is asked.
        models: folder of ``teso-deploy export-cues`` with captioner and language model, for the sources that take it.
        server: address of an OpenAI-compatible server, for the sources that take it.
        server_model: the server's name of its model. Default: the first that it lists.
        every_seconds: how often the source is asked; None: only at new scenes. Default: 10.
        ttl_seconds: cues that are older are replaced by the fallback. Default: never.
        budget_per_minute: the most questions per minute, about all streams together. Default: 12.
        timeout_seconds: how long a model or server may take for an answer. Default: 120.
        prompt: a shipped prompt by name, or a TOML file.
        frames: how many pictures a server is shown at a time. Default: 1.
    """

    cues: str = option(
        "none", "Words for visible objects, as in a,b; auto: words from the model's tagger; none: the model's fallback."
    )
    cues_file: Path | None = option(
        None, "File of cues: words, by line or comma; a file that `teso-deploy cues` wrote; or the authors' JSON."
    )
    source: str | None = option(
        None,
        "Where to get cues from: for files before the run, for streams during it. " + SOURCE_HELP,
        flag="--cue-source",
    )
    models: Path | None = option(
        None,
        "Folder of `teso-deploy export-cues` with captioner and language model, for "
        f"{', '.join(list_sources_taking('models'))}.",
    )
    server: str | None = option(
        None,
        f"OpenAI-compatible server (vLLM, llama.cpp, Ollama), for {', '.join(list_sources_taking('server'))}. Its "
        "key is in TESO_CUES_API_KEY.",
        metavar="URL",
    )
    server_model: str | None = option(None, "Model of the server. Default: its first.")
    every_seconds: float | None = option(
        10.0,
        "Ask again after this many seconds, and at each new scene. 0: only at new scenes.",
        flag="--cue-every",
        minimum=0,
        unit="seconds",
        given_as=float,
        read=lambda seconds: seconds or None,
    )
    ttl_seconds: float | None = option(
        None,
        "Replace cues that are older than this many seconds by the fallback.",
        flag="--cue-ttl",
        minimum=0.1,
        unit="seconds",
    )
    budget_per_minute: int = option(
        12, "For streams: ask at most this many times per minute.", flag="--cue-budget", minimum=1
    )
    timeout_seconds: float = option(
        120.0,
        "Wait at most this many seconds for an answer of a model or a server.",
        flag="--cue-timeout",
        minimum=0.1,
        maximum=LONGEST_WAIT_SECONDS,
        unit="seconds",
    )
    prompt: str = option(
        DEFAULT_PROMPT, "Prompt of llm and openai: a shipped prompt's name, or a TOML file.", flag="--cue-prompt"
    )
    frames: int = option(
        1, "For openai: number of pictures that it gets at a time.", flag="--cue-frames", minimum=1, maximum=16
    )

    def check(self) -> None:
        """Refuse options that exclude each other, and options of a source if none is asked."""
        if self.cues != "none" and (self.cues_file or self.source):
            raise OptionError("{cues} excludes {cues_file} and {source}: give one")
        if self.source is None and (self.models or self.server or self.server_model):
            raise OptionError("{models} and {server} are for a source of cues: add {source}")
        if self.source is None and (lost := [name for name in self.changed() if name in OF_SOURCES]):
            names = ", ".join(f"{{{name}}}" for name in lost)
            raise OptionError(f"without a source of cues this has no effect: {names}; add {{source}}, or omit it")
        if self.ttl_seconds is not None and not (self.source or self.cues_file):
            raise OptionError("{ttl_seconds} needs cues that can grow old: add {source} or {cues_file}")

    @property
    def words(self) -> list[str]:
        """The words that ``cues`` names."""
        return [] if self.cues in ("none", "auto") else [word for word in self.cues.split(",") if word.strip()]

    @property
    def asking(self) -> AskingOptions:
        """When a source is asked about streams."""
        return AskingOptions(self.every_seconds, self.budget_per_minute, self.ttl_seconds)
