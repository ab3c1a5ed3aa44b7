"""Servers on the loopback address that do what servers do: stop, stay silent, lose packets, begin anew, refuse.

What they send is a file of MPEG-TS at the pace at which it was recorded: once, or again and again, when its time stamps
jump back each time.
"""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PACKET_BYTES = 188
Damage = Callable[[bytes], bytes]


def untouched(block: bytes) -> bytes:
    """No damage."""
    return block


def lost(share: float, seed: int = 0) -> Damage:
    """Some packets do not arrive."""
    draw = random.Random(seed)

    def damage(block: bytes) -> bytes:
        packets = [block[i : i + PACKET_BYTES] for i in range(0, len(block), PACKET_BYTES)]
        return b"".join(packet for packet in packets if draw.random() >= share)

    return damage


def corrupted(share: float, seed: int = 0) -> Damage:
    """Some packets arrive with other bytes behind their header."""
    draw = random.Random(seed)

    def damage(block: bytes) -> bytes:
        found = bytearray(block)
        for start in range(0, len(found), PACKET_BYTES):
            if draw.random() < share:
                found[start + 8 : start + 72] = draw.randbytes(64)
        return bytes(found)

    return damage


class Sender:
    """Sends a transport stream of ``seconds`` at the pace of its bytes; ``pause`` holds it, ``damage`` spoils it.

    ``loop``: again and again, the stamps jumping back each time. ``packets``: that are sent at once.
    """

    def __init__(
        self, path: Path, seconds: float, damage: Damage = untouched, loop: bool = False, packets: int = 1
    ) -> None:
        self._block_bytes = packets * PACKET_BYTES
        self.content, self.seconds, self.damage, self.loop = path.read_bytes(), seconds, damage, loop
        self.paused = threading.Event()
        self.stopped = threading.Event()

    def blocks(self) -> Iterator[bytes]:
        """What is to be sent now, until the end of the stream."""
        blocks = [self.content[i : i + self._block_bytes] for i in range(0, len(self.content), self._block_bytes)]
        pace = self.seconds / len(blocks)
        due = time.monotonic()
        while True:
            for block in blocks:
                while self.paused.is_set() and not self.stopped.is_set():
                    time.sleep(0.01)
                    due = time.monotonic()
                if self.stopped.is_set():
                    return
                time.sleep(max(0.0, due - time.monotonic()))
                due += pace
                yield self.damage(block)
            if not self.loop:
                return


class Server:
    """Listens on a port of the loopback address; each client is handed to ``serve`` in a thread of its own."""

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
        """End at once, with all connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(2)


@contextmanager
def serving(serve: Callable[[socket.socket], None], port: int = 0) -> Iterator[Server]:
    """A server while the block runs."""
    server = Server(serve, port)
    try:
        yield server
    finally:
        server.kill()


def tcp(sender: Sender) -> Callable[[socket.socket], None]:
    """Sends as soon as somebody connects."""

    def serve(connection: socket.socket) -> None:
        for block in sender.blocks():
            connection.sendall(block)

    return serve


def silent(connection: socket.socket) -> None:
    """Takes the connection and never says a word."""
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass


def _request(connection: socket.socket) -> tuple[str, dict[str, str]]:
    """The first line of a request, and its headers by their names in lower case."""
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


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def http(sender: Sender | None, status: int = 200, credentials: str | None = None) -> Callable[[socket.socket], None]:
    """A stream without an end at ``/live.ts``; ``credentials``: who may see it."""

    def serve(connection: socket.socket) -> None:
        _, headers = _request(connection)
        answer = status
        if credentials is not None and headers.get("authorization") != _basic(credentials):
            answer = 401
        if answer != 200 or sender is None:
            more = 'WWW-Authenticate: Basic realm="camera"\r\n' if answer == 401 else ""
            connection.sendall(f"HTTP/1.1 {answer} No\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n")
        for block in sender.blocks():
            connection.sendall(block)

    return serve


_SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 33
a=rtpmap:33 MP2T/90000
a=control:track1
"""


def rtsp(sender: Sender, credentials: str | None = None, known: str = "/live") -> Callable[[socket.socket], None]:
    """An RTSP 1.0 server: a transport stream in RTP, inside of its own connection; there is nothing but ``known``."""

    def serve(connection: socket.socket) -> None:
        sequence = 0
        while True:
            first, headers = _request(connection)
            method, url, _ = first.split(" ")
            more, body, status = "", "", "200 OK"
            if credentials is not None and headers.get("authorization") != _basic(credentials):
                status, more = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
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
    """Sends datagrams to a port, whether anybody listens or not, in a thread that ends with the sender."""

    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            for block in sender.blocks():
                with contextlib.suppress(OSError):
                    connection.sendto(block, ("127.0.0.1", port))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
