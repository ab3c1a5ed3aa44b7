"""Every source of text cues, as data. To add one, write a module in this package and an entry here.

The command line, its help texts, the reader of cue files and the messages all read this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from teso_deploy.errors import CueError
from teso_deploy.named_objects import check_installed, load_object

#: The inputs that a source may need. The user gives them with options.
Input = Literal["cues_file", "models", "server"]
#: The outputs of the segmentation model for the picture that a source may read.
Finding = Literal["tags", "masks"]

#: Input → the option that gives it.
OPTIONS: dict[Input, str] = {"cues_file": "--cues-file", "models": "--models", "server": "--server"}


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """How a source is made, and what it needs.

    Attributes:
        factory: "module:function". The function takes a :class:`~teso_deploy.cues.sources.parts.SourceParts` and
            returns a :class:`~teso_deploy.cues.contracts.CueSource`; one that wraps another source takes that one as
            its second argument.
        summary: One line that says what the source names.
        inputs: The inputs that it may get. An option that no source of a chain takes is refused.
        looks_at: The outputs of the segmentation model that it needs.
        modules: Modules of other packages that it imports.
        extra: The extra of this package that installs those modules.
        wraps: True if it is named together with another source, as in ``filter:nouns``.
        is_typed: True if a person wrote the cues: they hold for all of their span and do not age.
        keeps_answers: True if its answers depend on the pictures alone and take long: they are kept on disk.
    """

    factory: str
    summary: str
    inputs: tuple[Input, ...] = ()
    looks_at: tuple[Finding, ...] = ()
    modules: tuple[str, ...] = ()
    extra: str = ""
    wraps: bool = False
    is_typed: bool = False
    keeps_answers: bool = False


_HERE = "teso_deploy.cues.sources"
SOURCES: dict[str, SourceEntry] = {
    "manual": SourceEntry(
        f"{_HERE}.manual:make_manual",
        "words, for a whole video or for spans of it",
        inputs=("cues_file",),
        is_typed=True,
    ),
    "released": SourceEntry(
        f"{_HERE}.manual:make_released",
        'the authors\' JSON, {video: {"f0": "guitar,", ...}}, one frame per second',
        inputs=("cues_file",),
        is_typed=True,
    ),
    "tagger": SourceEntry(
        f"{_HERE}.tagger:make_tagger",
        "the words that the bundle's tagger gives, with its threshold",
        looks_at=("tags",),
    ),
    "nouns": SourceEntry(
        f"{_HERE}.nouns:make_nouns",
        "nouns of a caption, the bundle's classes first (TeSOn)",
        inputs=("models", "server"),
        keeps_answers=True,
    ),
    "llm": SourceEntry(
        f"{_HERE}.llm:make_llm",
        "objects that an exported language model names for the caption of an exported captioner (the paper)",
        inputs=("models", "server"),
        keeps_answers=True,
    ),
    "openai": SourceEntry(
        f"{_HERE}.openai:make_openai",
        "objects that a server's language model names for a caption of the server or of an exported captioner",
        inputs=("models", "server"),
        keeps_answers=True,
    ),
    "filter": SourceEntry(
        f"{_HERE}.filter:make_filter",
        "the classes in the masks that another source names too (the paper's baseline)",
        looks_at=("masks",),
        wraps=True,
    ),
}
#: Names for cues that come from no source: the model's own cue, and padding alone.
WITHOUT_SOURCE = ("fallback", "none")


def list_sources() -> list[str]:
    """The sources as a user names them: ``tagger``, ``filter:SOURCE``."""
    return [f"{name}:SOURCE" if entry.wraps else name for name, entry in SOURCES.items()]


def list_sources_taking(given: Input) -> list[str]:
    """The sources that take an input."""
    return [name for name, entry in SOURCES.items() if given in entry.inputs]


def is_typed(name: str) -> bool:
    """Whether cues of this source were written by a person."""
    return name in SOURCES and SOURCES[name].is_typed


def check_name(name: str) -> str:
    """Return the name of a cue's source. Raises :class:`ValueError` for one that is unknown."""
    known = (*SOURCES, *WITHOUT_SOURCE)
    if name not in known:
        raise ValueError(f"name one of {', '.join(known)}")
    return name


def split_name(named: str) -> list[str]:
    """The names in ``filter:nouns``, outermost first.

    Raises:
        CueError: A name is unknown, or a source that wraps another one stands alone.
        MissingExtraError: A source needs a package that is not installed.
    """
    names = named.split(":", 1)
    is_whole = all(name in SOURCES for name in names)
    if not is_whole or [SOURCES[name].wraps for name in names] != [True] * (len(names) - 1) + [False]:
        raise CueError(f"no source of cues {named!r}: name one or several of {', '.join(list_sources())}")
    for name in names:
        check_installed(f"the source {name}", SOURCES[name].modules, SOURCES[name].extra)
    return names


def load_factory(name: str) -> Any:
    """Import the function that makes a source."""
    return load_object(SOURCES[name].factory)
