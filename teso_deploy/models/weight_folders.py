"""Finding the weight files of a path: folders, shards, indices, caches of Hugging Face.

Files are searched only in the folder of an index. Links are followed, because in a cache every file is a link.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from teso_deploy.errors import CheckpointError
from teso_deploy.hub import hub_snapshot
from teso_deploy.models.file_kinds import Kind, check_regular, identify
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.text import to_one_line

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_INDEX_ENDING = ".index.json"
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<suffix>\.\w+)")
#: The size limit of an index in bytes. An index of 100,000 tensors has 10 MB.
_LARGEST_INDEX = 64 << 20
#: Files that show that a folder has another kind of weights, and what to do.
_OTHERS = (
    ("bundle.json", "is a bundle, which has no PyTorch weights: give the checkpoint that it was exported from"),
    ("zero_to_fp32.py", "holds the parts of a DeepSpeed run: join them with `python zero_to_fp32.py . weights.pt`"),
    (".metadata", "is a distributed checkpoint of PyTorch: join it with "
     "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt`"),
    ("adapter_model.safetensors", "holds a LoRA adapter without its model: merge it (merge_and_unload) and save that"),
    ("adapter_model.bin", "holds a LoRA adapter without its model: merge it (merge_and_unload) and save that"),
    ("tf_model.h5", "holds weights of TensorFlow: give the model's PyTorch weights"),
    ("flax_model.msgpack", "holds weights of Flax: give the model's PyTorch weights"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a checkpoint with their kinds, and by file the keys that an index promises."""

    files: tuple[tuple[Path, Kind], ...]
    promised: dict[str, str]

    @property
    def folder(self) -> Path:
        """The folder of the weight files. It may have other files of the checkpoint, such as its vocabulary."""
        return self.files[0][0].parent


def find_weight_files(path: Path) -> WeightFiles:
    """Find the files of a checkpoint, named by a file, a shard, an index, a folder or a folder of the cache.

    Raises:
        InputNotFoundError: The path does not exist.
        CheckpointError: The path has no weights, and what it has instead; or the shards that are missing.
    """
    check_regular(path)
    if path.is_dir():
        return _find_in_folder(path)
    if (shard := _SHARD.fullmatch(path.name)) and int(shard["count"]) > 1:
        index = path.with_name(f"{shard['stem']}{shard['suffix']}{_INDEX_ENDING}")
        return _read_index(index) if index.is_file() else _find_shards(path, shard)
    kind = identify(path)
    return _read_index(path) if kind == "index" else WeightFiles(((path, kind),), {})


def _find_in_folder(folder: Path) -> WeightFiles:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read ({error.strerror}): check its rights") from error
    if (snapshot := find_snapshot(folder)) != folder:
        return _find_in_folder(snapshot)
    files = [name for name in names if (folder / name).is_file()]
    # For a broken link into a cache, the message can say more than that the file does not exist.
    broken = [name for name in names if name.endswith(_SUFFIXES) and not (folder / name).exists()]
    if broken:
        check_regular(folder / broken[0])
    for name in _WEIGHTS:
        if name in files:
            return WeightFiles(((folder / name, identify(folder / name)),), {})
    indices = [name for name in files if name.endswith(_INDEX_ENDING)]
    if len(indices) > 1:
        indices = [name for name in indices if name in ("model.safetensors.index.json", "pytorch_model.bin.index.json")]
    if indices:
        return _read_index(folder / indices[0])
    for name, sentence in _OTHERS:
        if name in names:
            raise CheckpointError(f"{folder} {sentence}")
    weights = [name for name in files if name.endswith(_SUFFIXES)]
    if len(weights) == 1 or (weights and all(_SHARD.fullmatch(name) for name in weights)):
        return find_weight_files(folder / weights[0])
    if weights:
        raise CheckpointError(
            f"{folder} holds several files of weights ({_list_names(weights)}): name the one you mean"
        )
    raise CheckpointError(f"{folder} holds no weights: give the folder that has the {_WEIGHTS[0]} or the .pth file")


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return to_one_line(", ".join(names[:3]), 200) + more


def find_snapshot(folder: Path) -> Path:
    """Return the snapshot of a model's folder in a Hugging Face cache; any other folder is returned unchanged.

    Raises :class:`CheckpointError` if there are several and none is ``main``.
    """
    root = folder.parent if folder.name == "snapshots" and (folder.parent / "blobs").is_dir() else folder
    found = hub_snapshot(root)
    if found == root and (root / "snapshots").is_dir():
        raise CheckpointError(f"{root} has no snapshot, or several: name one of the folders in {root / 'snapshots'}")
    return folder if found == root else found


def _find_shards(path: Path, shard: re.Match[str]) -> WeightFiles:
    """Return all shards beside a given one, if no index exists."""
    width, count = len(shard["number"]), int(shard["count"])
    if count > 10_000:
        raise CheckpointError(f"{path} is one of {count} shards: give the folder that holds them all")
    names = [
        f"{shard['stem']}-{number:0{width}}-of-{shard['count']}{shard['suffix']}"
        for number in range(1, count + 1)
    ]  # fmt: skip
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} is one of {count} shards; download those that are missing: {_list_names(missing)}"
        )
    return WeightFiles(tuple((path.with_name(name), identify(path.with_name(name))) for name in names), {})


def _read_index(path: Path) -> WeightFiles:
    """Return the shards that an index names. All of them are in its folder."""
    text = read_text(path, "an index of shards", limit_bytes=_LARGEST_INDEX, error=CheckpointError)
    content = parse_json(text, path, error=CheckpointError)
    promised = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(promised, dict) or not promised:
        raise CheckpointError(
            f"{path} is JSON, but not an index of shards: give the file or folder of weights, or download it again"
        )
    shards: dict[str, None] = {}
    for shard in promised.values():
        if not isinstance(shard, str) or os.path.basename(shard) != shard or shard in ("", ".", "..") or "\0" in shard:
            raise CheckpointError(
                f"{path} names {to_one_line(repr(shard), 100)} as a shard, which is not a file's name or is outside "
                "of the folder: download it again"
            )
        shards[shard] = None
    files = [path.with_name(shard) for shard in sorted(shards)]
    if missing := [file.name for file in files if not os.path.exists(file)]:
        raise CheckpointError(f"{path} names shards that are missing ({_list_names(missing)}): download them too")
    kinds: list[tuple[Path, Kind]] = []
    for file in files:
        if os.path.isdir(file):
            raise CheckpointError(f"{path} names {file.name} as a shard, which is a folder: download it again")
        kind = identify(file)
        if kind == "index":
            raise CheckpointError(f"{path} names {file.name} as a shard, which is JSON: download it again")
        kinds.append((file, kind))
    return WeightFiles(tuple(kinds), promised)
