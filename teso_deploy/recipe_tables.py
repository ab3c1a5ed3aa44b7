"""The tables of a recipe, one for each part of a model and for how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from teso_deploy.architectures import check_audio_encoder
from teso_deploy.text import is_name
from teso_deploy.types import Framing

AdapterPlace = Literal["swin", "msda", "cross_attention", "self_attention", "sam_encoder", "sam_decoder"]
FusionPart = Literal["sedam", "pmqs", "dynamic_mask", "text", "audio"]


def _check_printable(text: str) -> str:
    if not is_name(text):
        raise ValueError("characters that can't be printed")
    return text


#: A name that messages and tables show.
Text = Annotated[str, Field(max_length=1000), AfterValidator(_check_printable)]
# The bounds are far above the numbers of any model. They keep a mistyped number from taking all memory.
Positive = Annotated[int, Field(gt=0, le=65_536)]
Scale = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(gt=0, le=10**9)]
Layers = Annotated[int, Field(gt=0, le=256)]
Window = Annotated[int, Field(gt=0, le=64)]
#: Side of a picture, in pixels.
Side = Annotated[int, Field(gt=0, le=4096)]


class Table(BaseModel):
    """A table of a recipe. It is frozen, refuses unknown fields, and all its numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageRecipe(Table):
    """The input of the visual encoder: buckets (height, width) in pixels, normalisation in 0 … 255.

    ``fit``: a picture is stretched to the bucket, or keeps its shape and is padded below and to the right (with the
    mean, which is 0 after the normalisation).
    """

    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1, max_length=64)] = ((384, 384),)
    fit: Literal["stretch", "pad"] = "stretch"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[Scale, Scale, Scale] = (58.395, 57.12, 57.375)

    @model_validator(mode="after")
    def _multiple_of_32(self) -> ImageRecipe:
        for height, width in self.sizes:
            if height % 32 or width % 32:
                raise ValueError(f"size {height}x{width}: both must be multiples of 32")
        return self


class SwinRecipe(Table):
    """Swin transformer: four stages, patch 4 (Liu et al., 2021, table 7).

    ``shift_covered``: the windows of every second block are shifted even if one window covers the whole map, as in the
    backbone of Mask2Former. Classifiers do not shift such a map. ``convolutions`` (ours): three small convolutions
    instead of the patch projection, and a depthwise one in each MLP, for a model that is trained from scratch on few
    pictures.
    """

    embed_dim: Positive = 128
    depths: tuple[Layers, Layers, Layers, Layers] = (2, 2, 18, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (4, 8, 16, 32)
    window: Window = 12
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    shift_covered: bool = False
    convolutions: bool = False


class PixelDecoderRecipe(Table):
    """Multi-scale deformable attention pixel decoder of Mask2Former (three levels, 8 … 32)."""

    dim: Positive = 256
    layers: Layers = 6
    heads: Positive = 8
    points: Annotated[int, Field(gt=0, le=64)] = 4
    ffn_dim: Positive = 1024
    mask_dim: Positive = 256


class DecoderRecipe(Table):
    """Masked-attention transformer decoder of Mask2Former; its width is the pixel decoder's."""

    queries: Annotated[int, Field(gt=0, le=4096)] = 100
    layers: Layers = 9
    heads: Positive = 8
    ffn_dim: Positive = 2048


class SamRecipe(Table):
    """SAM (Kirillov et al., 2023): a ViT of windows, its neck, and the two-way mask decoder.

    The defaults are ViT-B. ``global_layers`` attend to the whole picture, the others to windows. ``mask_token``: number
    of the mask token whose mask is used (0: SAM's single-mask token).
    """

    embed_dim: Positive = 768
    layers: Layers = 12
    heads: Positive = 12
    mlp_dim: Positive = 3072
    patch: Positive = 16
    window: Window = 14
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    dim: Positive = 256
    decoder_layers: Layers = 2
    decoder_heads: Positive = 8
    decoder_mlp_dim: Positive = 2048
    attention_downsample: Positive = 2
    mask_tokens: Positive = 4
    mask_token: Annotated[int, Field(ge=0)] = 0


class BeatsRecipe(Table):
    """BEATs (Chen et al., 2023): patches of a Kaldi filter bank through a transformer with relative positions.

    The defaults are those of the released iter3 models.
    """

    embed_dim: Positive = 512
    dim: Positive = 768
    layers: Layers = 12
    heads: Positive = 12
    ffn_dim: Positive = 3072
    patch: Positive = 16
    position_kernel: Positive = 128
    position_groups: Positive = 16
    relative_buckets: Positive = 320
    relative_distance: Positive = 800


class AudioRecipe(Table):
    """The sound: ``encoder``, the width of F_A, and VGGish's fields.

    VGGish's fields are the widths of its six convolutions and of its hidden layers, and two switches. ``last_relu``:
    the AVSBench family keeps the last ReLU, the TeSO family omits it. ``batch_norm``: after every convolution and
    hidden layer. VGGish itself has none, but a model trained from scratch learns far faster with it. ``framing``: which
    sound the frames of a clip get, one a second (:data:`teso_deploy.types.Framing`), in training, in evaluation and in
    ``run --mode paper``.
    """

    encoder: Annotated[str, AfterValidator(check_audio_encoder)] = "vggish"
    channels: tuple[Positive, Positive, Positive, Positive, Positive, Positive] = (64, 128, 256, 256, 512, 512)
    hidden: tuple[Positive, Positive] = (4096, 4096)
    dim: Positive = 128
    last_relu: bool = False
    batch_norm: bool = False
    framing: Framing = "per_second"


class ClipTextRecipe(Table):
    """CLIP's text tower; the defaults are ViT-H/14's, which ImageBind shares.

    ``activation``: OpenAI's own towers have ``quick_gelu``. ``normalised``: the embedding has length 1, multiplied by
    the checkpoint's learned scale if it has one (ImageBind).
    """

    width: Positive = 1024
    layers: Layers = 24
    heads: Positive = 16
    mlp_dim: Positive = 4096
    context: Positive = 77
    vocabulary: Annotated[int, Field(gt=0, le=1_000_000)] = 49408
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    normalised: bool = True


class TextRecipe(Table):
    """Cues: their text encoder, the width of an embedding, their maximum number (N_T), and the sentence around a word.

    ``padding`` of slots without a cue: zeros that are masked (the paper), or the embedding of the word "None", which
    counts as a cue (the released code). ``words``: ``distinct`` words, each in the table's spelling and in one slot; or
    ``raw``, as the released code takes them: a slot for every word as it is written, also for a repeated one.
    """

    encoder: Literal["minilm", "clip"] = "minilm"
    dim: Annotated[int, Field(gt=0, le=16_384)] = 1024
    max_cues: Annotated[int, Field(gt=0, le=256)] = 4
    template: Text = "This is a {cue}."
    padding: Literal["zeros+mask", "none-embedding"] = "zeros+mask"
    words: Literal["distinct", "raw"] = "distinct"


class FusionRecipe(Table):
    """SeDAM and PMQS (eqs. 1-6): width d, latents N_L, layers of each, heads.

    ``kind``: the paper's fusion, or that of the authors' released code (``segpref``: one attention at width ``dim`` and
    one at the queries' width, MLPs of ``ffn_dim``, no mask; it ignores the numbers of layers). ``gate_threshold``: the
    mean score at which ξ = 0 in the exported graph; a cue is accepted if its mean score is above it. It is chosen after
    training, which does not use it. ``without`` removes a part, for the paper's ablations; the replacement of the part
    is ours, see :mod:`teso_deploy.models.fusion`.
    """

    kind: Literal["teso", "segpref"] = "teso"
    dim: Positive = 256
    heads: Positive = 4
    latents: Positive = 4
    sedam_layers: Layers = 4
    pmqs_layers: Layers = 4
    ffn_dim: Positive = 1024
    gate_threshold: float = 0.0
    without: tuple[FusionPart, ...] = ()


class HeadRecipe(Table):
    """``binary`` (C = 1: sounds or not) or ``semantic`` (C = number of classes); τ of the label.

    ``masks``: eq. 7 sums the sigmoids of the queries' masks. ``raw`` (the released code) sums the logits, resizes them
    through ``resize_chain`` (squares, in pixels) and applies the sigmoid last.
    """

    kind: Literal["binary", "semantic"] = "semantic"
    masks: Literal["sigmoid", "raw"] = "sigmoid"
    resize_chain: Annotated[tuple[Side, ...], Field(max_length=16)] = ()
    classes: tuple[Text, ...] = ("sounding object",)
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _classes_fit(self) -> HeadRecipe:
        if self.kind == "binary" and len(self.classes) != 1:
            raise ValueError(f"a binary head has one class, got {len(self.classes)}")
        if not 1 <= len(self.classes) <= 255 or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be 1 to 255 different names")
        return self


class TaggerRecipe(Table):
    """A head of the visual encoder that names visible objects (ours). Without words, the model has no tagger."""

    words: Annotated[tuple[Text, ...], Field(max_length=10_000)] = ()
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5


class EncoderPhase(Table):
    """The training phase before the scenes: each encoder learns separately, from labels and from its teacher."""

    size: tuple[Side, Side]
    steps: Steps
    pictures_per_step: Positive = 48
    windows_per_step: Positive = 24
    learning_rate: float = 1e-3


class TeacherRecipe(Table):
    """A TensorFlow Lite file of the media folder, and the names of its tensors that the network learns to predict.

    A picture's teacher has three tensors: those that the first three stages of the backbone predict (the third together
    with the fourth). A teacher gets pictures at twice the size, so its tensors have strides 8, 16 and 32.
    """

    file: str
    tensors: tuple[str, ...]
    weight: float = 5.0


class TrainPhase(Table):
    """A training phase at one picture size; ``scale``: size of the pasted objects, as a share of the frame."""

    size: tuple[Side, Side]
    steps: Steps
    scale: tuple[float, float] = (0.25, 0.75)


class VideoPhase(Table):
    """Training on videos with masks, from the public data sets. The foundation is frozen; adapters and new parts learn.

    ``adapter_learning_rate``: that of the adapters inside the foundation; all other parts learn at
    ``train.learning_rate``. ``frames_per_batch``: as many as fit into memory. In a step the weights are updated once,
    from ``accumulation_steps`` batches on every process.
    """

    epochs: Steps = 60
    adapter_learning_rate: float = 1e-4
    frames_per_batch: Positive = 2
    accumulation_steps: Steps = 1


class TrainRecipe(Table):
    """How a model is trained, on composed scenes or on ``videos``; loss weights as in section 3.5 of the paper.

    ``blank_sounds_per_scene``: number of a scene's sounds that belong to nothing visible. ``encoder_rate``: the
    learning rate of the encoders in the phases after their own, as a multiple of the other parts' rate.
    ``loss_sampling``: where masks are compared. "cells": at cells of stride 4, at most ``loss_points`` of them, drawn
    at random. "points": at ``loss_points`` points, as Mask2Former does, more of them at uncertain places; the truth
    then has the resolution of the picture. The default is that of recipes from before this field.
    ``stand_in_rate``: how often a word with one picture is shown by a picture of a similar word; with more pictures,
    this happens more rarely. ``info_nce_temperature``: 1 is the paper's, which has none. The default is that of
    recipes from before this field was understood; it switches the term off. ``cue_gate``, ``no_cue_rate``,
    ``missed_cue_rate`` and ``extra_cue_rate`` are ours: weight of the loss on ξ, and how often all cues are dropped,
    one is missing, or one is added.
    """

    seed: int = 0
    encoders: EncoderPhase | None = None
    picture_teacher: TeacherRecipe | None = None
    sound_teacher: TeacherRecipe | None = None
    phases: tuple[TrainPhase, ...] = ()
    videos: VideoPhase | None = None
    scenes_per_step: Positive = 12
    sounds_per_scene: Positive = 4
    blank_sounds_per_scene: Positive = 1
    learning_rate: float = 5e-4
    encoder_rate: float = 1.0
    weight_decay: float = 0.02
    warmup_steps: Steps = 200
    gradient_clip: float = 1.0
    loss_points: Positive = 784
    loss_sampling: Literal["cells", "points"] = "cells"
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
