"""The inference program as data: the stages of a method, and the inputs of each.

A stage is a graph of the bundle. It takes external inputs (the picture, the audio window, the cues) and the
outputs of other stages. Tensors are matched by name: a stage receives every tensor of its inputs, and its graph
takes those that it declares. The dependencies of a stage follow from this. They decide which stages a new picture or a
new sound runs again, which stages have a graph for each picture size, and which may be int8.

A program may look at the past: then the picture or the audio window has one axis more, from the oldest moment to the
newest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args

from numpy.typing import NDArray
from pydantic import Field, model_validator

from teso_deploy.recipe_tables import Table, Text

ExternalInput = Literal["image", "audio_window", "cues"]
#: External input of a program → the tensors that it consists of.
EXTERNAL_TENSORS: Mapping[str, tuple[str, ...]] = {
    "image": ("image",),
    "audio_window": ("waveform",),
    "cues": ("cues", "cue_valid"),
}
#: Tensors that the runtime reads by name. Every program computes the first; the others are optional.
MASKS, CUE_GATE, TAGS = "masks", "cue_gate", "tags"

#: Moments before the current one that a program may look at.
Past = Annotated[int, Field(ge=0, le=64)]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


class Stage(Table):
    """One graph of a program.

    ``name``: the graph's name in the manifest. ``inputs``: external inputs and names of earlier stages. ``sized``:
    whether the bundle has a graph for each picture size. ``quantizable``: whether the stage may be int8; all stages are
    converted to the other precisions.
    """

    name: Text
    inputs: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
    sized: bool = False
    quantizable: bool = False


class Program(Table):
    """Stages in the order in which they run.

    ``past_frames`` and ``past_windows``: how many earlier pictures and audio windows the program looks at. With N of
    them ``image`` is (B, N + 1, 3, H, W) and ``waveform`` (B, N + 1, 15600), the newest last. At the beginning of a
    stream the first takes the place of those before it.
    """

    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=64)]
    past_frames: Past = 0
    past_windows: Past = 0

    @model_validator(mode="after")
    def _check_wiring(self) -> Program:
        names = [stage.name for stage in self.stages]
        known = set[str](EXTERNAL_TENSORS)
        for stage in self.stages:
            if "@" in stage.name:
                raise ValueError(
                    f"stage {stage.name}: its name must not have @, which separates a name from a picture size"
                )
            for source in stage.inputs:
                if source in known:
                    continue
                if source in names:
                    raise ValueError(
                        f"stage {stage.name} takes {source}, which does not run before it: list the stages in the "
                        "order in which they run, without a cycle"
                    )
                raise ValueError(
                    f"stage {stage.name} takes {source}, which is neither a stage nor one of "
                    f"{', '.join(EXTERNAL_TENSORS)}"
                )
            if stage.name in known:
                raise ValueError(f"{stage.name} is the name of two stages, or of a stage and an external input")
            known.add(stage.name)
        if self.past_frames and not self.takes("image"):
            raise ValueError(f"past_frames is {self.past_frames}, and no stage takes image")
        if self.past_windows and not self.takes("audio_window"):
            raise ValueError(f"past_windows is {self.past_windows}, and no stage takes audio_window")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, in the order in which they run."""
        return tuple(stage.name for stage in self.stages)

    def stage_of(self, graph: str) -> Stage:
        """Return the stage that a graph of the manifest belongs to: ``decoder`` for ``decoder@288x512``."""
        name = graph.partition("@")[0]
        return next(stage for stage in self.stages if stage.name == name)

    def dependencies(self, name: str) -> frozenset[str]:
        """Return the external inputs that a stage, or an external input, depends on, also through other stages."""
        if name in EXTERNAL_TENSORS:
            return frozenset({name})
        return frozenset[str]().union(*(self.dependencies(source) for source in self.stage_of(name).inputs))

    def takes(self, external: ExternalInput) -> bool:
        """True if a stage takes this external input."""
        return any(external in stage.inputs for stage in self.stages)

    @property
    def picture_stages(self) -> tuple[Stage, ...]:
        """Stages that depend only on the picture. They can run ahead, and a new sound does not change their outputs."""
        return tuple(stage for stage in self.stages if self.dependencies(stage.name) == {"image"})

    @property
    def sound_stages(self) -> tuple[Stage, ...]:
        """Stages that depend only on the audio window."""
        return tuple(stage for stage in self.stages if self.dependencies(stage.name) == {"audio_window"})

    @property
    def query_stages(self) -> tuple[Stage, ...]:
        """Stages that depend on the cues, and not on the picture."""
        of = {stage.name: self.dependencies(stage.name) for stage in self.stages}
        return tuple(stage for stage in self.stages if "cues" in of[stage.name] and "image" not in of[stage.name])

    @property
    def mask_stages(self) -> tuple[Stage, ...]:
        """Stages that depend on the picture and on another input."""
        return tuple(stage for stage in self.stages if self.dependencies(stage.name) > {"image"})


#: The program of TeSO, and of every bundle of schema 1.
TESO = Program(
    stages=(
        Stage(name="visual_encoder", inputs=("image",), sized=True, quantizable=True),
        Stage(name="audio_encoder", inputs=("audio_window",), quantizable=True),
        # This stage stays in floating point: it is small, and its cue gate decides which cues take part.
        Stage(name="fusion", inputs=("audio_encoder", "cues")),
        Stage(name="decoder", inputs=("fusion", "visual_encoder"), sized=True, quantizable=True),
    )
)


class Runs(Protocol[T_contra, T_co]):
    """The part of an engine's interface that :func:`run_program` needs.

    Its inputs and outputs are arrays, tensors of a device, or tensors of PyTorch.
    """

    def run(self, feeds: Mapping[str, T_contra], /) -> Mapping[str, T_co]:
        """Compute all outputs from all inputs. Feeds that the graph does not take are ignored."""


def group_inputs(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Group tensors by the external input that they belong to. Other tensors and incomplete inputs are omitted."""
    return {
        external: {name: tensors[name] for name in names}
        for external, names in EXTERNAL_TENSORS.items()
        if all(name in tensors for name in names)
    }


def select_inputs(program: Program, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Select the external tensors that a program takes, and add past moments if it takes them (:func:`repeat_past`)."""
    taken = [name for source in get_args(ExternalInput) if program.takes(source) for name in EXTERNAL_TENSORS[source]]
    return repeat_past(program, {name: tensors[name] for name in taken})


def repeat_past(program: Program, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add the axis of past moments to pictures and audio windows, if a program takes past moments.

    The past is that at the beginning of a stream: copies of the current moment.

    Args:
        program: The program.
        tensors: Tensors by name; ``image`` is (B, 3, H, W) and ``waveform`` (B, 15600).

    Returns:
        The tensors. Each moment of the past is equal to the current one.
    """
    past = {"image": program.past_frames, "waveform": program.past_windows}
    return {
        name: tensor[:, None].repeat(past[name] + 1, axis=1) if past.get(name) else tensor
        for name, tensor in tensors.items()
    }


def run_program(
    program: Program,
    engines: Mapping[str, Runs[T, T]],
    inputs: Mapping[str, Mapping[str, T]],
    *,
    stages: Iterable[Stage] | None = None,
) -> dict[str, Mapping[str, T]]:
    """Run stages of a program, each on the outputs of those before it.

    Args:
        program: The program.
        engines: Name of a stage → its engine. May contain more than the stages that run.
        inputs: External input, or a stage that has run already → its tensors by name.
        stages: The stages to run, in order. Default: all stages.

    Returns:
        ``inputs``, and the outputs of every stage that ran, by the stage's name.
    """
    found = dict(inputs)
    for stage in program.stages if stages is None else stages:
        feeds = {name: tensor for source in stage.inputs for name, tensor in found[source].items()}
        found[stage.name] = engines[stage.name].run(feeds)
    return found


def merge_tensors(found: Mapping[str, Mapping[str, T]], leave_out: Collection[str] = ()) -> dict[str, T]:
    """Merge the tensors of :func:`run_program` by their names; ``leave_out``: inputs or stages to omit."""
    kept = (tensors for source, tensors in found.items() if source not in leave_out)
    return {name: tensor for tensors in kept for name, tensor in tensors.items()}
