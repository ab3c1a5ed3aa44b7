"""Teachers: trained networks of other projects, whose features our network learns to predict.

A teacher gets the same composed pictures and sounds. Its features show which things are similar, which a few hundred
pictures can't teach. The network learns from these features; it contains none of the teacher's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teso_deploy.errors import DataError, InputNotFoundError, MissingExtraError
from teso_deploy.models.audio import LOG_OFFSET, LogMel
from teso_deploy.recipe import TeacherRecipe, TrainRecipe
from teso_deploy.requirements import write_install_command
from teso_deploy.training.batches import Lesson

#: The number that YAMNet adds before the logarithm (VGGish: 0.01). The mel bands are the same.
_YAMNET_LOG_OFFSET = 0.001


Learnt = TypeVar("Learnt", bound=Lesson)


class Features(Protocol):
    """(B, …) → several feature maps (B, C_i, h_i, w_i) float32."""

    @property
    def channels(self) -> tuple[int, ...]:
        """C_i of each map."""

    def __call__(self, inputs: NDArray[Any]) -> tuple[Tensor, ...]:
        """Compute the features of a batch."""


class TensorFlowLiteTeacher:
    """Feature maps of a TensorFlow Lite file, each chosen by a part of its tensor's name.

    Raises:
        InputNotFoundError: The file does not exist.
        DataError: It is not such a file, or lacks a tensor.
        MissingExtraError: The library is not installed.
    """

    def __init__(self, path: Path, tensors: Sequence[str]) -> None:
        try:
            from ai_edge_litert import interpreter, schema_py_generated
        except ImportError as error:
            raise MissingExtraError(
                f"a recipe with teachers needs ai-edge-litert: {write_install_command('train')}"
            ) from error
        if not path.is_file():
            raise InputNotFoundError(f"no teacher {path}: put it there, or take it out of the recipe's [train]")
        content = bytearray(path.read_bytes())
        if content[4:8] != b"TFL3":
            raise DataError(f"{path} is not a TensorFlow Lite file: download it again (with Git LFS: git lfs pull)")
        try:
            _end_at(content, schema_py_generated.Model.GetRootAs(content, 0).Subgraphs(0), tensors=tensors, path=path)
            self._interpreter = interpreter.Interpreter(model_content=bytes(content))
            self._interpreter.allocate_tensors()
        except DataError:
            raise
        except Exception as error:  # a truncated file raises struct.error, IndexError, ValueError, RuntimeError
            raise DataError(f"{path} is damaged: download it again") from error
        self._input = self._interpreter.get_input_details()[0]
        self.channels = tuple(int(output["shape"][-1]) for output in self._interpreter.get_output_details())

    def __call__(self, inputs: NDArray[Any]) -> tuple[Tensor, ...]:
        """Run a batch (B, …) in the network's input type. Return each tensor as (B, C, h, w) float32."""
        if tuple(self._interpreter.get_input_details()[0]["shape"]) != inputs.shape:
            self._interpreter.resize_tensor_input(self._input["index"], inputs.shape)
            self._interpreter.allocate_tensors()
        self._interpreter.set_tensor(self._input["index"], inputs.astype(self._input["dtype"], copy=False))
        self._interpreter.invoke()
        return tuple(self._features(output) for output in self._interpreter.get_output_details())

    def _features(self, output: dict[str, Any]) -> Tensor:
        scale, zero = output["quantization"]
        features = (self._interpreter.get_tensor(output["index"]).astype(np.float32) - zero) * (scale or 1.0)
        return torch.from_numpy(np.moveaxis(features, -1, 1).astype(np.float32))


def _end_at(content: bytearray, graph: Any, *, tensors: Sequence[str], path: Path) -> None:
    """Make ``tensors`` the outputs of a TensorFlow Lite graph in memory, and remove the operators after them.

    With its fast kernels, an interpreter returns no tensors except the outputs.

    Args:
        content: The file, changed in place.
        graph: Its parsed graph.
        tensors: Parts of the tensors' names.
        path: The file's path, for messages.
    """
    made = [int(graph.Operators(i).Outputs(0)) for i in range(graph.OperatorsLength())]
    names = [graph.Tensors(output).Name().decode() for output in made]
    ends = []
    for tensor in tensors:
        found = [i for i, name in enumerate(names) if tensor in name]
        if not found:
            raise DataError(f"{path} has no tensor {tensor!r}: the recipe's [train] is for another teacher")
        ends.append(found[-1])
    # Fields of a SubGraph in the format's schema: the third (8) points to the outputs, the fourth (10)
    # to the operators. The new list of outputs is appended.
    content += bytes(-len(content) % 4)
    field = graph._tab.Pos + graph._tab.Offset(8)
    content[field : field + 4] = (len(content) - field).to_bytes(4, "little")
    content += b"".join(number.to_bytes(4, "little") for number in (len(ends), *(made[end] for end in ends)))
    operators = graph._tab.Vector(graph._tab.Offset(10))
    content[operators - 4 : operators] = (max(ends) + 1).to_bytes(4, "little")


def compute_yamnet_patches(waveform: Tensor, log_mel: LogMel) -> NDArray[np.float32]:
    """Compute the log mel patches for YAMNet: (N, 15600) → (N, 96, 64)."""
    with torch.no_grad():
        mel = torch.exp(log_mel(waveform)[:, 0]) - LOG_OFFSET
    return torch.log(mel.clamp(min=0) + _YAMNET_LOG_OFFSET).numpy()


@dataclass(frozen=True, slots=True)
class Teachers:
    """The teachers of a run. Both are optional."""

    picture: Features | None = None
    sound: Features | None = None
    log_mel: LogMel | None = None

    @property
    def channels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels of the teachers' features, for the picture and for the sound; empty without a teacher."""
        return (self.picture.channels if self.picture else (), self.sound.channels if self.sound else ())

    def answer(self, lesson: Learnt) -> Learnt:
        """Return the lesson with the teachers' features."""
        seen = () if self.picture is None else self.picture(lesson.photograph.numpy())
        if self.sound is None or self.log_mel is None:
            return replace(lesson, picture_features=seen)
        # One window at a time: YAMNet, unlike the network for pictures, is built for a batch of one.
        patches = compute_yamnet_patches(lesson.waveform, self.log_mel)
        heard = [self.sound(patch[None]) for patch in patches]
        return replace(lesson, picture_features=seen, sound_features=tuple(map(torch.cat, zip(*heard, strict=True))))


def load_teachers(train: TrainRecipe, data: Path) -> Teachers:
    """Load the teachers that a recipe names, from the media folder."""

    def load(recipe: TeacherRecipe | None) -> TensorFlowLiteTeacher | None:
        return None if recipe is None else TensorFlowLiteTeacher(data / recipe.file, recipe.tensors)

    sound = load(train.sound_teacher)
    return Teachers(load(train.picture_teacher), sound, None if sound is None else LogMel())
