"""Damage that knows a file's structure: boxes, packets, archives, pickles, graphs."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from tests.fuzz.documents import ODD_JSON, mutate_document, mutate_json
from tests.fuzz.mutations import ODD_NUMBERS, mutate

TS_PACKET_BYTES = 188
_PARENT_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"moof", b"traf", b"mvex", b"dinf")
#: The size of an array's data that a few compressed kilobytes hold.
_BOMB_BYTES = 400 << 20


def _boxes(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, end, kind) of the boxes of an MP4 and of those inside them."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, start)
        if size < 8 or start + size > end:
            return
        yield start, start + size, kind
        if kind in _PARENT_BOXES:
            yield from _boxes(content, start + 8, start + size)
        start += size


def mutate_mp4(draw: random.Random, content: bytes) -> bytes:
    """Change a box: its length, its kind or its numbers; or drop or repeat it."""
    boxes = list(_boxes(content, 0, len(content)))
    if not boxes:
        return mutate(draw, content)
    start, end, kind = draw.choice([box for box in boxes if box[2] != b"mdat"] or boxes)
    match draw.randrange(6):
        case 0:
            return content[:start] + struct.pack(">I", draw.choice(ODD_NUMBERS) % 2**32) + content[start + 4 :]
        case 1:
            return (
                content[: start + 4] + draw.choice((b"free", b"\0\0\0\0", b"trak", kind[::-1])) + content[start + 8 :]
            )
        case 2:
            return content[:start] + struct.pack(">I", end - start) + b"free" + content[start + 8 :]
        case 3:
            return content[:end] + content[start:end] + content[end:]
        case 4:
            return content[: start + 8] + mutate(draw, content[start + 8 : end]) + content[end:]
    if end - start < 12:
        return content[:start] + content[end:]
    at = start + 8 + 4 * draw.randrange((end - start - 8) // 4)
    return content[:at] + struct.pack(">I", draw.choice(ODD_NUMBERS) % 2**32) + content[at + 4 :]


def mutate_transport_stream(draw: random.Random, content: bytes) -> bytes:
    """Lose, repeat, exchange or damage packets of 188 bytes, or flag them."""
    packets = [content[at : at + TS_PACKET_BYTES] for at in range(0, len(content), TS_PACKET_BYTES)]
    for _ in range(1 << draw.randint(0, 5)):
        place = draw.randrange(len(packets))
        packet = bytearray(packets[place])
        match draw.randrange(8):
            case 0 if len(packets) > 1:
                del packets[place]
                continue
            case 1:
                packets.insert(place, bytes(packet))
                continue
            case 2:
                other = draw.randrange(len(packets))
                packets[place], packets[other] = packets[other], packets[place]
                continue
            case 3 if len(packet) > 3:
                packet[1] = packet[1] & 0xE0 | draw.choice((0, 1, 0x1F))
            case 4 if len(packet) > 3:
                packet[1] ^= draw.choice((0x80, 0x40, 0x20))
            case 5 if len(packet) > 3:
                packet[3] ^= draw.choice((0x10, 0x20, 0xC0, 0x0F))
            case 6:
                packet = bytearray(mutate(draw, bytes(packet)))
            case _:
                start = min(draw.randint(4, 40), max(len(packet) - 1, 0))
                packet[start : start + 8] = draw.randbytes(len(packet[start : start + 8]))
        packets[place] = bytes(packet)
    return b"".join(packets)


def _zip_parts(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Write an archive without times of day."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part, compression)
    return stream.getvalue()


def _set_in_headers(content: bytes, local_offset: int, central_offset: int, value: int) -> bytes:
    """Overwrite two bytes of every local and central header of an archive."""
    found = bytearray(content)
    for mark, offset in ((b"PK\3\4", local_offset), (b"PK\1\2", central_offset)):
        at = content.find(mark)
        while at >= 0:
            struct.pack_into("<H", found, at + offset, value)
            at = content.find(mark, at + 4)
    return bytes(found)


def mutate_zip(draw: random.Random, content: bytes) -> bytes:
    """Drop, rename, repeat or damage an entry, or claim that it is encrypted or packed otherwise."""
    parts = _zip_parts(content)
    name = draw.choice(sorted(parts))
    match draw.randrange(9):
        case 0:
            del parts[name]
        case 1:
            parts[draw.choice(("../x", "/etc/x", "", "a" * 300, "x.npy", name.upper(), "\x1b[31m"))] = parts.pop(name)
        case 2:
            return _set_in_headers(content, 6, 8, 1)  # encrypted
        case 3:
            return _set_in_headers(content, 8, 10, draw.choice((1, 8, 9, 12, 14, 93, 99)))
        case 4:
            return write_zip(parts, zipfile.ZIP_DEFLATED)
        case 5:
            at = content.rfind(b"PK\5\6")
            return content[:at] + mutate(draw, content[at:])
        case 6:
            parts = {"nothing": b""} if draw.random() < 0.3 else {name: parts[name]}
        case _:
            parts[name] = mutate(draw, parts[name])
    return write_zip(parts)


def write_npy(header: str, data: bytes, version: int = 1) -> bytes:
    """Return a .npy file with any header."""
    text = header.encode("latin-1") + b"\n"
    length = struct.pack("<H", len(text) % 2**16) if version == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + data


def _npy_header(part: bytes) -> tuple[str, bytes]:
    length = struct.unpack_from("<H", part, 8)[0]
    return part[10 : 10 + length].decode("latin-1"), part[10 + length :]


_bombs: dict[int, bytes] = {}


def zeros_bomb() -> bytes:
    """Return an archive of kilobytes with two arrays of hundreds of megabytes."""
    if not _bombs:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({_BOMB_BYTES // 4},), }}"
        start, piece = write_npy(header, b""), bytes(1 << 20)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in ("names.npy", "embeddings.npy"):
                with archive.open(zipfile.ZipInfo(name), "w") as file:
                    file.write(start)
                    for _ in range(_BOMB_BYTES >> 20):
                        file.write(piece)
        _bombs[0] = stream.getvalue()
    return _bombs[0]


_SHAPES = (
    "()", "(0,)", "(-1,)", "(1,)", "(3, 0)", "(2147483648, 64)", "(99999999999999999999,)", "(1, 1, 1, 1)", "(True,)",
    "(1.5,)", "'x'", "None", "[3]", "(3,) * 9", "(" * 500, "9" * 5000,
)  # fmt: skip
_TYPES = (
    "'|O'", "'<f4'", "'<f8'", "'>f4'", "'<i8'", "'<c16'", "'|b1'", "'<U9'", "'<U0'", "'|S4'", "'<M8[s]'", "'<f2'",
    "'|V16'", "[('a', '<f4')]", "'x'", "3", "'<f4, <f4'", "[('a', '|O')]",
)  # fmt: skip


def mutate_npz(draw: random.Random, content: bytes) -> bytes:
    """Change an archive of arrays: its entries, an array's type, shape, version or numbers."""
    roll = draw.random()
    if roll < 0.3:
        return mutate_zip(draw, content)
    if roll < 0.4:
        return mutate(draw, content)
    if roll < 0.43:
        return zeros_bomb()
    parts = _zip_parts(content)
    name = draw.choice(sorted(parts))
    if roll < 0.45:
        return parts[name]
    header, data = _npy_header(parts[name])
    shape = header[header.index("'shape':") + 8 : header.rindex("), ") + 1] if "), " in header else "()"
    descr = header[header.index("'descr':") + 8 : header.index(", 'fortran")]
    version = 1
    match draw.randrange(8):
        case 0 | 1:
            header = header.replace(shape, draw.choice(_SHAPES))
        case 2 | 3:
            header = header.replace(descr, draw.choice(_TYPES))
        case 4:
            header = draw.choice(("", "{}", "[]", "[" * 20_000, "{'descr': '<f4'}", "__import__('os')", header * 200))
        case 5:
            version = draw.choice((0, 2, 3, 4, 255))
        case 6:
            values = (float("nan"), float("inf"), 1e38, -1.0)
            at = 4 * draw.randrange(max(len(data) // 4, 1))
            data = data[:at] + struct.pack("<f", draw.choice(values)) + data[at + 4 :]
        case _:
            data = draw.choice((b"", data[:-1], data + b"\0", data[: len(data) // 2], bytes(len(data))))
    parts[name] = write_npy(header, data, version)
    return write_zip(parts)


def mutate_safetensors(draw: random.Random, content: bytes) -> bytes:
    """Change the header (a tensor's type, shape, place; the metadata), its length, or the data."""
    length = struct.unpack_from("<Q", content)[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    match draw.randrange(6):
        case 0:
            return mutate(draw, content)
        case 1:
            return struct.pack("<Q", draw.choice(ODD_NUMBERS)) + content[8:]
        case 2:
            name = draw.choice([name for name in header if name != "__metadata__"])
            start, end = header[name]["data_offsets"]
            values = struct.pack("<f", draw.choice((float("nan"), float("inf"), -float("inf"), 1e38)))
            return content[: 8 + length + start] + values * ((end - start) // 4) + content[8 + length + end :]
        case 3:
            text = mutate_json(draw, header)
        case _:
            name = draw.choice(list(header))
            changed = mutate_document(draw, {name: header[name]}, ODD_JSON)
            text = json.dumps({**{key: value for key, value in header.items() if key != name}, **changed}).encode()
    return struct.pack("<Q", len(text)) + text + data


class Harm:
    """Pickled as a function call: unpickling it creates a folder ``harmed`` in the working directory."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __reduce__(self) -> Any:
        return getattr(__import__(self.module), self.name), ("harmed" if self.name == "mkdir" else "mkdir harmed",)


_GLOBALS = (
    b"cos\nsystem\n(S'mkdir harmed'\ntR.", b"cposix\nsystem\n(S'mkdir harmed'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.",
    b"ctorch\nTensor\n)R.", b"ccollections\nOrderedDict\n)R.", b"cnumpy.core.multiarray\n_reconstruct\n.",
    b"c__main__\nModel\n)R.", b"cno.such.module\nThing\n)R.", b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    b"c\x1b[31m\nx\n)R.", b"c" + b"a" * 5000 + b"\nx\n)R.",
)  # fmt: skip


def mutate_pickle(draw: random.Random, content: bytes) -> bytes:
    """Damage a pickle at the borders of its operations, or put calls in it."""
    try:
        places = [place for _, _, place in pickletools.genops(content) if place is not None]
    except (ValueError, IndexError, UnicodeDecodeError):
        return mutate(draw, content)
    at = draw.choice(places)
    match draw.randrange(7):
        case 0:
            return mutate(draw, content)
        case 1:
            return (
                content[:at] + draw.choice((b".", b"0", b"2", b"(", b"N", b"]", b"}", b"u", b"a", b"Q")) + content[at:]
            )
        case 2:
            return content[:at] + draw.choice(_GLOBALS)[:-1] + content[at:]
        case 3:
            return draw.choice(_GLOBALS)
        case 4:
            return b"\x80\x02" + b"]" * draw.choice((10, 100_000)) + b"a" * 50_000 + b"."
        case 5:
            odd: tuple[Any, ...] = (None, 3, [], {}, "x", {"a": {"a": 1}}, {1: 2}, {"state_dict": None}, ["x"], b"x")
            return pickle.dumps(draw.choice(odd), protocol=draw.choice((0, 1, 2, 4)))
    other = draw.choice(places)
    return content[:at] + content[other:]


def mutate_torch(draw: random.Random, content: bytes) -> bytes:
    """Change what ``torch.save`` wrote: the archive, the pickle in it, or a storage."""
    if not content.startswith(b"PK"):
        return mutate_pickle(draw, content)
    if draw.random() < 0.35:
        return mutate_zip(draw, content)
    parts = _zip_parts(content)
    name = next(name for name in parts if name.endswith("data.pkl"))
    if draw.random() < 0.2:
        name = draw.choice(sorted(parts))
    parts[name] = mutate_pickle(draw, parts[name])
    return write_zip(parts)


_LOCATIONS = (
    "../{0}", "/etc/passwd", "/dev/zero", "", ".", "no.weights", "bundle.json", "a" * 300, "\x1b[31m", "//x",
    "x/../{0}", "/proc/self/environ", "~/{0}",
)  # fmt: skip


def mutate_onnx(draw: random.Random, content: bytes) -> bytes:
    """Change a graph: the location of its weights, operators, shapes, names, attributes, versions; or its bytes."""
    import onnx

    if draw.random() < 0.2:
        return mutate(draw, content)
    model = onnx.load_from_string(content)
    graph = model.graph
    node = draw.choice(list(graph.node))
    tensors = list(graph.initializer)
    tensor = draw.choice(tensors) if tensors else None
    match draw.randrange(12):
        case 0 | 1 if tensor is not None:
            held = [one for one in tensors if one.external_data] or [tensor]
            tensor = draw.choice(held)
            entries = {entry.key: entry.value for entry in tensor.external_data}
            key = draw.choice(("location", "location", "location", "offset", "length"))
            where = draw.choice(_LOCATIONS).format(entries.get("location", "x"))
            entries[key] = where if key == "location" else str(draw.choice((*ODD_NUMBERS, -1, "x", "1e9", "")))
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
            for name, value in entries.items():
                tensor.external_data.add(key=name, value=value)
        case 2 if tensor is not None:
            dims = list(tensor.dims)
            del tensor.dims[:]
            tensor.dims.extend([*dims, 2] if draw.random() < 0.3 else [draw.choice((0, -1, 2**40, 3)) for _ in dims])
        case 3 if tensor is not None:
            tensor.data_type = draw.choice((0, 1, 7, 8, 9, 10, 16, 21, 99))
        case 4:
            node.op_type = draw.choice(("Relu", "NoSuchOperator", "Loop", "Concat", "Reshape", "", "If", "Cast"))
        case 5:
            node.domain = draw.choice(("", "com.microsoft", "ai.onnx.ml", "no.such.domain", "\x1b[31m"))
        case 6 if node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(("", "no_such_value", node.output[0]))
        case 7:
            values = list(draw.choice((graph.input, graph.output)))
            value = draw.choice(values)
            if draw.random() < 0.5:
                value.name = draw.choice(("", "other", "\x1b[31m", value.name * 100))
            else:
                value.type.tensor_type.elem_type = draw.choice((0, 1, 7, 8, 10, 99))
        case 8:
            value = draw.choice(list(graph.input) + list(graph.output))
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value = draw.choice((0, -1, 1, 2, 2**40, 31))
        case 9:
            if draw.random() < 0.5:
                model.ir_version = draw.choice((0, 1, 3, 99, -1))
            else:
                model.opset_import[0].version = draw.choice((0, 1, 6, 20, 99, -1))
        case 10:
            attributes = list(node.attribute)
            if attributes:
                attribute = draw.choice(attributes)
                attribute.i, attribute.f = draw.choice((*ODD_NUMBERS[:-1], -1)), draw.choice((0.0, -1.0, 1e38))
                del attribute.ints[:]
                attribute.ints.extend(draw.choice(((), (0,), (-1, 2**40), (3, 3, 3, 3, 3))))
        case _:
            place = draw.randrange(len(graph.node))
            if draw.random() < 0.5:
                del graph.node[place]
            else:
                graph.node.insert(0, graph.node[place])
    return bytes(model.SerializeToString(deterministic=True))


def mutate_gzip(draw: random.Random, content: bytes) -> bytes:
    """Return what a download tool may produce: the file compressed again, a web page, a pointer."""
    odd = (
        zlib.compress(content[:4096]), b"\x1f\x8b\x08" + content[:4096],
        b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n",
        b"", b"\0" * 4096, b"PK\5\6" + bytes(18), b"Entry not found", b"GGUF" + bytes(60),
    )  # fmt: skip
    return draw.choice(odd)
