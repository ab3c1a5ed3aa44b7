"""Build profiles as data: batches, effort, memory, and the GPUs that an engine runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from teso_deploy.errors import EngineError, InputNotFoundError
from teso_deploy.program import Program
from teso_deploy.resources import find_shipped_path
from teso_deploy.small_files import parse_toml, read_text
from teso_deploy.text import to_one_line

FOLDER = "engines/profiles"
DEFAULT_PROFILE = "live"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Batch(_Table):
    """Batch sizes of a graph: an engine takes ``min`` to ``max`` and is fastest at ``opt``."""

    min: int = Field(default=1, ge=1)
    opt: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Batch:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min <= opt <= max does not hold: {self.min}, {self.opt}, {self.max}")
        return self


class BuildProfile(_Table):
    """A file of ``engines/profiles``.

    Attributes:
        name: Its name.
        summary: Its purpose, in a few words.
        batch: Batch sizes of every graph.
        batches: Batch sizes of single graphs by name, instead of ``batch``.
        workspace_mib: Memory in MiB that a kernel may use besides its tensors.
        optimization_level: How long the builder looks for faster kernels, 0 … 5.
        hardware_compatibility: Which other GPUs an engine of TensorRT runs on. Default: none.
        tf32: Whether products of fp32 graphs are rounded to 10 bits. Faster, but no longer within the limits of fp32.
        timing_cache: Whether TensorRT's timings are kept for the next build.
        cuda_graphs: Whether each graph's kernels are recorded and launched together.
    """

    name: str
    summary: str
    batch: Batch = Batch()
    batches: dict[str, Batch] = {}
    workspace_mib: int = Field(default=2048, ge=16)
    optimization_level: int = Field(default=3, ge=0, le=5)
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    tf32: bool = False
    timing_cache: bool = True
    cuda_graphs: bool = True

    def check_stages(self, program: Program) -> None:
        """Raise :class:`EngineError` if the profile names a stage that the program does not have."""
        if unknown := sorted(self.batches.keys() - set(program.names)):
            raise EngineError(
                f"profile {self.name} has batches of {to_one_line(unknown[0])}, which is not a stage of this bundle: "
                f"name one of {', '.join(program.names)}"
            )

    def batch_of(self, graph: str) -> Batch:
        """Batch sizes of a graph, by its name in the manifest (``decoder@288x512``)."""
        return self.batches.get(graph.partition("@")[0], self.batch)


def list_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in find_shipped_path(FOLDER).glob("*.toml"))


def load_profile(name: str = DEFAULT_PROFILE) -> BuildProfile:
    """Load a shipped profile by its name, or a TOML file.

    Raises:
        InputNotFoundError: There is no such profile, or it can't be read.
        EngineError: It has an unknown key or a value that is not allowed.
    """
    path = Path(name) if name.endswith(".toml") else find_shipped_path(f"{FOLDER}/{name}.toml")
    if not os.path.isfile(path):  # Path.is_file raises for a folder without permission
        raise InputNotFoundError(f"no build profile {name}: give a TOML file, or one of {', '.join(list_profiles())}")
    try:
        text = read_text(path, f"a build profile that you may read, or one of {', '.join(list_profiles())}")
        return BuildProfile.model_validate({"name": path.stem, **parse_toml(text, path, error=EngineError)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EngineError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
