"""Recognising a file by its first bytes, because its name may be wrong.

A download that needed a password is a web page, a clone without Git LFS has pointers, and ``.pth.tar`` is rarely an
archive. For each kind of file without weights, a sentence says what to do.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Literal

from teso_deploy.errors import CheckpointError, InputNotFoundError
from teso_deploy.small_files import LFS_POINTER

Kind = Literal["safetensors", "zipped", "legacy", "pickle", "index", "gguf"]
LEGACY_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_BEGIN = b"\x8a\x0a" + LEGACY_TORCH_MAGIC.to_bytes(10, "little")
_HEAD = 4096
_SAVE = "save the model's state_dict with torch.save or as safetensors, and give that"
_UNPACK = "unpack it and give the file of weights in it"

#: Offset, bytes, what such a file is, what to do.
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, LFS_POINTER, "a pointer of Git LFS, not the file",
     "run `git lfs pull` where it was cloned, or download the file itself"),
    (0, b"/annex/objects/", "a pointer of git-annex, not the file", "run `git annex get` where it was cloned"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, MATLAB)", "give the model's PyTorch weights"),
    (4, b"TFL3", "a TensorFlow Lite model", "give the model's PyTorch weights"),
    (0, b"\x93NUMPY", "one NumPy array", f"a checkpoint has many named arrays: {_SAVE}"),
    (0, b"lmgg", "a GGML model", "give the model's PyTorch weights"),
    (0, b"tjgg", "a GGML model", "give the model's PyTorch weights"),
    (0, b"\x1f\x8b", "packed with gzip", _UNPACK),
    (0, b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (0, b"BZh", "packed with bzip2", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "packed with 7-Zip", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"MATLAB 5.0", "a MATLAB file", "give the model's PyTorch weights"),
    (0, b"\x89PNG", "a picture", "give the file of weights"),
    (0, b"\xff\xd8\xff", "a picture", "give the file of weights"),
    (4, b"ftyp", "a video", "give the file of weights"),
    (0, b"%PDF", "a PDF", "give the file of weights"),
)  # fmt: skip


def check_regular(path: Path) -> None:
    """Refuse a path that does not exist, and a FIFO or a device, for which reading would block.

    Raises :class:`InputNotFoundError`, :class:`CheckpointError`.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            raise InputNotFoundError(
                f"{path} is a link to a file that is not there: download the checkpoint again"
            ) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise InputNotFoundError(f"no checkpoint {path} ({reason}): check the path") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path} is neither a file nor a folder: copy the checkpoint to a file")


def identify(path: Path) -> Kind:
    """Return the kind of a weight file.

    Raises:
        InputNotFoundError: The file does not exist.
        CheckpointError: The file has no weights. The message says what it is and what to do.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}): check the path and its rights") from error
    if not head:
        raise CheckpointError(f"{path} is empty: copy it again")
    if not head.strip(b"\0"):
        raise CheckpointError(f"{path} begins with nothing but zeros, as a broken download does: copy it again")
    for place, magic, what, advice in _MAGICS:
        if head[place : place + len(magic)] == magic:
            raise CheckpointError(f"{path} is {what}: {advice}")
    if head.startswith(b"GGUF"):
        return "gguf"
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return _identify_zip(path)
    if head[8:9] == b"{" and (length := int.from_bytes(head[:8], "little")) < 2**40:
        if 8 + length > size:
            raise CheckpointError(f"{path} is truncated: copy it again")
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return "legacy" if head[2:].startswith(_LEGACY_BEGIN) else "pickle"
    _refuse_text(path, head)
    if head[0] == 8 and head[1:2] <= b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):
        raise CheckpointError(f"{path} seems to be an ONNX graph: give the model's PyTorch weights")
    return "index" if _begins_as_json(head) else "pickle"


def _identify_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is truncated: copy it again") from error
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise CheckpointError(f"{path} is TorchScript, a program and not weights: {_SAVE}")
    if "data.pkl" in inner:
        return "zipped"
    if "model.weights.h5" in names:
        raise CheckpointError(f"{path} is a Keras model: give the model's PyTorch weights")
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is an archive of NumPy arrays (.npz): {_SAVE}")
    raise CheckpointError(f"{path} is a zip archive without weights of PyTorch: {_UNPACK}")


def _begins_as_json(head: bytes) -> bool:
    return head[:64].isascii() and re.match(rb'\s*(\{\s*("|\})|\[)', head) is not None


def _refuse_text(path: Path, head: bytes) -> None:
    """Refuse web pages and other text with a :class:`CheckpointError`. JSON may be an index of shards."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower()
    if begin.startswith(b"<"):
        if b"<html" in begin or b"<!doctype html" in begin or b"<head" in begin:
            raise CheckpointError(
                f"{path} is a web page, not weights (a warning about large files, or a page to log in): download it in "
                "a browser, or with the tool of its site"
            )
        if begin.startswith(b"<?xml"):
            code = re.search(rb"<Code>([A-Za-z]{1,40})</Code>", head)
            said = f" ({code[1].decode()})" if code else ""
            raise CheckpointError(f"{path} is XML, as a server sends that refuses a download{said}: download it again")
    if _begins_as_json(head):
        return
    try:
        text = head[:512].decode("ascii")
    except UnicodeDecodeError:
        return
    # Pickles of the first protocols are text too, and end with a dot.
    if text.isprintable() or (text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() and " " in text):
        if _may_be_pickle(path):
            return
        raise CheckpointError(f"{path} is text, not weights: download it again")


def _may_be_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(1)
        file.seek(-1, os.SEEK_END)
        return first in b"(cd}]l" and file.read(1) == b"."
