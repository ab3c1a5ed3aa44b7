"""A model variant as data: every size, switch and training choice of a TeSO model.

A recipe is a TOML file under ``export/recipes/``; a shipped one is named by its stem. A variant is defined only by its
recipe: the small model and Swin-B are the same code with different recipes.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from teso_deploy.architectures import AUDIO_ENCODERS, FOUNDATIONS, check_foundation, check_method
from teso_deploy.errors import RecipeError
from teso_deploy.recipe_tables import (
    AdapterPlace,
    AudioRecipe,
    BeatsRecipe,
    ClipTextRecipe,
    DecoderRecipe,
    EncoderPhase,
    FusionPart,
    FusionRecipe,
    HeadRecipe,
    ImageRecipe,
    PixelDecoderRecipe,
    SamRecipe,
    SwinRecipe,
    Table,
    TaggerRecipe,
    TeacherRecipe,
    Text,
    TextRecipe,
    TrainPhase,
    TrainRecipe,
    VideoPhase,
)
from teso_deploy.resources import find_shipped_path
from teso_deploy.small_files import parse_toml, read_text
from teso_deploy.text import to_one_line

__all__ = [
    "AdapterPlace",
    "AudioRecipe",
    "BeatsRecipe",
    "Calibration",
    "ClipTextRecipe",
    "DecoderRecipe",
    "EncoderPhase",
    "FusionPart",
    "FusionRecipe",
    "HeadRecipe",
    "ImageRecipe",
    "PixelDecoderRecipe",
    "Recipe",
    "SamRecipe",
    "SwinRecipe",
    "TaggerRecipe",
    "TeacherRecipe",
    "TextRecipe",
    "TrainPhase",
    "TrainRecipe",
    "VideoPhase",
    "list_shipped_recipes",
    "load_recipe",
    "parse_recipe",
]


#: The size limit of a recipe. The shipped ones have 2 KB, and a vocabulary of classes adds about 10 KB.
MOST_BYTES = 4 << 20
MOST_EXTENDED = 32


class Recipe(Table):
    """A complete model variant. The shipped ones are in ``export/recipes/``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=200)]
    summary: Text = ""
    method: Annotated[str, AfterValidator(check_method)] = "teso"
    foundation: Annotated[str, AfterValidator(check_foundation)] = "mask2former"
    image: ImageRecipe = ImageRecipe()
    swin: SwinRecipe = SwinRecipe()
    pixel_decoder: PixelDecoderRecipe = PixelDecoderRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    sam: SamRecipe = SamRecipe()
    audio: AudioRecipe = AudioRecipe()
    beats: BeatsRecipe = BeatsRecipe()
    text: TextRecipe = TextRecipe()
    clip_text: ClipTextRecipe = ClipTextRecipe()
    fusion: FusionRecipe = FusionRecipe()
    head: HeadRecipe = HeadRecipe()
    tagger: TaggerRecipe = TaggerRecipe()
    adapters: tuple[AdapterPlace, ...] = ("swin", "msda", "cross_attention")
    adapter_residual: bool = True
    train: TrainRecipe | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        encoder, foundation = AUDIO_ENCODERS[self.audio.encoder], FOUNDATIONS[self.foundation]
        if encoder.table and self.audio.dim != (dim := getattr(self, encoder.table).dim):
            raise ValueError(f"audio.dim {self.audio.dim} is not the width of {encoder.title}: set it to {dim}")
        is_plain = self.head.kind == "binary" and self.head.masks == "sigmoid" and not self.tagger.words
        if not foundation.has_classes and not is_plain:
            raise ValueError(f"foundation {self.foundation}: it names nothing, take a plain binary head and no tagger")
        if foundation.square_table:
            height, width = self.image.sizes[0]
            patch = getattr(self, foundation.square_table).patch
            if len(self.image.sizes) != 1 or height != width or height % patch:
                raise ValueError(f"foundation {self.foundation}: image.sizes must be one square, a multiple of {patch}")
        if self.sam.mask_token >= self.sam.mask_tokens:
            raise ValueError(f"sam.mask_token {self.sam.mask_token}: there are {self.sam.mask_tokens}, from 0")
        if self.head.resize_chain and self.head.masks != "raw":
            raise ValueError("head.resize_chain: only raw masks are resized in the graph")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Recipe:
        widths = [
            ("pixel_decoder", self.pixel_decoder.dim, self.pixel_decoder.heads),
            ("decoder", self.pixel_decoder.dim, self.decoder.heads),
            ("fusion", self.fusion.dim, self.fusion.heads),
            ("sam", self.sam.embed_dim, self.sam.heads),
            ("sam decoder", self.sam.dim // self.sam.attention_downsample, self.sam.decoder_heads),
            ("clip_text", self.clip_text.width, self.clip_text.heads),
            ("beats", self.beats.dim, self.beats.heads),
        ]
        widths += [(f"swin stage {i}", self.swin.embed_dim << i, heads) for i, heads in enumerate(self.swin.heads)]
        for part, dim, heads in widths:
            if dim % heads:
                raise ValueError(f"{part}: width {dim} is not divisible by {heads} heads")
        return self


class Calibration(Table):
    """Thresholds that were chosen after training, and the model's results with them on the calibration scenes.

    ``open_rate``: share of sounding cues that are accepted. ``false_alarm_rate``: share of the audio windows in which a
    cue is accepted although nothing visible sounds. It is the higher one of the shares for noise and for off-screen
    sounds. ``miou``: mean IoU in the rows in which something sounds. ``tag_f2``: F2 of the visible words; None
    without a tagger. ``scenes``: number of scenes of each row, made from ``seed``.
    """

    gate_threshold: float
    mask_threshold: float
    tag_threshold: float | None
    open_rate: float
    false_alarm_rate: float
    miou: float
    tag_f2: float | None
    scenes: int
    seed: int

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe with these thresholds."""
        tag = recipe.tagger.threshold if self.tag_threshold is None else self.tag_threshold
        return recipe.model_copy(
            update={
                "fusion": recipe.fusion.model_copy(update={"gate_threshold": self.gate_threshold}),
                "head": recipe.head.model_copy(update={"threshold": self.mask_threshold}),
                "tagger": recipe.tagger.model_copy(update={"threshold": tag}),
            }
        )


def list_shipped_recipes() -> dict[str, Path]:
    """Return name → path of every recipe of the package."""
    return {path.stem: path for path in sorted(find_shipped_path("export/recipes").glob("*.toml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by shipped name or from a TOML file.

    A recipe may have ``extends = "NAME"`` (a shipped one, or a file in its folder). Fields that it omits are taken from
    that recipe.

    Raises:
        RecipeError: The name is unknown, or the content is invalid.
        InputNotFoundError: The file does not exist.
    """
    path = _find_recipe(name_or_path)
    tables = _read_tables(path)
    try:
        return _make_recipe(tables)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _find_recipe(name_or_path: str | Path, beside: Path | None = None) -> Path:
    shipped = list_shipped_recipes()
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if path.suffix != ".toml":
        raise RecipeError(
            f"unknown recipe {to_one_line(repr(str(name_or_path)))}: "
            f"name one of {', '.join(shipped) or 'none shipped'}, or a .toml file"
        )
    return path if beside is None or path.is_absolute() else beside / path


def _read_tables(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the TOML of a recipe, merged into the TOML of the recipe that it extends."""
    what = f"a recipe's TOML file, or one of {', '.join(list_shipped_recipes())}"
    text = read_text(path, what, limit_bytes=MOST_BYTES, error=RecipeError)
    content = parse_toml(text, path, error=RecipeError)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends: name one recipe")
    real = path.resolve()
    if real in seen:
        circle = " extends ".join(to_one_line(other.stem) for other in (*seen, real))
        raise RecipeError(f"{path}: extends: {circle}, which is a circle")
    if len(seen) == MOST_EXTENDED:
        raise RecipeError(f"{path}: extends: more than {MOST_EXTENDED} recipes extend each other")
    try:
        below = _find_recipe(base, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: extends: {error}") from error
    return _merge(_read_tables(below, (*seen, real)), content)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees of tables; values of ``above`` replace those of ``below``."""
    merged = dict(below)
    for key, value in above.items():
        inner = below.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _make_recipe(content: dict[str, Any]) -> Recipe:
    """Validate the content. An error names the first wrong field, and suggests names for a misspelt one."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = to_one_line(".".join(str(part) for part in first["loc"])) or "recipe"
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(first["loc"][-1]), _list_known_fields(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "remove it"
            raise RecipeError(f"{field} is not a field of a recipe: {hint}") from error
        raise RecipeError(f"{field}: {to_one_line(first['msg'].removeprefix('Value error, '))}") from error


def _list_known_fields() -> list[str]:
    """List the names of all fields of all tables."""
    waiting: list[type[BaseModel]] = [Recipe]
    names: list[str] = []
    while waiting:
        for name, field in waiting.pop().model_fields.items():
            names.append(field.alias or name)
            kinds = (field.annotation, *get_args(field.annotation))
            waiting += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return names


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from TOML text. Raises :class:`RecipeError`, which names the first wrong field."""
    return _make_recipe(parse_toml(text, "the recipe", error=RecipeError))
