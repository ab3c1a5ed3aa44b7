"""The tables of a bundle's manifest. Their bounds limit the damage that a forged manifest can do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from teso_deploy.program import EXTERNAL_TENSORS, MASKS, TESO, Program
from teso_deploy.recipe_tables import Scale, Table, Text
from teso_deploy.sealed import FileEntry
from teso_deploy.types import WINDOW_SAMPLES, Framing, Precision

#: In schema 1 the manifest has no ``program``: such bundles have TeSO's program.
SCHEMA_VERSION, OLDEST_SCHEMA_VERSION = 2, 1
#: Labels are uint8, and 0 is the background.
MOST_CLASSES = 255
#: Upper bounds for a manifest: far above the values of any model, but small enough that arrays of these sizes fit into
#: memory.
MOST_SIDE, MOST_CUES, MOST_NUMBERS = 8192, 1024, 65_536
#: The target of forms that use standard operators, for TensorRT and all other readers of ONNX.
STANDARD = "onnx"


Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]
Threshold = Annotated[float, Field(gt=0, lt=1)]


def make_sized_name(graph: str, size: tuple[int, int]) -> str:
    """Return the manifest's name of a graph for the second or a later bucket: ``decoder@288x512``."""
    return f"{graph}@{size[0]}x{size[1]}"


class TensorSpec(Table):
    """Name, ONNX element type and shape of a graph's input or output; "B" is the batch."""

    name: Text
    dtype: Text
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)] | Text, ...], Field(max_length=16)]


class GraphEntry(Table):
    """One graph: its file, the file of its weights if they are separate, its tensors, and its size."""

    file: Text
    weights: Text | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Count
    multiply_adds: Count
    nodes: Count


class FormEntry(Table):
    """A form of one graph, derived from its canonical file for a runtime and a precision.

    ``shares``: share of each element type among the computed tensors, as read back from the file.
    ``source_sha256``: hash of the canonical file that it was derived from.
    """

    file: Text
    weights: Text | None = None
    target: Text
    precision: Precision
    shares: dict[Text, float]
    nodes: Count
    source_sha256: Text


class EngineEntry(Table):
    """An engine in the bundle: its file, with its sidecar next to it, and the GPUs and graph that it is for.

    ``architecture``: ``sm89``, or ``portable``.
    """

    file: Text
    graph: Text
    target: Text
    precision: Precision
    architecture: Text


class Preprocessing(Table):
    """How an RGB picture of any size becomes ``image``: one resize, (x - mean) / std, zeros to the bucket's size."""

    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1, max_length=256)]
    fit: Literal["stretch", "pad"] = "stretch"
    mean: tuple[float, float, float]
    std: tuple[Scale, Scale, Scale]
    resize: Literal["antialiased-bilinear"] = "antialiased-bilinear"
    color: Literal["rgb"] = "rgb"


class AudioEntry(Table):
    """Which sound the frames of a clip get, one a second: see :data:`teso_deploy.types.Framing`."""

    framing: Framing = "per_second"


class Postprocessing(Table):
    """How ``masks`` become labels: bilinear to the picture's size, then 1 + argmax where the maximum ≥ threshold."""

    activation: Literal["probability"] = "probability"
    resize: Literal["bilinear"] = "bilinear"
    threshold: Threshold


class TextEncoderEntry(Table):
    """The encoder for words that are not in the cue table.

    It has a graph (``input_ids`` (1, L) int64 → ``cue`` (1, d_T)), its weights, and the tokenizer's file.
    """

    graph: Text
    weights: Text
    tokenizer: Text


class CueEntry(Table):
    """The cues of the model: their number, embedding and table.

    ``words``: whether repeated words share a slot, see :class:`~teso_deploy.recipe_tables.TextRecipe`.
    ``encoder``: embeds words that are not in the table, if the bundle contains one.
    """

    template: Text
    max_cues: Annotated[int, Field(ge=1, le=MOST_CUES)]
    dim: Annotated[int, Field(ge=1, le=MOST_NUMBERS)]
    padding: Literal["zeros+mask", "none-embedding"] = "zeros+mask"
    words: Literal["distinct", "raw"] = "distinct"
    table: Text | None = None
    encoder: TextEncoderEntry | None = None


class TaggerEntry(Table):
    """The words that the ``tags`` of the visual encoder stand for.

    ``threshold``: a word is offered as a cue if its tag is above this.
    """

    words: tuple[Text, ...]
    threshold: Threshold


class BundleManifest(Table):
    """The content of ``bundle.json``.

    ``program``: how the graphs are connected; schema 1 has no such field, and means TeSO's. ``graphs``: a stage that
    is ``sized`` has an entry for each bucket: the first under its plain name, others as ``name@HxW``.
    ``forms``: name of the form → graph → entry. ``engines``: engines for GPUs, built from the forms. ``cue``: None if
    the program takes no cues.
    """

    schema_version: int = SCHEMA_VERSION
    name: Text
    trained: bool
    recipe: dict[str, Any]
    program: Program = TESO
    graphs: dict[Text, GraphEntry]
    forms: dict[Text, dict[Text, FormEntry]] = Field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    preprocessing: Preprocessing
    audio: AudioEntry = AudioEntry()
    postprocessing: Postprocessing
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    cue: CueEntry | None = None
    tagger: TaggerEntry | None = None
    provenance: dict[Text, str]
    licence: str
    measured: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_agreement(self) -> BundleManifest:
        """Check that facts which the manifest states twice agree, and that the graphs are those of the program."""
        is_read = "schema_version" in self.model_fields_set
        if is_read and self.schema_version > 1 and "program" not in self.model_fields_set:
            raise ValueError("program: Field required")
        if self.program.takes("cues") and self.cue is None:
            raise ValueError("cue: the program takes cues, and the manifest does not describe them")
        for size in self.preprocessing.sizes:
            self._check_program(size)
            self._check_shapes(size)
        return self

    def _entry(self, stage: str, size: tuple[int, int]) -> tuple[str, GraphEntry]:
        """Return the graph of a stage at a bucket: its name in the manifest, and its entry."""
        sized = make_sized_name(stage, size)
        name = sized if sized in self.graphs else stage
        if name not in self.graphs:
            raise ValueError(f"program: no graph serves the stage {stage}")
        return name, self.graphs[name]

    def _check_program(self, size: tuple[int, int]) -> None:
        """Check that every stage has a graph, and that the stage's inputs contain every tensor that the graph takes."""
        given = {name: set(tensors) for name, tensors in EXTERNAL_TENSORS.items()}
        for stage in self.program.stages:
            graph, entry = self._entry(stage.name, size)
            tensors = set[str]().union(*(given[source] for source in stage.inputs))
            if missing := [spec.name for spec in entry.inputs if spec.name not in tensors]:
                raise ValueError(
                    f"program: the graph {graph} takes {missing[0]}, which is given by none of the stage's inputs "
                    f"({', '.join(stage.inputs)})"
                )
            outputs = {spec.name for spec in entry.outputs}
            if twice := sorted(outputs & set[str]().union(*given.values())):
                raise ValueError(f"program: {twice[0]} is given by the graph {graph} and by another one")
            given[stage.name] = outputs
        are_known = all(given[stage.name] for stage in self.program.stages)
        if are_known and not any(MASKS in outputs for outputs in given.values()):
            raise ValueError(f"program: no graph gives {MASKS}")

    def _check_shapes(self, size: tuple[int, int]) -> None:
        """Check that the shapes of the tensors, except the batch, agree with the manifest's other fields."""
        frames, windows = self.program.past_frames, self.program.past_windows
        said: dict[str, tuple[tuple[int, ...], str]] = {
            "image": ((3, *size), "preprocessing.sizes"),
            "waveform": ((*((windows + 1,) if windows else ()), WINDOW_SAMPLES), "program.past_windows"),
            MASKS: ((len(self.classes),), "classes"),
        }
        if frames:
            said["image"] = (frames + 1, 3, *size), "program.past_frames"
        if self.tagger:
            said["tags"] = (len(self.tagger.words),), "tagger.words"
        if self.cue:
            said["cues"] = (self.cue.max_cues, self.cue.dim), "cue"
            said["cue_valid"] = (self.cue.max_cues,), "cue.max_cues"
        for stage in self.program.stages:
            graph, entry = self._entry(stage.name, size)
            for spec in (*entry.inputs, *entry.outputs):
                sides, field = said.get(spec.name, ((), ""))
                if spec.shape[1 : 1 + len(sides)] != sides:
                    found, wanted = (" x ".join(map(str, shape)) for shape in (spec.shape, ("B", *sides)))
                    raise ValueError(f"{spec.name} of the graph {graph} is {found}, {field} says {wanted}")
