"""A graph reads its weights only from files that the manifest lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from teso_deploy.errors import BundleError
from teso_deploy.external_data import FIELDS, ExternalData, check_graph, external_data
from teso_deploy.resources import find_shipped_path
from teso_deploy.sealed import FileEntry
from tests.support.graph_files import empty_graph, field

SHIPPED = find_shipped_path("engines/bundles/teso-nano")
FILES = {name: FileEntry(sha256="", bytes=64) for name in ("a.onnx", "a.weights", "sub/a.onnx", "sub/b.weights")}


def tensor(location: str, **numbers: int) -> onnx.TensorProto:
    """Return a tensor whose bytes are in another file."""
    found = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    found.ClearField("raw_data")
    found.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **numbers}.items():
        entry = found.external_data.add()
        entry.key, entry.value = key, str(value)
    return found


def in_initializers(found: onnx.TensorProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(initializer=[found]))


def in_a_constant(found: onnx.TensorProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.helper.make_node("Constant", [], ["w"], value=found)]))


def in_a_branch(found: onnx.TensorProto) -> onnx.ModelProto:
    branch = onnx.GraphProto(initializer=[found])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch)
    outer = onnx.helper.make_node("If", ["x"], ["y"], else_branch=onnx.GraphProto(node=[node]))
    return onnx.ModelProto(graph=onnx.GraphProto(node=[outer]))


def in_a_function(found: onnx.TensorProto) -> onnx.ModelProto:
    node = onnx.helper.make_node("Constant", [], ["w"], value=found)
    return onnx.ModelProto(functions=[onnx.FunctionProto(name="f", node=[node])])


def in_a_default_of_a_function(found: onnx.TensorProto) -> onnx.ModelProto:
    attribute = onnx.helper.make_attribute("value", found)
    return onnx.ModelProto(functions=[onnx.FunctionProto(name="f", attribute_proto=[attribute])])


def in_a_sparse_tensor(found: onnx.TensorProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[onnx.SparseTensorProto(indices=found)]))


def in_a_list(found: onnx.TensorProto) -> onnx.ModelProto:
    attribute = onnx.AttributeProto(name="values", tensors=[found])
    return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type="X", attribute=[attribute])]))


def in_training(found: onnx.TensorProto) -> onnx.ModelProto:
    step = onnx.TrainingInfoProto(algorithm=onnx.GraphProto(initializer=[found]))
    return onnx.ModelProto(training_info=[step])


PLACES = (
    in_initializers, in_a_constant, in_a_branch, in_a_function, in_a_default_of_a_function, in_a_sparse_tensor,
    in_a_list, in_training,
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_wherever_a_tensor_may_be(place: Any, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(place(tensor("../secret", offset=8, length=16)).SerializeToString())
    assert external_data(tmp_path / "a.onnx") == {ExternalData("../secret", 24)}


def test_the_fields_are_those_of_onnx() -> None:
    """The table has every field that leads to a tensor, with its number."""
    messages = {m.name: m for m in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()}

    def leads(name: str, seen: tuple[str, ...] = ()) -> bool:
        inner = [
            f.message_type.name for f in messages[name].fields if f.message_type and f.message_type.name in messages
        ]
        return name == "TensorProto" or any(leads(n, (*seen, name)) for n in inner if n not in (*seen, name))

    for name, fields in FIELDS.items():
        if name != "TensorProto":
            known = {f.number: f.message_type.name for f in messages[name].fields if f.message_type}
            assert fields == {number: inner for number, inner in known.items() if inner in messages and leads(inner)}
    entry = messages["TensorProto"].fields_by_name["external_data"]
    assert FIELDS["TensorProto"] == {entry.number: entry.message_type.name}


def test_the_shipped_graphs_name_their_weights() -> None:
    manifest = json.loads((SHIPPED / "bundle.json").read_text(encoding="utf-8"))
    entries = [*manifest["graphs"].values(), *(e for form in manifest["forms"].values() for e in form.values())]
    for entry in entries:
        model = onnx.load(SHIPPED / entry["file"], load_external_data=False)
        expected = set()
        for weights in model.graph.initializer:
            said = {pair.key: pair.value for pair in weights.external_data}
            if said:
                expected.add(ExternalData(said["location"], int(said.get("offset", 0)) + int(said["length"])))
        assert expected and external_data(SHIPPED / entry["file"]) == expected


@pytest.mark.parametrize(
    "location",
    ["../a.weights", "/etc/passwd", "./a.weights", "b.weights", "sub/b.weights", "..", "", "*/_ORT_MEM_ADDR_/*",
     "\\\\server\\share", "a.weights\0", "\x1b[2J\n"],
)  # fmt: skip
def test_other_places_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(in_initializers(tensor(location)).SerializeToString())
    with pytest.raises(BundleError, match="which is not a file that the manifest lists beside it") as caught:
        check_graph(tmp_path, "a.onnx", FILES)
    assert str(caught.value).isprintable()


def test_files_beside_the_graph_are_taken_as_far_as_they_reach(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, location in (("a.onnx", "a.weights"), ("sub/a.onnx", "b.weights")):
        (tmp_path / name).write_bytes(in_initializers(tensor(location, offset=48, length=16)).SerializeToString())
        check_graph(tmp_path, name, FILES)
        (tmp_path / name).write_bytes(in_initializers(tensor(location, offset=49, length=16)).SerializeToString())
        with pytest.raises(BundleError, match=f"beyond the end of {location}"):
            check_graph(tmp_path, name, FILES)


ENTRY = field(13, field(1, b"location") + field(2, b"a.weights"))


@pytest.mark.parametrize(
    "content",
    [
        b"weights " * 100,
        empty_graph("x")[:-1],
        field(7, field(5, ENTRY[:-1])),
        field(7, field(5, ENTRY + b"\x0b")),  # a group
        field(7, field(5, ENTRY + b"\x02\x00")),  # field 0
        field(7, field(5, ENTRY + b"\x08" + b"\x80" * 20)),
        field(7, field(5, ENTRY + b"\x09\x00")),
        field(7, field(5, ENTRY + field(13, field(1, b"location") + field(2, b"b.weights")))),
        field(7, field(5, field(13, field(1, b"location") + field(2, b"\xff")))),
        field(7, field(5, ENTRY + field(13, field(1, b"offset") + field(2, b"many")))),
        field(7, field(5, ENTRY + field(13, field(1, b"offset") + field(2, b"-8")))),
    ],
)
def test_what_is_not_a_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        check_graph(tmp_path, "a.onnx", FILES)


def test_nested_graphs_are_searched_as_deep_as_protobuf_reads(tmp_path: Path) -> None:
    path, graph = tmp_path / "a.onnx", field(5, ENTRY)
    for depth in range(3000):
        if depth == 30:
            path.write_bytes(field(7, graph))
            assert external_data(path) == {ExternalData("a.weights")}
        graph = field(1, field(5, field(6, graph)))
    path.write_bytes(field(7, graph))
    with pytest.raises(BundleError, match="not an ONNX graph"):
        external_data(path)
