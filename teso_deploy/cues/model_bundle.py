"""Captioner and reasoner as ``teso-deploy export-cues`` writes them: a folder of graphs and a manifest.

The manifest holds how pictures are prepared and how a conversation is written out. Both were taken from the checkpoints
at export, so nothing here needs transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from teso_deploy.errors import BundleError, InputNotFoundError
from teso_deploy.external_data import check_graph
from teso_deploy.hub import hub_snapshot
from teso_deploy.sealed import FileEntry, Kind
from teso_deploy.text import to_one_line

MANIFEST = "cue_models.json"
SCHEMA_VERSION = 1
KIND = Kind(
    MANIFEST,
    SCHEMA_VERSION,
    frozenset({"schema_version", "captioner", "reasoner", "files"}),
    "teso-deploy export-cues",
    "export the cue models again",
    former_manifest="cues.json",
)
TOKENIZER_FILE = "tokenizer.json"

ModelKind = Literal["decoder", "vision-encoder-decoder", "pix2struct", "llava"]
WeightPrecision = Literal["fp32", "int8", "int4"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DecoderEntry(_Table):
    """A decoder with a cache of keys and values: one pair (B, heads, T, head_dim) per layer.

    Attributes:
        context: The most tokens that it can hold.
        start: The ids that an answer of a captioner begins with.
        end: The ids that end an answer.
    """

    layers: int
    heads: int
    head_dim: int
    vocabulary: int
    context: int
    start: tuple[int, ...] = ()
    end: tuple[int, ...]


class ChatEntry(_Table):
    """How a conversation is written out: the texts between its turns, taken from the chat template.

    The turns are an optional system turn, and then a user and an assistant in alternation. If ``before_system`` is
    None, the template has no system turn. Its text then precedes the first user's text. ``before_user`` begins a
    conversation without a system turn. ``user_to_answer`` stands between the last user turn and the model's answer.
    """

    before_system: str | None
    system_to_user: str
    before_user: str
    user_to_assistant: str
    assistant_to_user: str
    user_to_answer: str


class ImageEntry(_Table):
    """How a picture is prepared.

    With ``patch`` and ``max_patches`` it is cut into pix2struct's variable grid. Otherwise it is resized, cropped and
    normalised as (x - mean) / std.
    """

    size: tuple[int, int]
    fit: Literal["stretch", "shortest-side-then-crop"] = "stretch"
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch: int | None = None
    max_patches: int | None = None


class ModelEntry(_Table):
    """One exported model.

    Attributes:
        folder: The folder of its files, relative to the manifest. Two entries may share one.
        architecture: Hugging Face's ``model_type``.
        graphs: Name → file.
        image_token: The id that the features of a picture replace (LLaVA).
        image_tokens: How many rows of features a picture has.
    """

    kind: ModelKind
    folder: str
    name: str
    architecture: str
    precision: WeightPrecision
    graphs: dict[str, str]
    decoder: DecoderEntry
    chat: ChatEntry | None = None
    image: ImageEntry | None = None
    image_token: int | None = None
    image_tokens: int | None = None
    licence: str = "unknown"


class CueModelsManifest(_Table):
    """The content of ``cue_models.json``."""

    schema_version: int = SCHEMA_VERSION
    captioner: ModelEntry | None = None
    reasoner: ModelEntry | None = None
    provenance: dict[str, str] = {}
    files: dict[str, FileEntry] = {}


class CueModels:
    """An opened folder whose files were checked."""

    def __init__(self, folder: Path, manifest: CueModelsManifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, path: str | Path) -> CueModels:
        """Open a folder and check every file. Raises :class:`InputNotFoundError`, :class:`BundleError`."""
        folder = Path(path)
        if not os.path.isdir(folder):
            raise InputNotFoundError(
                f"no cue models {to_one_line(folder)}: give the folder that `{KIND.command}` wrote"
            )
        folder = hub_snapshot(folder)
        models = cls(folder, KIND.read(folder, CueModelsManifest))
        KIND.check_files(folder, models.manifest.files)
        entries = [entry for entry in (models.manifest.captioner, models.manifest.reasoner) if entry is not None]
        for entry in entries:
            if absent := set(models._files(entry)) - models.manifest.files.keys():
                raise BundleError(
                    f"{folder}: the manifest gives no hash of {to_one_line(sorted(absent)[0])}; {KIND.again}"
                )
            for name in entry.graphs.values():
                check_graph(folder, f"{entry.folder}/{name}", models.manifest.files)
        return models

    @staticmethod
    def _files(entry: ModelEntry) -> list[str]:
        return [f"{entry.folder}/{name}" for name in (*entry.graphs.values(), TOKENIZER_FILE)]

    def identity(self, entry: ModelEntry) -> str:
        """Hash everything that a model's answers depend on."""
        files = {name: e.sha256 for name, e in self.manifest.files.items() if name.startswith(entry.folder + "/")}
        content = json.dumps([entry.model_dump(mode="json"), files], sort_keys=True)
        return f"{entry.name}:{hashlib.sha256(content.encode()).hexdigest()[:32]}"
