"""Folders with a manifest of every file in them: written completely or not at all, and checked when opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teso_deploy.errors import BundleError, InputNotFoundError, OutputError
from teso_deploy.outputs import Target, explain_errors, find_target
from teso_deploy.small_files import LFS_ADVICE, LFS_POINTER, parse_json, read_text
from teso_deploy.staging import clear_leftovers, create_folder, is_staged, put_in_place
from teso_deploy.text import is_name, to_one_line

M = TypeVar("M", bound=BaseModel)


#: A limit far above the size of real manifests, which have tens of kilobytes.
MANIFEST_BYTES = 16 << 20


class FileEntry(BaseModel):
    """Size and hash of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    bytes: Annotated[int, Field(ge=0)]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Device names on Windows, in any folder and with any ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_MOST_LETTERS = 255


def find_inside(folder: Path, name: str) -> Path:
    """Return the path of a folder's file. Raises :class:`BundleError` for a name that leads out of it.

    Links are followed wherever they lead, because a download of the Hugging Face hub is a folder of links. The
    content is checked anyway: its hash must be that of the manifest.
    """
    pure = PurePosixPath(name)
    strange = pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name
    if strange or PureWindowsPath(name).drive:
        raise BundleError(
            f"{folder}: the manifest names {to_one_line(repr(name))}, which is outside the bundle; "
            "do not use this bundle"
        )
    is_device = any(_DEVICE.fullmatch(part) for part in pure.parts)
    if is_device or not pure.parts or not is_name(name) or max(map(len, pure.parts)) > _MOST_LETTERS:
        raise BundleError(
            f"{folder}: the manifest names {to_one_line(repr(name))}, which can't be a file; do not use this bundle"
        )
    return folder / name


def describe_first_fault(error: ValidationError) -> str:
    """Describe the first fault of a table as one printable line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = to_one_line(".".join(map(str, first["loc"])))
    return f"{where}: ".removeprefix(": ") + to_one_line(first["msg"].removeprefix("Value error, "))


def _begin_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of folder.

    Attributes:
        manifest: The name of the manifest's file.
        schema_version: The version of the manifest that this package writes.
        keys: Keys that distinguish its manifest from other JSON.
        command: The command that writes such a folder.
        again: The advice in messages if the folder is damaged.
        former_manifest: The name that earlier versions gave the manifest's file; it is still read.
        oldest_schema_version: The oldest version that is still read. Default: only ``schema_version``.
    """

    manifest: str
    schema_version: int
    keys: frozenset[str]
    command: str
    again: str
    former_manifest: str | None = None
    oldest_schema_version: int | None = None

    def _find_manifest(self, folder: Path) -> Path:
        """Return the manifest's file. If the folder has it only under its former name, that is returned."""
        former = folder / (self.former_manifest or self.manifest)
        is_former = os.path.lexists(former) and not os.path.lexists(folder / self.manifest)
        return former if is_former else folder / self.manifest

    def read(self, folder: Path, model: type[M]) -> M:
        """Read the manifest. Raises :class:`BundleError`, which names the fault."""
        path = self._find_manifest(folder)
        what = f"a folder that `{self.command}` wrote"
        try:
            text = read_text(path, what, limit_bytes=MANIFEST_BYTES, error=BundleError)
        except InputNotFoundError:
            former = f", nor {self.former_manifest} of earlier versions" if self.former_manifest else ""
            raise BundleError(
                f"{to_one_line(folder)} has no {self.manifest}{former}: give the folder that `{self.command}` wrote"
            ) from None
        except BundleError as error:
            raise BundleError(f"{error}, or {self.again}") from error
        if text.startswith(LFS_POINTER.decode()):
            raise BundleError(f"{path} {LFS_ADVICE}")
        content = parse_json(text, path, error=BundleError, advice=self.again)
        self._check_version(path, content.get("schema_version") if isinstance(content, dict) else None)
        try:
            return model.model_validate(content)
        except ValidationError as error:
            raise BundleError(f"{path}: {describe_first_fault(error)}; {self.again}") from error

    def _check_version(self, path: Path, version: object) -> None:
        newest = self.schema_version
        oldest = newest if self.oldest_schema_version is None else self.oldest_schema_version
        known = str(newest) if oldest == newest else f"{oldest} to {newest}"
        remedy = f"{self.again} with this version of teso-deploy"
        if isinstance(version, int) and not isinstance(version, bool):
            if oldest <= version <= newest:
                return
            if version > newest:
                remedy = f"install a newer teso-deploy, or {remedy}"
        raise BundleError(f"{path} has schema version {to_one_line(version)}, but this package reads {known}: {remedy}")

    def check_files(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        """Check that every file exists, is inside the folder, and is unchanged. Raises :class:`BundleError`."""
        for name, entry in files.items():
            path = find_inside(folder, name)
            try:
                status = path.stat()
                is_whole = stat.S_ISREG(status.st_mode) and status.st_size == entry.bytes
                is_ours = is_whole and hash_file(path) == entry.sha256
                is_pointer = stat.S_ISREG(status.st_mode) and not is_ours and _begin_of(path) == LFS_POINTER
            except (FileNotFoundError, NotADirectoryError):
                raise BundleError(f"{folder}: {name} is missing; {self.again}") from None
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise BundleError(
                    f"{folder}: {name} can't be read ({reason}): make it readable for you, or {self.again}"
                ) from error
            if is_pointer:
                raise BundleError(f"{folder}: {name} {LFS_ADVICE}")
            if not is_ours:
                raise BundleError(f"{folder}: {name} is not the file that was exported (another hash); {self.again}")

    def hash_files(self, folder: Path) -> dict[str, FileEntry]:
        """Return an entry for every file in a folder except the manifest, by relative POSIX path."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != self.manifest)
        return {
            path.relative_to(folder).as_posix(): FileEntry(sha256=hash_file(path), bytes=path.stat().st_size)
            for path in paths
        }

    def write(self, folder: Path, manifest: BaseModel) -> None:
        """Write the manifest of a staged folder."""
        text = json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
        (folder / self.manifest).write_text(text + "\n", encoding="utf-8")

    def _check_replaceable(self, out: Path, folder: Path) -> None:
        """Refuse a folder that is not empty and of another kind, or that has files which its manifest lacks."""
        with explain_errors(out):
            found = {
                path.relative_to(folder).as_posix()
                for path in folder.rglob("*")
                if (path.is_symlink() or not path.is_dir()) and not is_staged(path.relative_to(folder).parts[0])
            }
        if not found:
            return
        manifest = self._find_manifest(folder)
        try:
            text = read_text(manifest, "a manifest", limit_bytes=MANIFEST_BYTES)
            content = parse_json(text, manifest.name, error=OutputError)
        except (InputNotFoundError, OutputError):
            content = None
        if not (isinstance(content, dict) and self.keys <= content.keys()):
            raise OutputError(f"{out} exists and is not a bundle: give another --out; nothing was changed")
        listed = content.get("files")
        if more := sorted(found - {manifest.name} - set(listed if isinstance(listed, dict) else ())):
            raise OutputError(
                f"{out} holds {more[0]}, which does not belong to the bundle: move it away, or give another --out; "
                "nothing was "
                "changed"
            )

    def check_target(self, out: Path) -> Target:
        """Check, before work starts, that such a folder can be written. Raises :class:`OutputError`.

        An existing folder of this kind is replaced, in any version, also through a link.
        """
        target = find_target(out)
        if target.kind in ("file", "stream"):
            raise OutputError(f"{out} exists and is not a bundle: give another --out; nothing was changed")
        if target.kind == "folder":
            self._check_replaceable(out, target.path)
        parent = target.path.parent
        while not os.path.lexists(parent):
            parent = parent.parent
        if not (os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK)):
            raise OutputError(f"{out} can't be written: {parent} is not a folder that you may write to")
        if target.kind == "folder" and os.path.ismount(target.path):
            raise OutputError(f"{out} can't be replaced: it is a mount point; name a folder in it")
        return target

    @contextmanager
    def staging(self, out: Path) -> Iterator[Path]:
        """Yield a new folder that replaces ``out`` if the block succeeds, and is removed otherwise.

        Raises :class:`OutputError` if ``out`` can't be written or is not such a folder.
        """
        place = self.check_target(out).path
        with explain_errors(out):
            place.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(place.parent)
            with create_folder(place.parent) as new:
                yield new
                self.check_target(out)
                put_in_place(new, place)
