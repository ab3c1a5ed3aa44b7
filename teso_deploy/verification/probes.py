"""Outputs of a set of engines for the inputs of ``reference.npz``: of each graph alone, and of the whole program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.array_files import Expected
from teso_deploy.bundle import REFERENCE, Bundle, TensorSpec, make_sized_name
from teso_deploy.errors import BundleError
from teso_deploy.program import EXTERNAL_TENSORS, MASKS, Program, group_inputs, merge_tensors, run_program
from teso_deploy.types import ImageSize
from teso_deploy.verification.parity import Arrays

#: Names of the rows in the reference's sounds, cues and masks. Tensors that depend only on the picture have one row.
ROWS = ("own", "muted", "other", "no cue")
#: The rows that are combined with the pictures of a batch.
BATCH_ROWS = (0, 2, 3)


class Runs(Protocol):
    """The part of an engine's interface that comparisons need. PyTorch's modules can offer it too."""

    @property
    def precision(self) -> str:
        """The precision in which the graph is computed."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs from all inputs."""


#: Graph → its engine, at one picture size.
Engines = Mapping[str, Runs]


def read_reference(bundle: Bundle, size: ImageSize) -> dict[str, NDArray[Any]]:
    """Read ``reference.npz`` for the graphs of a bucket, by plain tensor names.

    Raises :class:`BundleError` if it lacks one of their tensors.
    """
    program, is_first = bundle.program, size == bundle.sizes[0]
    stored_names: dict[str, str] = {}
    wanted: dict[str, Expected] = {}

    def want(tensor: TensorSpec, source: str) -> None:
        depends_on = program.dependencies(source)
        stored = tensor.name if is_first or "image" not in depends_on else make_sized_name(tensor.name, size)
        stored_names[tensor.name] = stored
        wanted[stored] = _expect(tensor, 1 if depends_on == {"image"} else len(ROWS))

    for stage in program.stages:
        entry = bundle.manifest.graphs[bundle.graph_at(stage.name, size)]
        for tensor in entry.outputs:
            want(tensor, stage.name)
        for tensor in entry.inputs:
            for external in EXTERNAL_TENSORS.keys() & set(stage.inputs):
                if tensor.name in EXTERNAL_TENSORS[external]:
                    want(tensor, external)
    arrays = bundle.arrays(REFERENCE, wanted)
    if absent := [stored for stored in stored_names.values() if stored not in arrays]:
        raise BundleError(f"{bundle.folder}: {REFERENCE} lacks {absent[0]}; export the bundle again")
    return {name: arrays[stored] for name, stored in stored_names.items()}


def _expect(tensor: TensorSpec, rows: int) -> Expected:
    """Return the type and shape of a graph's tensor in the reference. The side that has a name is the batch."""
    kind = "b" if tensor.dtype == "bool" else "f"
    return Expected(kind, tuple(side if isinstance(side, int) else rows for side in tensor.shape))


def take_inputs(tensors: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Select the tensors of a graph's inputs. If there are several sounds, tensors of one picture are repeated."""
    count = max(len(tensors[name]) for name in names)
    return {
        name: tensors[name] if len(tensors[name]) == count else np.repeat(tensors[name], count, axis=0)
        for name in names
    }


class SpreadEngine:
    """An engine that repeats inputs of batch 1 if other inputs have a larger batch."""

    def __init__(self, engine: Runs) -> None:
        self._engine = engine

    def run(self, feeds: Arrays, /) -> Arrays:
        """Compute all outputs from all inputs."""
        return self._engine.run(take_inputs(feeds, self._engine.inputs))


def compute_graph_outputs(engines: Engines, reference: Arrays) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the outputs of every graph, each with the model's tensors as inputs."""
    return {name: engine.run(take_inputs(reference, engine.inputs)) for name, engine in engines.items()}


def run_whole(
    program: Program, engines: Engines, inputs: Arrays, *, seen: Mapping[str, Arrays] | None = None
) -> dict[str, NDArray[Any]]:
    """Run a program on engines, each stage on the outputs of those before it.

    Args:
        program: The program.
        engines: The engine of every stage, by name.
        inputs: External tensors; one picture may be combined with several sounds.
        seen: Outputs of stages that have run already, by stage. Default: none has.

    Returns:
        The outputs of the stages by tensor name, including those of ``seen``.
    """
    done = seen or {}
    spread = {name: SpreadEngine(engine) for name, engine in engines.items()}
    stages = [stage for stage in program.stages if stage.name not in done]
    found = run_program(program, spread, {**group_inputs(inputs), **done}, stages=stages)
    return merge_tensors(found, leave_out=EXTERNAL_TENSORS)


def take_rows(reference: Arrays, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return the reference's picture, and some rows of its sounds and cues."""
    names = [name for tensors in EXTERNAL_TENSORS.values() for name in tensors if name in reference]
    return {name: reference[name] if name == "image" else reference[name][list(rows)] for name in names}


def make_pictures(reference: Arrays) -> NDArray[np.float32]:
    """Return three pictures (3, ..., 3, H, W): the reference's, the same mirrored, and the same rolled."""
    image = reference["image"][0]
    height, width = image.shape[-2:]
    return np.stack([image, image[..., ::-1], np.roll(image, (height // 2, width // 3), (-2, -1))])


def _run_pictures(
    program: Program, engines: Engines, reference: Arrays, *, first: int, last: int
) -> dict[str, NDArray[Any]]:
    """Return every tensor between the graphs, for some of :func:`make_pictures`, each with its sound and cues."""
    images = np.ascontiguousarray(make_pictures(reference)[first:last])
    return run_whole(program, engines, {**take_rows(reference, BATCH_ROWS[first:last]), "image": images})


def run_one_by_one(program: Program, engines: Engines, reference: Arrays) -> list[dict[str, NDArray[Any]]]:
    """Run each of :func:`make_pictures` alone.

    Args:
        program: The program.
        engines: The engine of every stage, by name.
        reference: The tensors of ``reference.npz``.

    Returns:
        Every tensor between the graphs, by name, for each picture.
    """
    return [_run_pictures(program, engines, reference, first=i, last=i + 1) for i in range(len(BATCH_ROWS))]


def run_at_once(program: Program, engines: Engines, reference: Arrays, *, count: int) -> dict[str, NDArray[Any]]:
    """Run the first of :func:`make_pictures` in one batch.

    Args:
        program: The program.
        engines: The engine of every stage, by name.
        reference: The tensors of ``reference.npz``.
        count: Number of pictures.

    Returns:
        Every tensor between the graphs, by name.
    """
    return _run_pictures(program, engines, reference, first=0, last=count)


@dataclass(frozen=True, slots=True)
class Observed:
    """The outputs of a set of engines at one picture size.

    ``graphs``: outputs of each graph for PyTorch's inputs. ``masks`` (4, C, h, w): of the whole program, for
    the reference's rows. ``heard`` (S, C, h, w): the same for the sounds of the audio control.
    """

    graphs: dict[str, dict[str, NDArray[Any]]]
    masks: NDArray[Any]
    heard: NDArray[Any] | None


def observe(program: Program, engines: Engines, reference: Arrays, *, heard: Arrays | None = None) -> Observed:
    """Run everything except the batches.

    Args:
        program: The program.
        engines: The engine of every stage, by name.
        reference: The tensors of ``reference.npz``.
        heard: Sounds (S, 15600) of the audio control, each with its cues. Default: no audio control.

    Returns:
        The outputs.
    """
    graphs = compute_graph_outputs(engines, reference)
    seen = {stage.name: graphs[stage.name] for stage in program.picture_stages}
    image = {"image": reference["image"]}
    masks = run_whole(program, engines, take_rows(reference, range(len(ROWS))), seen=seen)[MASKS]
    control = None if heard is None else run_whole(program, engines, {**image, **heard}, seen=seen)[MASKS]
    return Observed(graphs, masks, control)
