"""Files without weights, or with false claims: one sentence says what they are, and their code never runs."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from teso_deploy.errors import CheckpointError, InputNotFoundError
from teso_deploy.models import weight_files
from teso_deploy.models.assembly import assemble, recognise_checkpoint
from tests.support.checkpoint_files import (
    arrays,
    one_tensor,
    pickled,
    safetensors_of,
    saved,
    vggish_tensors,
    zip_of,
)
from tests.support.foundations import small_recipe


def _bytes_of(write: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _tar(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))


def _script(buffer: io.BytesIO) -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, buffer)  # type: ignore[no-untyped-call]


KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "Git LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a pointer of Git LFS.*git lfs pull",
    ),
    "a web page": (lambda: b"\n<!DOCTYPE html><html><title>Virus scan warning</title>", "a web page.*in a browser"),
    "XML": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"XML.*\(AccessDenied\)"),
    "JSON": (lambda: b'{"error": "no access"}', "is JSON, but not an index"),
    "words": (lambda: b"Not found: try again later", "is text"),
    "nothing": (lambda: b"", "is empty"),
    "zeros": (lambda: bytes(9000), "nothing but zeros"),
    "gzip": (lambda: gzip.compress(b"a" * 99), "packed with gzip: unpack it"),
    "xz": (lambda: lzma.compress(b"a" * 99), "packed with xz: unpack it"),
    "7-Zip": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(99), "packed with 7-Zip"),
    "tar": (lambda: _bytes_of(_tar), "a tar archive: unpack it"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"),
    "GGUF": (lambda: b"GGUF\3\0\0\0" + bytes(99), "GGUF.*export-cues"),
    "ONNX": (lambda: b'\x08\x0a\x12\x07pytorch"' + bytes(99), "ONNX"),
    "npy": (lambda: _bytes_of(lambda b: np.save(b, np.ones(3))), "one NumPy array"),
    "npz": (lambda: _bytes_of(lambda b: np.savez(b, a=np.ones(3))), r"\(\.npz\)"),
    "TorchScript": (lambda: _bytes_of(_script), "TorchScript.*state_dict"),
    "a module": (
        lambda: _bytes_of(lambda b: torch.save(nn.Linear(2, 2), b)),
        r"the model itself \(torch.*Linear\).*state_dict\(\)",
    ),
    "a module inside": (lambda: _bytes_of(lambda b: torch.save({"ema": nn.Linear(2, 2)}, b)), "the model itself"),
    "numbers": (lambda: pickle.dumps({"epoch": 3}), "holds no state_dict"),
    "a list": (lambda: pickle.dumps([1, 2]), "holds no state_dict"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", KINDS)
def test_what_a_file_really_is(name: str, ending: str, tmp_path: Path) -> None:
    make, sentence = KINDS[name]
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=sentence) as caught:
        recognise_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_no_file_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(CheckpointError, match="neither a file nor a folder"):
            recognise_checkpoint(tmp_path / name)
    (tmp_path / "model.safetensors").symlink_to("pipe")
    with pytest.raises(CheckpointError, match="holds no weights"):
        recognise_checkpoint(tmp_path)
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(InputNotFoundError, match="a link to a file that is not there"):
        recognise_checkpoint(tmp_path / "gone")
    with pytest.raises(InputNotFoundError, match="no checkpoint"):
        recognise_checkpoint(tmp_path / ("a" * 300))
    with pytest.raises(InputNotFoundError, match="no checkpoint"):
        recognise_checkpoint(Path("a\0b"))


FOLDERS = {
    "bundle.json": "is a bundle",
    "zero_to_fp32.py": "DeepSpeed.*zero_to_fp32",
    ".metadata": "dcp_to_torch",
    "adapter_model.safetensors": "LoRA.*merge_and_unload",
    "tf_model.h5": "TensorFlow",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_kinds(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=FOLDERS[name]):
        recognise_checkpoint(tmp_path)


INDICES: dict[str, tuple[str, str]] = {
    "a list": ("[]", "not an index of shards"),
    "no map": ('{"weight_map": [1]}', "not an index of shards"),
    "an empty map": ('{"weight_map": {}}', "not an index of shards"),
    "a number": ('{"weight_map": {"a": 3}}', "names 3 as a shard"),
    "nothing": ('{"weight_map": {"a": ""}}', "names '' as a shard"),
    "the folder": ('{"weight_map": {"a": "."}}', r"names '\.' as a shard"),
    "above": ('{"weight_map": {"a": ".."}}', r"names '\.\.' as a shard"),
    "outside": ('{"weight_map": {"a": "../b.safetensors"}}', "outside of the folder"),
    "absolute": ('{"weight_map": {"a": "/etc/passwd"}}', "outside of the folder"),
    "a folder": ('{"weight_map": {"a": "inner"}}', "names inner as a shard, which is a folder"),
    "itself": ('{"weight_map": {"a": "model.safetensors.index.json"}}', "which is JSON"),
    "missing": ('{"weight_map": {"a": "gone.safetensors"}}', r"missing \(gone\.safetensors\)"),
    "a zero byte": ('{"weight_map": {"a": "a\\u0000b"}}', "as a shard"),
    "half a character": ('{"weight_map": {"a": "\\ud800"}}', "is not JSON"),
    "nested": ("[" * 100_000, "nested too deeply|is not JSON"),
    "a long number": ('{"weight_map": ' + "9" * 5000 + "}", "is not JSON"),
    "cut": ('{"weight_map": {', "is not JSON"),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_that_make_no_sense(name: str, tmp_path: Path) -> None:
    text, sentence = INDICES[name]
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    for named in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with pytest.raises(CheckpointError, match=sentence) as caught:
            recognise_checkpoint(named)
        assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


class _Code:
    """Creates a folder when it is unpickled by a reader that runs code."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> Any:
        return self._reduced


#: A function that is on no list of harmful ones, and would create a file.
def leave_a_trace(path: str) -> dict[str, Any]:
    Path(path).write_text("ran")
    return {}


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    tensors, trace = vggish_tensors(), tmp_path / "trace"
    code = _Code(leave_a_trace, str(trace))
    for path in (
        saved({"model": tensors, "extra": code}, tmp_path / "zipped.pth"),
        saved({"model": tensors, "extra": code}, tmp_path / "old.pth", _use_new_zipfile_serialization=False),
        pickled({"model": arrays(tensors), "extra": code}, tmp_path / "plain.pkl"),
        pickled({"model": arrays(tensors), "extra": code}, tmp_path / "first.pkl", protocol=0),
    ):
        assert recognise_checkpoint(path).tensors.keys() == tensors.keys()
    for harmful in (_Code(os.mkdir, str(trace)), _Code(eval, "1"), _Code(exec, "1")):
        path = saved({"model": tensors, "extra": harmful}, tmp_path / "harmful.pth")
        with pytest.raises(CheckpointError, match=r"is refused: it holds [\w.]+, and loading that may run code"):
            recognise_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.tensor([1.0, float("nan")]), r"NaN or infinity in features\.0\.bias"),
        (torch.tensor([1.0, float("-inf")]).half(), r"NaN or infinity in features\.0\.bias"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), r"NaN or infinity in features\.0\.bias"),
        (torch.ones(4).to_sparse(), "is sparse"),
        (torch.ones(4, dtype=torch.complex64), "complex"),
    ],
    ids=["NaN", "infinity", "beyond float32", "sparse", "complex"],
)
def test_numbers_that_are_no_weights(tensor: Any, sentence: str, tmp_path: Path) -> None:
    path = saved({**vggish_tensors(), "features.0.bias": tensor}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=sentence):
        recognise_checkpoint(path)


def test_nan_in_safetensors_of_our_own_kind(tmp_path: Path) -> None:
    save_file({"fusion.queries": torch.tensor([float("nan")])}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in fusion\.queries"):
        weight_files.read(tmp_path)


def test_masks_of_minus_infinity_that_no_one_uses_are_right(tmp_path: Path) -> None:
    tensors = {"ln_final.weight": torch.ones(3), "attn_mask": torch.full((2, 2), float("-inf"))}
    assert recognise_checkpoint(saved(tensors, tmp_path / "clip.pth"), "text").part == "text"


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    whole = {**tensors, "features.0.weight": tensors["features.0.weight"].to(torch.int8)}
    with pytest.raises(CheckpointError, match=r"int8 in features\.0\.weight.*before quantisation"):
        assemble(small_recipe(), [("audio", saved(whole, tmp_path / "a.pth"))], random_weights_seed=0)


HUGE = 10**13
BOMBS: dict[str, Callable[[Path], object]] = {
    "a storage of 1e13 numbers": lambda p: zip_of(one_tensor("a", HUGE, (HUGE,), (1,)), p, {"0": bytes(16)}),
    "a view beyond its storage": lambda p: zip_of(one_tensor("a", 4, (5,), (1,)), p, {"0": bytes(16)}),
    "a step beyond its storage": lambda p: zip_of(one_tensor("a", 4, (2,), (4,)), p, {"0": bytes(16)}),
    "one number repeated": lambda p: zip_of(one_tensor("a", 4, (HUGE,), (0,)), p, {"0": bytes(16)}),
    "negative sizes": lambda p: zip_of(one_tensor("a", 4, (-1,), (1,)), p, {"0": bytes(16)}),
    "no storage": lambda p: zip_of(one_tensor("a", 4, (4,), (1,)), p),
    "compressed": lambda p: zip_of(one_tensor("a", 4, (4,), (1,)), p, {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED),
    "bytes of 2**62": lambda p: p.write_bytes(b"\x80\x05\x8e" + (2**62).to_bytes(8, "little") + b"."),
    "a bytearray of 2**40": lambda p: p.write_bytes(b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."),
    "a memo at 2**31": lambda p: p.write_bytes(b"\x80\x04}r" + (2**31 - 1).to_bytes(4, "little") + b"."),
    "nested lists": lambda p: p.write_bytes(b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b"."),
    "nested mappings": lambda p: p.write_bytes(b"\x80\x04" + b"}\x8c\x01a" * 50_000 + b"}" + b"s" * 50_000 + b"."),
    "tuples that double": lambda p: p.write_bytes(b"\x80\x04})" + b"2\x86" * 200 + b"Ns."),
    "a safetensors header of 2**50": lambda p: p.write_bytes((2**50).to_bytes(8, "little") + b"{" + bytes(99)),
    "a safetensors header beyond the file": lambda p: p.write_bytes((999).to_bytes(8, "little") + b"{" + bytes(99)),
    "safetensors beyond the file": lambda p: p.write_bytes(
        safetensors_of(json.dumps({"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}).encode())
    ),
    "safetensors that overlap": lambda p: p.write_bytes(
        safetensors_of(
            json.dumps(
                {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}
            ).encode(),
            bytes(8),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_files_that_claim_more_than_they_hold(name: str, tmp_path: Path) -> None:
    BOMBS[name](path := tmp_path / "a.pth")
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError) as caught:
        recognise_checkpoint(path)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _nested(depth: int) -> bytes:
    """Return nested pairs that refer to one tuple twice at each level: a few bytes whose text has 2 ** depth parts."""
    return b")" + b"2\x86" * depth


#: Name → (the object that is stored as 0, calls that use it repeatedly). A call may cost no more than its own bytes.
REPEATED = {
    "a list as arguments": (b"](" + b"K\x01" * 20_000 + b"e", b"cargparse\nNamespace\nh\x00R"),
    "pairs of a mapping": (
        b"](" + b"".join(_text(f"{n:05}") + b"K\x01\x86" for n in range(5_000)) + b"e\x85",
        b"ccollections\nOrderedDict\nh\x00R",
    ),
    "a text as bytes": (_text("a" * 100_000) + _text("latin1") + b"\x86", b"c_codecs\nencode\nh\x00R"),
    "nested tuples as a type": (
        _nested(21),
        b"cnumpy._core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nh\x00\x85RK\x00\x85U\x01CtR",
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_short_pickle_does_not_fill_the_memory(name: str, tmp_path: Path) -> None:
    kept, call = REPEATED[name]
    times = 1 if "nested" in name else 200
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02](" + kept + b"q\x000" + call * times + b"e.")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="holds no state_dict"):
            weight_files.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_a_storage_that_is_named_by_nested_tuples(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    persistent = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _nested(18) + _text("cpu") + b"K\x01tQ"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + persistent + b".")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
            weight_files.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000


def test_a_cut_file_of_every_kind(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    for path in (
        saved(tensors, tmp_path / "zipped.pth"),
        saved(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False),
        pickled(arrays(tensors), tmp_path / "plain.pkl"),
    ):
        whole = path.read_bytes()
        for length in (3, 40, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"truncated|damaged"):
                recognise_checkpoint(path)


def test_an_array_that_claims_another_shape(tmp_path: Path) -> None:
    path = pickled(
        {"features.13.weight": np.ones(3, np.float32), "embeddings.4.weight": np.ones(3)}, tmp_path / "a.pkl"
    )
    content = path.read_bytes()
    shape = content.index(b"K\x03\x85")  # the tuple (3,)
    path.write_bytes(content[: shape + 1] + b"\x04" + content[shape + 2 :])
    with pytest.raises(CheckpointError, match=r"features\.13\.weight is damaged"):
        recognise_checkpoint(path)


def test_a_changed_byte_of_a_zipped_file_is_found(tmp_path: Path) -> None:
    path = saved(vggish_tensors(), tmp_path / "a.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        recognise_checkpoint(path)


def test_keys_of_strangers_are_printed_as_one_line(tmp_path: Path) -> None:
    path = saved({"\x1b[31mred\n\nteso-deploy: all is well" + "a" * 9999: torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="of an unknown kind") as caught:
        recognise_checkpoint(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
