"""The tables of a bundle's manifest, one for each thing that it describes. Bounds keep a forged one from doing harm."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from teso_deploy.recipe_tables import Scale, Text
from teso_deploy.sealed import FileEntry
from teso_deploy.types import Precision

SCHEMA_VERSION = 1
#: Labels are uint8, and 0 is the background.
MOST_CLASSES = 255
#: Far above what any model has: what is allocated by these numbers stays small.
MOST_SIDE, MOST_CUES, MOST_NUMBERS = 8192, 1024, 65_536


Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]
Threshold = Annotated[float, Field(gt=0, lt=1)]


def sized_name(graph: str, size: tuple[int, int]) -> str:
    """A graph's name in the manifest at a bucket that is not the first: ``decoder@288x512``."""
    return f"{graph}@{size[0]}x{size[1]}"


class Table(BaseModel):
    """A table of the manifest: frozen, no other field than its own, and every number is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorSpec(Table):
    """Name, ONNX element type and shape of a graph's input or output; "B" is the batch."""

    name: Text
    dtype: Text
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)] | Text, ...], Field(max_length=16)]


class GraphEntry(Table):
    """One graph: its file (and the one that holds its weights, where they are not inside), its tensors, its size."""

    file: Text
    weights: Text | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Count
    multiply_adds: Count
    nodes: Count


class FormEntry(Table):
    """A form of one graph, derived from its canonical file: for which runtime, and in which precision.

    ``shares``: of the tensors that are computed, by element type, as read back from the file.
    ``source_sha256``: of the canonical file that it was derived from.
    """

    file: Text
    weights: Text | None = None
    target: Text
    precision: Precision
    shares: dict[Text, float]
    nodes: Count
    source_sha256: Text


class EngineEntry(Table):
    """An engine that travels with the bundle: its file, beside which its sidecar lies, and what it is for.

    ``architecture``: ``sm89``, or ``portable``.
    """

    file: Text
    graph: Text
    target: Text
    precision: Precision
    architecture: Text


class Preprocessing(Table):
    """From an RGB picture of any size to ``image``: one resize, (x - mean) / std, zeros to the bucket's size."""

    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1, max_length=256)]
    fit: Literal["stretch", "pad"] = "stretch"
    mean: tuple[float, float, float]
    std: tuple[Scale, Scale, Scale]
    resize: Literal["antialiased-bilinear"] = "antialiased-bilinear"
    color: Literal["rgb"] = "rgb"


class Postprocessing(Table):
    """From ``masks`` to labels: bilinear to the source, 1 + argmax where the maximum ≥ threshold."""

    activation: Literal["probability"] = "probability"
    resize: Literal["bilinear"] = "bilinear"
    threshold: Threshold


class TextEncoderEntry(Table):
    """What embeds words that the cue table has not: a graph (``input_ids`` (1, L) int64 → ``cue`` (1, d_T)), its
    weights, and the tokenizer's file."""

    graph: Text
    weights: Text
    tokenizer: Text


class CueEntry(Table):
    """How cues are made and handed over. ``encoder``: for words beyond the table, where the bundle has one."""

    template: Text
    max_cues: Annotated[int, Field(ge=1, le=MOST_CUES)]
    dim: Annotated[int, Field(ge=1, le=MOST_NUMBERS)]
    padding: Literal["zeros+mask", "none-embedding"] = "zeros+mask"
    table: Text | None = None
    encoder: TextEncoderEntry | None = None


class TaggerEntry(Table):
    """What the ``tags`` of the visual encoder name, and from where on a name is offered as a cue."""

    words: tuple[Text, ...]
    threshold: Threshold


class BundleManifest(Table):
    """The content of ``bundle.json``.

    ``graphs``: a graph that depends on the picture's size has an entry a bucket: that of the first
    under its plain name, others as ``name@HxW``. ``forms``: name of the form → graph → entry.
    ``engines``: built from them for GPUs.
    """

    schema_version: int = SCHEMA_VERSION
    name: Text
    trained: bool
    recipe: dict[str, Any]
    graphs: dict[Text, GraphEntry]
    forms: dict[Text, dict[Text, FormEntry]] = {}
    engines: tuple[EngineEntry, ...] = ()
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    cue: CueEntry
    tagger: TaggerEntry | None = None
    provenance: dict[Text, str]
    licence: str
    measured: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}

    @model_validator(mode="after")
    def _tensors_fit(self) -> BundleManifest:
        """What the manifest says twice is the same both times."""
        for height, width in self.preprocessing.sizes:
            self._check_sides("visual_encoder", (height, width), "image", (3, height, width), "preprocessing.sizes")
            self._check_sides("decoder", (height, width), "masks", (len(self.classes),), "classes")
            words = len(self.tagger.words) if self.tagger else 0
            if self.tagger:
                self._check_sides("visual_encoder", (height, width), "tags", (words,), "tagger.words")
        cue = self.cue
        self._check_sides("fusion", self.preprocessing.sizes[0], "cues", (cue.max_cues, cue.dim), "cue")
        self._check_sides("fusion", self.preprocessing.sizes[0], "cue_valid", (cue.max_cues,), "cue.max_cues")
        return self

    def _check_sides(self, graph: str, size: tuple[int, int], tensor: str, sides: tuple[int, ...], field: str) -> None:
        """A graph's tensor has these sides after the batch, where the manifest describes it (:class:`ValueError`)."""
        name = sized_name(graph, size)
        name = name if name in self.graphs else graph
        entry = self.graphs.get(name)
        for spec in (*entry.inputs, *entry.outputs) if entry else ():
            if spec.name == tensor and spec.shape[1 : 1 + len(sides)] != sides:
                found, said = (" x ".join(map(str, shape)) for shape in (spec.shape, ("B", *sides)))
                raise ValueError(f"{tensor} of the graph {name} is {found}, {field} says {said}")
