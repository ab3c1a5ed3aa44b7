"""A case: one command line with separate inputs in a separate folder."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.answers import AnswerServer
from tests.fuzz.seeds import Seeds

#: Set in the environment and in addresses. It must not be seen anywhere afterwards.
CANARY_KEY = "canary-of-the-key-8d1f"
CANARY_URL = "canary-of-the-address-5c27"
#: Folders of a case: its inputs, its outputs, where the command runs, and where temporary and kept files go.
INPUTS, OUTPUTS, WORK, TEMPORARY, HOME = "in", "out", "work", "tmp", "home"


@dataclass(frozen=True, slots=True)
class Case:
    """``outputs``: places in the folder of outputs that are there after exit 0, and were not or were other before.

    ``codes``: how it may end. ``may_remain``: outputs that may be there after a failure, too. ``what``: for people.
    """

    arguments: list[str]
    what: str
    outputs: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset({0, 2})
    may_remain: frozenset[str] = frozenset()
    stdin: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Workshop:
    """What a target makes a case with: a generator, right inputs, a server, and a folder."""

    def __init__(self, draw: random.Random, seeds: Seeds, server: AnswerServer, folder: Path) -> None:
        self.draw, self.seeds, self.server, self.folder = draw, seeds, server, folder
        for name in (INPUTS, OUTPUTS, WORK, TEMPORARY, HOME):
            (folder / name).mkdir(parents=True)

    def write(self, name: str, content: bytes) -> Path:
        """An input of the case."""
        path = self.folder / INPUTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def out(self, name: str) -> Path:
        """Where an output goes."""
        return self.folder / OUTPUTS / name

    def copy_bundle(self) -> Path:
        """The bundle among the inputs, to be changed."""
        return Path(shutil.copytree(self.seeds.bundle, self.folder / INPUTS / "bundle"))


Target = Callable[[Workshop], Case]
