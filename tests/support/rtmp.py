"""An RTMP server as small as FFmpeg allows: one application and one stream, sent from a file of FLV.

PyAV passes no options to an output, so its FFmpeg can't listen as the server.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_HANDSHAKE_BYTES = 1536
#: Large enough that none of our messages is split.
_CHUNK_BYTES = 1 << 20
_SET_CHUNK, _WINDOW, _BANDWIDTH, _COMMAND = 1, 5, 6, 20


def rtmp(path: Path, known: str = "x") -> Callable[[socket.socket], None]:
    """Play a file of FLV once, at its pace, to a client that requests the stream ``known``."""
    tags = list(_tags(path.read_bytes()))

    def serve(connection: socket.socket) -> None:
        _exact(connection, 1)
        theirs = _exact(connection, _HANDSHAKE_BYTES)
        # It contains version 0.0.0.0, which selects the handshake without a digest.
        connection.sendall(b"\3" + bytes(_HANDSHAKE_BYTES) + theirs)
        _exact(connection, _HANDSHAKE_BYTES)
        for name, number, content in _commands(connection):
            if name == "connect":
                _send(connection, _WINDOW, struct.pack(">I", 2_500_000))
                _send(connection, _BANDWIDTH, struct.pack(">IB", 2_500_000, 2))
                _send(connection, _SET_CHUNK, struct.pack(">I", _CHUNK_BYTES))
                answer = _amf({"level": "status", "code": "NetConnection.Connect.Success"})
                _send(connection, _COMMAND, _amf("_result", number, {}) + answer)
            elif name == "createStream":
                _send(connection, _COMMAND, _amf("_result", number, None, 1.0))
            elif name == "play":
                is_known = _amf(known) in content
                code = "NetStream.Play.Start" if is_known else "NetStream.Play.StreamNotFound"
                status = {"level": "status" if is_known else "error", "code": code, "description": code}
                _send(connection, _COMMAND, _amf("onStatus", 0.0, None, status), stream=1)
                if is_known:
                    break
        began = time.monotonic()
        for kind, milliseconds, content in tags:
            time.sleep(max(0.0, began + milliseconds / 1000 - time.monotonic()))
            _send(connection, kind, content, milliseconds, stream=1)

    return serve


def _tags(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (kind, time in ms, content) of each tag. The header and each tag are followed by a size in four bytes."""
    place = int.from_bytes(content[5:9], "big") + 4
    while place + 11 <= len(content):
        size = int.from_bytes(content[place + 1 : place + 4], "big")
        stamp = int.from_bytes(content[place + 7 : place + 8] + content[place + 4 : place + 7], "big")
        yield content[place], stamp, content[place + 11 : place + 11 + size]
        place += 11 + size + 4


def _exact(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise OSError("the client has gone")
        content += piece
    return content


def _commands(connection: socket.socket) -> Iterator[tuple[str, float, bytes]]:
    """Yield (name, number, content) of each command. A message comes in chunks, mixed with other messages."""
    chunk_bytes = 128
    headers: dict[int, tuple[int, int]] = {}  # size and kind of the last message of each channel
    parts: dict[int, bytes] = {}
    while True:
        (first,) = _exact(connection, 1)
        form, channel = first >> 6, first & 0x3F
        if form < 3:
            header = _exact(connection, (11, 7, 3)[form])
            if form < 2:
                headers[channel] = int.from_bytes(header[3:6], "big"), header[6]
        size, kind = headers[channel]
        begun = parts.pop(channel, b"")
        begun += _exact(connection, min(chunk_bytes, size - len(begun)))
        if len(begun) < size:
            parts[channel] = begun
        elif kind == _SET_CHUNK:
            chunk_bytes = int.from_bytes(begun, "big")
        elif kind == _COMMAND:
            end = 3 + int.from_bytes(begun[1:3], "big")
            yield begun[3:end].decode(), struct.unpack(">d", begun[end + 1 : end + 9])[0], begun


def _send(connection: socket.socket, kind: int, content: bytes, milliseconds: int = 0, stream: int = 0) -> None:
    channel = 2 if kind < 8 else 3 if kind == _COMMAND else 4
    head = struct.pack(">B", channel) + milliseconds.to_bytes(3, "big") + len(content).to_bytes(3, "big")
    connection.sendall(head + bytes([kind]) + struct.pack("<I", stream) + content)


def _amf(*values: object) -> bytes:
    """Encode strings, numbers, None and dictionaries of strings as AMF0."""
    found = b""
    for value in values:
        if isinstance(value, str):
            found += struct.pack(">BH", 2, len(value)) + value.encode()
        elif isinstance(value, float):
            found += struct.pack(">Bd", 0, value)
        elif isinstance(value, dict):
            pairs = (_amf(name)[1:] + _amf(one) for name, one in value.items())
            found += b"\3" + b"".join(pairs) + b"\0\0\x09"
        else:
            found += b"\5"
    return found
