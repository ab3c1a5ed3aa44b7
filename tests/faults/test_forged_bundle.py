"""Forged bundles and cue models are refused in one sentence, and no memory is allocated for false claims."""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teso_deploy.array_files import Expected, read_arrays
from teso_deploy.bundle import CUE_TABLE, KIND, MANIFEST, Bundle
from teso_deploy.cues.model_bundle import MANIFEST as CUE_MANIFEST
from teso_deploy.cues.model_bundle import CueModels
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import BundleError, InputNotFoundError
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.resources import find_shipped_path
from tests.support.commands import refused

SHIPPED = find_shipped_path("engines/bundles/teso-nano")
SURE = {"sha256": "", "bytes": 0}
Change = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: object) -> Change:
    """Return a change of one place of the manifest."""

    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def program(**stages: list[str]) -> dict[str, Any]:
    """Return the manifest's stages, given by name with their inputs."""
    return {"stages": [{"name": name, "inputs": inputs} for name, inputs in stages.items()]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a copy of the shipped bundle: its files are links, its manifest is a file."""
    out = tmp_path / "bundle"
    out.mkdir()
    for path in SHIPPED.iterdir():
        (out / path.name).symlink_to(path)
    text = (out / MANIFEST).read_text(encoding="utf-8")
    (out / MANIFEST).unlink()
    (out / MANIFEST).write_text(text, encoding="utf-8")
    return out


def refusal(action: Callable[[], object]) -> str:
    """Return the sentence of a refusal, which must be one printable line."""
    with pytest.raises(BundleError) as caught:
        action()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1500, text[:2000]
    return text


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of the bundle, and enter its right hash in the manifest."""
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = KIND.hash_files(folder)[name].model_dump()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"schema_version": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"schema_version": true}', "schema version True"),
        ('{"schema_version": "\\u001b[31m\\n"}', "schema version ,"),
        ('{"schema_version": NaN}', "schema version nan"),
        ("{}", "schema version None"),
        ('{"schema_version": 3}', "has schema version 3, but this package reads 1 to 2: install a newer teso-deploy"),
        ('{"schema_version": 0}', "this package reads 1 to 2: export the bundle again"),
        ('{"schema_version": 1, "name": "\\ud800"}', "half a character"),
        ('{"schema_version": 1}', "name: Field required"),
    ],
)
def test_manifests_that_are_not_one(folder: Path, text: str, says: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    assert says in refusal(lambda: Bundle.open(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("files", "a" * 300, value=SURE), "can't be a file"),
        (put("files", "ä" * 200, value=SURE), "can't be read"),
        (put("files", "\x1b[2J", value=SURE), "can't be a file"),
        (put("files", "aux.txt", value=SURE), "can't be a file"),
        (put("files", ".", value=SURE), "can't be a file"),
        (put("files", "sub/../x", value=SURE), "outside the bundle"),
        (put("files", "D:x", value=SURE), "outside the bundle"),
        (put("files", "x", value={"sha256": "", "bytes": -1}), "files.x.bytes"),
        (put("tagger", "words", value=["zzz"]), "tags of the graph visual_encoder is B x 83, tagger.words says B x 1"),
        (put("tagger", "threshold", value=float("nan")), "tagger.threshold"),
        (put("postprocessing", "threshold", value=1.5), "postprocessing.threshold"),
        (put("preprocessing", "sizes", value=[[0, 0]]), "preprocessing.sizes.0.0"),
        (put("preprocessing", "sizes", value=[[10**9, 10**9]]), "less than or equal to 8192"),
        (put("preprocessing", "sizes", value=[[448, 448]]), "image of the graph visual_encoder is B x 3 x 224 x 224"),
        (put("preprocessing", "sizes", value=[]), "preprocessing.sizes"),
        (put("preprocessing", "std", value=[0, 1, 1]), "preprocessing.std.0"),
        (put("preprocessing", "mean", value=[float("inf"), 1, 1]), "preprocessing.mean.0"),
        (put("cue", "max_cues", value=-1), "cue.max_cues"),
        (put("cue", "max_cues", value=10**13), "cue.max_cues"),
        (put("cue", "max_cues", value=5), "cues of the graph fusion is B x 4 x 384, cue says B x 5 x 384"),
        (put("cue", "dim", value=10**9), "cue.dim"),
        (put("classes", value=["x"] * 300), "classes"),
        (put("classes", value=[]), "classes"),
        (put("classes", value=["dog"]), "masks of the graph decoder is B x 27 x 56 x 56, classes says B x 1"),
        (put("classes", value=["a\x1b[31mb"] * 27), "characters that can't be printed"),
        (put("name", value="a\nteso-deploy: all is well"), "characters that can't be printed"),
        (put("\x1b[31mx\n\nteso-deploy: all is well", value=1), "x teso-deploy: all is well: Extra inputs"),
        (put("graphs", "decoder", "file", value="/etc/passwd"), "no hash of /etc/passwd"),
        (put("graphs", "decoder", "file", value="decoder.weights"), "must end in .onnx"),
        (put("graphs", "decoder", "nodes", value=-1), "graphs.decoder.nodes"),
        (put("cue", value=None), "cue: the program takes cues, and the manifest does not describe them"),
        (put("schema_version", value=2), "program: Field required"),
        (put("program", value=program(ear=["audio_window"])), "program: no graph serves the stage ear"),
        (put("program", value=program(decoder=["image"])), "the graph decoder takes queries, which is given by none"),
        (put("program", value=program(fusion=["decoder"])), "fusion takes decoder, which is neither a stage nor one"),
        (put("program", value=program(fusion=["fusion"])), "fusion takes fusion, which does not run before it"),
        (put("program", value=program(audio_encoder=["audio_window"])), "program: no graph gives masks"),
        (put("graphs", "fusion", "outputs", 0, "name", value="masks"), "takes queries, which is given by none"),
        (
            put("graphs", "audio_encoder", "outputs", 0, "name", value="tags"),
            "tags is given by the graph audio_encoder",
        ),
        (put("cue", "encoder", value={"graph": "x.onnx", "weights": "w", "tokenizer": "t"}), "no hash of"),
    ],
)
def test_a_manifest_with_something_else_in_one_place(folder: Path, change: Change, says: str) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    assert says in refusal(lambda: Bundle.open(folder))


def test_names_in_any_language_are_taken(folder: Path) -> None:
    words = ["می\u200cخوانم", "犬\u3000猫", "l\u00a0oiseau", "👩\u200d🎤"]
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content["classes"] = [*words, *content["classes"][len(words) :]]
    content["licence"] = "several\nlines"
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    assert Bundle.open(folder).classes[: len(words)] == tuple(words)
    replace_file(folder, CUE_TABLE, zipped(("names.npy", npy(np.array(words[:2]))), TABLE[1]))
    assert CueTable.open(Bundle.open(folder)).names == tuple(words[:2])


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(text: str) -> bytes:
    """Return the start of a .npy file with the given header."""
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the name that the archive has twice
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def encrypted(content: bytes) -> bytes:
    """Return the archive with the encryption bit set in every entry."""
    data = bytearray(content)
    for at in range(len(data) - 4):
        if data[at : at + 4] == b"PK\3\4":
            data[at + 6] |= 1
        elif data[at : at + 4] == b"PK\1\2":
            data[at + 8] |= 1
    return bytes(data)


WORDS, ROWS = npy(np.array(["dog", "cow"])), npy(np.ones((2, 384), np.float32))
TABLE = (("names.npy", WORDS), ("embeddings.npy", ROWS))


def claim(*shape: int, kind: str = "<f4") -> bytes:
    """Return a header that claims a shape."""
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no plain arrays"),
        (WORDS, "no plain arrays"),
        (zipped(*TABLE)[:-30], "no plain arrays"),
        (encrypted(zipped(*TABLE)), "is encrypted"),
        (zipped(*TABLE, TABLE[0]), "holds names twice"),
        (zipped(*TABLE, compression=zipfile.ZIP_LZMA), "compressed in a way"),
        (zipped(("names.npy", npy(np.array("x"))), TABLE[1]), "names is str32 of shape ()"),
        (zipped(("names.npy", npy(np.array([{"a": 1}], object))), TABLE[1]), "an array of object"),
        (zipped(("names.npy", npy(np.ones(2))), TABLE[1]), "expected is any number of words"),
        (zipped(TABLE[0], ("embeddings.npy", npy(np.ones((2, 3))))), "any number of x 384 floating-point numbers"),
        (zipped(TABLE[0], ("embeddings.npy", npy(np.ones((2, 384), np.complex64)))), "an array of complex64"),
        (
            zipped(TABLE[0], ("embeddings.npy", claim(10**12, 384) + b"0" * 64)),
            "claims 1,536,000,000,000,000 bytes",
        ),
        (zipped(TABLE[0], ("embeddings.npy", claim(-2, 384))), "a negative size"),
        (zipped(TABLE[0], ("embeddings.npy", header("(" * 5000))), "no plain arrays"),
        (zipped(TABLE[0], ("embeddings.npy", b"\x93NUMPY\x07\x00")), "no plain arrays"),
        (zipped(("names.npy", claim(10**12, kind="<U0"))), "<U0"),
        (zipped(TABLE[0]), "384 numbers for each name"),
        (zipped(TABLE[0], ("embeddings.npy", npy(np.ones((3, 384), np.float32)))), "384 numbers for each name"),
        (zipped(TABLE[0], ("embeddings.npy", npy(np.full((2, 384), np.nan, np.float32)))), "not finite"),
        (zipped(("names.npy", npy(np.array(["dog", "a\x1b[2J"]))), TABLE[1]), "can't be printed"),
        (zipped(("names.npy", npy(np.array(["dog", ""]))), TABLE[1]), "can't be printed"),
        (zipped(("names.npy", npy(np.full(2, 2**31, np.uint32).view("<U1"))), TABLE[1]), "can't be printed"),
    ],
)
def test_cue_tables_that_are_not_one(folder: Path, content: bytes, says: str) -> None:
    replace_file(folder, CUE_TABLE, content)
    assert says in refusal(lambda: CueTable.open(Bundle.open(folder)))


def test_what_unpacks_to_far_more_than_it_may_is_not_unpacked(tmp_path: Path) -> None:
    start = claim(1 << 30)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as file:
            file.write(start)
        archive.filelist[0].file_size = len(start) + (4 << 30)  # the directory claims it too
    assert "claims 4,294,967,296 bytes" in refusal(lambda: read_arrays(path))


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones((2, 3), np.float16), b=np.array([{}], object))
    wanted = {"a": Expected("f", (2, None)), "c": Expected("b", (1,))}
    found = read_arrays(path, wanted)
    assert list(found) == ["a"] and found["a"].shape == (2, 3)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_pipe, make_device, make_folder, make_loop])
@pytest.mark.parametrize("name", [MANIFEST, CUE_TABLE, "decoder.onnx"])
def test_a_pipe_a_device_a_folder_or_a_loop_in_place_of_a_file(
    folder: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(folder / name)
    assert name in refusal(lambda: Bundle.open(folder))


def test_a_folder_that_may_not_be_looked_into(folder: Path) -> None:
    folder.chmod(0)
    (folder.parent / "file").write_text("x")
    before = os.geteuid()
    if before == 0:  # root can read everything
        for parent in folder.relative_to("/").parents:
            (Path("/") / parent).chmod((Path("/") / parent).stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        text = refusal(lambda: Bundle.open(folder))
    finally:
        os.seteuid(before)
        folder.chmod(0o700)
    assert "can't be read (Permission denied)" in text


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "a\nb\x1b[2J"])
def test_names_of_bundles_that_no_folder_has(name: str) -> None:
    for read in (Bundle.open, CueModels.open):
        with pytest.raises(InputNotFoundError) as caught:
            read(name)
        assert str(caught.value).isprintable()


def test_a_download_of_the_hugging_face_hub_opens_and_runs(tmp_path: Path) -> None:
    root = tmp_path / "models--me--teso"
    blobs, snapshot = root / "blobs", root / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in SHIPPED.iterdir():
        digest = KIND.hash_files(SHIPPED)[path.name].sha256 if path.name != MANIFEST else "m"
        shutil.copy(path, blobs / digest)
        (snapshot / path.name).symlink_to(Path("../../blobs") / digest)
    pipeline = Pipeline.load(root, threads=1)
    assert pipeline.bundle.folder == snapshot
    found = pipeline.segment(np.zeros((60, 80, 3), np.uint8), np.zeros(15600, np.float32), "dog")
    assert found.labels.shape == (60, 80)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema_version": ' + "9" * 5000 + "}", '{"schema_version": 1, "x": 1}']
)
def test_manifests_of_cue_models(tmp_path: Path, text: str) -> None:
    (tmp_path / CUE_MANIFEST).write_text(text, encoding="utf-8")
    refusal(lambda: CueModels.open(tmp_path))


def test_by_the_command_line(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 100_000, encoding="utf-8")
    refused("verify", folder, names="nested too deeply")
