"""A case: one command line with separate inputs in a separate folder."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.answers import AnswerServer
from tests.fuzz.seeds import Seeds

#: Set in the environment and in addresses. It must not appear anywhere afterwards.
CANARY_KEY = "canary-of-the-key-8d1f"
CANARY_URL = "canary-of-the-address-5c27"
#: Folders of a case: inputs, outputs, the working directory, temporary files, and the home folder.
INPUTS, OUTPUTS, WORK, TEMPORARY, HOME = "in", "out", "work", "tmp", "home"


@dataclass(frozen=True, slots=True)
class Case:
    """A case.

    ``outputs``: paths in the folder of outputs that exist after exit 0, and that did not exist or differed before.
    ``codes``: the allowed exit codes. ``may_remain``: outputs that may exist after a failure too. ``what``: a
    description for people.
    """

    arguments: list[str]
    what: str
    outputs: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset({0, 2})
    may_remain: frozenset[str] = frozenset()
    stdin: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Workshop:
    """The means to make a case: a random generator, valid inputs, a server, and a folder."""

    def __init__(self, draw: random.Random, seeds: Seeds, server: AnswerServer, folder: Path) -> None:
        self.draw, self.seeds, self.server, self.folder = draw, seeds, server, folder
        for name in (INPUTS, OUTPUTS, WORK, TEMPORARY, HOME):
            (folder / name).mkdir(parents=True)

    def write(self, name: str, content: bytes) -> Path:
        """Write an input of the case."""
        path = self.folder / INPUTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def out(self, name: str) -> Path:
        """Return the path of an output."""
        return self.folder / OUTPUTS / name

    def copy_bundle(self) -> Path:
        """Copy the bundle to the inputs, to be changed."""
        return Path(shutil.copytree(self.seeds.bundle, self.folder / INPUTS / "bundle"))


Target = Callable[[Workshop], Case]
