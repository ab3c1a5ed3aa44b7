"""Servers on the loopback address with the faults of real servers: they stop, stall, lose packets, restart, refuse.

They send a file of MPEG-TS at the pace at which it was recorded: once, or in a loop. In a loop, the time stamps jump
back each time, or continue. RTMP is in rtmp.py.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.support.transport import PACKET_BYTES, TICKS_HZ, Restamper, begins_picture, packets_of

Scheme = Literal["Basic", "Digest"]
Damage = Callable[[bytes], bytes]


def untouched(block: bytes) -> bytes:
    """Return the block without damage."""
    return block


def lost(share: float, seed: int = 0) -> Damage:
    """Return damage by which some packets do not arrive."""
    draw = random.Random(seed)

    def damage(block: bytes) -> bytes:
        packets = [block[i : i + PACKET_BYTES] for i in range(0, len(block), PACKET_BYTES)]
        return b"".join(packet for packet in packets if draw.random() >= share)

    return damage


def corrupted(share: float, seed: int = 0) -> Damage:
    """Return damage by which some packets have wrong bytes after their header."""
    draw = random.Random(seed)

    def damage(block: bytes) -> bytes:
        found = bytearray(block)
        for start in range(0, len(found), PACKET_BYTES):
            if draw.random() < share:
                found[start + 8 : start + 72] = draw.randbytes(64)
        return bytes(found)

    return damage


def flagged(numbers: Collection[int]) -> Damage:
    """Return damage that flags the pictures of these numbers, as receivers flag packets that they could not repair.

    The flag is set in the packet after which such a picture's data begin again or end. This makes exactly one packet of
    FFmpeg's corrupt for each number, if no two numbers are consecutive.
    """
    seen = [0]

    def damage(block: bytes) -> bytes:
        found = bytearray()
        for packet in packets_of(block):
            if begins_picture(packet):
                packet[1] |= 0x80 * (seen[0] in numbers)
                seen[0] += 1
            found += packet
        return bytes(found)

    return damage


class Sender:
    """Sends a transport stream of ``seconds`` at the pace of its bytes. ``pause`` stops it, ``damage`` damages it.

    ``loop``: repeat the stream; its stamps jump back each time, or with ``goes_on`` continue as if there were no end.
    ``shift_seconds`` is added to the stamps of later packets. ``packets``: how many are sent at once.
    """

    def __init__(
        self,
        path: Path,
        seconds: float,
        damage: Damage = untouched,
        loop: bool = False,
        packets: int = 1,
        goes_on: bool = False,
    ) -> None:
        self._block_bytes = packets * PACKET_BYTES
        self.content, self.seconds, self.damage, self.loop = path.read_bytes(), seconds, damage, loop
        self._goes_on, self.shift_seconds = goes_on, 0.0
        self.paused = threading.Event()
        self.stopped = threading.Event()

    def blocks(self) -> Iterator[bytes]:
        """Yield the blocks to send now, until the end of the stream."""
        blocks = [self.content[i : i + self._block_bytes] for i in range(0, len(self.content), self._block_bytes)]
        pace = self.seconds / len(blocks)
        due = time.monotonic()
        stamps, turn = Restamper(), 0
        while True:
            for block in blocks:
                while self.paused.is_set() and not self.stopped.is_set():
                    time.sleep(0.01)
                    due = time.monotonic()
                if self.stopped.is_set():
                    return
                time.sleep(max(0.0, due - time.monotonic()))
                due += pace
                shift = self.shift_seconds + (turn * self.seconds if self._goes_on else 0.0)
                # A loop without continuing stamps is a hard cut: its counters restart too.
                is_moved = self._goes_on or shift
                yield self.damage(stamps.moved(block, round(shift * TICKS_HZ)) if is_moved else block)
            if not self.loop:
                return
            turn += 1


class Server:
    """Listens on a port of the loopback address. ``serve`` handles each client in a separate thread."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self.port = int(self._socket.getsockname()[1])
        self.clients = 0
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.clients += 1
            self._connections.append(connection)
            threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection)

    def kill(self) -> None:
        """End at once, and close all connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(60)


@contextmanager
def serving(serve: Callable[[socket.socket], None], port: int = 0) -> Iterator[Server]:
    """Run a server during the block."""
    server = Server(serve, port)
    try:
        yield server
    finally:
        server.kill()


def tcp(sender: Sender) -> Callable[[socket.socket], None]:
    """Return a function that sends as soon as a client connects."""

    def serve(connection: socket.socket) -> None:
        for block in sender.blocks():
            connection.sendall(block)

    return serve


def silent(connection: socket.socket) -> None:
    """Accept the connection and never send anything."""
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass


def _request(connection: socket.socket) -> tuple[str, dict[str, str]]:
    """Return the first line of a request, and its headers by their names in lower case."""
    content = b""
    while b"\r\n\r\n" not in content:
        piece = connection.recv(4096)
        if not piece:
            raise OSError("the client has gone")
        content += piece
    lines = content.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    headers |= {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines[1:] if ": " in line}
    return lines[0], headers


_NONCE = "9f86d081884c7d65"


def _challenge(scheme: Scheme) -> str:
    nonce = f', nonce="{_NONCE}"' if scheme == "Digest" else ""
    return f'WWW-Authenticate: {scheme} realm="camera"{nonce}\r\n'


def _is_let_in(method: str, given: str, credentials: str, scheme: Scheme) -> bool:
    if scheme == "Basic":
        return given == "Basic " + base64.b64encode(credentials.encode()).decode()
    user, _, password = credentials.partition(":")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', given))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    # RFC 2069 without qop, as most cameras do it.
    who, what = md5(f"{user}:camera:{password}"), md5(f"{method}:{fields.get('uri')}")
    return fields.get("username") == user and fields.get("response") == md5(f"{who}:{_NONCE}:{what}")


def http(
    sender: Sender | None, status: int = 200, credentials: str | None = None, chunked: bool = False
) -> Callable[[socket.socket], None]:
    """Return a server of an endless stream at ``/live.ts``. ``credentials``: the only ones that have access."""

    def serve(connection: socket.socket) -> None:
        _, headers = _request(connection)
        answer = status
        given = headers.get("authorization", "")
        if credentials is not None and not _is_let_in("GET", given, credentials, "Basic"):
            answer = 401
        if answer != 200 or sender is None:
            more = _challenge("Basic") if answer == 401 else ""
            connection.sendall(f"HTTP/1.1 {answer} No\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        more = "Transfer-Encoding: chunked\r\n" if chunked else ""
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n{more}Connection: close\r\n\r\n".encode())
        for block in sender.blocks():
            if chunked and block:  # an empty chunk would end the stream
                block = f"{len(block):x}\r\n".encode() + block + b"\r\n"
            connection.sendall(block)
        if chunked:
            connection.sendall(b"0\r\n\r\n")

    return serve


_SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 33
a=rtpmap:33 MP2T/90000
a=control:track1
"""


def rtsp(
    sender: Sender, credentials: str | None = None, known: str = "/live", scheme: Scheme = "Basic"
) -> Callable[[socket.socket], None]:
    """Return an RTSP 1.0 server of a transport stream in RTP, inside the RTSP connection. It serves only ``known``."""

    def serve(connection: socket.socket) -> None:
        sequence = 0
        while True:
            first, headers = _request(connection)
            method, url, _ = first.split(" ")
            more, body, status = "", "", "200 OK"
            given = headers.get("authorization", "")
            if credentials is not None and not _is_let_in(method, given, credentials, scheme):
                status, more = "401 Unauthorized", _challenge(scheme)
            elif known not in url:
                status = "404 Not Found"
            elif method == "OPTIONS":
                more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                body = _SDP.replace("\n", "\r\n")
                more = f"Content-Type: application/sdp\r\nContent-Base: {url}/\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            elif method in ("PLAY", "TEARDOWN"):
                more = "Session: 1\r\n"
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            head = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\n{more}{length}\r\n"
            connection.sendall((head + body).encode())
            if method == "TEARDOWN":
                return
            if method == "PLAY" and status.startswith("200"):
                for block in sender.blocks():
                    stamp = int(time.monotonic() * 90_000) & 0xFFFFFFFF
                    packet = struct.pack(">BBHII", 0x80, 33, sequence & 0xFFFF, stamp, 7) + block
                    connection.sendall(struct.pack(">BBH", 0x24, 0, len(packet)) + packet)
                    sequence += 1
                return

    return serve


def send_udp(sender: Sender, port: int) -> threading.Thread:
    """Send datagrams to a port, with or without a listener, in a thread that ends with the sender."""

    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            for block in sender.blocks():
                with contextlib.suppress(OSError):
                    connection.sendto(block, ("127.0.0.1", port))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def free_port() -> int:
    """Return a port that is not in use now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
