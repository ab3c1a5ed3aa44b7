"""A model variant as data: every size, switch and training choice of a TeSO model.

A recipe is a TOML file under ``export/recipes/``; a shipped one is named by its stem.
Nothing about a variant is said anywhere else: the small model and Swin-B are the same
code with other recipes.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from teso_deploy.errors import InputNotFoundError, RecipeError
from teso_deploy.resources import shipped_path

AdapterPlace = Literal["swin", "msda", "cross_attention", "self_attention", "sam_encoder", "sam_decoder"]
FusionPart = Literal["sedam", "pmqs", "dynamic_mask", "text", "audio"]
Positive = Annotated[int, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageRecipe(_Table):
    """What the visual encoder is given: buckets (height, width) in pixels, normalisation in 0 … 255.

    ``fit``: a picture is stretched to the bucket, or keeps its shape and is padded below and to
    the right (with the mean, which is 0 behind the normalisation).
    """

    sizes: tuple[tuple[Positive, Positive], ...] = ((384, 384),)
    fit: Literal["stretch", "pad"] = "stretch"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    @model_validator(mode="after")
    def _multiple_of_32(self) -> ImageRecipe:
        for height, width in self.sizes:
            if height % 32 or width % 32:
                raise ValueError(f"size {height}x{width}: both must be multiples of 32")
        return self


class SwinRecipe(_Table):
    """Swin transformer: four stages, patch 4 (Liu et al., 2021, table 7).

    ``convolutions`` (ours): three small convolutions in place of the patch projection and a
    depthwise one in each MLP, for a model that is trained from scratch on few pictures.
    """

    embed_dim: Positive = 128
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 18, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (4, 8, 16, 32)
    window: Positive = 12
    mlp_ratio: float = 4.0
    convolutions: bool = False


class PixelDecoderRecipe(_Table):
    """Multi-scale deformable attention pixel decoder of Mask2Former (three levels, 8 … 32)."""

    dim: Positive = 256
    layers: Positive = 6
    heads: Positive = 8
    points: Positive = 4
    ffn_dim: Positive = 1024
    mask_dim: Positive = 256


class DecoderRecipe(_Table):
    """Masked-attention transformer decoder of Mask2Former; its width is the pixel decoder's."""

    queries: Positive = 100
    layers: Positive = 9
    heads: Positive = 8
    ffn_dim: Positive = 2048


class SamRecipe(_Table):
    """SAM (Kirillov et al., 2023): a ViT of windows, its neck, and the two-way mask decoder.

    The defaults are ViT-B. ``global_layers`` look at the whole picture, the others at windows.
    ``mask_token``: which of the mask tokens' masks is the answer (0: SAM's single-mask token).
    """

    embed_dim: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    mlp_dim: Positive = 3072
    patch: Positive = 16
    window: Positive = 14
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    dim: Positive = 256
    decoder_layers: Positive = 2
    decoder_heads: Positive = 8
    decoder_mlp_dim: Positive = 2048
    attention_downsample: Positive = 2
    mask_tokens: Positive = 4
    mask_token: Annotated[int, Field(ge=0)] = 0


class BeatsRecipe(_Table):
    """BEATs (Chen et al., 2023): patches of a Kaldi filter bank through a transformer with relative positions.

    The defaults are those of the released iter3 models.
    """

    embed_dim: Positive = 512
    dim: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    ffn_dim: Positive = 3072
    patch: Positive = 16
    position_kernel: Positive = 128
    position_groups: Positive = 16
    relative_buckets: Positive = 320
    relative_distance: Positive = 800


class AudioRecipe(_Table):
    """The sound: ``encoder`` and the width of F_A; the rest is VGGish's.

    Widths of its six convolutions and of its hidden layers.
    ``last_relu``: the AVSBench family keeps the last ReLU, the TeSO family drops it.
    ``batch_norm``: behind every convolution and hidden layer, which VGGish itself has not; from
    scratch it learns far faster with it.
    """

    encoder: Literal["vggish", "beats"] = "vggish"
    channels: tuple[Positive, Positive, Positive, Positive, Positive, Positive] = (64, 128, 256, 256, 512, 512)
    hidden: tuple[Positive, Positive] = (4096, 4096)
    dim: Positive = 128
    last_relu: bool = False
    batch_norm: bool = False


class ClipTextRecipe(_Table):
    """CLIP's text tower; the defaults are ViT-H/14's, which ImageBind shares.

    ``activation``: OpenAI's own towers have ``quick_gelu``. ``normalised``: the embedding has
    length 1, times the checkpoint's learned scale where it has one (ImageBind).
    """

    width: Positive = 1024
    layers: Positive = 24
    heads: Positive = 16
    mlp_dim: Positive = 4096
    context: Positive = 77
    vocabulary: Positive = 49408
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    normalised: bool = True


class TextRecipe(_Table):
    """Cues: what embeds them, the width of that, how many at most (N_T), the sentence that is embedded.

    ``padding`` of slots that hold no cue: zeros that are masked (the paper), or the embedding of
    the word "None", which counts as a cue (the released code).
    """

    encoder: Literal["minilm", "clip"] = "minilm"
    dim: Positive = 1024
    max_cues: Positive = 4
    template: str = "This is a {cue}."
    padding: Literal["zeros+mask", "none-embedding"] = "zeros+mask"


class FusionRecipe(_Table):
    """SeDAM and PMQS (eqs. 1-6): width d, latents N_L, layers of each, heads.

    ``kind``: the paper's, or that of the authors' released code (``segpref``: one attention at
    width ``dim`` and one at the queries' width, MLPs of ``ffn_dim``, no mask; the layers' numbers
    mean nothing to it).
    ``gate_threshold``: where ξ = 0 is put in the exported graph, chosen after training (which
    knows nothing of it): a cue sounds when its mean score lies above it.
    ``without`` takes a part away, for the paper's ablations (what stands in for the part is
    ours): see :mod:`teso_deploy.models.fusion`.
    """

    kind: Literal["teso", "segpref"] = "teso"
    dim: Positive = 256
    heads: Positive = 4
    latents: Positive = 4
    sedam_layers: Positive = 4
    pmqs_layers: Positive = 4
    ffn_dim: Positive = 1024
    gate_threshold: float = 0.0
    without: tuple[FusionPart, ...] = ()


class HeadRecipe(_Table):
    """``binary`` (C = 1: sounds or not) or ``semantic`` (C = number of classes); τ of the label.

    ``masks``: eq. 7 sums sigmoids of the queries' masks; ``raw`` (the released code) sums the
    logits, resizes them through ``resize_chain`` (squares, in pixels) and takes the sigmoid last.
    """

    kind: Literal["binary", "semantic"] = "semantic"
    masks: Literal["sigmoid", "raw"] = "sigmoid"
    resize_chain: tuple[Positive, ...] = ()
    classes: tuple[str, ...] = ("sounding object",)
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _classes_fit(self) -> HeadRecipe:
        if self.kind == "binary" and len(self.classes) != 1:
            raise ValueError(f"a binary head has one class, got {len(self.classes)}")
        if not 1 <= len(self.classes) <= 255 or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be 1 to 255 different names")
        return self


class TaggerRecipe(_Table):
    """A head of the visual encoder that names what is visible (ours); without words there is none."""

    words: tuple[str, ...] = ()
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5


class EncoderPhase(_Table):
    """The stretch before the scenes: each encoder by itself, from labels and from its teacher."""

    size: tuple[Positive, Positive]
    steps: Positive
    pictures_per_step: Positive = 48
    windows_per_step: Positive = 24
    learning_rate: float = 1e-3


class TeacherRecipe(_Table):
    """A TensorFlow Lite file of the media folder, and which of its tensors to foretell.

    Of a picture's teacher there are three: what the first three stages of the backbone
    foretell (the third together with the fourth). A teacher sees pictures at twice the
    size, so theirs have strides 8, 16 and 32.
    """

    file: str
    tensors: tuple[str, ...]
    weight: float = 5.0


class TrainPhase(_Table):
    """A stretch of training at one picture size; ``scale``: of what is pasted, as a share of the frame."""

    size: tuple[Positive, Positive]
    steps: Positive
    scale: tuple[float, float] = (0.25, 0.75)


class TrainRecipe(_Table):
    """How a model is trained on composed scenes; weights of the loss terms as in section 5 of the paper.

    Of a scene's sounds ``blank_sounds_per_scene`` are of nothing visible. ``encoder_rate``: the
    learning rate of the encoders in the phases behind their own, as a multiple of everybody
    else's. ``stand_in_rate``: how often a word of which there is one picture is shown by a
    picture of something of a similar name; the more pictures, the more seldom.
    """

    seed: int = 0
    encoders: EncoderPhase | None = None
    picture_teacher: TeacherRecipe | None = None
    sound_teacher: TeacherRecipe | None = None
    phases: tuple[TrainPhase, ...] = ()
    scenes_per_step: Positive = 12
    sounds_per_scene: Positive = 4
    blank_sounds_per_scene: Positive = 1
    learning_rate: float = 5e-4
    encoder_rate: float = 1.0
    weight_decay: float = 0.02
    warmup_steps: Positive = 200
    gradient_clip: float = 1.0
    loss_points: Positive = 784
    bce: float = 5.0
    dice: float = 5.0
    class_: Annotated[float, Field(alias="class")] = 2.0
    no_object: float = 0.1
    info_nce: float = 1.0
    info_nce_temperature: float = 0.1
    cue_gate: float = 1.0
    audio_tags: float = 0.0
    dense_tags: float = 0.0
    no_cue_rate: float = 0.1
    missed_cue_rate: float = 0.05
    extra_cue_rate: float = 0.3
    whole_photograph_rate: float = 0.3
    stand_in_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixed_precision: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    hold_out: tuple[str, ...] = ()


class Recipe(_Table):
    """A whole model variant. See ``export/recipes/`` for the shipped ones."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    summary: str = ""
    foundation: Literal["mask2former", "sam"] = "mask2former"
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
    def _heads_divide(self) -> Recipe:
        widths = [
            ("pixel_decoder", self.pixel_decoder.dim, self.pixel_decoder.heads),
            ("decoder", self.pixel_decoder.dim, self.decoder.heads),
            ("fusion", self.fusion.dim, self.fusion.heads),
        ]
        widths += [(f"swin stage {i}", self.swin.embed_dim << i, heads) for i, heads in enumerate(self.swin.heads)]
        for part, dim, heads in widths:
            if dim % heads:
                raise ValueError(f"{part}: width {dim} is not divisible by {heads} heads")
        return self


class Calibration(_Table):
    """Thresholds chosen after training, and what they gave on the calibration scenes.

    ``open_rate``: share of sounding cues that are heard; ``false_alarm_rate``: share of the
    windows in which a cue is heard though nothing visible sounds, the higher of noise and
    off-screen sounds; ``miou`` of the rows in which something sounds; ``tag_f2`` of the visible
    words, None without a tagger; ``scenes`` of each row, from ``seed``.
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
        """The recipe with these thresholds."""
        tag = recipe.tagger.threshold if self.tag_threshold is None else self.tag_threshold
        return recipe.model_copy(
            update={
                "fusion": recipe.fusion.model_copy(update={"gate_threshold": self.gate_threshold}),
                "head": recipe.head.model_copy(update={"threshold": self.mask_threshold}),
                "tagger": recipe.tagger.model_copy(update={"threshold": tag}),
            }
        )


def shipped_recipes() -> dict[str, Path]:
    """Name → path of every recipe that comes with the package."""
    return {path.stem: path for path in sorted(shipped_path("export/recipes").glob("*.toml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by shipped name or from a TOML file.

    Raises :class:`RecipeError` (unknown name, bad content), :class:`InputNotFoundError`.
    """
    shipped = shipped_recipes()
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if path.suffix != ".toml":
        raise RecipeError(
            f"unknown recipe {str(name_or_path)!r}: name one of {', '.join(shipped) or 'none shipped'}, or a .toml file"
        )
    if not path.is_file():
        raise InputNotFoundError(f"no recipe file {path}: check the path, or name one of {', '.join(shipped)}")
    try:
        return parse_recipe(path.read_text(encoding="utf-8"))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def parse_recipe(text: str) -> Recipe:
    """A recipe from TOML text; :class:`RecipeError` names the first field that is wrong."""
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"{field}: {first['msg']}") from error
