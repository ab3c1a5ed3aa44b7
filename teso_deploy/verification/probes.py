"""What a set of engines gives for the inputs of ``reference.npz``: each graph by itself, and all in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.array_files import Expected
from teso_deploy.bundle import REFERENCE, Bundle, TensorSpec, sized_name
from teso_deploy.errors import BundleError
from teso_deploy.pipeline.pipeline import GRAPHS
from teso_deploy.types import ImageSize
from teso_deploy.verification.parity import Arrays

#: What the rows of the reference's sounds, cues and masks are.
ROWS = ("own", "muted", "other", "no cue")
#: Rows that are told apart when several pictures are given at once.
BATCH_ROWS = (0, 2, 3)


class Runs(Protocol):
    """What is needed of an engine, so that PyTorch can be one."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for all inputs."""


#: Graph → what runs it, at one picture size.
Engines = Mapping[str, Runs]


def reference_at(bundle: Bundle, size: ImageSize) -> dict[str, NDArray[Any]]:
    """``reference.npz`` as the graphs of a bucket see it, by plain tensor names.

    Raises :class:`BundleError` when it lacks one of their tensors.
    """
    is_first = size == bundle.sizes[0]
    stored_names, wanted = {}, {}
    for graph in GRAPHS:
        entry = bundle.manifest.graphs[bundle.graph_at(graph, size)]
        seen = [*entry.inputs, *entry.outputs] if graph in ("visual_encoder", "fusion") else list(entry.outputs)
        seen += [tensor for tensor in entry.inputs if tensor.name == "waveform"]
        for tensor in seen:
            depends_on_size = graph in ("visual_encoder", "decoder") and tensor.name != "waveform"
            stored = tensor.name if is_first or not depends_on_size else sized_name(tensor.name, size)
            stored_names[tensor.name] = stored
            wanted[stored] = _expected(tensor, 1 if graph == "visual_encoder" else len(ROWS))
    arrays = bundle.arrays(REFERENCE, wanted)
    if absent := [stored for stored in stored_names.values() if stored not in arrays]:
        raise BundleError(f"{bundle.folder}: {REFERENCE} lacks {absent[0]}; export the bundle again")
    return {name: arrays[stored] for name, stored in stored_names.items()}


def _expected(tensor: TensorSpec, rows: int) -> Expected:
    """What the reference holds of a graph's tensor; the one side that has a name is the batch."""
    kind = "b" if tensor.dtype == "bool" else "f"
    return Expected(kind, tuple(side if isinstance(side, int) else rows for side in tensor.shape))


def repeated(memory: Arrays, names: Sequence[str], count: int) -> dict[str, NDArray[Any]]:
    """One picture's tensors for several sounds."""
    return {name: np.repeat(memory[name], count, axis=0) for name in names}


def fed_with(reference: Arrays, graph: str, memory: Sequence[str]) -> Arrays:
    """A graph's inputs from the reference; ``memory``: names of the encoder's outputs."""
    return {**reference, **repeated(reference, memory, len(ROWS))} if graph == "decoder" else reference


def graph_outputs(engines: Engines, reference: Arrays) -> dict[str, dict[str, NDArray[Any]]]:
    """The outputs of every graph, given what PyTorch gave to it."""
    memory = engines["visual_encoder"].outputs
    return {name: engine.run(fed_with(reference, name, memory)) for name, engine in engines.items()}


def hear(engines: Engines, memory: Arrays, heard: Arrays) -> dict[str, NDArray[Any]]:
    """What follows the encoder, for sounds and cues: one picture for all of them, or one for each."""
    names, count = engines["visual_encoder"].outputs, len(heard["waveform"])
    if len(memory[names[0]]) != count:
        memory = repeated(memory, names, count)
    values = engines["audio_encoder"].run(heard)
    values |= engines["fusion"].run({**heard, **values})
    return values | engines["decoder"].run({**memory, **values})


def _rows(reference: Arrays, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
    return {name: reference[name][list(rows)] for name in ("waveform", "cues", "cue_valid")}


def pictures(reference: Arrays) -> NDArray[np.float32]:
    """(3, 3, H, W): the reference's picture, mirrored, and rolled."""
    image = reference["image"][0]
    height, width = image.shape[1:]
    return np.stack([image, image[:, :, ::-1], np.roll(image, (height // 2, width // 3), (1, 2))])


def _chain(engines: Engines, reference: Arrays, first: int, last: int) -> dict[str, NDArray[Any]]:
    """Every tensor between the graphs, for some of :func:`pictures`, each with its sound and cues."""
    images = np.ascontiguousarray(pictures(reference)[first:last])
    memory = engines["visual_encoder"].run({"image": images})
    return memory | hear(engines, memory, _rows(reference, BATCH_ROWS[first:last]))


def one_by_one(engines: Engines, reference: Arrays) -> list[dict[str, NDArray[Any]]]:
    """Every tensor between the graphs for each of :func:`pictures`."""
    return [_chain(engines, reference, i, i + 1) for i in range(len(BATCH_ROWS))]


def at_once(engines: Engines, reference: Arrays, count: int) -> dict[str, NDArray[Any]]:
    """The same for the first ``count`` of them in one batch."""
    return _chain(engines, reference, 0, count)


@dataclass(frozen=True, slots=True)
class Observed:
    """A set of engines at one picture size.

    ``graphs``: outputs of each, given PyTorch's inputs. ``masks`` (4, C, h, w): of all graphs in a row, for
    the reference's rows. ``heard`` (S, C, h, w): the same for the sounds of the audio control.
    """

    graphs: dict[str, dict[str, NDArray[Any]]]
    masks: NDArray[Any]
    heard: NDArray[Any] | None


def observe(engines: Engines, reference: Arrays, heard: Arrays | None) -> Observed:
    """Run everything but the batches. ``heard``: sounds (S, 15600) of the audio control, each with its cues."""
    graphs = graph_outputs(engines, reference)
    memory = graphs["visual_encoder"]
    masks = hear(engines, memory, _rows(reference, range(len(ROWS))))["masks"]
    return Observed(graphs, masks, None if heard is None else hear(engines, memory, heard)["masks"])
