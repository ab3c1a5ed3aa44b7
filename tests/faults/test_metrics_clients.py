"""The metrics server and its clients: its answers, and protection against hostile clients."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

from teso_deploy.errors import OutputError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.metrics_server import MOST_REQUEST_BYTES, MetricsServer
from teso_deploy.live.runner import LiveRunner, describe_live_run
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.sinks.mask_folder import MaskFolderSink
from tests.support.leaks import nothing_left
from tests.unit.test_live_accounting import HEALTH
from tests.unit.test_live_runner import Camera, has_frames

LIMIT = 4


@pytest.fixture
def accounting() -> Accounting:
    found = Accounting(["cam"])
    found.set_source(0, HEALTH, {})
    return found


@pytest.fixture
def server(accounting: Accounting) -> Iterator[MetricsServer]:
    with nothing_left("teso-metrics"), MetricsServer(":0", accounting, connections=LIMIT) as opened:
        yield opened


def connect(server: MetricsServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=60)


def read_all(client: socket.socket) -> bytes:
    """Return everything that a server sends until it closes, in any way."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            received += more
    return received


def ask(server: MetricsServer, request: bytes, *, ends: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and content of the answer to a request."""
    with connect(server) as client:
        client.sendall(request)
        if ends:
            client.shutdown(socket.SHUT_WR)
        head, _, content = read_all(client).partition(b"\r\n\r\n")
    line, *headers = head.decode("latin-1").split("\r\n")
    return int(line.split()[1]), dict(header.split(": ", 1) for header in headers), content


def test_its_pages(server: MetricsServer, accounting: Accounting) -> None:
    status, headers, content = ask(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# TYPE teso_frames_total counter" in content and int(headers["Content-Length"]) == len(content)
    assert "Server" not in headers, "which versions run here concerns no client"
    status, headers, content = ask(server, b"GET / HTTP/1.1\r\n\r\n")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert b'href="/metrics"' in content and b'href="/health"' in content
    status, headers, content = ask(server, b"GET /health HTTP/1.0\r\n\r\n")
    assert status == 200 and json.loads(content)["streams"][0]["state"] == "running"
    assert set(json.loads(content)["streams"][0]) >= {"latency_ms", "staleness_ms"}
    status, headers, content = ask(server, b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n")
    assert headers["Content-Type"].startswith("application/openmetrics-text") and content.endswith(b"# EOF\n")


def test_a_run_that_is_opening_is_not_well_yet() -> None:
    with (
        MetricsServer(":0", Accounting(["cam"])) as server,
        pytest.raises(urllib.error.HTTPError) as refused,
    ):
        urllib.request.urlopen(f"http://{server.address}/health")
    assert refused.value.code == 503 and json.load(refused.value)["streams"][0]["state"] == "opening"


@pytest.mark.parametrize("path", [b"/", b"/metrics", b"/health"])
def test_head_is_the_answer_without_its_content(server: MetricsServer, path: bytes) -> None:
    status, headers, content = ask(server, b"HEAD " + path + b" HTTP/1.1\r\n\r\n")
    whole = ask(server, b"GET " + path + b" HTTP/1.1\r\n\r\n")
    assert (status, content, headers["Content-Type"]) == (whole[0], b"", whole[1]["Content-Type"])
    assert abs(int(headers["Content-Length"]) - len(whole[2])) < 20  # the seconds in /health increase


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics?name=x HTTP/1.1\r\n\r\n", 200),
        (b"GET http://evil.example/metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\n\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" * 3, 200),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /%2e%2e/etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /<script>%0d%0aSet-Cookie:a=b HTTP/1.1\r\n\r\n", 404),
        (b"GET /\x00\xff HTTP/1.1\r\n\r\n", 404),
        (b"HEAD /none HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx", 405),
        (b"TRACE / HTTP/1.1\r\nX: <script>\r\n\r\n", 405),
        (b"\x1b[31m<script> / HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/9.9\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"\r\n" * 100, 400),
        (b"\x16\x03\x01\x02\x00" + bytes(range(256)) + b"\n\n", 400),
        (b"GET /" + b"a" * 2 * MOST_REQUEST_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: <script>\r\n" * MOST_REQUEST_BYTES, 431),
    ],
    ids=str,
)
def test_what_it_refuses_it_does_not_repeat(server: MetricsServer, request_: bytes, status: int) -> None:
    found, headers, content = ask(server, request_)
    assert found == status
    everything = f"{headers}".encode() + content
    assert not any(part in everything for part in (b"script", b"\x1b", b"evil", b"Cookie", b"etc", b"aaaa"))
    assert ("Allow" in headers) is (status == 405)
    assert ask(server, b"HEAD / HTTP/1.1\r\n\r\n")[0] == 200


def test_a_client_that_ends_too_early(server: MetricsServer) -> None:
    assert ask(server, b"GET /met", ends=True)[0] == 400
    assert ask(server, b"GET /health HTTP/1.1\r\n\r\n", ends=True)[0] == 200


def test_numbers_that_can_not_be_had_are_an_answer_too(server: MetricsServer, accounting: Accounting) -> None:
    accounting.cue_health = lambda: {"source": 1 / 0}
    assert ask(server, b"GET /health HTTP/1.1\r\n\r\n")[0] == 500
    accounting.cue_health = None
    assert ask(server, b"GET /health HTTP/1.1\r\n\r\n")[0] == 200


def test_a_client_that_drips_is_closed_in_time(accounting: Accounting) -> None:
    with MetricsServer(":0", accounting, seconds=0.5) as server, connect(server) as client:
        client.settimeout(0.05)
        for _ in range(200):  # a limit of the pause between two bytes would never end this connection
            try:
                client.sendall(b"G")
                if client.recv(1) == b"":
                    return
            except TimeoutError:
                pass
            except ConnectionError:
                return
        pytest.fail("it was served for ten seconds")


def test_a_client_that_does_not_read_keeps_no_other_out(server: MetricsServer) -> None:
    with ExitStack() as stack:
        for _ in range(3 * LIMIT):
            deaf = stack.enter_context(connect(server))
            deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert ask(server, b"GET /health HTTP/1.1\r\n\r\n")[0] == 200


@contextmanager
def slow_clients(server: MetricsServer, count: int) -> Iterator[list[socket.socket]]:
    """Open clients that have sent half a request."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(count)]
        for client in clients:
            with contextlib.suppress(ConnectionError):  # the server has already closed it
                client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        yield clients


def test_the_oldest_gives_way_to_the_newest(server: MetricsServer) -> None:
    with slow_clients(server, 60) as clients:
        assert ask(server, b"GET /health HTTP/1.1\r\n\r\n")[0] == 200
        for client in clients[: 60 - LIMIT]:
            assert read_all(client) == b"", "the server has closed it"
        for client in clients[1 + 60 - LIMIT :]:
            client.settimeout(0.01)
            with pytest.raises(TimeoutError):
                client.recv(1)


def test_a_run_loses_nothing_to_slow_clients(tiny_bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    camera = Camera(60.0)
    sink = MaskFolderSink(tmp_path / "masks", describe_live_run(pipeline, cast(list[LiveReader], [camera])))
    accounting = Accounting(["cam"])
    taken: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        taken.append(delivery)
        if has_frames(20)(taken):
            runner.stop()

    runner = LiveRunner(
        pipeline, cast(list[LiveReader], [camera]), [sink, CallbackSink(take)], accounting=accounting
    )  # fmt: skip
    before = len(os.listdir("/proc/self/fd"))
    with MetricsServer(":0", accounting, connections=LIMIT) as server, slow_clients(server, 60):
        assert len(os.listdir("/proc/self/fd")) <= before + 60 + LIMIT + 6, "a listener, a loop, and few clients"
        runner.run()
        _, _, content = ask(server, b"GET /health HTTP/1.1\r\n\r\n")
    report = json.loads(content)
    (stream,), masks = report["streams"], report["sinks"]["masks"]
    assert stream["frames"] + sum(stream["drops"].values()) == stream["frames_decoded"] and stream["frames"] > 5
    assert masks["error"] is None and masks["dropped"] == 0
    assert runner.errors() == [] and len(list((tmp_path / "masks").glob("*.png"))) == stream["frames"]


def test_it_goes_on_after_a_time_without_descriptors(server: MetricsServer) -> None:
    client = socket.socket()
    client.settimeout(20)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    host, _, port = server.address.rpartition(":")
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, limits[1]))
        with pytest.raises(OSError) as full:
            while True:
                taken.append(os.dup(client.fileno()))
        assert full.value.errno == errno.EMFILE
        client.connect((host, int(port)))  # by the kernel, because the server has no descriptor left
        client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    client.settimeout(20)
    assert read_all(client).startswith(b"HTTP/1.1 200 OK")
    client.close()


def test_where_it_listens(accounting: Accounting) -> None:
    with MetricsServer(":0", accounting) as server:
        assert server.address.startswith("127.0.0.1:")
        with pytest.raises(OutputError, match="name another port"):
            MetricsServer(server.address, accounting)
        server.close()
        with pytest.raises(OSError):
            connect(server)
    with pytest.raises(OutputError, match="can't serve metrics"):
        MetricsServer("no.such.host.invalid:0", accounting)
    with pytest.raises(OutputError, match="can't serve metrics"):
        MetricsServer(f"{'x' * 70}.example:0", accounting)


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
def test_an_ipv6_address(accounting: Accounting) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6")
    with MetricsServer("[::1]:0", accounting) as server:
        assert server.address.startswith("[::1]:")
        with urllib.request.urlopen(f"http://{server.address}/health") as answer:
            assert answer.status == 200
