"""The methods, audio encoders, visual foundations and kinds of checkpoints that a recipe can name, as data.

To add an audio encoder, write a module in ``models/`` with its network, a key map in ``models/keymaps/`` if there are
checkpoints of it, and an entry here; if it has parameters, add a table to ``recipe_tables.py`` and to :class:`Recipe`.
Recipes, checkpoints and messages read these tables. Nothing here imports torch: the entries name objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """How a method is made.

    Attributes:
        method: "module:object" of a :class:`~teso_deploy.models.methods.Method`.
        title: Its name in messages.
    """

    method: str
    title: str


@dataclass(frozen=True, slots=True)
class AudioEncoderEntry:
    """How an audio encoder is made.

    Attributes:
        factory: "module:function". The function takes a recipe and returns a module that turns the waveform (B, 15600)
            into F_A (B, d_A).
        title: Its name in messages.
        table: The recipe's table with its parameters. Its ``dim`` is the width of F_A, and ``audio.dim`` must agree.
            Empty: the parameters are in the table ``audio``.
        formats: The kinds of checkpoints that give its weights, each "module:object".
    """

    factory: str
    title: str
    table: str = ""
    formats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundationEntry:
    """How a visual foundation is made.

    Attributes:
        foundation: "module:object" of a :class:`~teso_deploy.models.foundations.contracts.Foundation`.
        title: Its name in messages.
        tables: The recipe's tables with its parameters.
        has_classes: Whether it predicts classes. Without them a recipe needs a binary head and has no tagger.
        square_table: The table whose ``patch`` must divide the picture's side, if the foundation takes square pictures
            of one size only. Otherwise empty.
        formats: The kinds of checkpoints that give its weights, each "module:object".
    """

    foundation: str
    title: str
    tables: tuple[str, ...]
    has_classes: bool = True
    square_table: str = ""
    formats: tuple[str, ...] = ()


_MODELS = "teso_deploy.models"
_KEYMAPS = f"{_MODELS}.keymaps"
METHODS: dict[str, MethodEntry] = {"teso": MethodEntry(f"{_MODELS}.graphs:METHOD", "TeSO")}
AUDIO_ENCODERS: dict[str, AudioEncoderEntry] = {
    "vggish": AudioEncoderEntry(f"{_MODELS}.audio:make_vggish", "VGGish", formats=(f"{_KEYMAPS}.vggish:VGGISH",)),
    "beats": AudioEncoderEntry(
        f"{_MODELS}.beats:make_beats", "BEATs", table="beats", formats=(f"{_KEYMAPS}.beats:BEATS",)
    ),
}
FOUNDATIONS: dict[str, FoundationEntry] = {
    "mask2former": FoundationEntry(
        f"{_MODELS}.foundations.mask2former:FOUNDATION",
        "Mask2Former with Swin",
        tables=("swin", "pixel_decoder", "decoder"),
        formats=(f"{_KEYMAPS}.mask2former:MASK2FORMER",),
    ),
    "sam": FoundationEntry(
        f"{_MODELS}.foundations.sam:FOUNDATION",
        "Segment Anything",
        tables=("sam",),
        has_classes=False,
        square_table="sam",
        formats=(f"{_KEYMAPS}.sam:SAM_HUGGING_FACE", f"{_KEYMAPS}.sam:SAM_META"),
    ),
}
#: Kinds of checkpoints that hold a whole model.
MODEL_FORMATS = (f"{_KEYMAPS}.segpref:SEGPREF",)
#: Kinds of checkpoints that hold CLIP's text tower.
TEXT_FORMATS = tuple(f"{_KEYMAPS}.clip_text:{name}" for name in ("HUGGING_FACE_CLIP", "OPEN_CLIP", "IMAGEBIND"))


def list_format_names() -> Iterator[str]:
    """Yield every kind of checkpoint, as "module:object". A file belongs to the first kind that recognises it."""
    yield from MODEL_FORMATS
    for foundation in FOUNDATIONS.values():
        yield from foundation.formats
    for encoder in AUDIO_ENCODERS.values():
        yield from encoder.formats
    yield from TEXT_FORMATS


def list_size_tables() -> list[str]:
    """List the recipe's tables whose sizes may differ from a checkpoint's."""
    foundations = [table for entry in FOUNDATIONS.values() for table in entry.tables]
    encoders = [entry.table for entry in AUDIO_ENCODERS.values() if entry.table]
    return [*foundations, "audio", *encoders, "clip_text"]


def check_audio_encoder(name: str) -> str:
    """Return the name of an audio encoder. Raises :class:`ValueError` for one that is unknown."""
    return _check_known(name, AUDIO_ENCODERS)


def check_method(name: str) -> str:
    """Return the name of a method. Raises :class:`ValueError` for one that is unknown."""
    return _check_known(name, METHODS)


def check_foundation(name: str) -> str:
    """Return the name of a foundation. Raises :class:`ValueError` for one that is unknown."""
    return _check_known(name, FOUNDATIONS)


def _check_known(name: str, entries: Mapping[str, object]) -> str:
    if name not in entries:
        raise ValueError(f"unknown name: choose one of {', '.join(entries)}")
    return name
